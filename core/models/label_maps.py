"""Label maps at an image's own size from stride-8 logits: plainly on a GPU, on the CPU only where classes meet."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from core.models.deeplab import resize_logits
from core.utils.devices import copy_to_host

_CACHE_BYTES = 1 << 20  # of values worked on at a time: what stays in a core's cache


class _Cells(NamedTuple):
    """The n intervals of one axis of a grid (the last one is its end point), and the pixels that a resize puts there.

    Attributes:
        pixels: k×n positions; an interval with fewer than k pixels names its last one again.
        weights: k×n, of the upper neighbour in each of these pixels.
        upper: n neighbours.
        filled: n bool, False where there is no pixel.
        of_pixel: the interval of every pixel.
    """

    pixels: np.ndarray
    weights: np.ndarray
    upper: np.ndarray
    filled: np.ndarray
    of_pixel: np.ndarray

    @classmethod
    def of(cls, length: int, resized: int, align_corners: bool) -> "_Cells":
        """Of an axis of `length` points."""
        if align_corners:
            position = np.arange(resized) * ((length - 1) / (resized - 1) if resized > 1 else 0.0)
        else:  # before the first point, and behind the last one, its value
            position = np.maximum((np.arange(resized) + 0.5) * (length / resized) - 0.5, 0)
        lower = np.minimum(position.astype(np.int64), length - 1)
        points = np.arange(length)
        first, end = np.searchsorted(lower, points), np.searchsorted(lower, points, side="right")
        pixels = first + np.arange((end - first).max())[:, None]
        pixels = np.clip(pixels, 0, np.maximum(end - 1, 0))
        return cls(pixels, position[pixels] - points, np.minimum(points + 1, length - 1), end > first, lower)


def label_map(logits: torch.Tensor, size: tuple[int, int], align_corners: bool = True) -> Callable[[], np.ndarray]:
    """The class of the largest logit after a bilinear resize of C×h×w logits to `size` (H, W).

    Args:
        align_corners: as :func:`core.models.deeplab.resize_logits` takes it.
    Returns:
        a function for any thread that gives H×W uint8 on the host. On the CPU it does the work; on a GPU that is queued
        by now, and the function waits for its copy.
    """
    if logits.device.type == "cpu":
        return partial(winning_labels, logits, size, align_corners)
    copied = copy_to_host(resize_logits(logits[None], size, align_corners)[0].argmax(dim=0).to(torch.uint8))
    return lambda: copied().numpy()


@torch.inference_mode()
def winning_labels(logits: torch.Tensor, size: tuple[int, int], align_corners: bool = True) -> np.ndarray:
    """What :func:`label_map` gives, of C×h×w logits on the CPU.

    A pixel is a convex combination of the four logits around it: where one class is the largest in all four, it is the
    largest in the pixel. So only the other cells of the grid are interpolated, which are few in a scene, and of these
    only the classes that may win in the cell, which are two or three.

    Returns:
        H×W uint8.
    """
    rows, columns = (_Cells.of(n, length, align_corners) for n, length in zip(logits.shape[1:], size, strict=True))
    largest = first_largest(logits).numpy()
    below, beside = largest[rows.upper], largest[:, columns.upper]
    pure = (largest == below) & (largest == beside) & (largest == below[:, columns.upper])
    labels = largest.take(columns.of_pixel, axis=1).take(rows.of_pixel, axis=0)
    row, column = np.nonzero(~pure & rows.filled[:, None] & columns.filled)
    if not len(row):
        return labels
    corners = _corners(logits, rows, columns, row, column)
    possible = _possible(corners)
    counts = possible.sum(0).numpy()
    pixels = len(rows.pixels) * len(columns.pixels) * logits.element_size()
    for count in np.unique(counts[counts > 0]):  # 0: not a number
        cells = np.flatnonzero(counts == count)
        step = max(_CACHE_BYTES // (pixels * int(count)), 1)
        for start in range(0, len(cells), step):
            part = cells[start : start + step]
            places = rows.pixels[:, None, row[part]], columns.pixels[:, column[part]]
            index = torch.from_numpy(part)
            classes = possible[:, index].T.nonzero()[:, 1].view(len(part), count).T
            values = corners[:, classes, index]
            down, across = (
                torch.from_numpy(weights).to(logits.dtype)
                for weights in (rows.weights[:, None, row[part]], columns.weights[:, column[part]])
            )
            labels[places] = _interpolated_labels(values, classes, down, across)
    return labels


def first_largest(values: torch.Tensor) -> torch.Tensor:
    """Index (uint8) of the first of the at most 256 entries along dimension 0 that is the largest.

    The same as `values.argmax(0)`, which compares value by value on a CPU; these passes are vectorised.
    """
    last = len(values) - 1
    backwards = torch.arange(last, -1, -1, dtype=values.dtype).view(-1, *[1] * (values.ndim - 1))
    is_largest = torch.eq(values, values.amax(0), out=torch.empty_like(values))  # floats, which are faster than bools
    return (last - is_largest.mul_(backwards).amax(0)).to(torch.uint8)


def _corners(logits: torch.Tensor, rows: _Cells, columns: _Cells, row: np.ndarray, column: np.ndarray) -> torch.Tensor:
    """4×C×n logits around n cells of the grid: of the upper row, then of the lower, from left to right."""
    width = logits.shape[2]
    above, under, beside = row * width, rows.upper[row] * width, columns.upper[column]
    places = torch.from_numpy(np.stack([above + column, above + beside, under + column, under + beside]))
    places = places[:, None].expand(-1, len(logits), -1)
    return logits.flatten(1).expand(4, -1, -1).gather(2, places)


def _possible(corners: torch.Tensor) -> torch.Tensor:
    """C×n bool of 4×C×n corners: the classes that come up, somewhere in the cell, to what another has everywhere."""
    rounding = 8 * torch.finfo(corners.dtype).eps * corners.abs().max()
    return corners.amax(0) >= corners.amin(0).amax(0) - rounding


def _interpolated_labels(
    corners: torch.Tensor, classes: torch.Tensor, down: torch.Tensor, across: torch.Tensor
) -> np.ndarray:
    """k×l×n labels of the pixels in n cells.

    Args:
        corners: 4×m×n logits.
        classes: m×n, ascending: whose they are.
        down, across: k×1×n and l×n weights of the lower and of the right corners.
    """
    # with `out`, as the layout of a result would else follow that of the broadcast operands
    sides = corners.new_empty(2, len(classes), *across.shape)
    torch.lerp(corners[::2, :, None], corners[1::2, :, None], across, out=sides)
    values = corners.new_empty(len(classes), len(down), *across.shape)
    torch.lerp(sides[0, :, None], sides[1, :, None], down, out=values)
    largest = values.amax(0)
    torch.eq(values, largest, out=values)
    first = 255 - values.mul_((255 - classes).to(values.dtype)[:, None, None]).amax(0)
    return first.to(torch.uint8).numpy()
