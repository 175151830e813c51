"""Positive and negative self-training losses (DT-ST §3.1): sums over pixels or pairs, and the means built on them."""

import torch
import torch.nn.functional as F

from core.datasets.taxonomy import IGNORE

NEGATIVE_WEIGHT = 0.5


def positive_loss_sum(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of the cross-entropy over the labelled pixels (scalar; 0 where all are ignored).

    `weights`: C floats by which the pixels of each class count; None: all count once, as published.
    """
    # summed apart: torch has no deterministic form of the reduction "sum" on CUDA
    return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none").sum()


def positive_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy averaged over **all** B·H·W pixels, ignored ones counting as 0.

    Args:
        logits: B×C×H×W student logits.
        labels: int64 B×H×W, 255 = ignore.
    """
    return positive_loss_sum(logits, labels) / labels.numel()


def negative_pairs(teacher_probs: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Boolean B×C×H×W: the (pixel, class) pairs that the teacher gives at most the chance level 1/C.

    Args:
        teacher_probs: B×C×H×W softmax probabilities, warped into the student's view.
        valid: boolean B×H×W, False on padding; None = all valid.
    """
    pairs = teacher_probs <= 1 / teacher_probs.shape[1]
    return pairs if valid is None else pairs & valid.unsqueeze(1)


def negative_loss_sum(logits: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """0.5 · sum of softplus(logit), binary cross-entropy with target 0, over the pairs (a boolean mask)."""
    return NEGATIVE_WEIGHT * torch.where(pairs, F.softplus(logits), 0).sum()


def negative_loss(logits: torch.Tensor, teacher_probs: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """0.5 · mean of softplus(logit) over the negative pairs; 0 where there is none.

    Args:
        logits: B×C×H×W student logits.
        teacher_probs: B×C×H×W, see :func:`negative_pairs`.
        valid: boolean B×H×W, False on padding; None = all valid.
    """
    pairs = negative_pairs(teacher_probs, valid)
    return negative_loss_sum(logits, pairs) / pairs.sum().clamp(min=1)
