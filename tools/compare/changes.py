"""What adaptation changed, over all images: how many pixels, what became what, and the images that it changed most."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from core.evaluation.metrics import joint_counts

NEAR = 50  # frames: of those of a video that are nearer to each other, the page shows one
Views = list[tuple[str, bytes]]  # captions and JPEG files


class Shown(NamedTuple):
    """An image of the page."""

    share: float
    series: int
    index: int
    title: str
    views: Views


class Changes:
    """Adds up; memory does not grow with the images, but for a number each.

    Args:
        names: of the classes.
        keep: how many of the images that changed most to keep pictures of.

    Attributes:
        shares: percent of each image's pixels whose class changed.
    """

    def __init__(self, names: Sequence[str], keep: int):
        self.names, self._keep = names, keep
        self.shares: list[float] = []
        self._pixels = np.zeros((len(names), len(names)), np.int64)  # by the source model's class, the adapted one's
        self._shown: list[Shown] = []

    def add(
        self, series: int, index: int, title: str, before: np.ndarray, after: np.ndarray, draw: Callable[[], Views]
    ) -> None:
        """Note an image.

        Args:
            series, index: the images or video that it belongs to, and its place there.
            before, after: H×W uint8 class indices.
            draw: makes its pictures, if it is among those that changed most so far.
        """
        share = 100 * float((before != after).mean())
        self.shares.append(share)
        count = len(self.names)
        self._pixels += joint_counts(before, after)[:count, :count]
        near = [one for one in self._shown if one.series == series and index - one.index < NEAR] if series else []
        full = len(self._shown) >= self._keep
        rival = near[0] if near else min(self._shown, default=None) if full else None
        if not share or not self._keep or (rival and rival.share >= share):
            return
        if rival:
            self._shown.remove(rival)
        self._shown.append(Shown(share, series, index, title, draw()))

    @property
    def shown(self) -> list[Shown]:
        """The images that changed most, the extreme first."""
        return sorted(self._shown, key=lambda one: -one.share)

    def became(self, count: int) -> list[tuple[str, str, float, float]]:
        """The `count` largest changes: from, to, percent of all pixels, percent of the first class's pixels."""
        changed = self._pixels * (1 - np.eye(len(self.names), dtype=np.int64))
        order = np.argsort(-changed, axis=None, kind="stable")[:count]
        total, of_class = max(self._pixels.sum(), 1), self._pixels.sum(axis=1)
        pairs = [np.unravel_index(place, changed.shape) for place in order]
        return [
            (self.names[i], self.names[j], 100 * changed[i, j] / total, 100 * changed[i, j] / of_class[i])
            for i, j in pairs
            if changed[i, j]
        ]

    def class_shares(self) -> list[tuple[str, float, float]]:
        """Name, percent of all pixels before and after, of every class."""
        total = max(self._pixels.sum(), 1)
        before, after = (100 * self._pixels.sum(axis=axis) / total for axis in (1, 0))
        return list(zip(self.names, before.tolist(), after.tolist(), strict=True))
