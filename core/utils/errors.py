"""The one exception for what a user can mend; the programs print it as one line and exit with 1."""

import os
import shlex
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do, in one line."""

    def __init__(self, message: object = ""):
        super().__init__(one_line(message))


class Correctable(UserError):
    """Bad words of a command, which the programs show put right.

    Attributes:
        correct: the arguments of a command → those that are meant; None where they do not show which.
    """

    def __init__(self, message: object, correct: Callable[[list[str]], list[str] | None]):
        super().__init__(message)
        self.correct = correct


def replaced(words: list[str], wrong: list[str], right: list[str]) -> list[str] | None:
    """Words with a run of them replaced where it stands last; None where it does not stand there."""
    for start in range(len(words) - len(wrong), -1, -1):
        if words[start : start + len(wrong)] == wrong:
            return [*words[:start], *right, *words[start + len(wrong) :]]
    return None


def one_line(text: object) -> str:
    """`text` with line breaks, escape codes and whatever else does not print written out, as Python writes them.

    A file's name may hold them, and must neither break a line nor steer a terminal.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shorten(items, limit: int = 3) -> str:
    """The first few of many names, for a message: `a, b, c, … (12 in all)`."""
    items = [one_line(item) for item in items]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"


def shown(value: object, length: int = 60) -> str:
    """A value for a message, cut to `length` characters."""
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def as_shell(words: Iterable[object]) -> str:
    """A command as a shell takes it, in one line."""
    return " ".join(_quoted(str(word)) for word in words)


def _quoted(word: str) -> str:
    """A word of a command; with $'…', which bash and zsh know, where it would not be one line."""
    if word.isprintable():
        return shlex.quote(word)
    special = (c for c in set(word) if not c.isprintable() or c in "\\'")
    escaped = {ord(c): "".join(f"\\x{byte:02x}" for byte in os.fsencode(c)) for c in special}
    return f"$'{word.translate(escaped)}'"
