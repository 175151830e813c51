"""Optimiser and learning-rate schedule (DT-ST §4.1)."""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from core.models.deeplab import Segmentor, batch_norms
from core.models.layers import layer_numbers, undecayed
from core.utils import distributed
from core.utils.errors import UserError

ADAM_BETA2 = 0.999  # of the mean of squared gradients; that of gradients is SOLVER.MOMENTUM
WARMUP_START = 1e-6  # × the rate, in the first iteration


def poly_lr(iteration: int, base_lr: float, max_iter: int, power: float = 0.9) -> float:
    """base_lr · (1 − iteration / max_iter)^power, `iteration` counted from 0; 0 beyond `max_iter`."""
    return base_lr * max(0.0, 1 - iteration / max_iter) ** power


def warm_up(iteration: int, length: int) -> float:
    """What linear warm-up multiplies the rate by: from 1e-6 in iteration 0 to 1 in iteration `length`, and then on.

    As of mmcv's LrUpdaterHook (`warmup='linear'`, `warmup_ratio=1e-6`), by which SegFormer and DAFormer are trained:
    the schedule beneath it runs from iteration 0 on, and its end stays MAX_ITER.
    """
    return 1.0 if iteration >= length else 1 - (1 - iteration / length) * (1 - WARMUP_START)


class Solver:
    """SGD or AdamW over a segmentor at BASE_LR and its head at HEAD_FACTOR times that, by the poly schedule.

    With LAYER_DECAY d, layer l of n has d^(n − l) times that, where n is the head (BEiT: Bao et al., ICLR 2022). AdamW
    (Loshchilov and Hutter, ICLR 2019) leaves norms and embeddings without decay; under SGD all decays, as published.

    Args:
        options: the config node SOLVER.
        model: on its device.
    Raises:
        UserError: LAYER_DECAY is below 1, and no layers are found.
    """

    def __init__(self, model: Segmentor, options):
        self.options = options
        groups = parameter_groups(model, options)
        device = next((group["params"][0].device.type for group in groups), "cpu")
        if options.OPTIMIZER == "AdamW":
            betas = options.MOMENTUM, ADAM_BETA2
            # as one kernel on a GPU, which keeps its counts of steps there: nothing waits for the host
            self.optimizer = torch.optim.AdamW(groups, options.BASE_LR, betas, fused=device == "cuda")
        else:
            self.optimizer = torch.optim.SGD(groups, options.BASE_LR, options.MOMENTUM)
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        still = {id(norm) for norm in batch_norms(model)} if model.still_norms else set()
        self._running = [buffer for norm in norms if id(norm) not in still for buffer in norm.buffers(recurse=False)]
        self._scaler = torch.amp.GradScaler(device, enabled=options.AMP == "fp16")
        self.overflowed = False  # in the last step, the gradient of a finite loss did not fit fp16: the scale is halved
        self._statistics: list[tuple[torch.Tensor, torch.Tensor]] = []

    def learning_rate(self, iteration: int) -> float:
        """The backbone's rate in `iteration`, counted from 0, before LAYER_DECAY."""
        options = self.options
        rate = poly_lr(iteration, options.BASE_LR, options.MAX_ITER, options.LR_POWER)
        return rate * warm_up(iteration, options.WARMUP)

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
        """|step| / |weights| of the backbone and of the head, at a rate of 1 times their factors, added up.

        Of gradients of :meth:`backward`, which are left as they are: of a first step, without decay. SGD's is the
        gradient. AdamW's is its sign, of whatever size the gradient is.
        """
        speeds = []
        for part in (False, True):
            groups = [group for group in self.optimizer.param_groups if group["head"] == part]
            steps = [group["lr_factor"] * self._first_step(group["params"]) for group in groups]
            weights = [float(_norm([parameter.detach() for parameter in group["params"]])) for group in groups]
            speeds.append(math.hypot(*steps) / max(math.hypot(*weights), 1e-12))
        return sum(speeds)

    def _first_step(self, parameters: list[torch.Tensor]) -> float:
        """The norm of what a first step at a rate of 1 would move them by."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return 0.0
        if self.options.OPTIMIZER == "AdamW":
            return float(_norm([gradient.sign() for gradient in gradients]))
        return float(_norm(gradients)) / self.loss_scale

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before its backward: 1 but for fp16."""
        return self._scaler.get_scale()

    def state_dict(self) -> dict:
        """The optimiser's, by parameter number, and the loss scale's."""
        return self.optimizer.state_dict() | {"scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` gave, on whatever device: settings stay this solver's own."""
        pairs = zip(self.optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)
        groups = [own | {"params": saved["params"]} for own, saved in pairs]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])


def parameter_groups(model: Segmentor, options) -> list[dict]:
    """What an optimiser takes: parameters of one `lr_factor` and `weight_decay`, in the backbone or the `head`.

    Raises:
        UserError: LAYER_DECAY is below 1, and no layers are found.
    """
    head = {id(parameter): parameter for parameter in model.head.parameters()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in head]
    layers, top = layer_numbers(model.feature_extractor) if options.LAYER_DECAY < 1 else ({}, 0)
    if top == 1:
        raise UserError(
            f"SOLVER.LAYER_DECAY {options.LAYER_DECAY:g}: no layers are found in the network; give its feature "
            "extractor a method layers() that lists them from the input on, or set it to 1"
        )
    free = undecayed(model) if options.OPTIMIZER == "AdamW" else set()
    groups: dict[tuple, list[torch.Tensor]] = {}
    for parameter in (*others, *head.values()):
        of_head = id(parameter) in head
        depth = top - layers.get(id(parameter), top)
        factor = options.HEAD_FACTOR if of_head else options.LAYER_DECAY**depth
        decay = 0.0 if id(parameter) in free else options.WEIGHT_DECAY
        groups.setdefault((of_head, factor, decay), []).append(parameter)
    names = "head", "lr_factor", "weight_decay"
    return [dict(zip(names, key, strict=True)) | {"params": parameters} for key, parameters in groups.items()]


def _norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The Euclidean norm of all of them together."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(tensor.float()) for tensor in tensors]))
