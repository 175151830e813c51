"""Images that turn out to be bad in the middle of a run, and doing without some of them (SKIP_BAD_IMAGES)."""

from collections.abc import Sequence
from pathlib import Path

from core.utils import distributed
from core.utils.errors import UserError
from core.utils.logging import LOGGER


class BadImage(UserError):
    """An image, label or video file that is missing, broken, or not what its data set says.

    Args:
        message: the one line.
        path: of the file.
    """

    def __init__(self, message: str, path: str | Path):
        super().__init__(message)
        self.path = str(path)

    def __reduce__(self):
        return type(self), (str(self), self.path)


class SkippedImages:
    """The bad images of one run, shared by all that read the same set.

    The processes that make samples note what they did without; the main process counts, each file once. Of several
    main processes (:mod:`core.utils.distributed`) each holds back what it counts until :meth:`settle`.

    Args:
        limit: how many files a run may do without.

    Attributes:
        paths: of the files counted so far.
    """

    def __init__(self, limit: int = 0):
        self.limit = limit
        self.paths: list[str] = []
        self._noted: list[tuple[str, str]] = []
        self._held_back: list[tuple[str, str]] = []

    def tolerate(self, error: BadImage) -> None:
        """Note the bad image. Raises it where none may be skipped, or where one sample alone met more than may be."""
        if not self.limit:
            raise error
        self._noted.append((error.path, str(error)))
        if len(self._noted) > self.limit:
            raise error

    def take(self) -> list[tuple[str, str]]:
        """(path, message) of all that was noted since the last call."""
        noted, self._noted = self._noted, []
        return noted

    def count(self, noted: Sequence[tuple[str, str]]) -> None:
        """Count and log what samples noted.

        Raises:
            UserError: that is more than the limit.
        """
        if distributed.count() > 1:
            self._held_back += noted
        else:
            self._count(noted)

    def settle(self) -> None:
        """Count what the processes of the job hold back, the same in all of them; all call it."""
        if self.limit and distributed.count() > 1:
            held_back, self._held_back = self._held_back, []
            self._count(distributed.joined(held_back))

    def _count(self, noted: Sequence[tuple[str, str]]) -> None:
        for path, message in noted:
            if path in self.paths:
                continue
            if len(self.paths) >= self.limit:
                skipped = f"{len(self.paths)} bad image{'s' if len(self.paths) > 1 else ''}"
                raise UserError(f"{message} ({skipped} skipped before it: DATALOADER.SKIP_BAD_IMAGES {self.limit})")
            self.paths.append(path)
            LOGGER.info("skipped a bad image, %d of at most %d: %s", len(self.paths), self.limit, message)
