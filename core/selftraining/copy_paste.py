"""Copy-paste of consistent instances of rare classes into a student view (DT-ST §3.3, method §6)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from core.datasets.taxonomy import IGNORE
from core.datasets.transforms import nearest_index, nearest_labels

MIN_INSTANCE_PIXELS = 20
MAX_SCALE = 2.5
MAX_TRIES = 100


@dataclass(frozen=True)
class Box:
    """Axis-aligned box in pixels, lower edges included, upper ones not."""

    y: int
    x: int
    height: int
    width: int

    def holds(self, y: int, x: int) -> bool:
        return self.y <= y < self.y + self.height and self.x <= x < self.x + self.width

    @property
    def region(self) -> tuple[slice, slice]:
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


def paste_probabilities(running_conf: Sequence[float], classes: Sequence[int], mode: str) -> tuple[float, ...]:
    """Draw probability of every paste class, ∝ 1 − running confidence (`mode` "confidence"), or all equal ("uniform").

    Args:
        running_conf: C floats.
        classes: indices of the paste classes.
    Returns:
        one float per entry of `classes`, adding up to 1; all equal where no class is short of confidence.
    """
    weights = np.ones(len(classes))
    if mode == "confidence":
        weights = np.maximum(1 - np.asarray(running_conf, np.float64)[list(classes)], 0)
        if not weights.sum() > 0:
            weights = np.ones(len(classes))
    return tuple((weights / weights.sum()).tolist()) if len(classes) else ()


def cut_instances(image: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """8-connected pieces of the pixels of `classes`, those under 20 pixels left out.

    Args:
        image: H×W×3 uint8.
        labels: h×w uint8, 255 = none; of another size than the image, they are resized to it by the nearest rule.
        classes: the drawn class and its partners.
    Returns:
        (bounding box of the image, labels in it, 255 outside the piece) per piece.
    """
    if labels.shape[0] > image.shape[0] or labels.shape[1] > image.shape[1]:
        labels = nearest_labels(labels, image.shape[:2])
    # enlarging leaves connected what is connected, so that the pieces can be found in the small
    rows, columns = (nearest_index(n, m) for n, m in zip(labels.shape, image.shape[:2], strict=True))
    wanted = np.zeros(256, np.uint8)
    wanted[list(classes)] = 1
    mask = cv2.LUT(labels, wanted)
    x, y, width, height = cv2.boundingRect(mask)
    if not width:
        return []
    part = Box(y, x, height, width).region
    labels, rows, columns = labels[part], rows - y, columns - x
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask[part], connectivity=8)
    cut = []
    for piece, (x, y, width, height, _) in enumerate(stats[1:].tolist(), start=1):
        small = Box(y, x, height, width).region
        of_piece = np.where(pieces[small] == piece, labels[small], np.uint8(IGNORE))
        region = slice(*np.searchsorted(rows, (y, y + height))), slice(*np.searchsorted(columns, (x, x + width)))
        of_piece = of_piece[np.ix_(rows[region[0]] - y, columns[region[1]] - x)]
        if np.count_nonzero(of_piece != IGNORE) >= MIN_INSTANCE_PIXELS:
            cut.append((image[region], of_piece))
    return cut


def paste_instances(
    view: np.ndarray, instances: Sequence[tuple[np.ndarray, np.ndarray]], drawn_class: int, rng: np.random.Generator
) -> np.ndarray:
    """Rescale every instance, find it a place and copy its pixels over the view.

    Args:
        view: h×w×3 uint8, written to.
        instances: of :func:`cut_instances`.
        drawn_class: the class whose single-class instances draw partner instances to them.
        rng: the only source of randomness.
    Returns:
        h×w uint8: the labels of the pasted pixels, 255 elsewhere.
    """
    pasted = np.full(view.shape[:2], IGNORE, np.uint8)
    boxes: list[Box] = []
    anchors: list[Box] = []  # instances of the drawn class alone
    for image, labels in instances:
        rows, columns = _nearest_grid(labels.shape, rng.uniform(1, MAX_SCALE))
        height, width = len(rows), len(columns)
        if height >= view.shape[0] or width >= view.shape[1]:
            continue
        held = set(np.unique(labels).tolist()) - {IGNORE}
        box = _find_place((height, width), view.shape[:2], boxes, [] if drawn_class in held else anchors, rng)
        if box is None:
            continue
        boxes.append(box)
        if held == {drawn_class}:
            anchors.append(box)
        scaled = labels[np.ix_(rows, columns)]
        shown = scaled != IGNORE
        np.copyto(view[box.region], image[rows][:, columns], where=shown[..., None])
        np.copyto(pasted[box.region], scaled, where=shown)
    return pasted


def _nearest_grid(size: tuple[int, int], scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that a nearest-neighbour enlargement of h×w by `scale`, to rounded numbers of them, reads."""
    rows, columns = (np.arange(round(n * scale)) * n // round(n * scale) for n in size)
    return rows, columns


def _find_place(
    size: tuple[int, int], view: tuple[int, int], boxes: Sequence[Box], anchors: Sequence[Box], rng: np.random.Generator
) -> Box | None:
    for _ in range(MAX_TRIES):
        if anchors:
            anchor = anchors[rng.integers(len(anchors))]
            y = anchor.y + int(rng.integers(anchor.height))
            x = anchor.x + int(rng.integers(anchor.width))
            if y + size[0] <= view[0] and x + size[1] <= view[1]:
                return Box(y, x, *size)
        y = int(rng.integers(view[0] - size[0] + 1))
        x = int(rng.integers(view[1] - size[1] + 1))
        if not any(box.holds(y, x) or box.holds(y + size[0] - 1, x + size[1] - 1) for box in boxes):
            return Box(y, x, *size)
    return None
