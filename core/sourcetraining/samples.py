"""Training samples of the source domain: image and label under one geometry (method §11)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from core.datasets import transforms
from core.datasets.cache import open_cache
from core.datasets.catalog import ImageSet
from core.datasets.images import read_image
from core.datasets.skipping import BadImage
from core.datasets.taxonomy import IGNORE
from core.selftraining.resampling import draw_images
from core.selftraining.samples import uniform_order
from core.selftraining.views import View
from core.utils.devices import one_thread

_SAMPLE, _DRAW = 0x5353, 0x5344  # first keys of independent random streams
WHOLE = (1.0, 1.0)  # INPUT_SCALES_TRAIN that means: the whole image at the training size, no crop


@dataclass(frozen=True)
class SourceBatch:
    """B samples.

    Attributes:
        images: B×3×h×w uint8.
        labels: B×h×w uint8 class indices, 255 = ignore.
        names: of the images.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]

    def pin_memory(self) -> "SourceBatch":
        """The same in page-locked memory, from which copies to a device need no wait (called by the loader)."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())

    def split(self, parts: int) -> list["SourceBatch"]:
        """The batch in `parts` of one size."""
        size = len(self.names) // parts
        cuts = [slice(n * size, (n + 1) * size) for n in range(parts)]
        return [SourceBatch(self.images[cut], self.labels[cut], self.names[cut]) for cut in cuts]


class SourceSamples(Dataset):
    """Maps (image index, position of the sample in the run) to the parts of a :class:`SourceBatch`.

    A sample is a function of these two and SEED.

    Args:
        images: a set with labels.
        config: a whole config.
    """

    def __init__(self, images: ImageSet, config):
        self.images, self._input, self._seed = images, config.INPUT, config.SEED
        self.skipped = images.skipped
        self._cache = open_cache(config)

    def files(self, request: tuple[int, int]) -> list[Path]:
        """Image and label."""
        return self.images.files(request[0], label=True)

    def __getitem__(self, request: tuple[int, int]) -> dict:
        index, position = request
        with one_thread():  # the mean that contrast is adjusted about depends on the number of threads
            return self.skipped.first_good(index, len(self.images), lambda n: self._make(n, position))

    def _make(self, index: int, position: int) -> dict:
        rng = np.random.default_rng([self._seed, _SAMPLE, position])
        path = self.images.paths[index]
        image = transforms.to_tensor(self._cache.get(path, "image", read_image))
        label = torch.from_numpy(self.images.read_label(index))
        if label.shape != image.shape[1:]:
            raise BadImage(f"image {path} and its label differ in size: mend or remove the pair", path)
        view = self._draw_view(tuple(label.shape), rng)
        image = view.crop(transforms.resize(image, view.scaled_size, "bicubic"))
        image = transforms.ColourJitter.draw(self._input, rng, self._input.GRAYSCALE_PROB).apply(image)
        label = view.crop(resize_label(label, view.scaled_size)).masked_fill(~view.valid(), IGNORE)
        return {"images": image, "labels": label, "names": self.images.names[index]}

    def _draw_view(self, size: tuple[int, int], rng: np.random.Generator) -> View:
        """The whole image at the training size, or a crop of that size out of the image rescaled at random."""
        options = self._input
        width, height = options.SOURCE_INPUT_SIZE_TRAIN
        crop_size = scaled_size = (height, width)
        if options.INPUT_SCALES_TRAIN != WHOLE:
            scale = rng.uniform(*options.INPUT_SCALES_TRAIN)
            scaled_size = tuple(max(int(n * scale), 1) for n in size)
        return View.draw(scaled_size, crop_size, options.HORIZONTAL_FLIP_PROB_TRAIN, rng)


def resize_label(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """H×W uint8 → `size` (h, w); the nearest pixel by the pixels' centres, as the image's own resize has them."""
    if tuple(label.shape) == tuple(size):
        return label
    return F.interpolate(label[None, None], size=size, mode="nearest-exact")[0, 0]


def collate_source(samples: list[dict]) -> SourceBatch:
    """Samples → :class:`SourceBatch`."""
    return SourceBatch(
        transforms.stack_images([sample["images"] for sample in samples]),
        torch.stack([sample["labels"] for sample in samples]),
        tuple(sample["names"] for sample in samples),
    )


class SourceStream:
    """The requests of a stretch of iterations, a list of B per iteration: the batch sampler of the loader.

    Args:
        iterations: the stretch, or the rest of it.
        batch_size: B.
        order: image index of every position of the run, from iteration `start` on.
        start: an iteration.
        part: the samples of every batch that this process makes; None: all.
    """

    def __init__(
        self, iterations: range, batch_size: int, order: np.ndarray, start: int = 0, part: range | None = None
    ):
        self._iterations, self._batch_size, self._order = iterations, batch_size, order
        self._part = range(batch_size) if part is None else part
        self._first = start * batch_size

    def __len__(self) -> int:
        return len(self._iterations)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for iteration in self._iterations:
            positions = [iteration * self._batch_size + j for j in self._part]
            yield [(int(self._order[position - self._first]), position) for position in positions]


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
