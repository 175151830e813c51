"""Optimiser and learning-rate schedule (DT-ST §4.1)."""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from core.utils import distributed

CLASSIFIER_LR_FACTOR = 10


def poly_lr(iteration: int, base_lr: float, max_iter: int, power: float = 0.9) -> float:
    """base_lr · (1 − iteration / max_iter)^power, `iteration` counted from 0; 0 beyond `max_iter`."""
    return base_lr * max(0.0, 1 - iteration / max_iter) ** power


class Solver:
    """SGD over a segmentor at BASE_LR and its head at ten times that, with the poly schedule.

    `options` is the config node SOLVER; the model is on its device.
    """

    def __init__(self, model: nn.Module, options):
        self.options = options
        head = list(model.head.parameters())
        others = {id(parameter): parameter for parameter in model.parameters()}
        for parameter in head:
            others.pop(id(parameter), None)
        groups = [
            {"params": parameters, "lr_factor": factor}
            for parameters, factor in ((list(others.values()), 1), (head, CLASSIFIER_LR_FACTOR))
            if parameters
        ]
        self.optimizer = torch.optim.SGD(
            groups, lr=options.BASE_LR, momentum=options.MOMENTUM, weight_decay=options.WEIGHT_DECAY
        )
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        norms = [norm for norm in norms if norm.weight is None or norm.weight.requires_grad]  # others are held still
        self._running = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        device = self._parameters[0].device.type if self._parameters else "cpu"
        self._scaler = torch.amp.GradScaler(device, enabled=options.AMP == "fp16")
        self.overflowed = False  # in the last step, the gradient of a finite loss did not fit fp16: the scale is halved
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []

    def learning_rate(self, iteration: int) -> float:
        """The backbone's rate in `iteration`, counted from 0."""
        return poly_lr(iteration, self.options.BASE_LR, self.options.MAX_ITER, self.options.LR_POWER)

    def remember_statistics(self) -> None:
        """Before a forward in training mode: note the running statistics that it moves (none where they are frozen)."""
        self._statistics = [(buffer, buffer.clone()) for buffer in self._running]

    def zero_gradients(self) -> None:
        """Before a step's first :meth:`backward`."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, output: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
        """Add to the parameters' gradients what a part adds to the whole batch's, that of all processes.

        Args:
            output: the part's share of the loss, a scalar; with `gradient`, which is the loss's there, any tensor.
        """
        gradient = torch.ones_like(output) if gradient is None else gradient
        # DistributedDataParallel takes the mean over the processes, and it is to be their sum
        output.backward(self._scaler.scale(gradient * distributed.count()))

    def step(self, loss: torch.Tensor, iteration: int) -> bool:
        """One step down the gradient, which CLIP_GRAD bounds in its norm over all parameters.

        Args:
            loss: the whole step's, a scalar.
            iteration: counted from 0.
        Returns:
            False: the loss or the gradient is not finite. Then no parameter has moved, and running statistics are put
            back to what they were at :meth:`remember_statistics`.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(iteration) * group["lr_factor"]
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.options.CLIP_GRAD or math.inf)
        # the one wait for the device in a step: whether the optimiser may act has to be known before it does
        finite = bool(torch.isfinite(norm + loss.detach()))
        if finite:
            self.optimizer.step()
        else:
            self.optimizer.zero_grad(set_to_none=True)
            for buffer, before in self._statistics:
                buffer.copy_(before)
        scale = None if finite else self.loss_scale
        self._scaler.update()
        self.overflowed = not finite and 1 <= self.loss_scale < scale and bool(torch.isfinite(loss.detach()))
        self._statistics = []
        return finite

    def speed(self) -> float:
        """|gradient| / |weights| of every group of parameters times its factor of the rate, added up.

        Of gradients of :meth:`backward`, which are left as they are. Times the rate, it is how far a step without
        momentum moves the weights, for their size.
        """
        speeds = []
        for group in self.optimizer.param_groups:
            weights = [parameter.detach() for parameter in group["params"]]
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            norms = [float(_norm(tensors)) for tensors in (gradients, weights)]
            speeds.append(group["lr_factor"] * norms[0] / max(norms[1], 1e-12) / self.loss_scale)
        return sum(speeds)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before its backward: 1 but for fp16."""
        return self._scaler.get_scale()

    def state_dict(self) -> dict:
        """The optimiser's, by parameter number, and the loss scale's."""
        return self.optimizer.state_dict() | {"scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm of all of them together."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensors]))
