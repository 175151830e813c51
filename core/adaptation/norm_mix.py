"""Batch norm between two domains: its running statistics mixed with those of target images, without a label.

Of all that adaptation may change this matters most: with the target's own statistics (AdaBN: Li et al., Pattern
Recognition 2018) a network may win more than by all training that follows, or lose it. A mixture of both (as Schneider
et al., NeurIPS 2020, weigh them) keeps most of the former and little of the latter.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from core.models.backbone import FrozenBatchNorm
from core.models.deeplab import batch_norms
from core.utils import distributed

_LEAST_SCALE = 1e-6  # of a channel; what comes out of a smaller one tells nothing of what went in


def movable_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms, frozen or not, that have running statistics, in the order of the module tree."""
    own = {id(norm) for norm in batch_norms(model) if norm.running_mean is not None}
    return [module for module in model.modules() if isinstance(module, FrozenBatchNorm) or id(module) in own]


@torch.no_grad()
def mix_statistics(model: nn.Module, shares: Sequence[float], look: Callable[[], object]) -> None:
    """Move every batch norm's running mean and variance towards those of the images that `look` shows to the model.

    statistics = (1 − share) · statistics + share · target's, of each layer. While the model looks, every layer
    normalises by this mixture with the statistics of the batch, so that deeper layers see what they will see later.

    Args:
        model: in eval mode; its running statistics are changed in place, its weights are not.
        shares: one number in 0 … 1 for all norms, or one for each of :func:`movable_norms`.
        look: runs the model over the target images.
    Raises:
        ValueError: another number of shares.
    """
    norms = movable_norms(model)
    shares = [*shares] * len(norms) if len(shares) == 1 else [*shares]
    if len(shares) != len(norms):
        raise ValueError(f"{len(shares)} shares for {len(norms)} batch norms")
    watched = [_Watched(norm, share) for norm, share in zip(norms, shares, strict=True) if share > 0]
    try:
        look()
    finally:
        for one in watched:
            one.handle.remove()
    for one in watched:
        one.settle()


class _Watched:
    """A norm that normalises by the mixture meanwhile, and remembers what it saw."""

    def __init__(self, norm: nn.Module, share: float):
        self.norm, self.share = norm, share
        self.scale, self.shift = _scale_and_shift(norm, norm.running_mean, norm.running_var)
        self.alive = self.scale.abs() > _LEAST_SCALE
        self.sums = torch.zeros(2, len(self.scale), dtype=torch.float64, device=self.scale.device)
        self.count = 0
        self.handle = norm.register_forward_hook(self)

    def __call__(self, norm: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        """`output` is what the running statistics make of the input, of which a folded norm sees nothing else."""
        axes = [axis for axis in range(output.ndim) if axis != 1]
        variance, mean = torch.var_mean(output.float(), axes, correction=0)
        scale = torch.where(self.alive, self.scale, 1)
        mean, variance = (mean - self.shift) / scale, variance / scale**2  # of the input
        pixels = output.numel() // output.shape[1]
        self.sums += pixels * torch.stack([mean, variance + mean**2]).double()
        self.count += pixels
        mixed_scale, mixed_shift = _scale_and_shift(norm, *self._mixed(mean, variance))
        factor = torch.where(self.alive, mixed_scale / scale, 1)
        offset = torch.where(self.alive, mixed_shift - self.shift * factor, 0)
        shape = (1, -1, *[1] * (output.ndim - 2))
        return output * factor.view(shape).to(output.dtype) + offset.view(shape).to(output.dtype)

    def _mixed(self, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = (self.norm.running_mean, mean), (self.norm.running_var, variance)
        return tuple(torch.where(self.alive, torch.lerp(own, seen, self.share), own) for own, seen in pairs)

    def settle(self) -> None:
        """Move the statistics to the mixture with all that was seen."""
        if not self.count:
            return
        mean, square = self.sums / self.count
        mixed = self._mixed(mean.float(), (square - mean**2).clamp(min=0).float())
        for buffer, value in zip((self.norm.running_mean, self.norm.running_var), mixed, strict=True):
            buffer.copy_(distributed.agreed(value.to(buffer.dtype)))


def _scale_and_shift(norm: nn.Module, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The affine map that a norm is, with these statistics: C scales and C shifts, float32."""
    mean, variance = mean.float(), variance.float()
    weight = torch.ones_like(mean) if norm.weight is None else norm.weight.float()
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.float()
    scale = torch.where(variance + norm.eps > 0, weight * (variance + norm.eps).rsqrt(), 0)
    return scale, bias - mean * scale
