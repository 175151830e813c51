"""Predictions as pictures: colours, overlay, confidence, all of it side by side, panels with captions, and a legend."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.datasets.taxonomy import Taxonomy
from core.utils.errors import one_line

OPACITY = 0.5  # of the colours in an overlay
FONT_SIZE = 13  # px, at least; of wide pictures a share of the width
_WIDTH_PER_FONT_SIZE = 75
_PAD = 6  # px around what a legend holds
_GAP = 4  # px between panels
_TILE_WIDTHS = 320, 1024  # px, least and most, of a panel's tiles
_COLUMNS = 3
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_NO_LABEL = ("no label", _BLACK)


class Painter:
    """Draws the predictions of one class set in the colours of a palette (256×3 uint8 RGB)."""

    def __init__(self, taxonomy: Taxonomy, palette: np.ndarray):
        self.palette = palette
        self._entries = tuple(
            (name, tuple(colour)) for name, colour in zip(taxonomy.names, palette.tolist(), strict=False)
        )

    def colour(self, classes: np.ndarray) -> np.ndarray:
        """H×W uint8 class indices → H×W×3 uint8."""
        return self.palette[classes]

    def overlay(self, image: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The colours, half transparent, upon an H×W×3 image."""
        return cv2.addWeighted(image, 1 - OPACITY, self.colour(classes), OPACITY, 0)

    def side_by_side(self, image: np.ndarray, classes: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """Image, overlay, colours and confidence in two rows of two (in one row where they are tall), and the legend.

        Args:
            confidence: H×W uint8 of :func:`grey`.
        """
        panels = [image, self.overlay(image, classes), self.colour(classes), np.stack([confidence] * 3, axis=-1)]
        height, width = classes.shape
        picture = _tiled(panels, 4 if height > width else 2)
        return np.concatenate([picture, self.legend(picture.shape[1])])

    def panel(self, title: str, tiles: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
        """Tiles under their captions, three in a row (all in one row where they are tall), with title and legend.

        Args:
            tiles: caption and content, all of one H×W: pictures (H×W×3 uint8), class indices (H×W uint8), or
                confidences (H×W floats in 0 … 1).
        """
        pictures = [self._tile(content) for _, content in tiles]
        height, width = pictures[0].shape[:2]
        columns = len(tiles) if height > width else min(len(tiles), _COLUMNS)
        size = max(FONT_SIZE, width * min(len(tiles), _COLUMNS) // _WIDTH_PER_FONT_SIZE)
        captioned = [
            np.concatenate([_line(caption, width, size), picture])
            for (caption, _), picture in zip(tiles, pictures, strict=True)
        ]
        body = _tiled(captioned, columns)
        legend = _legend((*self._entries, _NO_LABEL), body.shape[1])
        return np.concatenate([_line(title, body.shape[1], size, bold=True), body, legend])

    def _tile(self, content: np.ndarray) -> np.ndarray:
        """A tile's content as h×w×3 uint8, enlarged or made smaller where it would be hard to read or too large."""
        classes = content.ndim == 2 and content.dtype == np.uint8
        least, most = _TILE_WIDTHS
        content = bounded(content, most, nearest=classes)
        times = -(-least // content.shape[1])
        content = content.repeat(times, 0).repeat(times, 1)
        if classes:
            return self.colour(content)
        return content if content.ndim == 3 else np.stack([grey(content)] * 3, axis=-1)

    def legend(self, width: int) -> np.ndarray:
        """The classes' colours and names on white, h×`width`×3 uint8; names that are too long for it are cut."""
        return _legend(self._entries, width)


def grey(confidence: np.ndarray) -> np.ndarray:
    """H×W float in 0 … 1 → uint8: 255 times that, rounded."""
    return np.rint(np.clip(confidence, 0, 1) * 255).astype(np.uint8)


def bounded(picture: np.ndarray, width: int, nearest: bool = False) -> np.ndarray:
    """H×W(×3) made smaller, if it is wider than `width`."""
    if picture.shape[1] <= width:
        return picture
    height = max(round(picture.shape[0] * width / picture.shape[1]), 1)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST if nearest else cv2.INTER_AREA)


def fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H×W×3 uint8 brought to `size` (h, w): whole, as large as goes, in the middle of black."""
    height, width = size
    if picture.shape[:2] == size:
        return picture
    scale = min(height / picture.shape[0], width / picture.shape[1])
    inner = [max(round(n * scale), 1) for n in picture.shape[:2]]
    resized = cv2.resize(picture, (min(inner[1], width), min(inner[0], height)), interpolation=cv2.INTER_AREA)
    framed = np.zeros((height, width, 3), np.uint8)
    top, left = (height - resized.shape[0]) // 2, (width - resized.shape[1]) // 2
    framed[top : top + resized.shape[0], left : left + resized.shape[1]] = resized
    return framed


def _tiled(panels: Sequence[np.ndarray], columns: int) -> np.ndarray:
    height, width = panels[0].shape[:2]
    rows = -(-len(panels) // columns)
    picture = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for number, panel in enumerate(panels):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        picture[top : top + height, left : left + width] = panel
    return picture


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib  # has a font for names in most scripts

    name = "DejaVuSans-Bold" if bold else "DejaVuSans"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / f"fonts/ttf/{name}.ttf"), size)


def _line(text: str, width: int, size: int, bold: bool = False) -> np.ndarray:
    """One line of text on white, h×`width`×3 uint8; what is too long for it is cut."""
    picture = Image.new("RGB", (width, size + 2 * _PAD), _WHITE)
    ImageDraw.Draw(picture).text(
        (_PAD, size / 2 + _PAD), one_line(text), font=_font(size, bold), fill=_BLACK, anchor="lm"
    )
    return np.asarray(picture)


@lru_cache(maxsize=8)  # every picture of a size has the same one
def _legend(entries: tuple[tuple[str, tuple[int, int, int]], ...], width: int) -> np.ndarray:
    box = max(FONT_SIZE, width // _WIDTH_PER_FONT_SIZE)
    font = _font(box)
    line = box + _PAD
    places, x, y = [], _PAD, _PAD
    for name, _ in entries:
        needed = box + _PAD + font.getlength(name) + 2 * _PAD
        if x > _PAD and x + needed > width:
            x, y = _PAD, y + line
        places.append((x, y))
        x += round(needed)
    picture = Image.new("RGB", (width, y + line), _WHITE)
    draw = ImageDraw.Draw(picture)
    for (name, colour), (x, y) in zip(entries, places, strict=True):
        draw.rectangle((x, y, x + box - 1, y + box - 1), fill=colour, outline=_BLACK)
        draw.text((x + box + _PAD, y + box / 2), name, font=font, fill=_BLACK, anchor="lm")
    return np.asarray(picture)
