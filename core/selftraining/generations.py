"""Candidate generations: the labels of one pass of the teacher over the target images, on disk (DT-ST §3.3, method §6).

A generation is an immutable folder `g0000`, `g0001`, …:

    index.json       per image: name, size, classes present, classes that may be pasted, classes masked as a whole;
                     per class: threshold, pixels, and from the second pass on the mean consistency
    labels/*.png     the unmasked labels, 8-bit class indices
    masked/*.png     first pass only: the same with the unsure pixels set to 255

It is written as `g0001.partial`, synced to disk and renamed when complete.
"""

import json
import shutil
from collections.abc import Container, Sequence
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from core.datasets.images import read_label
from core.datasets.taxonomy import IGNORE
from core.utils.logging import LOGGER

FORMAT = 1
PER_CLASS = (
    "offering",  # images that offer the class for pasting
    "threshold",  # of confidence in the first pass, of consistency later
    "share",  # of the pixels
    "consistency",  # mean over the images that have any
)


class Generation:
    """One complete generation, for reading, in a folder such as …/candidates/g0000."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"{self.folder}: format {index['format']} is not {FORMAT}")
        self.number: int = index["generation"]
        self.iteration: int = index["iteration"]
        self.num_classes: int = index["num_classes"]
        self.thresholds: list[float] = index["thresholds"]
        self.pixels: list[int] | None = index.get("pixels")  # an older index lacks it and
        self.consistency: list[float] | None = index.get("consistency")  # this, which the first pass lacks, too
        self._images: list[dict] = index["images"]
        self._pixelwise: bool = index["pixelwise"]

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def names(self) -> list[str]:
        """The images' names, in the order of every other member."""
        return [image["name"] for image in self._images]

    @cached_property
    def presence(self) -> np.ndarray:
        """N×C bool: classes with at least 50 pixels, at the image's own size, of the unmasked labels."""
        return self._table("present")

    @cached_property
    def candidates(self) -> tuple[np.ndarray, ...]:
        """Per class, the images that hold at least 50 pixels of it in their candidate labels."""
        return tuple(np.flatnonzero(column) for column in self._table("candidates").T)

    def labels(self, image: int) -> np.ndarray:
        """Unmasked labels of one image, h×w uint8, at the size they are stored in."""
        return read_label(self.folder / "labels" / file_name(image))

    def candidate_labels(self, image: int) -> np.ndarray:
        """Labels with what is unsure (pixels in the first pass, whole classes later) set to 255, h×w uint8."""
        if self._pixelwise:
            return read_label(self.folder / "masked" / file_name(image))
        kept = np.arange(256, dtype=np.uint8)
        kept[self._images[image]["masked"]] = IGNORE
        return cv2.LUT(self.labels(image), kept)

    def _table(self, key: str) -> np.ndarray:
        table = np.zeros((len(self), self.num_classes), bool)
        for row, image in zip(table, self._images, strict=True):
            row[image[key]] = True
        return table


def delete_generations(folder: str | Path, needed: Container[str]) -> None:
    """Remove the generations in `folder` whose names are not `needed`; nothing may read from them any more."""
    for path in Path(folder).glob("g[0-9]*"):
        if path.name not in needed:
            shutil.rmtree(path, ignore_errors=True)


def log_candidates(generation: Generation, names: Sequence[str], paste_classes: Sequence[int], seconds: float) -> None:
    """One line: how many images offer each paste class; and one more, at the first pass, where none offers any."""
    offers = ", ".join(f"{names[c]} {len(generation.candidates[c])}" for c in paste_classes)
    LOGGER.info(
        "candidate pass g%04d: %d images in %.1f s; images to paste from: %s",
        generation.number,
        len(generation),
        seconds,
        offers or "not asked for",
    )
    if paste_classes and generation.number == 0 and not any(len(generation.candidates[c]) for c in paste_classes):
        LOGGER.info("no paste class has a candidate: training goes on without pasting")


def table_row(generation: Generation, names: Sequence[str]) -> dict:
    """A generation as a row of the run's table: :data:`PER_CLASS` by class name, an empty cell for what it lacks."""
    pixels = np.asarray(generation.pixels, np.float64)
    values = {
        "offering": [len(images) for images in generation.candidates],
        "threshold": [f"{value:.6f}" for value in generation.thresholds],
        "share": [f"{value:.6f}" for value in pixels / max(pixels.sum(), 1)],
        "consistency": [f"{value:.6f}" for value in generation.consistency or ()] or [""] * len(names),
    }
    row = {"iteration": generation.iteration, "generation": generation.number, "images": len(generation)}
    return row | {f"{key}_{name}": value for key in PER_CLASS for name, value in zip(names, values[key], strict=True)}


def file_name(image: int) -> str:
    """Of an image's labels."""
    return f"{image:06d}.png"
