"""Geometry of the training views: which part of an image a sample shows, and how it was resized (DT-ST §3.1)."""

import math
from typing import NamedTuple

import numpy as np
import torch


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
