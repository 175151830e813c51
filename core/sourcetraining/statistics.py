"""Pixels per class of every label of a source set: counted once, in parallel, and kept as JSON beside the data."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import BatchSampler, Dataset

from core.datasets.catalog import ImageSet
from core.datasets.images import image_size
from core.datasets.loading import Loader
from core.datasets.sizes import other_label_size
from core.datasets.skipping import BadImage
from core.datasets.taxonomy import Taxonomy
from core.utils import distributed
from core.utils.errors import UserError, shorten
from core.utils.files import write_json
from core.utils.logging import LOGGER, progress

FORMAT = 2
FOLDER = "label_statistics"  # below DATASETS.ROOT


@dataclass(frozen=True)
class LabelStatistics:
    """What a pass over the labels found.

    Attributes:
        pixels: N×C int64, labelled pixels of each class in each image's label, at the label's own size.
        mismatched: indices of the images whose label has another size.
    """

    pixels: np.ndarray
    mismatched: tuple[int, ...]

    @property
    def presence(self) -> np.ndarray:
        """N×C bool: an image holds a class from one pixel on (method §11)."""
        return self.pixels > 0

    def class_weights(self) -> np.ndarray:
        """C float64 loss weights ∝ 1/√(share of the pixels), 1 in the mean over pixels; 0 for an empty class."""
        totals = self.pixels.sum(axis=0)
        shares = totals / max(totals.sum(), 1)
        weights = np.where(totals > 0, 1 / np.sqrt(np.where(totals > 0, shares, 1)), 0)
        return weights / max((weights * shares).sum(), np.finfo(float).tiny)


def usable_pairs(
    images: ImageSet, taxonomy: Taxonomy, root: str | Path, workers: int
) -> tuple[ImageSet, LabelStatistics, list[str]]:
    """The images that can be trained on, their statistics, and what to say of them, one line each.

    That is: which pairs were left out, and which classes have no pixel.

    Raises:
        UserError: a label that cannot be read or holds unknown values; an image and a label of different size, unless
            the data set is known for them; no labelled pixel at all.
    """
    bad_before = len(images.skipped.paths)
    statistics, notes = label_statistics(images, len(taxonomy), root, workers), []
    bad = images.skipped.paths[bad_before:]
    if bad:  # counted and said before there was a log file
        notes.append(f"not trained on, as they are bad: {shorten(bad, len(bad))}")
    left_out = statistics.mismatched
    if left_out:
        names = shorten(images.names[index] for index in left_out)
        if not images.skip_mismatched:
            if not images.skipped.limit:
                sizes = shorten(other_label_size(images, index) or images.names[index] for index in left_out)
                raise UserError(
                    f"DATASETS.SOURCE_TRAIN {images.name}: image and label differ in size for {sizes}: "
                    "mend or remove these pairs"
                )
            paths = [str(images.paths[index]) for index in left_out]
            if distributed.is_main():
                images.skipped.count([(path, f"image {path} and its label differ in size") for path in paths])
            images.skipped.settle()
        count = f"{len(left_out)} pair{'s' if len(left_out) > 1 else ''}"
        notes.append(f"skipped {count} of {images.name} whose image and label differ in size: {names}")
        images = images.restricted(np.delete(np.arange(len(images)), left_out))
        statistics = LabelStatistics(np.delete(statistics.pixels, left_out, axis=0), ())
    empty = [name for name, total in zip(taxonomy.names, statistics.pixels.sum(axis=0), strict=True) if not total]
    if len(empty) == len(taxonomy):
        raise UserError(f"DATASETS.SOURCE_TRAIN {images.name}: no label holds a pixel of any class")
    if empty:
        notes.append(f"no pixel of {', '.join(empty)} in {images.name}: the model will not learn it")
    return images, statistics, notes


def label_statistics(images: ImageSet, num_classes: int, root: str | Path, workers: int) -> LabelStatistics:
    """Count the labels of `images`, by so many processes, or read what an earlier run counted of the same files.

    The counts are kept in a folder of `root` (DATASETS.ROOT), if it can be written to.
    """
    cache = Path(root) / FOLDER / f"{images.name.replace('/', '_')}_{num_classes}.json"
    key = _fingerprint(images)
    kept = distributed.from_main(lambda: _read_cache(cache, key, (len(images), num_classes)))
    if kept is not None:
        return kept
    bad_before = len(images.skipped.paths)
    batches = BatchSampler(distributed.share(len(images)), 16, drop_last=False)
    loader = Loader(_LabelCounts(images, num_classes), list, workers, batch_sampler=batches)
    counted = [found for batch in progress(loader, f"counting labels of {images.name}") for found in batch]
    counted = distributed.joined(counted)
    images.skipped.settle()
    statistics = LabelStatistics(
        np.stack([pixels for pixels, _ in counted]),
        tuple(index for index, (_, matches) in enumerate(counted) if not matches),
    )
    if len(images.skipped.paths) > bad_before or not distributed.is_main():  # the next run should look again
        return statistics
    content = {"mismatched": list(statistics.mismatched), "pixels": statistics.pixels.tolist()}
    try:
        cache.parent.mkdir(exist_ok=True)
        write_json(cache, {"format": FORMAT, "files": key} | content)
    except (OSError, UserError) as error:
        reason = getattr(error, "strerror", None) or error
        LOGGER.info("label statistics are not kept for the next run: %s (%s)", cache, reason)
    return statistics


class _LabelCounts(Dataset):
    """(C int64 pixel counts, whether image and label have one size) of every image; only the image's header is read.

    A bad label that may be skipped (DATALOADER.SKIP_BAD_IMAGES) has no pixel of any class; training takes another.
    """

    def __init__(self, images: ImageSet, num_classes: int):
        self._images, self._num_classes = images, num_classes
        self.skipped = images.skipped

    def __len__(self) -> int:
        return len(self._images)

    def files(self, index: int) -> list[Path]:
        return self._images.files(index, label=True)

    def __getitem__(self, index: int) -> tuple[np.ndarray, bool]:
        try:
            label = self._images.read_label(index)
        except BadImage as error:
            self.skipped.tolerate(error)
            return np.zeros(self._num_classes, np.int64), True
        pixels = np.bincount(label.ravel(), minlength=256)[: self._num_classes]
        size = image_size(self._images.paths[index])
        return pixels, size is None or size == label.shape[::-1]


def _fingerprint(images: ImageSet) -> str:
    """Changes with the list of images, the meaning of label values, and any label's or image's size or time."""

    def stamp(path: Path) -> tuple[int, int]:
        try:
            status = path.stat()
        except OSError:  # whoever reads it will say so
            return 0, 0
        return status.st_size, status.st_mtime_ns

    digest = hashlib.sha256()
    for name, path in zip(images.names, images.paths, strict=True):
        stamps = (*stamp(images.label_path(path)), *stamp(path))
        digest.update("\0".join(map(str, (name, *stamps))).encode() + b"\n")
    digest.update(images.label_table.tobytes() + images.decoding.encode())
    return digest.hexdigest()


def _read_cache(path: Path, key: str, shape: tuple[int, int]) -> LabelStatistics | None:
    """What the file holds if it was counted from these very files; None otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["files"] != key:
            return None
        pixels, mismatched = np.array(content["pixels"], dtype=np.int64), tuple(content["mismatched"])
        fits = pixels.shape == shape and set(mismatched) <= set(range(len(pixels)))
        return LabelStatistics(pixels, mismatched) if fits else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
