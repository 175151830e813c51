"""Networks between two networks: weights on the line from one to the other."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def interpolated(first: Mapping[str, Any], second: Mapping[str, Any], share: float) -> dict[str, Any]:
    """A state dict on the line between two: (1 − share)·first + share·second, of parameters and buffers alike.

    At 0 and 1 it is the one or the other bit for bit, and where both hold the same number, so does it. The sum is taken
    in float64; dtype and device are those of `second`. What holds no floating-point numbers (a counter) is second's.

    Args:
        first, second: of one network; tensors of the same names and shapes.
        share: of `second`, in 0 … 1.
    Returns:
        tensors of its own, none shared with either.
    Raises:
        ValueError: `share` is none, or the two are not of one network.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, not in 0 … 1")
    if first.keys() != second.keys():
        raise ValueError(f"names of one only: {', '.join(sorted(first.keys() ^ second.keys()))}")
    return {key: _between(key, first[key], value, share) for key, value in second.items()}


def _between(key: str, one: Any, other: Any, share: float) -> Any:
    if not isinstance(other, torch.Tensor):
        return other
    if one.shape != other.shape:
        raise ValueError(f"{key} is {tuple(one.shape)} in the first, {tuple(other.shape)} in the second")
    if share == 1 or not other.is_floating_point():
        return other.detach().clone()
    one = one.detach().to(other.device)
    if share == 0:
        return one.to(other.dtype, copy=True)
    return one.double().lerp(other.detach().double(), share).to(other.dtype)


def interpolate(model: nn.Module, first: Mapping[str, Any], second: Mapping[str, Any], share: float) -> None:
    """Load :func:`interpolated` of two state dicts into their network, in place; the arguments are its."""
    model.load_state_dict(interpolated(first, second, share))
