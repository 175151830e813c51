"""Batches from worker processes, with a user's errors carried back as the one line they are."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from core.configs.loading import PREFETCH_FACTOR
from core.datasets.catalog import ImageSet
from core.datasets.images import read_image
from core.datasets.transforms import resize, to_tensor
from core.utils.errors import UserError


class _Guarded(Dataset):
    """Returns a UserError instead of raising it: a loader would wrap it in a traceback's text."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except UserError as error:
            return error


class _GuardedCollate:
    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, samples: list):
        errors = [sample for sample in samples if isinstance(sample, UserError)]
        return errors[0] if errors else self.collate(samples)


class Loader:
    """A DataLoader whose iteration raises a dataset's UserError unchanged.

    Args:
        dataset: maps what the sampler yields to samples.
        collate: joins a list of samples.
        workers: processes; 0 = this one.
        options: further arguments of DataLoader (batch_size, batch_sampler, …).
    """

    def __init__(self, dataset: Dataset, collate: Callable, workers: int, **options):
        if workers:
            options |= {"prefetch_factor": PREFETCH_FACTOR}
        with _many_workers():
            self._loader = DataLoader(
                _Guarded(dataset), num_workers=workers, collate_fn=_GuardedCollate(collate), **options
            )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator:
        with _many_workers():
            batches = iter(self._loader)
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


@contextmanager
def _many_workers() -> Iterator[None]:
    """Without the warning that there are more workers than cores, which is fine."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


class FullViews(Dataset):
    """Whole images resized bicubically to one or more sizes, for evaluation and candidate passes.

    A sample is a dict: index, `views` (one 3×h×w uint8 tensor per size), `size` (H, W) of the file's image and, with
    labels, `label` (H×W uint8 class indices).

    Args:
        images: the set.
        sizes: (width, height) each, as configs give them.
        labels: read the label files, too.
    """

    def __init__(self, images: ImageSet, sizes: list[tuple[int, int]], labels: bool = False):
        self.images, self.sizes, self.labels = images, sizes, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        path = self.images.paths[index]
        image = read_image(path)
        views = [resize(to_tensor(image), (height, width), "bicubic") for width, height in self.sizes]
        sample = {"index": index, "views": views, "size": image.shape[:2]}
        if self.labels:
            sample["label"] = self._read_label(index, image.shape[:2])
        return sample

    def _read_label(self, index: int, size: tuple[int, int]) -> np.ndarray:
        label = self.images.read_label(index)
        if label.shape != size:
            path = self.images.paths[index]
            raise UserError(
                f"label {self.images.label_path(path)} is {label.shape[1]}×{label.shape[0]}, but its image {path} is "
                f"{size[1]}×{size[0]}: mend or remove the pair"
            )
        return label


def _collate_full_views(samples: list[dict]) -> dict:
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    batch["views"] = [torch.stack(views) for views in zip(*batch["views"], strict=True)]
    return batch


def full_view_loader(
    images: ImageSet,
    sizes: list[tuple[int, int]],
    batch_size: int,
    workers: int,
    labels: bool = False,
) -> Loader:
    """Every image once, in order; see :class:`FullViews`. The last batch may be smaller."""
    return Loader(FullViews(images, sizes, labels), _collate_full_views, workers, batch_size=batch_size)
