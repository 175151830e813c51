"""How surely a few labelled images tell candidates apart: mIoU with a paired bootstrap over the images.

mIoU is the mean of IoU over the classes that occur in the ground truth of all these images together: the same classes,
and so the same denominator, for every candidate and in every draw. A class that no image has is left out: its IoU is 0
or undefined, by whether a candidate happens to predict it.

Images drawn with replacement would lack, in many a draw, a class that only one or two images have; its IoU would have
to count 0, which pulls the draws' mIoU and differences towards 0, or be left out, which changes the denominator. So the
draws weigh the images instead of repeating them (the Bayesian bootstrap of Rubin, 1981): each image's counts are taken
times a positive weight, the same for all candidates, and no class is ever lost.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 2000
LEVEL = 0.9  # of the intervals, two-sided
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class ImageCounts:
    """Pixels per image and class of one candidate's predictions, N×C int64 each.

    Attributes:
        hits: labelled and predicted as the class (intersection).
        unions: labelled or predicted as it; unlabelled pixels do not count.
        truths: labelled as it.
    """

    hits: np.ndarray
    unions: np.ndarray
    truths: np.ndarray

    @classmethod
    def of(cls, matrices: np.ndarray) -> "ImageCounts":
        """From one confusion matrix per image, N×C×C with labels as rows."""
        hits, truths = np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=2)
        return cls(hits.copy(), truths + matrices.sum(axis=1) - hits, truths)

    def labelled(self) -> np.ndarray:
        """Of each image, whether any pixel of it is labelled: N bool."""
        return self.truths.any(axis=1)

    def restricted(self, images: np.ndarray, classes: np.ndarray) -> "ImageCounts":
        """Those of some images and classes only (indices or bools)."""
        return ImageCounts(*(part[images][:, classes] for part in (self.hits, self.unions, self.truths)))


@dataclass(frozen=True)
class Comparison:
    """K candidates on the same n labelled images; all scores and differences in percent.

    Attributes:
        images: n.
        classes: indices of the classes that occur in the ground truth, ascending.
        iou: K×len(classes).
        mean_iou: K.
        interval: K×2, low and high; NaN of one image, as everything below but `behind`.
        best: the candidate of the highest mIoU, the first of equal ones.
        behind: K, mIoU of the best minus each one's.
        behind_interval: K×2, by the same draws for both.
        behind_error: K, standard error of `behind`.
    """

    images: int
    classes: np.ndarray
    iou: np.ndarray
    mean_iou: np.ndarray
    interval: np.ndarray
    best: int
    behind: np.ndarray
    behind_interval: np.ndarray
    behind_error: np.ndarray

    def told_apart(self, candidate: int) -> bool:
        """Whether the labels show that the best is better: the interval of the difference lies above 0."""
        return bool(self.behind_interval[candidate, 0] > 0)

    def images_needed(self, candidate: int) -> int | None:
        """About how many labelled images would tell a candidate from the best, if the difference stays what it is.

        The standard error falls as 1/√n: n·(z·error/difference)² of them, rounded up, but no fewer than there are. None
        where nothing can be said: of one image, or for equal scores.
        """
        return images_needed(self.images, float(self.behind[candidate]), float(self.behind_error[candidate]))


def images_needed(images: int, difference: float, error: float) -> int | None:
    """See :meth:`Comparison.images_needed`; `error`: standard error of `difference` on `images` images."""
    if difference == 0 or math.isnan(error):
        return None
    return max(images, math.ceil(images * (Z * error / difference) ** 2))


def draw_weights(images: int, seed: int, draws: int = DRAWS) -> np.ndarray:
    """draws×images positive floats, each row summing to 1, of a Dirichlet distribution.

    Its concentration, 1 − 4/n per image (0.2 up to 5 images), gives a weighted mean the variance of Student's t with
    n − 1 degrees of freedom: s²/n·(n − 1)/(n − 3). With 1, as in Rubin's, intervals of few images are too narrow.
    """
    drawn = np.random.default_rng(seed).gamma(max(1 - 4 / images, 0.2), size=(draws, images))
    drawn = np.maximum(drawn, np.finfo(np.float64).tiny)
    return drawn / drawn.sum(axis=1, keepdims=True)


def mean_ious(counts: ImageCounts, weights: np.ndarray) -> np.ndarray:
    """mIoU of weighted images, in percent, over all classes of the counts (each in some image's label): D floats.

    Args:
        weights: D×N positive.
    """
    return 100 * (weights @ counts.hits / (weights @ counts.unions)).mean(axis=1)


def compare(candidates: Sequence[ImageCounts], seed: int, draws: int = DRAWS) -> Comparison:
    """Compare candidates by their counts on the same images; images without a labelled pixel are left out.

    Raises:
        ValueError: no pixel is labelled.
    """
    first = candidates[0]
    kept, classes = first.labelled(), np.flatnonzero(first.truths.any(axis=0))
    images = int(kept.sum())
    if not images:
        raise ValueError("no labelled pixel")
    counts = [candidate.restricted(kept, classes) for candidate in candidates]
    iou = np.stack([100 * one.hits.sum(axis=0) / one.unions.sum(axis=0) for one in counts])
    mean_iou = iou.mean(axis=1)
    best = int(mean_iou.argmax())
    behind = mean_iou[best] - mean_iou
    if images == 1:
        nothing = np.full((len(counts), 2), np.nan)
        return Comparison(1, classes, iou, mean_iou, nothing, best, behind, nothing.copy(), nothing[:, 0].copy())
    weights = draw_weights(images, seed, draws)
    drawn = np.stack([mean_ious(one, weights) for one in counts])
    differences = drawn[best] - drawn
    tails = (1 - LEVEL) / 2, (1 + LEVEL) / 2
    interval, behind_interval = (np.quantile(values, tails, axis=1).T for values in (drawn, differences))
    return Comparison(
        images, classes, iou, mean_iou, interval, best, behind, behind_interval, differences.std(axis=1, ddof=1)
    )
