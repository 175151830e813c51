"""Optimiser and learning-rate schedule (DT-ST §4.1)."""

import torch
from torch import nn

CLASSIFIER_LR_FACTOR = 10


def poly_lr(iteration: int, base_lr: float, max_iter: int, power: float = 0.9) -> float:
    """base_lr · (1 − iteration / max_iter)^power, `iteration` counted from 0; 0 beyond `max_iter`."""
    return base_lr * max(0.0, 1 - iteration / max_iter) ** power


def build_optimizer(model: nn.Module, solver) -> torch.optim.SGD:
    """SGD over `model.feature_extractor` at BASE_LR and `model.classifier` at ten times that (`solver`: cfg.SOLVER)."""
    groups = [
        {"params": list(model.feature_extractor.parameters()), "lr_factor": 1},
        {"params": list(model.classifier.parameters()), "lr_factor": CLASSIFIER_LR_FACTOR},
    ]
    return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY)


def set_learning_rate(optimizer: torch.optim.Optimizer, iteration: int, solver) -> float:
    """Set every group's rate for `iteration` (from 0) and return the backbone's."""
    lr = poly_lr(iteration, solver.BASE_LR, solver.MAX_ITER, solver.LR_POWER)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr
