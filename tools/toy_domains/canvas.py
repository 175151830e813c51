"""What toy scenes are drawn on: a perspective view, and a picture whose labels and depths are filled along with it.

World coordinates are metres: x to the right of the camera, y above the ground, z ahead.
"""

import colorsys
from dataclasses import dataclass, field

import cv2
import numpy as np

from core.datasets.cityscapes import LABEL_IDS

FAR = 90.0  # m; where streets end
SKY_DEPTH = 250.0  # m; how far away haze takes the sky to be
_SHIFT = 4  # OpenCV polygons in 1/16 pixel
_LIMIT = 20_000  # px; keeps what is far outside of the picture in OpenCV's range
_CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 20, endpoint=False)) for f in (np.cos, np.sin)], 1)

Colour = tuple[float, float, float]  # RGB, 0 to 255


class Light(tuple):
    """A colour that shines by itself, by night too; shaded, it is a plain colour."""


def pick(rng: np.random.Generator, span: tuple[float, float]) -> float:
    """Evenly from a range; where that is a single value, nothing is drawn from `rng`."""
    return span[0] if span[0] == span[1] else rng.uniform(*span)


@dataclass(frozen=True)
class Tone:
    """A range of colours: hue (0 to 1, may go over 1), saturation and value (0 to 1)."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]

    def pick(self, rng: np.random.Generator) -> Colour:
        hue, saturation, value = (rng.uniform(*span) for span in (self.hue, self.saturation, self.value))
        return tuple(255 * part for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


_GREYS = Tone((0, 1), (0, 0.12), (0.1, 0.95))
_PAINTS = Tone((0, 1), (0.25, 0.85), (0.25, 0.9))


def paint(rng: np.random.Generator) -> Colour:
    """The colour of anything man-made: vehicles, clothes, boards. One range for all, so that it gives no class away."""
    return (_GREYS if rng.random() < 0.4 else _PAINTS).pick(rng)


def shade(colour: Colour, factor: float) -> Colour:
    return tuple(min(255.0, part * factor) for part in colour)


@dataclass(frozen=True)
class View:
    """A pinhole camera that looks along a street that bends.

    Attributes:
        width, height: of the picture, px.
        focal: px.
        horizon, vanish: row and column at which the street's tangent vanishes, px.
        eye: height of the camera above the ground, m.
        bend: the street's sideways shift at depth z is bend·z², 1/m.
    """

    width: int
    height: int
    focal: float
    horizon: float
    vanish: float
    eye: float
    bend: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """…×3 world points (m, z > 0) → …×2 picture points (px)."""
        points = np.asarray(points, np.float64)
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        pixels = np.empty((*x.shape, 2))
        pixels[..., 0] = self.vanish + self.focal * (x / z + self.bend * z)
        pixels[..., 1] = self.horizon + self.focal * (self.eye - y) / z
        return pixels

    def ground_depth(self) -> np.ndarray:
        """height×1 float32: depth of the ground in every row, SKY_DEPTH above the horizon."""
        below = np.arange(self.height) + 0.5 - self.horizon
        depth = self.focal * self.eye / np.maximum(below, 1e-3)
        return np.minimum(depth, SKY_DEPTH).astype(np.float32)[:, None]


@dataclass
class Canvas:
    """A picture in the making; what is drawn later hides what was drawn before.

    Attributes:
        image: H×W×3 uint8 RGB.
        label: H×W uint8 Cityscapes labelIds.
        depth: H×W float32, m.
        glow: H×W uint8, 1 where a Light shines.
    """

    view: View
    image: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)
    depth: np.ndarray = field(init=False)
    glow: np.ndarray = field(init=False)

    def __post_init__(self):
        shape = self.view.height, self.view.width
        self.image = np.zeros((*shape, 3), np.uint8)
        self.label, self.glow = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.depth = np.full(shape, SKY_DEPTH, np.float32)

    @property
    def unit(self) -> float:
        """Pixels per pixel of a picture 256 px high: least widths scale with it."""
        return self.view.height / 256

    def fill(self, polygons, colour: Colour, name: str = "", depth: float | None = None) -> None:
        """Fill one N×2 polygon or M×N×2 polygons (px); without `name` the labels stay (a marking, a window).

        Where polygons of one call overlap they cancel out.
        """
        if not len(polygons):
            return
        fixed = list(_fixed(polygons.reshape(-1, *polygons.shape[-2:])))
        cv2.fillPoly(self.image, fixed, [float(round(part)) for part in colour], shift=_SHIFT)
        cv2.fillPoly(self.glow, fixed, int(isinstance(colour, Light)), shift=_SHIFT)
        if name:
            cv2.fillPoly(self.label, fixed, LABEL_IDS[name], shift=_SHIFT)
        if depth is not None:
            cv2.fillPoly(self.depth, fixed, float(depth), shift=_SHIFT)

    def fill_world(self, points, colour: Colour, name: str = "", hull: bool = False) -> None:
        """Fill the polygon (or convex hull) of N×3 world points; its depth is that of the nearest."""
        points = np.asarray(points, np.float64)
        polygon = self.view.project(points)
        if hull:
            polygon = cv2.convexHull(polygon.astype(np.float32)).reshape(-1, 2)
        self.fill(polygon, colour, name, points[:, 2].min() if name else None)

    def mask(self, polygon: np.ndarray) -> np.ndarray:
        """H×W bool: the pixels of an N×2 polygon (px)."""
        mask = np.zeros(self.label.shape, np.uint8)
        cv2.fillPoly(mask, [_fixed(polygon)], 1, shift=_SHIFT)
        return mask > 0

    def blend(self, where: np.ndarray, colour: Colour, share: float) -> None:
        """Mix `share` of a colour into the pixels `where` (H×W bool): shadows, glass, what is half seen."""
        mixed = self.image[where] * (1 - share) + np.asarray(colour) * share
        self.image[where] = mixed.astype(np.uint8)

    def at(self, x: float, z: float) -> "Spot":
        """The place on the ground at x, z (m)."""
        column, row = self.view.project([(x, 0, z)])[0]
        return Spot(self, column, row, self.view.focal / z, z)


@dataclass(frozen=True)
class Spot:
    """An upright plane that faces the camera, in metres from its foot: u to the right, v up."""

    canvas: Canvas
    column: float
    row: float
    scale: float  # px/m
    depth: float  # m

    def pixels(self, points) -> np.ndarray:
        """…×2 (u, v) → …×2 picture points (px)."""
        return np.asarray(points, np.float64) * (self.scale, -self.scale) + (self.column, self.row)

    def polygon(self, points, colour: Colour, name: str = "") -> None:
        """Fill the polygon of N (u, v) points, or M×N of them at once."""
        self.canvas.fill(self.pixels(points), colour, name, self.depth if name else None)

    def box(self, u: float, v: float, width: float, height: float, colour: Colour, name: str = "") -> None:
        """Fill the rectangle whose bottom centre is u, v."""
        half = width / 2
        self.polygon([(u - half, v), (u + half, v), (u + half, v + height), (u - half, v + height)], colour, name)

    def disc(self, u: float, v: float, radii: tuple[float, float], colour: Colour, name: str = "") -> None:
        """Fill an ellipse around u, v."""
        self.polygon(_CIRCLE * radii + (u, v), colour, name)

    def dabs(self, centres: np.ndarray, radii: np.ndarray, colour: Colour) -> None:
        """Many small ellipses around N×2 centres, with N×2 radii."""
        self.polygon(_CIRCLE[::3] * radii[:, None] + centres[:, None], colour)

    def bar(self, start, end, width: float, colour: Colour, name: str = "", least: float = 1.0) -> None:
        """A straight bar from (u, v) to (u, v), `width` m thick and at least `least` px."""
        start, end = self.pixels([start, end])
        along = (end - start) / max(np.hypot(*(end - start)), 1e-6)
        across = along[::-1] * (-0.5, 0.5) * max(width * self.scale, least * self.canvas.unit)
        corners = np.stack([start + across, end + across, end - across, start - across])
        self.canvas.fill(corners, colour, name, self.depth if name else None)


def _fixed(polygon: np.ndarray) -> np.ndarray:
    return np.rint(polygon.clip(-_LIMIT, _LIMIT) * (1 << _SHIFT)).astype(np.int32)
