"""One pass of the teacher over the target images, which makes a generation of candidates (DT-ST §3.3, method §6)."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.datasets.images import read_label, write_label
from core.datasets.reader import ImageSet
from core.datasets.taxonomy import IGNORE
from core.datasets.transforms import nearest_index, nearest_labels
from core.evaluation.metrics import joint_counts, value_counts
from core.evaluation.predictor import Predictor, view_sizes
from core.models.deeplab import resize_logits
from core.models.label_maps import label_map
from core.selftraining.generations import FORMAT, Generation, file_name
from core.selftraining.resampling import MIN_CLASS_PIXELS, ConfidenceRanks, agreement, consistency_thresholds
from core.utils import distributed
from core.utils.devices import copy_to_host, to_device
from core.utils.errors import UserError
from core.utils.files import partial_path, replacing_folder, write_json, writing
from core.utils.logging import progress

FIRST_PASS_SIDE = 256  # short side of the grid on which the first pass takes labels and confidences
SEEN_WITHIN = 120.0  # seconds after which what one machine has made is there for the others


class CandidatePass:
    """Passes over the target images, each of which makes a generation from the teacher as it is.

    Memory does not grow with the number of images but for an index entry each; every image is decoded once. Of several
    processes each sees to its share of the images, in one folder; what comes out is what one process would make.

    Args:
        images: the target images of a pass.
        num_classes: C.
        predictor: device, precision, and the config of the pass.
        folder: holds the generations; made when needed.
    """

    def __init__(self, images: ImageSet, num_classes: int, predictor: Predictor, folder: str | Path):
        self.images, self.num_classes, self.folder = images, num_classes, Path(folder)
        config, self._predictor = predictor.config, predictor
        self._topk, self._batch_size = config.TCR.TOPK_CANDIDATE, config.TEST.BATCH_SIZE
        self._align_corners = config.MODEL.ALIGN_CORNERS

    def run(self, teacher: nn.Module, iteration: int, previous: Generation | None = None) -> Generation:
        """Make the next generation after `iteration` completed iterations; the first one where `previous` is None.

        Raises:
            UserError: an image that cannot be decoded, or a full disk.
        """
        number = 0 if previous is None else previous.number + 1
        final = self.folder / f"g{number:04d}"
        with replacing_folder(final) if distributed.is_main() else nullcontext(partial_path(final)) as partial:
            if distributed.is_main():
                with writing(partial):
                    (partial / "labels").mkdir()
                    if previous is None:
                        (partial / "masked").mkdir()
            distributed.barrier()
            wait_for(partial / "labels")
            found = self._first(teacher, partial) if previous is None else self._later(teacher, partial, previous)
            thresholds, entries, consistency = found
            pixels = sum((entry.pop("pixels") for entry in entries), np.zeros(self.num_classes, np.int64))
            pixels, entries = distributed.total_array(pixels), distributed.joined(entries)
            self.images.skipped.settle()
            if distributed.is_main():
                write_json(
                    partial / "index.json",
                    {
                        "format": FORMAT,
                        "generation": number,
                        "iteration": iteration,
                        "num_classes": self.num_classes,
                        "pixelwise": previous is None,
                        "thresholds": [float(t) for t in thresholds],
                        "pixels": pixels.tolist(),
                        "consistency": consistency,
                        "images": entries,
                    },
                )
        distributed.barrier()
        wait_for(final / "index.json")
        return Generation(final)

    def _first(self, teacher: nn.Module, folder: Path) -> tuple[np.ndarray, list[dict], None]:
        """Threshold every pixel's confidence by its class's order statistic over the whole set.

        The confidences wait on disk: the second and third sweep read them there, not from the images.
        """
        ranks, entries, shapes = ConfidenceRanks(self.num_classes), [], []
        first = distributed.share(len(self.images), self._batch_size).start
        spill = folder / f"confidences{distributed.rank()}.f32"
        with distributed.own_part(), spill.open("wb") as file:

            def take(index: int, labels: np.ndarray, confidence: np.ndarray) -> None:
                stored = nearest_labels(labels, confidence.shape)
                entries.append(self._entry(index, labels.shape, value_counts(labels)))
                shapes.append(confidence.shape)
                ranks.count(stored, confidence)
                with writing(folder):
                    file.write(confidence.tobytes())
                    file.flush()
                    write_label(folder / "labels" / file_name(index), stored)

            self._sweep(teacher, take, confidences=True)

        def chunks() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
            with spill.open("rb") as file:
                for index, shape in enumerate(shapes, first):
                    confidence = np.fromfile(file, np.float32, count=shape[0] * shape[1]).reshape(shape)
                    yield index, read_label(folder / "labels" / file_name(index)), confidence

        ranks.upper_counts = distributed.total_array(ranks.upper_counts)
        ranks.locate(self._topk)
        with distributed.own_part():
            for _, labels, confidence in distributed.heeding(chunks()):
                ranks.refine(labels, confidence)
        ranks.lower_counts = distributed.total_array(ranks.lower_counts)
        thresholds = ranks.thresholds()
        with distributed.own_part():
            for index, labels, confidence in distributed.heeding(progress(chunks(), "masking candidates", len(shapes))):
                known = np.minimum(labels, self.num_classes - 1)
                masked = np.where(confidence < thresholds[known], np.uint8(IGNORE), labels)
                with writing(folder):
                    write_label(folder / "masked" / file_name(index), masked)
                entry = entries[index - first]
                entry["candidates"] = present_classes(resized_counts(masked, tuple(entry["size"]), self.num_classes))
        spill.unlink()
        return thresholds, entries, None

    def _later(
        self, teacher: nn.Module, folder: Path, previous: Generation
    ) -> tuple[np.ndarray, list[dict], list[float]]:
        """Mask in every image the classes that agree too little with the previous pass.

        The last of what it returns is the mean of every class's positive consistencies, 0 where there is none.
        """
        table, entries = [], []

        def take(index: int, labels: np.ndarray) -> None:
            pairs = joint_counts(labels, nearest_labels(previous.labels(index), labels.shape))
            table.append(agreement(pairs, self.num_classes))
            stored = nearest_labels(labels, tuple(max(n // 2, 1) for n in labels.shape))
            with writing(folder):
                write_label(folder / "labels" / file_name(index), stored)
            entry = self._entry(index, labels.shape, pairs.sum(1))
            entry["candidates"] = present_classes(resized_counts(stored, labels.shape, self.num_classes))
            entries.append(entry)

        with distributed.own_part():
            self._sweep(teacher, take)
        own, table = table, np.array(distributed.joined(table))
        thresholds = consistency_thresholds(table, self._topk)
        for entry, row in zip(entries, own, strict=True):
            entry["masked"] = np.flatnonzero(row < thresholds).tolist()
            entry["candidates"] = [c for c in entry["candidates"] if c not in entry["masked"]]
        return thresholds, entries, (table.sum(axis=0) / np.maximum((table > 0).sum(axis=0), 1)).tolist()

    def _sweep(self, teacher: nn.Module, take: Callable[..., None], confidences: bool = False) -> None:
        """Run the teacher over every image, in order.

        Args:
            take: called with the image's index, its labels (H×W uint8; all 255 for a bad image, which then holds no
                class and offers nothing) and, if asked for, the confidences on the first pass's grid (float32).
        """

        def read(batch: dict) -> list[tuple[int, list[Callable[[], np.ndarray]]]]:
            made, ((logits, _),) = [], self._predictor.maps(teacher, batch["views"], flip=False)
            for index, one, size, bad in zip(batch["index"], logits, batch["size"], batch["bad"], strict=True):
                corners = self._align_corners
                readings = [partial(np.full, size, IGNORE, np.uint8) if bad else label_map(one, size, corners)]
                if confidences:
                    readings.append(sampled_confidence(one, size, first_pass_grid(size), corners))
                made.append((index, readings))
            return made

        def take_each(made: list[tuple[int, list[Callable[[], np.ndarray]]]]) -> None:
            for index, readings in made:
                labels, *others = (reading() for reading in readings)
                blind = self.images.blind_at(self.images.paths[index], labels.shape)
                if blind is not None:
                    labels = np.where(blind, np.uint8(IGNORE), labels)
                take(index, labels, *others)

        sizes = view_sizes(self._predictor.config, multi_scale=False)
        self._predictor.sweep(teacher, self.images, "candidate pass", read, take_each, sizes)

    def _entry(self, index: int, size: tuple[int, int], counts: np.ndarray) -> dict:
        """Of an image of `size` (H, W), in which each value of a label stands so often."""
        name, pixels = self.images.names[index], counts[: self.num_classes]
        return {"name": name, "size": list(size), "present": present_classes(pixels), "pixels": pixels}


def wait_for(path: Path) -> None:
    """Wait until a path that another machine has made is seen here: a network's file system may take its time.

    Raises:
        UserError: it does not come; OUTPUT_DIR is then no folder that all machines share.
    """
    end = time.monotonic() + SEEN_WITHIN
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(f"{path} is not seen by every machine of the job: give an OUTPUT_DIR that all share")
        time.sleep(0.2)
        with suppress(OSError):
            os.listdir(path.parent)  # has some file systems look again


def first_pass_grid(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) on which the first pass samples an H×W image: its own aspect, short side 256 (256×512 where 2:1)."""
    scale = FIRST_PASS_SIDE / min(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def sampled_confidence(
    logits: torch.Tensor, size: tuple[int, int], grid: tuple[int, int], align_corners: bool = True
) -> Callable[[], np.ndarray]:
    """The largest probability of C×h×w logits resized to `size` (H, W), where a nearest resize to `grid` reads it.

    Args:
        align_corners: as :func:`core.models.deeplab.resize_logits` takes it.
    Returns:
        a function for any thread that gives float32 of `grid` on the host, as :func:`core.models.label_maps.label_map`.
    """
    sampled = [torch.from_numpy(nearest_index(length, count)) for length, count in zip(size, grid, strict=True)]
    if logits.device.type == "cpu":
        return partial(_interpolated_confidence, logits, size, sampled, align_corners)
    rows, columns = (to_device(index, logits.device) for index in sampled)
    values = resize_logits(logits[None], size, align_corners)[0].index_select(1, rows).index_select(2, columns)
    copied = copy_to_host(values.softmax(dim=0).amax(dim=0).float())
    return lambda: copied().numpy()


@torch.inference_mode()
def _interpolated_confidence(
    logits: torch.Tensor, size: tuple[int, int], sampled: Sequence[torch.Tensor], align_corners: bool
) -> np.ndarray:
    """:func:`sampled_confidence` on the CPU, by the linear maps that give the sampled rows and columns alone."""
    rows, columns = (
        _resize_weights(length, resized, align_corners)[index].to(logits.dtype)
        for length, resized, index in zip(logits.shape[1:], size, sampled, strict=True)
    )
    by_row = logits.permute(1, 0, 2).flatten(0, 1)
    wide = (by_row @ columns.T).view(len(rows.T), -1)
    values = (rows @ wide).view(len(rows), len(logits), len(columns))
    return values.softmax(dim=1).amax(dim=1).float().numpy()


def _resize_weights(length: int, resized: int, align_corners: bool) -> torch.Tensor:
    """resized×length float64: what a bilinear resize takes of every point of an axis."""
    weights = torch.eye(length, dtype=torch.float64)[None, None]
    return F.interpolate(weights, size=(resized, length), mode="bilinear", align_corners=align_corners)[0, 0]


def resized_counts(labels: np.ndarray, size: tuple[int, int], num_classes: int) -> np.ndarray:
    """Pixels of each class (C int64) in an h×w label map once it is resized, nearest, to (H, W)."""
    rows, columns = (
        np.bincount(nearest_index(n, length), minlength=n) for n, length in zip(labels.shape, size, strict=True)
    )
    counts = np.zeros(256, np.int64)
    for times in np.unique(rows):  # how often each row is repeated, and so each of its columns
        alike = _selected(labels, rows == times, 0)
        for repeated in np.unique(columns):
            counts += times * repeated * value_counts(_selected(alike, columns == repeated, 1))
    return counts[:num_classes]


def _selected(labels: np.ndarray, wanted: np.ndarray, axis: int) -> np.ndarray:
    return labels if wanted.all() else labels.compress(wanted, axis)


def present_classes(counts: np.ndarray) -> list[int]:
    """Classes with at least 50 pixels."""
    return np.flatnonzero(np.asarray(counts) >= MIN_CLASS_PIXELS).tolist()
