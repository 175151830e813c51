"""Image transforms on 8-bit tensors, and the geometry of views; random numbers come from the generator passed in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

BLUR_PROBABILITY = 0.5
BLUR_KERNEL = 5
BLUR_SIGMA = (0.1, 2.0)
GREY_PROBABILITY = 0.1  # of a student view
CUTOUT_PROBABILITY = 0.25
CUTOUT_CELL = 32
CUTOUT_CELL_PROBABILITY = 0.25


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """H×W×3 uint8 array → 3×H×W uint8 tensor over the same memory (channels last, which resizing is fastest on)."""
    return torch.from_numpy(image).permute(2, 0, 1)


def stack_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """B×3×H×W of 3×H×W tensors, channels last in memory, as normalising is fastest on."""
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def resize(image: torch.Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> torch.Tensor:
    """Antialiased resize of 3×H×W uint8 to `size` (h, w), as PIL does it within one grey level."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return TF.resize(image, list(size), InterpolationMode(interpolation), antialias=True)


def resize_label(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """H×W uint8 → `size` (h, w); the nearest pixel by the pixels' centres, as the image's own resize has them."""
    if tuple(label.shape) == tuple(size):
        return label
    return F.interpolate(label[None, None], size=size, mode="nearest-exact")[0, 0]


def random_blur(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian blur of 3×H×W uint8 with probability 0.5, kernel 5, σ ~ U(0.1, 2) pixels."""
    if rng.random() >= BLUR_PROBABILITY:
        return image
    kernel, sigma = (BLUR_KERNEL, BLUR_KERNEL), rng.uniform(*BLUR_SIGMA)
    return to_tensor(cv2.GaussianBlur(_pixels(image), kernel, sigma, borderType=cv2.BORDER_REFLECT_101))


@dataclass(frozen=True)
class ColourJitter:
    """What was drawn of torchvision's ColorJitter: the adjustments in their random order, or greyscale instead.

    It agrees with torchvision's within a few grey levels: as there, every adjustment gives 8-bit values again.

    Attributes:
        grey: greyscale instead.
        adjustments: (brightness | contrast | saturation | hue, its factor) in the order in which they are made.
    """

    grey: bool
    adjustments: tuple[tuple[str, float], ...] = ()

    @classmethod
    def draw(cls, options, rng: np.random.Generator, grey_probability: float) -> "ColourJitter":
        """Greyscale with `grey_probability`, else four adjustments (`options`: the config node INPUT)."""
        if rng.random() >= 1 - grey_probability:
            return cls(grey=True)
        adjustments = []
        for index in rng.permutation(len(_ADJUSTMENTS)):
            name = _ADJUSTMENTS[index]
            strength = options[name.upper()]
            if strength:
                centre = 0.0 if name == "hue" else 1.0
                lowest = -strength if name == "hue" else max(0.0, 1 - strength)
                adjustments.append((name, rng.uniform(lowest, centre + strength)))
        return cls(False, tuple(adjustments))

    def apply(self, image: torch.Tensor, region: tuple[slice, slice] = (slice(None), slice(None))) -> torch.Tensor:
        """The jittered 3×H×W uint8 image; outside of `region` (rows, columns) it is of no use.

        Contrast is about the mean of the whole image, so what comes before it is done everywhere.
        """
        pixels = _pixels(image).copy()
        names = [name for name, _ in self.adjustments]
        everywhere = names.index("contrast") if "contrast" in names else 0
        for name, factor in self.adjustments[:everywhere]:
            _adjust(name, pixels, factor, pixels)
        part = pixels[region]
        for name, factor in self.adjustments[everywhere:]:
            _adjust(name, part, factor, pixels)
        if self.grey:
            part[:] = _luma(part)[..., None]
        return to_tensor(pixels)


_ADJUSTMENTS = ("brightness", "contrast", "saturation", "hue")
_LUMA = np.array([0.2989, 0.587, 0.114], np.float32)  # as torchvision has them
_BELOW = -0.499  # added before OpenCV rounds: values are cut off instead, as torch does
_HUE_ROWS = 16  # at a time, so that their floats stay in the cache


def _adjust(name: str, part: np.ndarray, factor: float, whole: np.ndarray) -> None:
    """Adjust h×w×3 uint8 pixels in place; `whole` is the image that they belong to."""
    levels = np.arange(256, dtype=np.float32)
    if name == "brightness":
        cv2.LUT(part, _cut_off(levels * factor), part)
    elif name == "contrast":
        mean = float(_luma(whole).mean(dtype=np.float64))
        cv2.LUT(part, _cut_off(levels * factor + (1 - factor) * mean), part)
    elif name == "saturation":
        cv2.addWeighted(part, factor, cv2.cvtColor(_luma(part), cv2.COLOR_GRAY2RGB), 1 - factor, _BELOW, part)
    else:
        for first in range(0, len(part), _HUE_ROWS):
            rows = part[first : first + _HUE_ROWS]
            hsv = cv2.cvtColor(rows.astype(np.float32), cv2.COLOR_RGB2HSV)  # degrees, 0 … 1, 0 … 255
            hsv[..., 0] += 360 * (factor % 1)  # up to 720, which the way back takes modulo 360
            cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), rows, 256 / 255, _BELOW)


def _luma(pixels: np.ndarray) -> np.ndarray:
    """h×w uint8 grey levels, cut off as torchvision's."""
    return cv2.transform(pixels, np.append(_LUMA, _BELOW)[None])


def _cut_off(levels: np.ndarray) -> np.ndarray:
    return levels.clip(0, 255).astype(np.uint8)


def _pixels(image: torch.Tensor) -> np.ndarray:
    """The H×W×3 array of a 3×H×W tensor, without a copy where its channels are last in memory."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def cutout_mask(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """h×w bool, True where the view is dropped: with probability 0.25, a quarter of a grid of about 32×32 pixels."""
    rows, columns = size[0] // CUTOUT_CELL, size[1] // CUTOUT_CELL
    if rng.random() >= CUTOUT_PROBABILITY or not rows or not columns:
        return np.zeros(size, bool)
    cells = rng.random((rows, columns)) < CUTOUT_CELL_PROBABILITY
    return cells[np.ix_(np.arange(size[0]) * rows // size[0], np.arange(size[1]) * columns // size[1])]


class Normalise:
    """…×3×H×W uint8 RGB → float32 network input, on one device, channels last in memory.

    Args:
        options: the config node INPUT (PIXEL_MEAN, PIXEL_STD, TO_BGR255).
        device: of the images.
    """

    def __init__(self, options, device: torch.device | str = "cpu"):
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (options.PIXEL_MEAN, options.PIXEL_STD))
        self._bgr255 = options.TO_BGR255
        unit = 1 if self._bgr255 else 255
        self._scale, self._shift = ((1 / (unit * std)).float().to(device), (-mean / std).float().to(device))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self._bgr255:
            images = images.flip(-3)
        rows = images.movedim(-3, -1).contiguous().flatten(-2).float()  # long rows, which take one pass each
        width = images.shape[-1]
        rows.mul_(self._scale.repeat(width)).add_(self._shift.repeat(width))
        return rows.unflatten(-1, (width, 3)).movedim(-1, -3)


class View(NamedTuple):
    """How one student view was cut from its full view: resize, then crop, then flip.

    Attributes:
        scaled_size: (h, w) in pixels of the full view after its random rescaling.
        top_left: (y, x) of the crop in the rescaled image; negative where the crop begins outside of it.
        crop_size: (h, w) of the view.
        flip: True where the view is mirrored left to right.
    """

    scaled_size: tuple[int, int]
    top_left: tuple[int, int]
    crop_size: tuple[int, int]
    flip: bool

    @classmethod
    def draw(
        cls, scaled_size: tuple[int, int], crop_size: tuple[int, int], flip_probability: float, rng: np.random.Generator
    ) -> "View":
        """A random crop of an image rescaled to `scaled_size`; it holds the whole image where that is smaller."""
        top_left = tuple(
            int(rng.integers(min(0, n - crop), max(0, n - crop), endpoint=True))
            for n, crop in zip(scaled_size, crop_size, strict=True)
        )
        return cls(scaled_size, top_left, crop_size, bool(rng.random() < flip_probability))

    def overlap(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """(slices of the rescaled image, slices of the unflipped view) of the area that both cover."""
        image, view = [], []
        for extent, origin, crop in zip(self.scaled_size, self.top_left, self.crop_size, strict=True):
            first, last = max(origin, 0), max(min(origin + crop, extent), max(origin, 0))
            image.append(slice(first, last))
            view.append(slice(first - origin, last - origin))
        return tuple(image), tuple(view)

    def crop(self, scaled: torch.Tensor) -> torch.Tensor:
        """Cut this view out of a rescaled …×h×w tensor; what lies outside of the image becomes 0."""
        image, view = self.overlap()
        part = scaled[(..., *image)]
        if part.shape[-2:] != self.crop_size:
            padded = scaled.new_zeros(*scaled.shape[:-2], *self.crop_size)
            padded[(..., *view)] = part
            part = padded
        return part.flip(-1) if self.flip else part

    def needed(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the (h, w) image before its rescaling that a bicubic, antialiased resize reads for it."""
        slices = []
        for extent, scaled, part in zip(size, self.scaled_size, self.overlap()[0], strict=True):
            ratio = extent / scaled
            reach = 2 * max(ratio, 1) + 1
            first, last = math.floor((part.start + 0.5) * ratio - reach), math.ceil((part.stop - 0.5) * ratio + reach)
            slices.append(slice(max(first, 0), max(min(last, extent), 0)))
        return tuple(slices)

    def valid(self) -> torch.Tensor:
        """Boolean H×W mask (on the CPU) of the pixels that lie inside the image."""
        mask = torch.zeros(self.crop_size, dtype=torch.bool)
        mask[self.overlap()[1]] = True
        return mask.flip(-1) if self.flip else mask


def nearest_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest resize of h×w uint8 to (H, W) by the floor rule, as everywhere in the passes."""
    rows, columns = (nearest_index(n, length) for n, length in zip(labels.shape, size, strict=True))
    if len(rows) < len(labels):
        return labels.take(rows, axis=0).take(columns, axis=1)
    return labels.take(columns, axis=1).take(rows, axis=0)


def nearest_index(length: int, resized: int) -> np.ndarray:
    """The `resized` positions, ascending, that F.interpolate's `nearest` reads along an axis of `length`."""
    positions = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
    return F.interpolate(positions, size=resized, mode="nearest").flatten().long().numpy()
