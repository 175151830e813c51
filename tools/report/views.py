"""What a report needs the networks for: source and adapted model over the images, and pictures of the extremes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from core.datasets.loading import full_view_loader
from core.datasets.reader import ImageSet
from core.evaluation.evaluator import count_pairs
from core.evaluation.metrics import Scores, mean_iou_in_label
from core.evaluation.pictures import Painter
from core.evaluation.predictor import Predictor, evaluating, view_sizes
from core.utils.checkpoints import load_checkpoint
from core.utils.logging import progress
from tools.pages import jpeg_bytes

WIDTH = 400  # px, at most, of a picture; and its height
_THINNED = 200  # px, at most, of the maps by which two models are compared; and their height


@dataclass(frozen=True)
class Observation:
    """One model over the images.

    Attributes:
        scores: of the whole set; None without labels.
        per_image: with labels the mean IoU (percent) of the classes that the image's label holds, else its mean
            confidence (percent).
        thinned: every n-th pixel of each image's classes.
    """

    scores: Scores | None
    per_image: np.ndarray
    thinned: tuple[np.ndarray, ...] = ()

    def changed(self, before: "Observation") -> np.ndarray:
        """Share of each image's pixels (percent) in which another model saw another class, by the thinned maps."""
        pairs = zip(self.thinned, before.thinned, strict=True)
        return np.array([100 * float((now != then).mean()) for now, then in pairs])


class Viewer:
    """Runs checkpoints over images.

    Args:
        config: a whole config.
        model: on its device; each checkpoint is loaded into it.
        images: with labels or without.
        num_classes: C.
    """

    def __init__(self, config, model: nn.Module, images: ImageSet, num_classes: int):
        self._config, self._model, self.images, self._num_classes = config, model, images, num_classes
        self._predictor = Predictor(config, next(model.parameters()).device)

    def observe(self, checkpoint: Path) -> Observation:
        """Raises UserError for a checkpoint that does not fit, or an image that cannot be read."""
        labelled = self.images.label_path is not None
        total, values, thinned = 0, [], []
        for index, prediction, confidence in self._predictions(checkpoint, range(len(self.images)), not labelled):
            step = -(-max(prediction.shape) // _THINNED)
            thinned.append(prediction[::step, ::step].copy())
            if not labelled:
                values.append(100 * float(confidence.mean()))
                continue
            confusion = count_pairs(self.images, prediction, self.images.read_label(index), self._num_classes)
            total += confusion
            values.append(mean_iou_in_label(confusion))
        pairing = self.images.pairing
        scores = Scores.of(total, None if pairing is None else len(pairing.taxonomy)) if labelled else None
        return Observation(scores, np.array(values), tuple(thinned))

    def pictures(self, checkpoints: Sequence[Path], indices: Sequence[int], painter: Painter) -> list[list[bytes]]:
        """JPEG files of each image: as it is, every checkpoint's overlay, what changed where they are two, the label's
        overlay where there is one.
        """
        maps = [[classes for _, classes, _ in self._predictions(path, indices, False)] for path in checkpoints]
        found = []
        for place, index in enumerate(indices):
            image = self.images.form.read(self.images.paths[index])
            layers = [of_checkpoint[place] for of_checkpoint in maps]
            if self.images.label_path is not None:
                label, pairing = self.images.read_label(index), self.images.pairing
                layers.append(label if pairing is None else pairing.shown[label])
            scale = min(WIDTH / max(image.shape), 1)
            size = [max(round(length * scale), 1) for length in image.shape[1::-1]]
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            layers = [cv2.resize(layer, size, interpolation=cv2.INTER_NEAREST) for layer in layers]
            drawn = [small, *(painter.overlay(small, layer) for layer in layers)]
            if len(checkpoints) == 2:
                drawn.insert(3, painter.changed(small, *layers[:2]))
            found.append([jpeg_bytes(picture) for picture in drawn])
        return found

    @torch.inference_mode()
    def _predictions(
        self, checkpoint: Path, indices: Sequence[int], confidence: bool
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """(index, H×W uint8 classes, H×W confidence if asked for) of the images `indices`, in their order."""
        load_checkpoint(self._model, checkpoint)
        images = replace(self.images.restricted(indices), label_path=None)
        test = self._config.TEST
        workers = self._config.DATALOADER.NUM_WORKERS if len(images) > test.BATCH_SIZE else 0
        loader = full_view_loader(images, view_sizes(self._config, False), test.BATCH_SIZE, workers)
        with evaluating(self._model):
            for batch in progress(loader, checkpoint.name):
                predicted = self._predictor.predict(self._model, batch, flip=False, confidence=confidence)
                for position, reading in zip(batch["index"], predicted, strict=True):
                    yield indices[position], *reading()


def extremes(values: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Indices of the `count` smallest and the `count` largest values, each once, NaNs never: the extreme first."""
    order = [int(index) for index in np.argsort(values, kind="stable") if np.isfinite(values[index])]
    low = order[: min(count, -(-len(order) // 2))]
    return low, order[::-1][: min(count, len(order) - len(low))]
