"""Weather and camera: what becomes of a drawn scene on its way to an image file."""

from dataclasses import astuple, dataclass, fields

import cv2
import numpy as np


@dataclass(frozen=True)
class Camera:
    """Weather and camera. Every field is a range, from which each image draws evenly.

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

    def towards(self, other: "Camera", share: float) -> "Camera":
        """The camera `share` of the way to another, field by field."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Camera(*(tuple(a + share * (b - a) for a, b in zip(p, q, strict=True)) for p, q in pairs))

    def photograph(self, rng: np.random.Generator, scene: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The scene (H×W×3 uint8, depths H×W float32 m) as seen through the weather, H×W×3 uint8."""
        drawn = (rng.uniform(*span) for span in astuple(self))
        haze, *haze_colour, exposure, red, blue, saturation, contrast, gamma, blur, noise = drawn
        clear = np.exp(-max(haze, 0) * depth)[:, :, None].astype(np.float32)
        light = scene * clear + np.float32(haze_colour) * (1 - clear)
        light *= np.float32((exposure * red, exposure, exposure * blue))
        grey = light.mean(2, keepdims=True)
        light = grey + np.float32(saturation) * (light - grey)
        light = grey.mean() + np.float32(contrast) * (light - grey.mean())
        light = 255 * (np.clip(light, 0, 255) / 255) ** np.float32(gamma)
        light = cv2.GaussianBlur(light, (0, 0), max(blur * len(scene) / 256, 0.05))
        light += np.float32(noise) * rng.standard_normal(light.shape, np.float32)
        return np.clip(np.round(light), 0, 255).astype(np.uint8)
