"""Files that are either complete or not there, and tables that grow row by row."""

import csv
import json
import os
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from core.utils.errors import UserError


@contextmanager
def replacing(path: str | Path):
    """Yield a temporary path beside `path`; on success it is synced to disk and takes the place of `path`."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value) -> None:
    """Write `value` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_folder(path: str | Path, key: str) -> Path:
    """Make a folder that will be written to; `key` names the option that it comes from.

    Raises:
        UserError: it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key} {path} cannot be written to ({error.strerror}); choose another folder") from None
    return path


class Table:
    """A CSV file with fixed columns to which rows are appended; every row is on disk once :meth:`append` returns."""

    def __init__(self, path: str | Path, columns: Sequence[str]):
        self.path, self.columns = Path(path), tuple(columns)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(self.columns)

    def append(self, row: dict) -> None:
        """Add one row; a column that is missing from it stays empty. Raises ValueError for an unknown column."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)
