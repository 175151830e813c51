"""What a run shows while it lasts: TensorBoard's files and panels. It may be absent, and its failures stop no run."""

import importlib.util
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.datasets.images import write_png
from core.evaluation.pictures import Painter, bounded
from core.runs.folder import PANELS, SHOWN, TENSORBOARD
from core.utils.errors import UserError, one_line
from core.utils.files import writing
from core.utils.logging import LOGGER

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SHOWN_WIDTH = 960  # px of a picture in TensorBoard, whose files hold every one of them


def tensorboard_is_there() -> bool:
    """Whether the package is; it is imported with the first record."""
    return importlib.util.find_spec("tensorboard") is not None


class Monitor:
    """Writes below OUTPUT_DIR; its first failure is one line in the log, and then it is silent.

    Args:
        folder: OUTPUT_DIR.
        painter: of the class set.
        period: iterations between two panels; 0: none.
        tensorboard: write TensorBoard's files.
    """

    def __init__(self, folder: Path, painter: Painter, period: int, tensorboard: bool):
        self._folder, self._painter, self._period, self._tensorboard = folder, painter, period, tensorboard
        self._first: int | None = None  # step from which earlier files no longer count
        self._writer = None  # torch's SummaryWriter, made with the first record

    def go_on(self, iteration: int) -> None:
        """The run continues after `iteration`: what was shown of later ones no longer counts."""
        self._first = iteration + 1
        for path in (self._folder / PANELS).glob(SHOWN[PANELS]):
            if (number := re.fullmatch(r"iter(\d+)", path.stem)) and int(number[1]) > iteration:
                path.unlink(missing_ok=True)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Numbers by their tags, after `iteration`."""
        with self._optional():
            writer = self._open()
            if writer is not None:
                for tag, value in values.items():
                    writer.add_scalar(one_line(tag), value, iteration)
                writer.flush()

    def panel_due(self, iteration: int) -> bool:
        """Whether :meth:`panel` is wanted of iteration `iteration`."""
        return bool(self._period) and iteration % self._period == 0

    def panel(self, iteration: int, title: str, tiles: Sequence[tuple[str, np.ndarray]]) -> None:
        """A panel of iteration `iteration` (see :meth:`Painter.panel`) as a file, and in TensorBoard."""
        picture = self._painter.panel(f"iteration {iteration} · {title}", tiles)
        folder = self._folder / PANELS
        with self._optional():
            with writing(folder):
                folder.mkdir(exist_ok=True)
            write_png(folder / f"iter{iteration:06d}.png", picture)
        self.picture(iteration, "panel", picture)

    def picture(self, iteration: int, tag: str, picture: np.ndarray) -> None:
        """H×W×3 uint8 after `iteration` in TensorBoard."""
        with self._optional():
            writer = self._open()
            if writer is not None:
                writer.add_image(tag, bounded(picture, _SHOWN_WIDTH), iteration, dataformats="HWC")
                writer.flush()

    @contextmanager
    def _optional(self) -> Iterator[None]:
        try:
            with writing(self._folder / TENSORBOARD):
                yield
        except UserError as error:
            LOGGER.info("no more of TensorBoard and panels in this run, which goes on: %s", error)
            self._tensorboard, self._period = False, 0

    def _open(self) -> "SummaryWriter | None":
        if self._tensorboard and self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except Exception as error:  # protobuf of another version, say, which raises what it likes
                raise UserError(f"the package tensorboard cannot be imported ({error}); install it anew") from error
            self._writer = SummaryWriter(self._folder / TENSORBOARD, purge_step=self._first)
            threading.excepthook = partial(_without_writers, threading.excepthook)
        return self._writer if self._tensorboard else None


def _without_writers(report: Callable, error: threading.ExceptHookArgs) -> None:
    """For TensorBoard's thread, whose error is raised again, and said, at the next record."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        report(error)
