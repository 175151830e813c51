"""Optimiser and learning-rate schedule (DT-ST §4.1)."""

import torch
from torch import nn

CLASSIFIER_LR_FACTOR = 10


def poly_lr(iteration: int, base_lr: float, max_iter: int, power: float = 0.9) -> float:
    """base_lr · (1 − iteration / max_iter)^power, `iteration` counted from 0; 0 beyond `max_iter`."""
    return base_lr * max(0.0, 1 - iteration / max_iter) ** power


class Solver:
    """SGD over `model.feature_extractor` at BASE_LR and `model.classifier` at ten times that, with the poly schedule.

    Args:
        model: with both attributes, on its device.
        options: the config node SOLVER.
    """

    def __init__(self, model: nn.Module, options):
        self.options = options
        groups = [
            {"params": list(model.feature_extractor.parameters()), "lr_factor": 1},
            {"params": list(model.classifier.parameters()), "lr_factor": CLASSIFIER_LR_FACTOR},
        ]
        self.optimizer = torch.optim.SGD(
            groups, lr=options.BASE_LR, momentum=options.MOMENTUM, weight_decay=options.WEIGHT_DECAY
        )
        self._parameters = [parameter for group in groups for parameter in group["params"]]

    def learning_rate(self, iteration: int) -> float:
        """The backbone's rate in `iteration`, counted from 0."""
        return poly_lr(iteration, self.options.BASE_LR, self.options.MAX_ITER, self.options.LR_POWER)

    def step(self, loss: torch.Tensor, iteration: int) -> None:
        """Backward and one step down the gradient, which CLIP_GRAD bounds in its norm over all parameters."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(iteration) * group["lr_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.options.CLIP_GRAD > 0:
            nn.utils.clip_grad_norm_(self._parameters, self.options.CLIP_GRAD)
        self.optimizer.step()
