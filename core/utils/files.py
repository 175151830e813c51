"""Files and folders that are either complete or not there, and tables that grow row by row.

A file is written under a temporary name, synced to disk and renamed; a row is appended and synced, and dropped later if
a crash tore it (:func:`keep_rows`): a crash or a full disk leaves what was there.
"""

import csv
import difflib
import errno
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.utils.errors import UserError, shorten

_LINE_END = "\r\n"  # of the csv module
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)  # as os.path.expandvars sees them


def expanded(path: str, where: str) -> str:
    """A path with `~`, `$NAME` and `${NAME}` replaced as a shell does it.

    Args:
        where: the option that it comes from.
    Raises:
        UserError: a variable is not set, and nothing has that very name, `$` included.
    """
    try:
        found = os.path.expandvars(os.path.expanduser(path))
        unknown = [name for name in _VARIABLE.findall(path) if name.strip("{}") not in os.environ]
    except ValueError:  # no user and no variable can have such a name
        return path
    if unknown and not os.path.lexists(found):
        raise UserError(f"{where} {path}: the variable ${unknown[0]} is not set; `export` it, or write the path out")
    return found


@contextmanager
def open_regular(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading; a pipe is not waited for. Raises OSError, also for what is no regular file."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        yield file


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an error of the operating system (a full disk, say) into a UserError that names `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = error if isinstance(error, OSError) else error.__context__  # torch.save: an error upon the error
        if not isinstance(refused, OSError):
            raise
        reason = refused.strerror or refused
        raise UserError(f"{path} cannot be written ({reason}); what was there before is untouched") from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and takes the place of `path`.

    Raises:
        UserError: the disk is full, or whatever else keeps it from being written; `path` is then as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")  # a name may have 255 bytes already
    with writing(path):
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """:func:`replacing` for a folder: yields an empty one, `<path>.partial`, whose files are synced in the end."""
    path = Path(path)
    partial, old = partial_path(path), path.with_name(f"{path.name}.old.partial")
    try:
        with writing(path):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        yield partial
        with writing(path):
            for inner in [*partial.rglob("*"), partial]:
                _sync(inner)
            if path.exists():
                path.replace(old)
            partial.replace(path)
            _sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def partial_path(path: Path) -> Path:
    """Where :func:`replacing_folder` makes a folder."""
    return path.with_name(f"{path.name}.partial")


def remove_leftovers(folder: str | Path) -> None:
    """Remove what a crash left behind in :func:`replacing` and :func:`replacing_folder`."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)
    for path in Path(folder).glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text`, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value) -> None:
    """Write `value` as JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False))


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


def near(path: str | Path, pattern: str) -> str:
    """For the message that a file does not exist: that its folder does not either, or which file may be meant.

    Args:
        pattern: of the files in question, as `*.yaml`.
    """
    path = Path(path)
    if not os.path.isdir(path.parent):
        return f" (nor does its folder {path.parent})"
    return meant(path, pattern)


def meant(path: str | Path, pattern: str) -> str:
    """For the message that a path leads nowhere: which one beside it, of those that match, may be meant."""
    path = Path(path)
    found = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob(pattern)], n=1)
    return f"; did you mean {path.parent / found[0]}?" if found else ""


def refuse_existing(paths: Iterable[str | Path], remedy: str) -> None:
    """Raise UserError if any of them is there, even as a link to nothing; `remedy` says what to do."""
    existing = [path for path in paths if os.path.lexists(path)]
    if existing:
        raise UserError(f"already there: {shorten(existing)}; {remedy}")


class Table:
    """A CSV file with fixed columns to which rows are appended; every row is on disk once :meth:`append` returns.

    Args:
        path: of the file.
        columns: its header.
        keep: go on with the rows of a file that is there already, after :func:`keep_rows`; False: begin it anew. Where
            an earlier version wrote it, with fewer columns, its rows stay empty in the new ones, which come last.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], keep: bool = False):
        self.path, self.columns = Path(path), tuple(columns)
        if not (keep and self.path.exists()):
            write_text(self.path, _csv_line(self.columns))
            return
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            header, *rows = [*csv.reader(file)] or [()]
        if 0 < len(header) < len(self.columns) and tuple(header) == self.columns[: len(header)]:
            new = [""] * (len(self.columns) - len(header))
            write_text(self.path, "".join(map(_csv_line, (self.columns, *(row + new for row in rows)))))

    def append(self, row: dict) -> None:
        """Add one row; a column that is missing from it stays empty. Raises ValueError for an unknown column."""
        unknown = row.keys() - set(self.columns)
        if unknown:
            raise ValueError(f"{self.path}: no column {', '.join(sorted(unknown))}")
        line = _csv_line([row.get(column, "") for column in self.columns]).encode()
        with writing(self.path), open(self.path, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if os.write(file.fileno(), line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise


def keep_rows(path: str | Path, wanted: Callable[[dict], bool]) -> list[dict]:
    """Drop the rows of a CSV that are not `wanted`, and what a crash left of a last row that it tore.

    Returns:
        the rows that stay; none where there is no such file.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return []
    whole = text[: text.rfind(_LINE_END) + len(_LINE_END)] if _LINE_END in text else ""
    reader = csv.DictReader(io.StringIO(whole, newline=""))
    rows = list(reader)
    kept = [row for row in rows if wanted(row)]
    if len(kept) < len(rows) or whole != text:
        columns = reader.fieldnames or ()
        write_text(path, "".join(_csv_line(line) for line in [columns, *([row[c] for c in columns] for row in kept)]))
    return kept


def _csv_line(values: Sequence) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
