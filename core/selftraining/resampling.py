"""Training-consistency resampling: thresholds of the candidate passes and class-balanced drawing (DT-ST §3.3).

Everything here is a function of arrays; :mod:`core.selftraining.candidate_pass` runs the passes. Source training draws
its images class-balanced, too, so :func:`draw_images` itself is in :mod:`core.datasets.sampling`.
"""

import numpy as np

from core.datasets.sampling import BLOCK, draw_images, uniform_order
from core.evaluation.metrics import joint_counts

MIN_BLOCKS = 20  # drawn at once
MIN_CLASS_PIXELS = 50  # a class is present in an image from this many pixels at the image's own size
_LOW_BITS = 16
_BINS = 1 << _LOW_BITS
_DRAW = 0x4452  # key of the random stream of draws


def rank_of(count: int, share: float) -> int:
    """Zero-based ascending rank round(count · share), half to even, clamped to count − 1 (count > 0)."""
    return min(round(count * share), count - 1)


class ConfidenceRanks:
    """Exact order statistics per class of a stream of float32 confidences, in memory that its length does not change.

    The bit pattern of a non-negative float32 grows with its value, so two sweeps over the same data find the value of
    any rank exactly: the first counts the upper 16 bits, the second the lower 16 of the pixels that share the wanted
    upper ones. Counts of several processes may be added before :meth:`locate` and :meth:`thresholds`.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self.upper_counts = np.zeros((num_classes, _BINS), np.int64)
        self.lower_counts = np.zeros((num_classes, _BINS), np.int64)
        self._upper_bin = self._remaining_rank = None

    def count(self, labels: np.ndarray, confidences: np.ndarray) -> None:
        """First sweep: count one chunk (integer labels, 255 ignored; float32 confidences of the same shape)."""
        labels, bits = self._bits(labels, confidences)
        np.add.at(self.upper_counts, (labels, bits >> _LOW_BITS), 1)

    def locate(self, share: float) -> None:
        """Between the sweeps: find the upper bits of the value of rank round(n · share) for every class."""
        cumulated = self.upper_counts.cumsum(axis=1)
        totals = cumulated[:, -1]
        ranks = np.array([rank_of(int(n), share) if n else 0 for n in totals])
        self._upper_bin = (cumulated <= ranks[:, None]).sum(axis=1)
        below = cumulated - self.upper_counts
        self._remaining_rank = np.array(
            [rank - below[c, self._upper_bin[c]] if totals[c] else -1 for c, rank in enumerate(ranks)]
        )

    def refine(self, labels: np.ndarray, confidences: np.ndarray) -> None:
        """Second sweep over the same chunks, in any order."""
        labels, bits = self._bits(labels, confidences)
        wanted = (bits >> _LOW_BITS) == self._upper_bin[labels]
        np.add.at(self.lower_counts, (labels[wanted], bits[wanted] & (_BINS - 1)), 1)

    def thresholds(self) -> np.ndarray:
        """The C values (float32); 0 for a class without a pixel."""
        lower = (self.lower_counts.cumsum(axis=1) <= self._remaining_rank[:, None]).sum(axis=1)
        bits = (self._upper_bin.astype(np.uint32) << _LOW_BITS) | lower.astype(np.uint32)
        return np.where(self._remaining_rank >= 0, bits.view(np.float32), np.float32(0))

    def _bits(self, labels: np.ndarray, confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = np.asarray(labels).ravel()
        bits = np.ascontiguousarray(confidences, dtype=np.float32).ravel().view(np.uint32)
        kept = (labels >= 0) & (labels < self.num_classes)
        return labels[kept].astype(np.intp), bits[kept]


def confidence_thresholds(labels: np.ndarray, confidences: np.ndarray, num_classes: int, topk: float) -> np.ndarray:
    """Per class, the confidence of rank round(n · topk) among the n pixels labelled so, ascending (first pass).

    Args:
        labels: integers of any shape; 255 is ignored.
        confidences: floats ≥ 0 of the same shape, taken as float32.
    Returns:
        C float32; 0 for a class without a pixel.
    """
    ranks = ConfidenceRanks(num_classes)
    ranks.count(labels, confidences)
    ranks.locate(topk)
    ranks.refine(labels, confidences)
    return ranks.thresholds()


def consistency(new: np.ndarray, old: np.ndarray, num_classes: int) -> np.ndarray:
    """Per class, the IoU of two label maps of one image (H×W uint8); C float64, 0 where the union is empty.

    A value outside 0 … C − 1 (255) belongs to no class, but its pixel still counts for the other map's class.
    """
    return agreement(joint_counts(np.asarray(new, np.uint8), np.asarray(old, np.uint8)), num_classes)


def agreement(counts: np.ndarray, num_classes: int) -> np.ndarray:
    """:func:`consistency` of two maps by how often each pair of their values meets (256×256)."""
    both = counts.diagonal()[:num_classes]
    union = (counts.sum(0) + counts.sum(1))[:num_classes] - both
    return both / np.maximum(union, 1)


def consistency_thresholds(table: np.ndarray, topk: float) -> np.ndarray:
    """Per class, the value of rank round(n · topk) among the n positive consistencies of its column (later passes).

    Args:
        table: N×C, one row per image.
    Returns:
        C float64; 0 for a class without a positive value.
    """
    thresholds = np.zeros(table.shape[1])
    for c, column in enumerate(np.asarray(table, dtype=np.float64).T):
        positive = column[column > 0]
        if len(positive):
            rank = rank_of(len(positive), topk)
            thresholds[c] = np.partition(positive, rank)[rank]
    return thresholds


def balanced_order(presence: np.ndarray, count: int, seed: int, iteration: int) -> np.ndarray:
    """At least `count` image indices, drawn class-balanced in whole blocks of 500 and shuffled as one list.

    Args:
        presence: N×C bool.
        count: samples until the next pass.
        seed, iteration: key of the draw; `iteration` is that of the pass.
    """
    if not presence.any():
        return uniform_order(len(presence), count, seed, iteration)
    rng = np.random.default_rng([seed, _DRAW, iteration])
    blocks = max(MIN_BLOCKS, -(-count // BLOCK))
    return rng.permutation(draw_images(presence, blocks * BLOCK, rng))
