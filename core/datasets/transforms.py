"""Image transforms on 8-bit tensors; every random number comes from the generator that is passed in."""

import numpy as np
import torch
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


def resize(image: torch.Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> torch.Tensor:
    """Antialiased resize of 3×H×W uint8 to `size` (h, w), as PIL does it within one grey level."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return TF.resize(image, list(size), InterpolationMode(interpolation), antialias=True)


def random_blur(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Gaussian blur with probability 0.5, kernel 5, σ ~ U(0.1, 2) pixels."""
    if rng.random() >= BLUR_PROBABILITY:
        return image
    return TF.gaussian_blur(image, [BLUR_KERNEL, BLUR_KERNEL], [rng.uniform(*BLUR_SIGMA)] * 2)


def jitter_or_grey(image: torch.Tensor, options, rng: np.random.Generator, grey_probability: float) -> torch.Tensor:
    """Greyscale with `grey_probability`, else colour jitter (`options`: the config node INPUT)."""
    if rng.random() >= 1 - grey_probability:
        return TF.rgb_to_grayscale(image, num_output_channels=3)
    return colour_jitter(image, options, rng)


def colour_jitter(image: torch.Tensor, options, rng: np.random.Generator) -> torch.Tensor:
    """torchvision's ColorJitter: the four adjustments in random order, each with a uniform factor."""
    adjustments = (
        (TF.adjust_brightness, options.BRIGHTNESS, 1.0),
        (TF.adjust_contrast, options.CONTRAST, 1.0),
        (TF.adjust_saturation, options.SATURATION, 1.0),
        (TF.adjust_hue, options.HUE, 0.0),
    )
    for index in rng.permutation(len(adjustments)):
        adjust, strength, centre = adjustments[index]
        if strength:
            lowest = -strength if adjust is TF.adjust_hue else max(0.0, 1 - strength)
            image = adjust(image, rng.uniform(lowest, centre + strength))
    return image


def cutout_mask(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """h×w bool, True where the view is dropped: with probability 0.25, a quarter of a grid of about 32×32 pixels."""
    rows, columns = size[0] // CUTOUT_CELL, size[1] // CUTOUT_CELL
    if rng.random() >= CUTOUT_PROBABILITY or not rows or not columns:
        return np.zeros(size, bool)
    cells = rng.random((rows, columns)) < CUTOUT_CELL_PROBABILITY
    return cells[np.ix_(np.arange(size[0]) * rows // size[0], np.arange(size[1]) * columns // size[1])]


class Normalise:
    """…×3×H×W uint8 RGB → float32 network input, on one device.

    Args:
        options: the config node INPUT (PIXEL_MEAN, PIXEL_STD, TO_BGR255).
        device: of the images.
    """

    def __init__(self, options, device: torch.device | str = "cpu"):
        self._mean = torch.tensor(options.PIXEL_MEAN, dtype=torch.float32, device=device).view(3, 1, 1)
        self._std = torch.tensor(options.PIXEL_STD, dtype=torch.float32, device=device).view(3, 1, 1)
        self._bgr255 = options.TO_BGR255

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        values = images.flip(-3).float() if self._bgr255 else images.float() / 255
        return (values - self._mean) / self._std
