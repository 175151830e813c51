"""Predictions as pictures: colours, overlay, what changed, panels of tiles under captions with a legend."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from core.datasets.taxonomy import IGNORE, Taxonomy
from core.evaluation import lettering
from core.evaluation.palettes import OPACITY, PALETTES, clear_palette

_GAP = 4  # px between tiles
_TILE_WIDTHS = 320, 1024  # px, least and most, of a panel's tiles
_COLUMNS = 3
_WIDTH_PER_LINE = 800  # px of a picture for each of a line
_PALE = 0.5  # of the image beneath what changed; the rest is white
_NO_LABEL = ("no label", (0, 0, 0))
_PICTURES, _FILES = "in pictures", "in label files, which keep the data set's colours"


class Tile(NamedTuple):
    """A picture (H×W×3 uint8) under its caption, which has a scale where it shows confidence."""

    caption: str
    picture: np.ndarray
    scale: bool = False


class Painter:
    """Draws the predictions of one class set.

    Args:
        palette: of pictures, 256×3 uint8 RGB; None: the data set's own colours.
        names: write the classes' names upon large regions of overlays.

    Attributes:
        label_palette: of files that hold class indices: the data set's own colours, unless the pictures' are for
            readers who cannot tell those apart.
    """

    def __init__(self, taxonomy: Taxonomy, palette: np.ndarray | None = None, names: bool = True):
        usual = taxonomy.palette()
        self.palette = usual if palette is None else palette
        self.label_palette = usual if np.array_equal(self.palette, clear_palette(taxonomy)) else self.palette
        self._names, self._written = taxonomy.names, taxonomy.names if names else ()

    @classmethod
    def of(cls, vis, taxonomy: Taxonomy) -> "Painter":
        """As the config node VIS says."""
        return cls(taxonomy, PALETTES[vis.COLOURS](taxonomy), vis.NAMES)

    def colour(self, classes: np.ndarray) -> np.ndarray:
        """H×W uint8 class indices → H×W×3 uint8."""
        return self.palette[classes]

    def overlay(self, image: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The colours upon an H×W×3 image: half transparent, whole along the borders; names where there is room."""
        colours = self.colour(classes)
        picture = cv2.addWeighted(image, 1 - OPACITY, colours, OPACITY, 0)
        borders = outline(classes)
        picture[borders] = colours[borders]
        lettering.write_names(picture, classes, self._written)
        return picture

    def changed(self, image: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """The H×W×3 image, pale and grey; where the class changed the colour of the new one, within a black line.

        Args:
            before, after: H×W uint8 class indices.
        """
        changed = before != after
        light = cv2.addWeighted(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), _PALE, np.full_like(before, 255), 1 - _PALE, 0)
        picture = np.where(changed[..., None], self.colour(after), light[..., None])
        picture[outline(changed.astype(np.uint8)) & ~changed] = 0
        lettering.write_names(picture, np.where(changed, after, np.uint8(IGNORE)), self._written)
        return picture

    def side_by_side(self, image: np.ndarray, classes: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """Image, overlay, colours and confidence in two rows of two (in one row where they are tall), and the legend.

        Args:
            confidence: H×W uint8 of :func:`grey`.
        """
        tiles = [
            Tile("image", image),
            Tile("prediction upon it", self.overlay(image, classes)),
            Tile("prediction", self.colour(classes)),
            Tile("confidence", np.stack([confidence] * 3, axis=-1), scale=True),
        ]
        body = _tiled(tiles, 4 if len(classes) > classes.shape[1] else 2)
        return np.concatenate([body, lettering.legend(self._entries(), body.shape[1])])

    def panel(self, title: str, tiles: Sequence[tuple[str, np.ndarray]], columns: int = _COLUMNS) -> np.ndarray:
        """Tiles under their captions, so many in a row (all in one row where they are tall), with title and legend.

        Args:
            tiles: caption and content, all of one H×W: pictures (H×W×3 uint8), class indices (H×W uint8), or
                confidences (H×W floats in 0 … 1), which get a scale.
        """
        made = [
            Tile(caption, self._content(content), content.ndim == 2 and not _is_map(content))
            for caption, content in tiles
        ]
        height, width = made[0].picture.shape[:2]
        columns = len(made) if height > width else min(len(made), columns)
        body = _tiled(made, columns)
        size = lettering.font_size(width * min(columns, _COLUMNS))
        maps = any(_is_map(content) for _, content in tiles)
        legend = lettering.legend((*self._entries(), *[_NO_LABEL] * maps), body.shape[1])
        return np.concatenate([lettering.line(title, body.shape[1], size, bold=True), body, legend])

    def _content(self, content: np.ndarray) -> np.ndarray:
        """A tile's content as h×w×3 uint8, enlarged or made smaller where it would be hard to read or too large."""
        least, most = _TILE_WIDTHS
        content = bounded(content, most, nearest=_is_map(content))
        times = -(-least // content.shape[1])
        content = content.repeat(times, 0).repeat(times, 1)
        if _is_map(content):
            return self.colour(content)
        return content if content.ndim == 3 else np.stack([grey(content)] * 3, axis=-1)

    def legend(self, width: int) -> np.ndarray:
        """The classes' colours and names on white, h×`width`×3 uint8; twice where label files have others."""
        pictures = lettering.legend(self._entries(), width)
        if np.array_equal(self.palette, self.label_palette):
            return pictures
        size, files = lettering.font_size(width), lettering.legend(self._entries(self.label_palette), width)
        return np.concatenate(
            [lettering.line(_PICTURES, width, size), pictures, lettering.line(_FILES, width, size), files]
        )

    def _entries(self, palette: np.ndarray | None = None) -> lettering.Entries:
        palette = self.palette if palette is None else palette
        return tuple(zip(self._names, map(tuple, palette.tolist()), strict=False))


def outline(classes: np.ndarray) -> np.ndarray:
    """H×W uint8 → H×W bool: the pixels within a line's width of another value, on both sides of a border."""
    reach = 1 + max(classes.shape) // _WIDTH_PER_LINE
    box = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return cv2.dilate(classes, box) != cv2.erode(classes, box)


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


def _is_map(content: np.ndarray) -> bool:
    """Whether it holds class indices."""
    return content.ndim == 2 and content.dtype == np.uint8


def _tiled(tiles: Sequence[Tile], columns: int) -> np.ndarray:
    """Tiles of one size, each under its caption, on white."""
    width = tiles[0].picture.shape[1]
    size = lettering.font_size(width * min(columns, _COLUMNS))
    captioned = [
        np.concatenate([lettering.line(tile.caption, width, size, scale=tile.scale), tile.picture]) for tile in tiles
    ]
    height, rows = len(captioned[0]), -(-len(tiles) // columns)
    picture = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for number, part in enumerate(captioned):
        top, left = number // columns * (height + _GAP), number % columns * (width + _GAP)
        picture[top : top + height, left : left + width] = part
    return picture
