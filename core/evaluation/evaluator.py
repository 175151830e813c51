"""Evaluation of a model on labelled images, and its predictions as label maps (method §7)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from core.datasets.catalog import ImageSet
from core.datasets.taxonomy import Taxonomy
from core.evaluation.metrics import Scores, confusion_matrix
from core.evaluation.predictor import Predictor, Reading, view_sizes
from core.utils import distributed


class Evaluator:
    """Runs a model over the images of DATASETS.TEST.

    Args:
        images: the images; without labels only predictions come out.
        num_classes: C.
        predictor: device, precision, and the config of the views.
        flip: average the softmax probabilities with those of the mirrored image.
        multi_scale: average them over 0.7, 1.0 and 1.3 times the size (:func:`view_sizes`).
    Raises:
        UserError: of several processes, some see other images.
    """

    def __init__(
        self, images: ImageSet, num_classes: int, predictor: Predictor, flip: bool = False, multi_scale: bool = False
    ):
        self.images, self.num_classes = images, num_classes
        self._predictor, self._flip, self._sizes = predictor, flip, view_sizes(predictor.config, multi_scale)
        distributed.check_alike(images.names, f"the images of {images.name}")

    def run(self, model: nn.Module, save: Callable[[int, np.ndarray], None] | None = None) -> Scores | None:
        """Scores of `model` over the set (None without labels); its mode is left as it was.

        Of several processes each predicts its share of the images; all have the scores.

        Args:
            save: called with image index and H×W uint8 prediction of every image, in order, in a thread.
        Raises:
            UserError: an image or label that cannot be read or does not fit its partner.
        """
        labelled, size = self.images.label_path is not None, self._matrix_size
        confusion = torch.zeros(size, size, dtype=torch.int64)

        def count(_: int, counts: torch.Tensor) -> None:
            confusion.add_(counts)

        with distributed.own_part():
            self._sweep(model, count if labelled else None, save)
        return Scores.of(distributed.total(confusion), self._scored) if labelled else None

    @property
    def _scored(self) -> int:
        """How many classes are scored; the matrix has one row and column more, where the model has others."""
        pairing = self.images.pairing
        return self.num_classes if pairing is None else len(pairing.taxonomy)

    @property
    def _matrix_size(self) -> int:
        return self._scored + (self.images.pairing is not None)

    def matrices(self, model: nn.Module) -> np.ndarray:
        """The confusion matrix of `model` on each image, N×C×C int64, labels as rows; for one process, with labels.

        Where the set's classes are others than the model's, C is that of the scored ones and one more, for what the
        model says beside these.

        Raises:
            UserError: as :meth:`run`.
        """
        found = np.zeros((len(self.images), self._matrix_size, self._matrix_size), np.int64)

        def keep(index: int, counts: torch.Tensor) -> None:
            found[index] = counts.numpy()

        self._sweep(model, keep, None)
        return found

    def _sweep(
        self,
        model: nn.Module,
        count: Callable[[int, torch.Tensor], None] | None,
        save: Callable[[int, np.ndarray], None] | None,
    ) -> None:
        """Predict this process's images; `count` is called with index and C×C confusion matrix, `save` as in `run`."""

        def read(batch: dict) -> tuple[dict, list[Reading]]:
            return batch, self._predictor.predict(model, batch, self._flip)

        def take(predicted: tuple[dict, list[Reading]]) -> None:
            batch, readings = predicted
            for position, reading in enumerate(readings):
                prediction, _ = reading()
                index = batch["index"][position]
                if count is not None:
                    count(index, count_pairs(self.images, prediction, batch["label"][position], self.num_classes))
                if save is not None:
                    save(index, prediction)

        title = f"evaluating on {self.images.name}"
        self._predictor.sweep(model, self.images, title, read, take, self._sizes, count is not None)


def count_pairs(images: ImageSet, prediction: np.ndarray, label, num_classes: int) -> torch.Tensor:
    """The confusion matrix (see :meth:`Evaluator.matrices`) of one image of a set.

    Args:
        prediction: H×W uint8, of a model of `num_classes` classes.
        label: H×W uint8, as the set reads it.
    """
    if images.pairing is None:
        return confusion_matrix(prediction, label, num_classes)
    return confusion_matrix(images.pairing.scored[prediction], label, len(images.pairing.taxonomy) + 1)


def report_lines(scores: Scores, taxonomy: Taxonomy, images: str) -> list[str]:
    """The scores on a set (`images`: its name) as lines of text: per class, the means, and what to beware of."""
    lines = [
        f"{name:<12} IoU {iou:6.2f}  accuracy {accuracy:6.2f}{_where(labelled, occurs)}"
        for name, iou, accuracy, labelled, occurs in zip(
            taxonomy.names, scores.iou, scores.accuracy, scores.labelled, scores.occurs, strict=True
        )
    ]
    lines.append(
        f"mIoU {scores.mean_iou:.2f}  mAcc {scores.mean_accuracy:.2f}  allAcc {scores.all_accuracy:.2f}  "
        f"({len(taxonomy)} classes)"
    )
    labelled, occurring = int(scores.labelled.sum()), int(scores.occurs.sum())
    if labelled < len(taxonomy):
        many = f"the {labelled} classes that occur" if labelled != 1 else "the 1 class that occurs"
        lines.append(f"mIoU {scores.mean_iou_labelled:.2f} over {many} in the labels (mIoU_labelled)")
    if labelled < occurring < len(taxonomy):
        lines.append(f"mIoU {scores.mean_iou_occurring:.2f} over the {occurring} that occur in labels or predictions")
    for title, names in taxonomy.subsets:
        lines.append(f"mIoU {scores.mean_iou_over(map(taxonomy.index, names)):.2f} over {title}")
    return lines + _warnings(scores, taxonomy, images)


def _where(labelled: bool, occurs: bool) -> str:
    """What to add to the line of a class that the labels do not hold."""
    if labelled:
        return ""
    return "  (in predictions only)" if occurs else "  (occurs nowhere)"


def _warnings(scores: Scores, taxonomy: Taxonomy, images: str) -> list[str]:
    """What the labels of a set lack."""
    names = np.array(taxonomy.names)
    held, missing = names[scores.labelled], names[~scores.labelled]
    if not len(held):
        return [f"warning: no label of {images} holds a pixel of any class: the scores say nothing"]
    lines = []
    if len(missing):
        lines.append(f"no pixel of {', '.join(missing)} in the labels of {images}: mIoU counts what is missing as 0")
    if len(held) == 1:
        lines.append(f"warning: {held[0]} is the only class in the labels of {images}: a mIoU over it says little")
    return lines


def table_row(scores: Scores, taxonomy: Taxonomy) -> dict[str, str]:
    """The scores as one row of a CSV, by its columns."""
    row = {"mIoU": scores.mean_iou, "mIoU_occurring": scores.mean_iou_occurring}
    row |= {f"mIoU_{len(names)}": scores.mean_iou_over(map(taxonomy.index, names)) for _, names in taxonomy.subsets}
    row |= {"mAcc": scores.mean_accuracy, "allAcc": scores.all_accuracy}
    row |= {f"IoU_{name}": iou for name, iou in zip(taxonomy.names, scores.iou, strict=True)}
    row |= {f"accuracy_{name}": accuracy for name, accuracy in zip(taxonomy.names, scores.accuracy, strict=True)}
    row |= {"mIoU_labelled": scores.mean_iou_labelled}  # columns of a later version come last
    return {column: f"{value:.4f}" for column, value in row.items()}
