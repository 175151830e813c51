"""Image-sized maps of logits, band of rows by band of rows: what is needed of them without one being held whole.

A bilinear resize is linear and separable: out = R · map · Cᵀ. Resizes one after the other, crops and flips only change
the matrices R and C. So a band of any such map is computed from the stride-8 logits directly, used while it is in the
cache, and forgotten; its gradient goes back by the transposed matrices.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from core.utils.devices import band_bytes, to_device


def resize_rows(matrix: np.ndarray, length: int) -> np.ndarray:
    """Bilinear resize of an n×m array to `length` rows with align_corners=True (of the identity: its weights)."""
    last = len(matrix) - 1
    position = np.arange(length) * (last / (length - 1) if length > 1 else 0.0)
    lower = np.minimum(position.astype(int), last)
    fraction = (position - lower)[:, None]
    return (1 - fraction) * matrix[lower] + fraction * matrix[np.minimum(lower + 1, last)]


class Band(NamedTuple):
    """Rows of a map.

    Attributes:
        rows: of the map.
        values: r×C×W.
    """

    rows: slice
    values: torch.Tensor


class BandedMap:
    """A map made from C×h×w logits by matrices for its rows and its columns.

    Args:
        logits: C×h×w floats, without gradient.
        rows: H×h weights.
        columns: W×w weights.
    """

    def __init__(self, logits: torch.Tensor, rows: np.ndarray, columns: np.ndarray):
        self._shape = logits.shape
        self._columns = _like(columns, logits)
        by_row = logits.permute(1, 0, 2).reshape(-1, logits.shape[2])
        self._wide = (by_row @ self._columns.T).view(logits.shape[1], logits.shape[0], len(columns))  # h×C×W
        self._pieces = _pieces(rows, self._wide)

    def __iter__(self) -> Iterator[Band]:
        for rows, used, weights in self._pieces:
            part = self._wide[used].flatten(1)
            yield Band(rows, (weights @ part).view(-1, *self._wide.shape[1:]))

    def zeros(self) -> torch.Tensor:
        """Where :meth:`add_back` gathers a gradient."""
        return torch.zeros_like(self._wide)

    def add_back(self, gathered: torch.Tensor, number: int, gradient: torch.Tensor) -> None:
        """Add what the gradient (r×C×W) of band `number` gives the logits, to `gathered`."""
        _, used, weights = self._pieces[number]
        gathered[used].flatten(1).addmm_(weights.T, gradient.flatten(1))

    def gradient(self, gathered: torch.Tensor) -> torch.Tensor:
        """The C×h×w gradient of the logits."""
        channels, height, width = self._shape
        return (gathered.view(-1, gathered.shape[2]) @ self._columns).view(height, channels, width).permute(1, 0, 2)


def _pieces(rows: np.ndarray, wide: torch.Tensor) -> list[tuple[slice, slice, torch.Tensor]]:
    """(rows of the map, rows of the logits that they are made of, r×k weights) per band."""
    row_bytes = wide[0].numel() * wide.element_size()
    step = max(band_bytes(wide.device) // row_bytes, 1)
    pieces, weights = [], _like(rows, wide)
    for first in range(0, len(rows), step):
        used = np.flatnonzero(rows[first : first + step].any(0))
        span = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)
        band = slice(first, min(first + step, len(rows)))
        pieces.append((band, span, weights[band, span]))
    return pieces


def _like(matrix: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(matrix)).to(tensor.dtype), tensor.device)
