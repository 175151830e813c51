"""The one exception for what a user can mend; the programs print it as one line and exit with 1."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do, in one line."""


def shorten(items, limit: int = 3) -> str:
    """The first few of many names, for a message: `a, b, c, … (12 in all)`."""
    items = [str(item) for item in items]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown}, … ({len(items)} in all)"
