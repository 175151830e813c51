"""Large images at their own size: a network sees overlapping windows, of which one map of logits is made."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch

from core.models.own_network import STRIDES
from core.utils.errors import UserError

_WHOLE = 8  # of which a window's sides are multiples, whatever the network (core.configs.rules: WINDOW)


@dataclass(frozen=True)
class Layout:
    """Where the windows of an image lie; all sizes are (height, width) in pixels.

    Attributes:
        size: of the image.
        window: what a network sees at a time, at most.
        step: from one window to the next; a multiple of `stride`.
        stride: of the network, pixels from one point of its output to the next.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    step: tuple[int, int]
    stride: int

    def starts(self) -> list[tuple[int, int]]:
        """Upper left pixels (y, x) of the windows, row by row; a network has a point there.

        The last window of a row or column ends where the image does. If it cannot be whole there and begin at a point,
        it begins at the next one, and so is smaller than the others, by less than the stride.
        """
        axes = zip(self.size, self.window, self.step, strict=True)
        return [*product(*(_starts(*axis, self.stride) for axis in axes))]

    def __str__(self) -> str:
        (height, width), (y, x), (rows, columns) = self.window, self.step, self.size
        return f"{width}×{height} every {x}×{y}; {len(self.starts())} of a {columns}×{rows} image"


def _starts(length: int, window: int, step: int, stride: int) -> list[int]:
    last = -(-max(length - window, 0) // stride) * stride
    return [*range(0, last, step), last]


def windowed_logits(
    network: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    window: tuple[int, int],
    step: tuple[int, int],
    stride: int = 0,
) -> tuple[torch.Tensor, Layout]:
    """Logits of whole images, of which a network sees one window at a time: the mean where windows overlap.

    What one window covers is the network's own output, bit for bit. A window begins where the network has a point, so
    that the points of all windows are those that it would have in the whole image.

    Args:
        network: B×3×h×w → B×C×h'×w' logits.
        images: B×3×H×W.
        window: (height, width) that the network sees, or less, where an image is smaller.
        step: (height, width) from one window to the next, at most the window; rounded down to the network's stride.
        stride: of the network; 0: not known, and told by how many points it has in a window, which those of a network
            that pads its images need not tell.
    Returns:
        B×C×H'×W', as large as the network's output for the whole image; and where the windows were.
    Raises:
        UserError: the window is no multiple of the network's stride.
    """

    def of_window(start: tuple[int, int]) -> torch.Tensor:
        return network(images[(..., *map(slice, start, _sums(start, window)))])

    first = of_window((0, 0))
    points = tuple(first.shape[-2:])
    layout = _layout(tuple(images.shape[-2:]), window, step, points, stride)
    starts = layout.starts()
    if len(starts) == 1:
        return first, layout
    total = first.new_zeros(*first.shape[:2], *_sums(_point(starts[-1], layout), points))
    times, end = total.new_zeros(total.shape[-2:]), points
    for start in starts:
        logits = of_window(start) if start != (0, 0) else first
        point = _point(start, layout)
        end = _sums(point, logits.shape[-2:])
        place = (..., *map(slice, point, end))
        total[place] += logits
        times[place] += 1
    covered = (..., *map(slice, end))  # the last window may have fewer points than the first
    return total[covered] / times[covered], layout


def _point(start: tuple[int, int], layout: Layout) -> tuple[int, int]:
    """Row and column of a network's output at a window's start."""
    return tuple(at // layout.stride for at in start)


def _sums(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return tuple(map(sum, zip(first, second, strict=True)))


def _layout(
    size: tuple[int, int], window: tuple[int, int], step: tuple[int, int], points: tuple[int, int], known: int
) -> Layout:
    """The windows of an image, by how many points the network has in the first one, and its stride, if it is known."""
    axes = [*zip(size, window, points, strict=True)]
    if all(length <= extent for length, extent, _ in axes):
        return Layout(size, window, step, 1)  # one window, wherever its points are
    for stride in (known,) if known else STRIDES:
        if all(_fits(stride, *axis) for axis in axes):
            return Layout(size, window, tuple(max(length // stride, 1) * stride for length in step), stride)
    if known:
        raise UserError(
            f"TEST.WINDOW {window[1]}×{window[0]}: the network's stride is {known}: give width and height in multiples "
            f"of {math.lcm(known, _WHOLE)}"
        )
    seen = "×".join(str(min(length, extent)) for length, extent, _ in axes[::-1])
    raise UserError(
        f"TEST.WINDOW {window[1]}×{window[0]}: the network has {points[1]}×{points[0]} points in {seen} pixels, which "
        "tells no stride: give width and height in multiples of the network's"
    )


def _fits(stride: int, length: int, extent: int, count: int) -> bool:
    """Whether a network of that stride has so many points in a window along an axis.

    Where its pooling rounds up, the last one may lie where the next window begins.
    """
    if length > extent:
        return count * stride in (extent, extent + stride)
    return count in (length // stride, -(-length // stride), (length + 1) // stride + 1)
