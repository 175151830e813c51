"""Images of more than 8 bits: which of their values become the 8 bits that networks take, found once for a set."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.datasets.images import read_pixels, stored_depth, to_bytes
from core.datasets.reader import ImageSet
from core.datasets.sizes import spread
from core.datasets.skipping import BadImage
from core.utils import distributed
from core.utils.errors import UserError
from core.utils.logging import progress

AUTO, PERCENTILE = "auto", "percentile"
BITS = ("8", "10", "12", "14", "16")
SHARES = (0.01, 0.99)  # of the pixels, below which the ends of PERCENTILE lie
_WASTED = 4  # times the values of these shares, from which on a wider range is worth a word
_VALUES = 2**16
_FOUND = "INPUT.DEPTH"  # begins the words of a range that was
_FEW = 16  # levels
_FIRST, _HALF = 4, 0.5  # images that are looked at where a range is given, and pixels that may lie beyond it in silence
Span = tuple[int, int] | tuple[()]


class Values(NamedTuple):
    """Those of a set: the smallest and largest one, and those of SHARES."""

    ends: tuple[int, int]
    usual: tuple[int, int]
    images: int


def set_depth(images: ImageSet, where: str) -> int:
    """Bits of the images, 8 or 16, by the headers of all files that may have either.

    Raises:
        UserError: some have 8, some 16.
    """
    first: dict[int, str] = {}
    for path in images.paths:
        bits = stored_depth(path)
        if bits is not None:
            first.setdefault(bits, path)
        if len(first) > 1:
            raise UserError(
                f"{where}: images of one set must have one depth, but {first[8]} has 8 bits, {first[16]} 16: take one "
                "kind out, or convert it"
            )
    return next(iter(first), 8)


def with_depth(images: ImageSet, options, where: str, shared: Callable[[], Span] = tuple) -> ImageSet:
    """The set, told how its 16 bits become 8, where it has 16.

    Args:
        options: the config node INPUT.
        where: begins messages.
        shared: called where INPUT.DEPTH_RANGE is not given: gives the range of a set that this one goes with, if any.
    Raises:
        UserError: images of 8 bits and of 16, or none that can be read.
    """
    if set_depth(images, where) == 8:
        if not options.DEPTH_RANGE:
            return images
        note = f"8 bits: INPUT.DEPTH_RANGE {tuple(options.DEPTH_RANGE)}, of 16-bit images, plays no part"
        return images.noted(note)
    span, words = tuple(options.DEPTH_RANGE), "given by INPUT.DEPTH_RANGE"
    if not span:
        span, words = shared(), "as those of DATASETS.TARGET_TRAIN"
    if not span:
        span, words = _range(images, options.DEPTH, where)
    if not words.startswith(_FOUND):
        words += distributed.from_main(lambda: _misfit(images, span))
    note = f"16 bits, of which {span[0]} to {span[1]} become 0 to 255 ({words})"
    return replace(images, form=replace(images.form, span=span)).noted(note)


def _range(images: ImageSet, depth: str, where: str) -> tuple[Span, str]:
    """What INPUT.DEPTH makes of a set, and why, in words."""
    if depth in BITS:
        return (0, 2 ** int(depth) - 1), f"{depth} bits, INPUT.DEPTH"
    values = distributed.from_main(lambda: look_at_values(images, where))
    seen = f"all {values.images}" if values.images == len(images) else f"{values.images} of {len(images)}"
    words = f"{_FOUND} {depth}, by {f'{seen} images' if len(images) > 1 else 'the only image'}"
    (low, high), (first, last) = values.usual, values.ends
    if depth == PERCENTILE:
        return values.usual, words
    if last - first > _WASTED * (high - low):
        words += f"; 98 % of the pixels lie in {low} to {high}: INPUT.DEPTH {PERCENTILE} would keep more contrast"
    return values.ends, words


def look_at_values(images: ImageSet, where: str) -> Values:
    """Of the pixels of at most 200 images, drawn evenly."""
    counts, seen, bad = np.zeros(_VALUES, np.int64), 0, None
    for index in progress(spread(len(images)), "range of 16-bit images"):
        try:
            counts += _counts(images, images.paths[index])
        except BadImage as error:  # whoever needs it will say so
            bad = bad or error
            continue
        seen += 1
    if not seen:
        raise UserError(f"{where}: none of the images looked at can be read; the first: {bad}")
    upto = counts.cumsum()
    used = np.flatnonzero(counts)
    usual = np.searchsorted(upto, np.array(SHARES) * upto[-1])
    return Values(_span(used[0], used[-1]), _span(*usual), seen)


def _counts(images: ImageSet, path: Path) -> np.ndarray:
    """65536 int64: how often each value stands in an image, where that is not blind."""
    pixels = read_pixels(path, images.form.bands)
    blind = images.blind_at(path, pixels.shape[:2])
    return np.bincount((pixels if blind is None else pixels[~blind]).ravel(), minlength=_VALUES)


def _misfit(images: ImageSet, span: Span) -> str:
    """What to say of a range that was not found, by the first images; empty where it fits them."""
    counts = np.zeros(_VALUES, np.int64)
    for path in images.paths[:_FIRST]:
        with suppress(BadImage):
            counts += _counts(images, path)
    used = np.flatnonzero(counts)
    missed = 1 - counts[span[0] : span[1] + 1].sum() / max(counts.sum(), 1)
    if missed > _HALF:
        return f"; {100 * missed:.0f} % of the pixels of the first images lie beyond: is it another camera's?"
    levels = len(np.unique(to_bytes(used.astype(np.uint16), span)))
    if levels < min(len(used), _FEW):
        return f"; of 256 levels the first images have {levels}: INPUT.DEPTH {AUTO} keeps more"
    return ""


def _span(low: int, high: int) -> tuple[int, int]:
    """Of values that are all the same, one that is a range all the same."""
    return int(low), max(int(high), int(low) + 1)
