"""What the samples of both trainings share: which images are drawn, the requests for them, and batches of them.

A sample is a function of its request alone: the main process hands out requests, any worker makes the sample.
"""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from core.datasets.cache import open_cache
from core.datasets.images import PLAIN
from core.datasets.reader import ImageSet
from core.datasets.skipping import BadImage
from core.utils.devices import one_thread

BLOCK = 500  # draws after which class-balanced drawing starts anew
_UNIFORM = 0x4452  # key of the random stream of uniform draws

AnyBatch = TypeVar("AnyBatch", bound="TensorBatch")


@dataclass(frozen=True)
class Request:
    """What one sample depends on, beside SEED.

    Attributes:
        image: index of the training image.
        position: number of the sample in the run, from 0; its randomness comes from (SEED, position).
    """

    image: int
    position: int


class Stream:
    """The requests of a stretch of iterations, a list of B per iteration: the batch sampler of the loader.

    Args:
        iterations: the stretch, or the rest of it.
        batch_size: B.
        order: image index of every position of the run, from iteration `start` on.
        start: an iteration; None: the first of `iterations`.
        part: the samples of every batch that this process makes; None: all.
    """

    def __init__(
        self, iterations: range, batch_size: int, order: np.ndarray, start: int | None = None, part: range | None = None
    ):
        self._iterations, self._batch_size, self._order = iterations, batch_size, order
        self._first = (iterations.start if start is None else start) * batch_size
        self._part = range(batch_size) if part is None else part

    def __len__(self) -> int:
        return len(self._iterations)

    def __iter__(self) -> Iterator[list[Request]]:
        return map(self.requests, self._iterations)

    def requests(self, iteration: int) -> list[Request]:
        """Those of one iteration."""
        positions = (iteration * self._batch_size + j for j in self._part)
        return [Request(int(self._order[position - self._first]), position) for position in positions]


class TensorBatch:
    """What a dataclass of B samples can do, whose fields are tensors or tuples of length B, `names` among them."""

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """The same in page-locked memory, from which copies to a device need no wait (called by the loader)."""
        return replace(self, **{k: v.pin_memory() for k, v in vars(self).items() if isinstance(v, torch.Tensor)})

    def split(self: AnyBatch, parts: int) -> list[AnyBatch]:
        """The batch in `parts` of one size."""
        size = len(self.names) // parts
        cuts = [slice(n * size, (n + 1) * size) for n in range(parts)]
        return [type(self)(**{key: value[cut] for key, value in vars(self).items()}) for cut in cuts]


class TrainingSamples(Dataset):
    """Maps a :class:`Request` to a sample; the next image takes the place of a bad one that may be done without.

    Args:
        images: all training images.
        config: a whole config.
    """

    def __init__(self, images: ImageSet, config):
        self.images, self.skipped = images, images.skipped
        self._input, self._seed, self._cache = config.INPUT, config.SEED, open_cache(config)

    def files(self, request: Request) -> list[Path]:
        """What the sample is made from (an image pasted from apart)."""
        return self.images.files(request.image, label=self.images.label_path is not None)

    def __getitem__(self, request: Request) -> dict:
        count = len(self.images)
        for tries in range(count):
            try:
                with one_thread():  # the mean that contrast is adjusted about depends on the number of threads
                    return self.make(replace(request, image=(request.image + tries) % count))
            except BadImage as error:
                self.skipped.tolerate(error)
                if tries == count - 1:
                    raise
        raise ValueError("no image at all")

    def cached(self, path: Path, purpose: Hashable, make: Callable[[Path], np.ndarray]) -> np.ndarray:
        """`make(path)`, from the cache where there is one (see :meth:`ImageCache.get`)."""
        if self.images.form != PLAIN:
            purpose = (purpose, self.images.form)
        return make(path) if self._cache is None else self._cache.get(path, purpose, make)

    @abstractmethod
    def make(self, request: Request) -> dict:
        """The sample. Raises BadImage."""

    @staticmethod
    @abstractmethod
    def collate(samples: list[dict]) -> Any:
        """Samples → a batch."""


def uniform_order(num_images: int, count: int, seed: int, iteration: int) -> np.ndarray:
    """At least `count` image indices: shuffled rounds through all images; (`seed`, `iteration`) is the draw's key."""
    rng = np.random.default_rng([seed, _UNIFORM, iteration])
    rounds = -(-count // num_images)
    return np.concatenate([rng.permutation(num_images) for _ in range(rounds)])


def draw_images(presence: np.ndarray, count: int, rng: np.random.Generator, block: int = BLOCK) -> np.ndarray:
    """Draw training images class-balanced: rare classes are drawn until every block has them about as often.

    For each draw a class is taken with probability ∝ 1 / log(1.01 + f), f its share of the class occurrences in the
    block's images so far; then the next image of that class's shuffled list.

    Args:
        presence: N×C bool, which classes an image holds.
        count: number of draws.
        rng: the only source of randomness.
        block: the occurrences start again at 0 after this many draws.
    Returns:
        `count` int64 image indices, in the order drawn.
    Raises:
        ValueError: no image holds any class.
    """
    presence = np.asarray(presence, dtype=bool)
    drawable = presence.any(axis=0)
    if not drawable.any():
        raise ValueError("no image holds any class: nothing to draw from")
    lists = [_shuffled_forever(np.flatnonzero(column), rng) for column in presence.T]
    drawn = np.empty(count, dtype=np.int64)
    for position in range(count):
        if position % block == 0:
            occurrences = np.zeros(presence.shape[1])
        share = occurrences / max(occurrences.sum(), 1)
        weights = drawable / np.log(1.01 + share)
        chosen = rng.choice(len(weights), p=weights / weights.sum())
        drawn[position] = image = next(lists[chosen])
        occurrences += presence[image]
    return drawn


def _shuffled_forever(items: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(items)


def even_subsample(count: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    """`limit` of `count` indices, ascending: one drawn from each of `limit` stretches of equal length (0 = all)."""
    if limit <= 0 or limit >= count:
        return np.arange(count)
    edges = np.linspace(0, count, limit + 1).round().astype(np.int64)
    return rng.integers(edges[:-1], edges[1:])
