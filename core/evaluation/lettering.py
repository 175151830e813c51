"""Words in pictures: lines, legends, scales of confidence, names upon regions. All H×W×3 uint8 RGB."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.utils.errors import one_line

FONT_SIZE = 13  # px, at least; of wide pictures a share of the width
_WIDTH_PER_FONT_SIZE = 75
_PAD = 6  # px around a line
_SCALE = 9  # width of a scale, in font sizes
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_PLACING = 480  # px, at most, of the map on which names find their places; and its height
Entries = tuple[tuple[str, tuple[int, int, int]], ...]  # names and colours


def font_size(width: int) -> int:
    """Pixels, for a picture so wide."""
    return max(FONT_SIZE, width // _WIDTH_PER_FONT_SIZE)


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # has a font for names in most scripts

    name = "DejaVuSans-Bold" if bold else "DejaVuSans"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / f"fonts/ttf/{name}.ttf"), size)


def line(text: str, width: int, size: int, bold: bool = False, scale: bool = False) -> np.ndarray:
    """One line of text on white, h×`width`×3; what is too long for it is cut.

    Args:
        scale: with the greys of confidence 0 to 1, and numbers, at its right end.
    """
    height = size + 2 * _PAD
    picture = Image.new("RGB", (width, height), _WHITE)
    draw = ImageDraw.Draw(picture)
    draw.text((_PAD, height / 2), one_line(text), font=_font(size, bold), fill=_BLACK, anchor="lm")
    if not scale:
        return np.asarray(picture)
    length = min(_SCALE * size, width // 2)
    left, right, top, bottom = width - length, width - 1, _PAD // 2, height - 1 - _PAD // 2
    draw.rectangle((left - size // 2, 0, width, height), fill=_WHITE)
    greys = np.linspace(0, 255, length).round().astype(np.uint8)[None].repeat(bottom - top + 1, 0)
    picture.paste(Image.fromarray(greys), (left, top))
    draw.rectangle((left, top, right, bottom), outline=_BLACK)
    middle = (top + bottom) / 2
    font, words = _font(max(size - 2, 1)), {0: (left + 3, "lm", _WHITE), 1: (right - 2, "rm", _BLACK)}
    if length >= 6 * size:
        words[0.5] = ((left + right) / 2, "mm", _WHITE)
    for value, (x, anchor, colour) in words.items():
        draw.text((x, middle), f"{value:g}", font=font, fill=colour, anchor=anchor)
    return np.asarray(picture)


@lru_cache(maxsize=8)  # every picture of a size has the same one
def legend(entries: Entries, width: int) -> np.ndarray:
    """Colours and names on white, h×`width`×3; names that are too long for it are cut."""
    box = font_size(width)
    font = _font(box)
    step = box + _PAD
    places, x, y = [], _PAD, _PAD
    for name, _ in entries:
        needed = box + _PAD + font.getlength(name) + 2 * _PAD
        if x > _PAD and x + needed > width:
            x, y = _PAD, y + step
        places.append((x, y))
        x += round(needed)
    picture = Image.new("RGB", (width, y + step), _WHITE)
    draw = ImageDraw.Draw(picture)
    for (name, colour), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + box - 1, y + box - 1), fill=colour, outline=_BLACK)
        draw.text((x + box + _PAD, y + box / 2), name, font=font, fill=_BLACK, anchor="lm")
    return np.asarray(picture)


@lru_cache(maxsize=512)
def _stamp(name: str, size: int) -> np.ndarray:
    """A name in white with a black rim: h×w×4 uint8, RGB and opacity."""
    font, rim = _font(size), max(size // 8, 1)
    left, top, right, bottom = (round(n) for n in font.getbbox(one_line(name), stroke_width=rim))
    picture = Image.new("RGBA", (max(right - left, 1), max(bottom - top, 1)), (*_BLACK, 0))
    where = (-left, -top)
    draw = ImageDraw.Draw(picture)
    draw.text(where, one_line(name), font=font, fill=_WHITE, stroke_width=rim, stroke_fill=_BLACK)
    return np.asarray(picture)


def write_names(picture: np.ndarray, classes: np.ndarray, names: Sequence[str]) -> None:
    """Write, into `picture`, a class's name upon each of its regions that has room for it.

    Args:
        classes: H×W uint8; what is beyond the `names` has none.
    """
    size = font_size(picture.shape[1])
    for index, (y, x) in name_places(classes, [_stamp(name, size).shape[:2] for name in names]):
        stamp = _stamp(names[index], size)
        part = picture[y : y + stamp.shape[0], x : x + stamp.shape[1]]
        opacity = stamp[..., 3:] / 255
        part[:] = np.rint(part * (1 - opacity) + stamp[..., :3] * opacity)


def name_places(classes: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    """Where boxes lie wholly inside of regions of their class, one in each that is large enough: (class, (top, left)).

    The one nearest to the middle of all that there are: from frame to frame it moves little.

    Args:
        classes: H×W uint8.
        sizes: (h, w) of the box of class 0, 1, …
    """
    step = -(-max(classes.shape) // _PLACING)
    # of each cell of step × step pixels its class, or 255 where it holds several: what fits there fits in the whole map
    rows, columns = (n // step for n in classes.shape)
    cells = classes[: rows * step, : columns * step].reshape(rows, step, columns, step)
    first = cells[:, 0, :, 0]
    small = np.where((cells == first[:, None, :, None]).all(axis=(1, 3)), first, 255).astype(np.uint8)
    places = []
    for index in np.unique(small):
        if index >= len(sizes):
            continue
        height, width = (-(-n // step) for n in sizes[index])
        if height > rows or width > columns:
            continue
        region = (small == index).astype(np.uint8)
        box = np.ones((height, width), np.uint8)
        # True where the box whose top left corner this is lies inside
        fits = cv2.erode(region, box, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        found = np.argwhere(fits)
        if not len(found):
            continue
        parts = cv2.connectedComponents(region, connectivity=4)[1][fits > 0]
        for part in np.unique(parts):
            inside = found[parts == part]
            nearest = inside[np.square(inside - inside.mean(axis=0)).sum(axis=1).argmin()]
            places.append((int(index), tuple((nearest * step).tolist())))
    return places
