"""Two models over the same images: as tools.predict's studio, with a picture of both and of what changed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.datasets.reader import ImageSet
from core.evaluation.pictures import Painter, bounded
from core.evaluation.predictor import evaluating
from tools.compare.changes import Changes
from tools.pages import jpeg_bytes
from tools.predict.studio import Series, Shot, Studio

KIND = "comparison"  # of picture: the only one
LONGEST = 720  # px, at most, of a tile's longer side
_ON_PAGE = 480  # px, at most, of a tile's width on the page


@dataclass(frozen=True)
class Compared(Shot):
    """A shot (of the adapted model) with its title and its captioned pictures."""

    title: str
    tiles: list[tuple[str, np.ndarray]]


class ComparingStudio(Studio):
    """Predicts with both models and draws.

    Args:
        config: a whole config.
        models: source and adapted, on their device, by their titles.
        painter: draws pictures.
        changes: is told of every image.
        note: is called with every image's title and share of changed pixels (percent).
    """

    def __init__(
        self,
        config,
        models: dict[str, nn.Module],
        painter: Painter,
        changes: Changes,
        note: Callable[[str, float], None],
    ):
        self._titles, (self._source, adapted) = [*models], models.values()
        super().__init__(config, adapted, painter, flip=False, multi_scale=False)
        self._changes, self._note, self._series, self._number = changes, note, None, 0

    def run(self, series: Series) -> int:
        """As :meth:`Studio.run`."""
        self._series = series.source
        self._number += not isinstance(series.source, ImageSet)  # 0: images, then the videos
        return super().run(series)

    def _shots(self, batches: Iterable[dict], confidence: bool) -> Iterator[Compared]:
        models = (self._source, self._model)
        with torch.inference_mode(), evaluating(self._source), evaluating(self._model):
            for batch in batches:
                readings = [self._predictor.predict(model, batch, flip=False) for model in models]
                for index, image, *both in zip(batch["index"], batch["image"], *readings, strict=True):
                    (before, _), (after, _) = (reading() for reading in both)
                    yield self._compared(index, image, before, after)

    def _compared(self, index: int, image: np.ndarray, before: np.ndarray, after: np.ndarray) -> Compared:
        share = 100 * float((before != after).mean())
        title, tiles = self._title(index), self._tiles(image, before, after, share)

        def views() -> list[tuple[str, bytes]]:
            words = ("source", "adapted", "image", "changed")
            return [(word, jpeg_bytes(bounded(tile, _ON_PAGE))) for word, (_, tile) in zip(words, tiles, strict=True)]

        self._changes.add(self._number, index, title, before, after, views)
        self._note(title, share)
        return Compared(index, image, after, None, title, tiles)

    def _tiles(
        self, image: np.ndarray, before: np.ndarray, after: np.ndarray, share: float
    ) -> list[tuple[str, np.ndarray]]:
        width = round(image.shape[1] * min(LONGEST / max(image.shape), 1)) or 1
        small = bounded(image, width)
        one, other = (bounded(classes, width, nearest=True) for classes in (before, after))
        source, adapted = (f"{word}: {title}" for word, title in zip(("source", "adapted"), self._titles, strict=True))
        return [
            (source, self._painter.overlay(small, one)),
            (adapted, self._painter.overlay(small, other)),
            ("image", small),
            (f"changed: {share:.1f} % of the pixels, in their new colour", self._painter.changed(small, one, other)),
        ]

    def _title(self, index: int) -> str:
        if isinstance(self._series, ImageSet):
            return self._series.names[index]
        return f"{self._series.name}, frame {index}"

    def _draw(self, kind: str, shot: Compared) -> np.ndarray:
        return self._painter.panel(shot.title, shot.tiles, columns=2)
