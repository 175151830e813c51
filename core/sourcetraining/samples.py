"""Training samples of the source domain: image and label under one geometry (method §11)."""

from dataclasses import dataclass

import numpy as np
import torch

from core.datasets import transforms
from core.datasets.sampling import Request, TensorBatch, TrainingSamples, draw_images, uniform_order
from core.datasets.skipping import BadImage
from core.datasets.taxonomy import IGNORE
from core.datasets.transforms import View

_SAMPLE, _DRAW = 0x5353, 0x5344  # first keys of independent random streams
WHOLE = (1.0, 1.0)  # INPUT_SCALES_TRAIN that means: the whole image at the training size, no crop


@dataclass(frozen=True)
class SourceBatch(TensorBatch):
    """B samples.

    Attributes:
        images: B×3×h×w uint8.
        labels: B×h×w uint8 class indices, 255 = ignore.
        names: of the images.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]


class SourceSamples(TrainingSamples):
    """Maps a request to the parts of a :class:`SourceBatch`; the images have labels."""

    def make(self, request: Request) -> dict:
        rng = np.random.default_rng([self._seed, _SAMPLE, request.position])
        path = self.images.paths[request.image]
        image = transforms.to_tensor(self.cached(path, "image", self.images.form.read))
        label = torch.from_numpy(self.images.read_label(request.image))
        if label.shape != image.shape[1:]:
            raise BadImage(f"image {path} and its label differ in size: mend or remove the pair", path)
        view = self._draw_view(tuple(label.shape), rng)
        image = view.crop(transforms.resize(image, view.scaled_size, "bicubic"))
        image = transforms.ColourJitter.draw(self._input, rng, self._input.GRAYSCALE_PROB).apply(image)
        label = view.crop(transforms.resize_label(label, view.scaled_size)).masked_fill(~view.valid(), IGNORE)
        return {"images": image, "labels": label, "names": self.images.names[request.image]}

    @staticmethod
    def collate(samples: list[dict]) -> SourceBatch:
        return SourceBatch(
            transforms.stack_images([sample["images"] for sample in samples]),
            torch.stack([sample["labels"] for sample in samples]),
            tuple(sample["names"] for sample in samples),
        )

    def _draw_view(self, size: tuple[int, int], rng: np.random.Generator) -> View:
        """The whole image at the training size, or a crop of that size out of the image rescaled at random."""
        options = self._input
        width, height = options.SOURCE_INPUT_SIZE_TRAIN
        crop_size = scaled_size = (height, width)
        if options.INPUT_SCALES_TRAIN != WHOLE:
            scale = rng.uniform(*options.INPUT_SCALES_TRAIN)
            scaled_size = tuple(max(int(n * scale), 1) for n in size)
        return View.draw(scaled_size, crop_size, options.HORIZONTAL_FLIP_PROB_TRAIN, rng)


def source_order(presence: np.ndarray, count: int, block: int, seed: int, iteration: int = 0) -> np.ndarray:
    """At least `count` image indices: shuffled rounds through all images, or class-balanced draws.

    Args:
        presence: N×C bool.
        block: draws after which the balance starts anew; 0: no balance.
        seed, iteration: key of the draw; `iteration` is that of the first image.
    """
    if not block:
        return uniform_order(len(presence), count, seed, iteration)
    rng = np.random.default_rng([seed, _DRAW, iteration])
    return rng.permutation(draw_images(presence, -(-count // block) * block, rng, block))
