"""Log lines to the terminal and the run's log file, details to the latter only, and progress bars."""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from core.utils import distributed
from core.utils.errors import one_line
from core.utils.streams import Forgiving, fall_silent, reader_is_gone

LOGGER = logging.getLogger("dtst")
_KEPT = 1000  # records, until there is a file


class _OneLine(logging.Formatter):
    """A record as one line: the names in it may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class _Earlier(logging.Handler):
    """Keeps the first records, for a file that there is not yet."""

    def __init__(self):
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.records) < _KEPT:
            self.records.append(record)


class _TerminalHandler(logging.StreamHandler):
    """Writes around a progress bar instead of through it.

    Args:
        alone: no file has the same lines: that nobody reads them is an error. Else they then go nowhere.
    """

    def __init__(self, alone: bool):
        super().__init__()
        self._alone = alone

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            if self._alone or not reader_is_gone(error):
                raise
            fall_silent(sys.stdout)


def start_logging(file: str | Path | None = None) -> None:
    """Log to the terminal, and to `file` (appended) when given; replaces what an earlier call set up.

    A file also gets what was logged since an earlier call without one, the first 1000 lines. What is logged with level
    DEBUG goes to the file only. Of several processes only the main one logs.
    """
    earlier = [record for handler in LOGGER.handlers if isinstance(handler, _Earlier) for record in handler.records]
    stop_logging()
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    if not distributed.is_main():
        LOGGER.addHandler(logging.NullHandler())
        return
    terminal = _TerminalHandler(alone=file is None)
    terminal.setLevel(logging.INFO)
    kept = _Earlier() if file is None else logging.FileHandler(file, encoding="utf-8")
    for handler in (terminal, kept):
        handler.setFormatter(_OneLine("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        LOGGER.addHandler(handler)
    for record in earlier:
        kept.handle(record)


def stop_logging() -> None:
    """Close and remove the handlers, and leave the logger as any other."""
    for handler in list(LOGGER.handlers):
        handler.close()
        LOGGER.removeHandler(handler)
    LOGGER.propagate = True


def progress(items: Iterable, description: str, total: int | None = None) -> Iterable:
    """A progress bar around `items`, on a terminal only; of several processes, the main one's."""
    shown = distributed.is_main() and sys.stderr.isatty()
    bar = Forgiving(sys.stderr)
    return tqdm(items, desc=description, total=total, leave=False, disable=not shown, file=bar)
