"""What a run shows while it lasts: TensorBoard's files and panels. It may be absent, and its failures stop no run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from core.datasets.images import jpeg_bytes, write_png
from core.evaluation.pictures import Painter, bounded
from core.utils.errors import UserError
from core.utils.events import PATTERN, EventFile
from core.utils.files import writing
from core.utils.logging import LOGGER

TENSORBOARD, PANELS = "tensorboard", "panels"  # below OUTPUT_DIR
_PATTERN = "iter*.png"
_SHOWN_WIDTH = 1280  # px of a panel in TensorBoard, as JPEG: its files hold every one of them


class Monitor:
    """Writes below OUTPUT_DIR; its first failure is one line in the log, and then it is silent.

    Args:
        folder: OUTPUT_DIR.
        painter: of the class set.
        period: iterations between two panels; 0: none.
        tensorboard: write TensorBoard's files.
    """

    def __init__(self, folder: Path, painter: Painter, period: int, tensorboard: bool):
        self._folder, self._painter, self._period = folder, painter, period
        self._events = EventFile(folder / TENSORBOARD) if tensorboard else None

    def go_on(self, iteration: int) -> None:
        """The run continues after `iteration`: what was shown of later ones no longer counts."""
        if self._events is not None:
            self._events.go_on(iteration + 1)
        for path in (self._folder / PANELS).glob(_PATTERN):
            if (number := re.fullmatch(r"iter(\d+)", path.stem)) and int(number[1]) > iteration:
                path.unlink(missing_ok=True)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Numbers by their tags, after `iteration`."""
        if self._events is not None:
            with self._optional():
                self._events.scalars(iteration, values)

    def panel_due(self, iteration: int) -> bool:
        return bool(self._period) and iteration % self._period == 0

    def panel(self, iteration: int, title: str, tiles: Sequence[tuple[str, np.ndarray]]) -> None:
        """A panel of iteration `iteration` (see :meth:`Painter.panel`) as a file, and in TensorBoard."""
        picture = self._painter.panel(f"iteration {iteration} · {title}", tiles)
        folder = self._folder / PANELS
        with self._optional():
            with writing(folder):
                folder.mkdir(exist_ok=True)
            write_png(folder / f"iter{iteration:06d}.png", picture)
            if self._events is not None:
                shown = bounded(picture, _SHOWN_WIDTH)
                self._events.image(iteration, "panel", jpeg_bytes(shown), shown.shape[:2])

    @contextmanager
    def _optional(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            LOGGER.info("no more of TensorBoard and panels in this run, which goes on: %s", error)
            self._events, self._period = None, 0


def remove_shown(folder: Path) -> None:
    """Remove what an earlier run in OUTPUT_DIR has shown, and nothing else."""
    for inner, pattern in ((folder / TENSORBOARD, PATTERN), (folder / PANELS, _PATTERN)):
        for path in inner.glob(pattern):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files, or does not exist
            inner.rmdir()
