"""Tables of a run, read while it may be writing to them."""

import csv
import io
from pathlib import Path


def read_table(path: Path) -> list[dict[str, str]]:
    """The whole rows of a CSV; empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
    return [row for row in rows if None not in row and None not in row.values()]


def last_iteration(path: Path) -> int:
    """Of the last row of a table over time, as far as the run has told; 0 before there is one."""
    rows = read_table(path)
    return int(rows[-1]["iteration"]) if rows else 0


def row_of(path: Path, iteration: int) -> dict[str, str] | None:
    """The last row of a table over time that is of that iteration; None where there is none."""
    return next((row for row in reversed(read_table(path)) if int(row["iteration"]) == iteration), None)
