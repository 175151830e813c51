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
