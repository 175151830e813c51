"""What a training step takes from image-sized maps of logits, each of them computed band by band and never whole.

The definitions are those of :mod:`views`, :mod:`pseudo_labels` and :mod:`losses`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from core.datasets.taxonomy import IGNORE
from core.models.bands import BandedMap, resize_rows
from core.models.label_maps import first_largest
from core.selftraining.losses import NEGATIVE_WEIGHT
from core.selftraining.views import View


def _resized(logits: torch.Tensor, size: tuple[int, int]) -> BandedMap:
    rows, columns = (resize_rows(np.eye(n), length) for n, length in zip(logits.shape[1:], size, strict=True))
    return BandedMap(logits, rows, columns)


@torch.no_grad()
def probability_sum(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Sum over images and pixels of the softmax of B×C×h×w logits resized to `size` (H, W): C float64."""
    total = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device)
    for single in logits:
        for _, values in _resized(single, size):
            total += values.softmax(dim=1).sum(dim=(0, 2))
    return total


@torch.no_grad()
def view_predictions(
    logits: torch.Tensor, full_size: tuple[int, int], views: Sequence[View]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The teacher in the student views: winning probability, winning class, and which classes have at most chance.

    Args:
        logits: B×C×h×w of the full views.
        full_size: (H, W) of these.
        views: one per image, all of one crop size.
    Returns:
        B×H×W floats, B×H×W int64, B×C×H×W bool. Outside of an image all classes are equal.
    """
    height, width = views[0].crop_size
    batch, classes = logits.shape[:2]
    confidence = logits.new_empty(batch, height, width)
    label = torch.empty(batch, height, width, dtype=torch.int64, device=logits.device)
    unlikely = torch.empty(batch, height, classes, width, dtype=torch.bool, device=logits.device)
    for image, view in enumerate(views):
        for rows, values in BandedMap(logits[image], *view.matrices(logits.shape[2:], full_size)):
            probs = values.softmax(dim=1)
            confidence[image, rows], label[image, rows] = first_largest(probs, dim=1)
            torch.le(probs, 1 / classes, out=unlikely[image, rows])
    return confidence, label, unlikely.transpose(1, 2)


class _LossSums(torch.autograd.Function):
    """Both losses' sums; the gradients are made on the way, at the size of the logits, and only scaled later."""

    @staticmethod
    def forward(ctx, logits, labels, pairs):
        positive, negative = logits.new_zeros(2, dtype=torch.float64)
        gradients = torch.zeros(2, *logits.shape, dtype=logits.dtype, device=logits.device)
        size = labels.shape[1:]
        for image in range(len(logits)):
            banded = _resized(logits[image], size)
            gathered = banded.zeros(), banded.zeros()
            for number, (rows, values) in enumerate(banded):
                target = labels[image, rows]
                known = (target != IGNORE).unsqueeze(1)
                index = target.clamp(max=values.shape[1] - 1).unsqueeze(1)
                gradient = values.log_softmax(dim=1)
                positive -= (gradient.gather(1, index) * known).sum()
                gradient = gradient.exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=values.dtype))
                banded.add_back(gathered[0], number, gradient.mul_(known))
                wanted = pairs[image, :, rows].transpose(0, 1)
                negative += (F.softplus(values) * wanted).sum()
                banded.add_back(gathered[1], number, values.sigmoid_().mul_(wanted))
            for gradient, sums in zip(gradients, gathered, strict=True):
                gradient[image] = banded.gradient(sums)
        gradients[1] *= NEGATIVE_WEIGHT
        ctx.save_for_backward(gradients)
        return positive.to(logits.dtype), (NEGATIVE_WEIGHT * negative).to(logits.dtype)

    @staticmethod
    def backward(ctx, positive, negative):
        (gradients,) = ctx.saved_tensors
        return positive * gradients[0] + negative * gradients[1], None, None


def loss_sums(logits: torch.Tensor, labels: torch.Tensor, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the cross-entropy over labelled pixels, 0.5 · sum of softplus over the negative pairs), two scalars.

    Args:
        logits: B×C×h×w of the student; they are resized to the labels' size.
        labels: B×H×W int64, 255 = ignore.
        pairs: B×C×H×W bool.
    """
    return _LossSums.apply(logits, labels, pairs)
