"""Confusion matrix and the scores read off it (method: intersection over union on the whole set)."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from core.datasets.taxonomy import IGNORE

_EXACT = 1 << 24  # pixels that can be counted in single precision


def value_counts(values: np.ndarray) -> np.ndarray:
    """How often each value stands in an H×W uint8 map: 256 int64."""
    return _counts(values)


def joint_counts(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How often each pair of values stands at one place of two H×W uint8 maps: 256×256 int64."""
    return _counts(first, second)


def _counts(*maps: np.ndarray) -> np.ndarray:
    counts = np.zeros((256,) * len(maps), np.int64)
    rows = max(_EXACT // max(maps[0].shape[1], 1), 1)
    for start in range(0, len(maps[0]) if maps[0].size else 0, rows):
        parts = [np.ascontiguousarray(one[start : start + rows]) for one in maps]
        found = cv2.calcHist(parts, [*range(len(maps))], None, counts.shape, [0, 256] * len(maps))
        counts += found.reshape(counts.shape).astype(np.int64)
    return counts


def confusion_matrix(pred, label, num_classes: int, ignore: int = 255) -> torch.Tensor:
    """Count pixels by (label, prediction).

    Args:
        pred, label: integer arrays or tensors of one shape; `label` may hold `ignore`.
    Returns:
        C×C int64, rows are labels. Pixels whose label is `ignore` do not count.
    Raises:
        ValueError: shapes differ, or a value that counts lies outside 0 … C − 1.
    """
    pred, label = torch.as_tensor(pred), torch.as_tensor(label)
    if pred.shape != label.shape:
        raise ValueError(f"prediction is {tuple(pred.shape)}, label is {tuple(label.shape)}")
    if pred.ndim == 2 and {pred.dtype, label.dtype} == {torch.uint8} and ignore == IGNORE:
        counts = torch.from_numpy(joint_counts(label.cpu().numpy(), pred.cpu().numpy()))
        counts[IGNORE] = 0
        for name, totals in (("label", counts.sum(1)), ("prediction", counts.sum(0))):
            if unknown := totals[num_classes:].nonzero().flatten().tolist():
                raise ValueError(_unknown(name, num_classes + unknown[0], num_classes))
        return counts[:num_classes, :num_classes].clone()
    kept = label != ignore
    pred, label = pred[kept].long(), label[kept].long()
    for name, values in (("label", label), ("prediction", pred)):
        bad = values[(values < 0) | (values >= num_classes)]
        if len(bad):
            raise ValueError(_unknown(name, int(bad[0]), num_classes))
    return torch.bincount(label * num_classes + pred, minlength=num_classes**2).view(num_classes, num_classes)


def _unknown(name: str, value: int, num_classes: int) -> str:
    return f"{name} value {value} is not one of the {num_classes} classes"


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=1), 0.0)


def iou(confusion) -> torch.Tensor:
    """Intersection over union per class from a C×C matrix: C floats (float64); 0 for a class absent from both."""
    confusion = torch.as_tensor(confusion).double()
    hits = confusion.diagonal()
    return _ratio(hits, confusion.sum(0) + confusion.sum(1) - hits)


def accuracy(confusion) -> torch.Tensor:
    """Share of each class's labelled pixels that are predicted right: C floats; 0 for a class without a pixel."""
    confusion = torch.as_tensor(confusion).double()
    return _ratio(confusion.diagonal(), confusion.sum(1))


def mean_iou_in_label(confusion) -> float:
    """Mean IoU in percent of the classes that the label holds, of one image's C×C matrix; NaN where it holds none."""
    confusion = torch.as_tensor(confusion)
    held = confusion.sum(1) > 0
    return 100 * float(iou(confusion)[held].mean()) if held.any() else float("nan")


@dataclass(frozen=True)
class Scores:
    """Everything that is reported of one evaluation, in percent."""

    confusion: np.ndarray  # C×C int64, pixels; rows are labels; one more of each, where a model says what is not scored
    iou: np.ndarray  # per class
    accuracy: np.ndarray  # per class
    occurs: np.ndarray  # bool per class: in the labels or the predictions of the set
    labelled: np.ndarray  # bool per class: in the labels
    mean_accuracy: float
    all_accuracy: float

    @classmethod
    def of(cls, confusion, classes: int | None = None) -> "Scores":
        """Of the first `classes` of a matrix (None: all), none of whose labels is another one."""
        confusion = torch.as_tensor(confusion)
        accuracies = 100 * accuracy(confusion).numpy()[:classes]
        total = max(int(confusion.sum()), 1)
        return cls(
            confusion=confusion.long().cpu().numpy(),
            iou=100 * iou(confusion).numpy()[:classes],
            accuracy=accuracies,
            occurs=(confusion.sum(0) + confusion.sum(1) > 0).numpy()[:classes],
            labelled=(confusion.sum(1) > 0).numpy()[:classes],
            mean_accuracy=float(accuracies.mean()),
            all_accuracy=100 * int(confusion.diagonal().sum()) / total,
        )

    @property
    def mean_iou(self) -> float:
        """Mean over all C classes, an absent one counting 0 (as the DT-ST release computes it)."""
        return float(self.iou.mean())

    @property
    def mean_iou_occurring(self) -> float:
        """Mean over the classes that occur in labels or predictions."""
        return float(self.iou[self.occurs].mean()) if self.occurs.any() else 0.0

    @property
    def mean_iou_labelled(self) -> float:
        """Mean over the classes that occur in the labels: the same classes whatever is predicted; 0 if none does."""
        return float(self.iou[self.labelled].mean()) if self.labelled.any() else 0.0

    def mean_iou_over(self, classes) -> float:
        """Mean over the given class indices."""
        return float(self.iou[list(classes)].mean())
