"""Pseudo-labels with class-wise, confidence-scaled thresholds (SAC: Araslanov & Roth, CVPR 2021; DT-ST §3.1)."""

import torch

from core.datasets.taxonomy import IGNORE

BETA = 1e-3  # start value of the running confidence, and the scale of its effect on the thresholds


def initial_running_confidence(num_classes: int, beta: float = BETA, device=None) -> torch.Tensor:
    """The float32 C-vector that :func:`update_running_confidence` starts from: `beta` everywhere."""
    return torch.full((num_classes,), beta, device=device)


def mean_confidence(probs: torch.Tensor) -> torch.Tensor:
    """Mean of `probs` (B×C×H×W) over batch and pixels, as a C-vector."""
    return probs.mean(dim=(0, 2, 3))


def advance_running_confidence(
    running_conf: torch.Tensor, mean_conf: torch.Tensor, beta: float = BETA, momentum: float = 0.9
) -> torch.Tensor:
    """One step of the exponential average, from the batch's mean class probabilities (both C-vectors).

    A class that is seen (mean above 1e-8) for the first time, its value still being exactly `beta`, starts at its
    mean instead of creeping up from `beta`.
    """
    first_seen = (mean_conf > 1e-8) & (running_conf == beta)
    previous = torch.where(first_seen, mean_conf.to(running_conf.dtype), running_conf)
    return momentum * previous + (1 - momentum) * mean_conf


def update_running_confidence(
    running_conf: torch.Tensor, probs: torch.Tensor, beta: float = BETA, momentum: float = 0.9
) -> torch.Tensor:
    """The running confidence per class after one more batch of teacher probabilities.

    Args:
        running_conf: C floats; left untouched.
        probs: B×C×H×W softmax probabilities of the teacher on the full views.
    Returns:
        the new C-vector.
    """
    return advance_running_confidence(running_conf, mean_confidence(probs), beta, momentum)


def class_thresholds(
    peak: torch.Tensor, running_conf: torch.Tensor, beta: float = BETA, upper: float = 0.80, lower: float = 0.20
) -> torch.Tensor:
    """Thresholds t_c = max(peak_c · upper · (1 − exp(−running_conf_c / beta)), lower); `peak` is B×C."""
    return (peak * (upper * (1 - torch.exp(-running_conf / beta)))).clamp(min=lower)


def select_pseudo_labels(
    probs: torch.Tensor, running_conf: torch.Tensor, beta: float = BETA, upper: float = 0.80, lower: float = 0.20
) -> torch.Tensor:
    """Label the pixels whose winning class is confident enough for its class and image (SAC, eq. 5–6).

    Args:
        probs: B×C×H×W teacher probabilities, left untouched.
        running_conf: C floats, left untouched.
    Returns:
        int64 B×H×W: the winning class where its probability is strictly above the threshold of its own image, else
        255. A class that wins nowhere in an image has peak 0 there and so the threshold `lower`.
    """
    confidence, label = probs.max(dim=1)
    # of every row first: on a GPU, all pixels of an image would wait in turn for its few numbers
    row_peak = confidence.new_zeros(*label.shape[:2], len(running_conf)).scatter_reduce_(2, label, confidence, "amax")
    thresholds = class_thresholds(row_peak.amax(dim=1), running_conf, beta, upper, lower)
    kept = confidence > thresholds.gather(1, label.flatten(1)).view_as(label)
    return torch.where(kept, label, IGNORE)
