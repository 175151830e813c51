"""Weather and camera: what becomes of a drawn scene on its way to an image file."""

from dataclasses import dataclass, fields
from types import SimpleNamespace

import cv2
import numpy as np

from core.datasets.cityscapes import LABEL_IDS
from tools.toy_domains.canvas import Canvas, pick


@dataclass(frozen=True)
class Camera:
    """Weather and camera. Every field is a range, from which each image draws evenly; an effect at (0, 0) is off.

    Attributes:
        haze: extinction, 1/m: the share exp(-haze·depth) of the scene's light arrives.
        haze_red, haze_green, haze_blue: the haze's colour, 0 to 255.
        exposure: factor on the light.
        red, blue: white balance, factors on the two channels.
        saturation: 0 grey, 1 as it is.
        contrast: about the image's mean, 1 as it is.
        gamma: exponent of the response.
        blur: Gaussian, px of an image 256 px high.
        noise: standard deviation, of 255.
        mirror: share of the light that wet ground mirrors.
        headlights: brightness of the car's own, relative to daylight.
        glow: brightness of lit windows and lamps, and of the bloom around them.
        glare: brightness of a low sun near the horizon, relative to white.
        flakes: number of rain drops or snow flakes in the air.
        fall: length of their traces, px of an image 256 px high.
        drops: number of drops on the lens.
        motion: sideways smear, px of an image 256 px high.
        vignette: share of the light that the corners lack.
        mosaic: noise (of 255) on the sensor's Bayer mosaic, from which the colours are then interpolated.
        compression: 100 less JPEG's quality.
    """

    haze: tuple[float, float] = (0.0, 0.002)
    haze_red: tuple[float, float] = (190, 215)
    haze_green: tuple[float, float] = (200, 220)
    haze_blue: tuple[float, float] = (215, 235)
    exposure: tuple[float, float] = (0.9, 1.1)
    red: tuple[float, float] = (0.97, 1.03)
    blue: tuple[float, float] = (0.97, 1.03)
    saturation: tuple[float, float] = (0.9, 1.1)
    contrast: tuple[float, float] = (0.95, 1.1)
    gamma: tuple[float, float] = (0.92, 1.08)
    blur: tuple[float, float] = (0.35, 0.5)
    noise: tuple[float, float] = (1.5, 4.0)
    mirror: tuple[float, float] = (0.0, 0.0)
    headlights: tuple[float, float] = (0.0, 0.0)
    glow: tuple[float, float] = (0.0, 0.0)
    glare: tuple[float, float] = (0.0, 0.0)
    flakes: tuple[float, float] = (0.0, 0.0)
    fall: tuple[float, float] = (0.0, 0.0)
    drops: tuple[float, float] = (0.0, 0.0)
    motion: tuple[float, float] = (0.0, 0.0)
    vignette: tuple[float, float] = (0.0, 0.0)
    mosaic: tuple[float, float] = (0.0, 0.0)
    compression: tuple[float, float] = (0.0, 0.0)

    def towards(self, other: "Camera", share: float) -> "Camera":
        """The camera `share` of the way to another, field by field."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Camera(*(tuple(a + share * (b - a) for a, b in zip(p, q, strict=True)) for p, q in pairs))

    def photograph(self, rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
        """A drawn scene as seen through the weather, H×W×3 uint8. What is off draws nothing from `rng`."""
        now = SimpleNamespace(**{field.name: pick(rng, getattr(self, field.name)) for field in fields(self)})
        scene = _mirrored(canvas, now.mirror) if now.mirror > 0 else canvas.image
        clear = np.exp(-max(now.haze, 0) * canvas.depth)[:, :, None].astype(np.float32)
        light = scene * clear + np.float32((now.haze_red, now.haze_green, now.haze_blue)) * (1 - clear)
        light *= np.float32((now.exposure * now.red, now.exposure, now.exposure * now.blue))
        if now.headlights > 0:
            light += scene * clear * np.float32(now.headlights) * _beam(canvas)
        if now.glow > 0:
            light += clear * np.float32(now.glow) * _glow(canvas)
        if now.glare > 0:
            light += np.float32(now.glare) * _sun(rng, canvas)
        if now.flakes > 0:
            _draw_flakes(rng, light, int(now.flakes), now.fall * canvas.unit)
        grey = light.mean(2, keepdims=True)
        light = grey + np.float32(now.saturation) * (light - grey)
        light = grey.mean() + np.float32(now.contrast) * (light - grey.mean())
        light = 255 * (np.clip(light, 0, 255) / 255) ** np.float32(now.gamma)
        if now.drops > 0:
            light = _through_drops(rng, light, int(now.drops))
        if now.motion > 0:
            light = cv2.blur(light, (max(1, round(now.motion * canvas.unit)), 1))
        light = cv2.GaussianBlur(light, (0, 0), max(now.blur * len(scene) / 256, 0.05))
        if now.vignette > 0:
            light *= 1 - np.float32(now.vignette) * _corners(canvas.view.height, canvas.view.width)
        light += np.float32(now.noise) * rng.standard_normal(light.shape, np.float32)
        if now.mosaic > 0:
            light = _demosaiced(rng, light, now.mosaic)
        image = np.clip(np.round(light), 0, 255).astype(np.uint8)
        return _compressed(image, now.compression) if now.compression > 0 else image


def _mirrored(canvas: Canvas, share: float) -> np.ndarray:
    """The scene with wet ground: every column mirrors what stands on it, the farther the stronger."""
    ground = np.isin(canvas.label, (LABEL_IDS["road"], LABEL_IDS["sidewalk"]))
    rows = np.arange(len(ground))[:, None]
    foot = np.maximum.accumulate(np.where(ground, 0, rows), 0)
    above = np.take_along_axis(canvas.image, np.clip(2 * foot - rows, 0, None)[:, :, None], 0)
    above = cv2.blur(above, (max(1, round(3 * canvas.unit)), max(1, round(13 * canvas.unit))))
    part = np.where(ground, share * (0.6 + 0.4 * np.minimum(canvas.depth / 30, 1)), 0)[:, :, None]
    return (canvas.image * (1 - 0.35 * (part > 0)) * (1 - part) + above * part).astype(np.float32)


def _beam(canvas: Canvas) -> np.ndarray:
    """H×W×1: what the car's own headlights add, 1 at most; they light what is near, low and ahead."""
    view = canvas.view
    aside = (np.arange(view.width) - view.vanish)[None] / (0.3 * view.width)
    above = np.maximum(view.horizon - np.arange(view.height), 0)[:, None] / (0.15 * view.height)
    return np.exp(-canvas.depth / 16 - aside**2 - above)[:, :, None].astype(np.float32)


def _glow(canvas: Canvas) -> np.ndarray:
    """H×W×3: lights at full brightness in their own hue, and the bloom around them."""
    hue = canvas.image / np.maximum(canvas.image.max(2, keepdims=True), 1).astype(np.float32)
    lights = (255 * hue * canvas.glow[:, :, None]).astype(np.float32)
    wide = (cv2.GaussianBlur(lights, (0, 0), sigma * canvas.unit) for sigma in (2, 9))
    return lights + 0.8 * sum(wide)


def _sun(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """H×W×3: the disc of a low sun and its glare over the picture, 255 at most."""
    height, width = canvas.label.shape
    column, row = width * rng.uniform(0.15, 0.85), canvas.view.horizon - height * rng.uniform(0.02, 0.15)
    distance = np.hypot(np.arange(width)[None] - column, np.arange(height)[:, None] - row) / height
    strength = 0.6 * np.exp(-((distance / 0.12) ** 2)) + 0.4 * np.exp(-distance / 0.45)
    return strength[:, :, None].astype(np.float32) * np.float32((255, 215, 150))


def _draw_flakes(rng: np.random.Generator, light: np.ndarray, number: int, fall: float) -> None:
    """Short bright traces in the air, all aslant alike; the near ones are larger, longer and fewer."""
    height, width = light.shape[:2]
    slant = rng.uniform(-0.4, 0.4)
    starts, sizes = rng.uniform(0, (width, height), (number, 2)), rng.pareto(3, number).clip(0, 1.6) + 0.6
    over = light.copy()
    for start, size in zip(starts, sizes, strict=True):
        ends = [tuple(int(part) for part in 8 * point) for point in (start, start + size * fall * np.array((slant, 1)))]
        cv2.line(over, *ends, (235, 238, 242), max(1, round(size * height / 256)), cv2.LINE_AA, 3)
    light += 0.5 * (over - light)


def _through_drops(rng: np.random.Generator, light: np.ndarray, number: int) -> np.ndarray:
    """The image with blurred spots where drops sit on the lens."""
    height, width = light.shape[:2]
    spots = np.zeros((height, width), np.float32)
    for _ in range(number):
        centre = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        cv2.circle(spots, centre, max(1, int(height * rng.uniform(0.02, 0.06))), 1.0, -1)
    spots = cv2.GaussianBlur(spots, (0, 0), 0.008 * height)[:, :, None]
    return light * (1 - spots) + 1.06 * cv2.GaussianBlur(light, (0, 0), 0.035 * height) * spots


def _corners(height: int, width: int) -> np.ndarray:
    """H×W×1: 0 in the middle, 1 in the corners."""
    rows, columns = np.linspace(-1, 1, height) ** 2, np.linspace(-1, 1, width) ** 2
    return ((rows[:, None] + columns[None]) / 2)[:, :, None].astype(np.float32)


def _demosaiced(rng: np.random.Generator, light: np.ndarray, noise: float) -> np.ndarray:
    """What is left where every pixel of the sensor, noisy, saw one colour only (RGGB)."""
    raw = light[:, :, 1].copy()
    raw[::2, ::2], raw[1::2, 1::2] = light[::2, ::2, 0], light[1::2, 1::2, 2]
    raw += np.float32(noise) * rng.standard_normal(raw.shape, np.float32)
    return cv2.cvtColor(np.clip(raw, 0, 255).astype(np.uint8), cv2.COLOR_BayerBG2RGB)


def _compressed(image: np.ndarray, compression: float) -> np.ndarray:
    quality = max(5, 100 - round(compression))
    encoded = cv2.imencode(".jpg", image[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[:, :, ::-1])
