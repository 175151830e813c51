"""Domain shifts with uncertainty: feature statistics perturbed by noise (DSU: Li et al., ICLR 2022, eq. 3–8)."""

import torch
from torch import nn

from core.utils import distributed

EPS = 1e-6  # added to every variance before its root


class DSU(nn.Module):
    """In training, re-draws mean and standard deviation of every sample and channel about their own values.

    One coin per batch decides whether it acts at all; in eval mode it is the identity.

    Args:
        probability: that it acts on a batch (MODEL.UNCERTAINTY).
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B×C×h×w → the same shape and dtype.

        A batch of one has no variance over the batch, and a map of one pixel none over its pixels: both pass unchanged.
        """
        if not self.training or len(x) * distributed.count() < 2 or x.shape[-2:].numel() < 2:
            return x
        acts = torch.rand(()).item() < self.probability  # on the host: no wait for the device
        return perturb_statistics(x) if acts else x


def perturb_statistics(x: torch.Tensor) -> torch.Tensor:
    """(x − μ)/σ·γ + β with β ~ N(μ, s_μ²) and γ ~ N(σ, s_σ²).

    Args:
        x: B×C×h×w floats, h·w > 1; of several processes each has a part of the batch, which is of 2 at least.
    Returns:
        the same shape and dtype. μ and σ are those of each sample and channel over its pixels, s_μ and s_σ the
        standard deviations of these over the batch, all unbiased; gradients flow through all of them.
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    values = x.float() if half else x  # half precision has too few digits for variances
    variance, mean = torch.var_mean(values, dim=(2, 3), keepdim=True)
    std = (variance + EPS).sqrt()
    beta, gamma = (stat + _noise(stat) * _batch_std(stat) for stat in (mean, std))
    return ((values - mean) / std * gamma + beta).to(x.dtype)


def _noise(statistic: torch.Tensor) -> torch.Tensor:
    """Normal draws of one shape with `statistic`: those of the whole batch, of which this process takes its rows."""
    batch, rows = len(statistic) * distributed.count(), len(statistic)
    draws = torch.randn(batch, *statistic.shape[1:], dtype=statistic.dtype, device=statistic.device)
    return draws[distributed.rank() * rows :][:rows]


def _batch_std(statistic: torch.Tensor) -> torch.Tensor:
    return (distributed.global_rows(statistic).var(dim=0, keepdim=True) + EPS).sqrt()
