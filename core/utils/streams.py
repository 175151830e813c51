"""Standard output and error where people have them: terminals of any encoding, pipes and sessions whose reader goes."""

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TextIO


def take_any_character() -> None:
    r"""Have both streams write what their encoding lacks as \u2026 and the like, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def reader_is_gone(error: BaseException) -> bool:
    """Whether a write failed because nobody reads: a closed pipe, or the terminal of a session that has ended."""
    return isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO)


def fall_silent(stream: TextIO) -> None:
    """From now on what is written to a stream, and what waits in it to be written, goes nowhere."""
    with suppress(OSError, ValueError, AttributeError):  # a stream without a file needs nothing
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Forgiving:
    """A stream for what is only to be looked at, such as a progress bar: where its reader has gone, silence."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or fall silent."""
        self._try(lambda: self._stream.write(text))

    def flush(self) -> None:
        """Flush, or fall silent."""
        self._try(self._stream.flush)

    def _try(self, action) -> None:
        try:
            action()
        except OSError as error:
            if not reader_is_gone(error):
                raise
            fall_silent(self._stream)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same stream: tqdm asks, to write around its bars."""
        return self._stream is getattr(other, "_stream", other)

    def __hash__(self) -> int:
        return hash(self._stream)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
