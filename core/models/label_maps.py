"""Label maps at an image's own size from stride-8 logits, interpolating only where classes meet."""

import numpy as np
import torch


def winning_labels(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """The class of the largest logit after a bilinear resize (align_corners=True) of C×h×w logits to `size` (H, W).

    A pixel is a convex combination of the four logits around it: where one class is the largest in all four, it is the
    largest in the pixel. So only the other cells of the grid are interpolated, which are few in a scene.

    Returns:
        H×W uint8, on the host.
    """
    (top, bottom, down), (left, right, across) = (
        _positions(n, length) for n, length in zip(logits.shape[1:], size, strict=True)
    )
    largest = logits.max(dim=0).indices.to(torch.uint8).cpu().numpy()
    below, beside = np.append(largest[1:], largest[-1:], 0), np.append(largest[:, 1:], largest[:, -1:], 1)
    diagonal = np.append(beside[1:], beside[-1:], 0)
    pure = (largest == below) & (largest == beside) & (largest == diagonal)
    labels = largest[top][:, left]
    weights = [torch.from_numpy(w).to(logits.dtype).to(logits.device) for w in (down, across)]
    for row in np.unique(top):
        columns = np.flatnonzero(~pure[row, left])
        if not len(columns):
            continue
        first, last = np.searchsorted(top, (row, row + 1))
        labels[first:last, columns] = _interpolated_labels(
            logits[:, [row, bottom[first]]], left[columns], right[columns], weights[0][first:last], weights[1], columns
        )
    return labels


def _interpolated_labels(
    rows: torch.Tensor,
    left: np.ndarray,
    right: np.ndarray,
    down: torch.Tensor,
    across: torch.Tensor,
    columns: np.ndarray,
) -> np.ndarray:
    """r×m labels between two rows of logits (C×2×w) at some columns."""
    left, right, columns = (torch.from_numpy(index).to(rows.device) for index in (left, right, columns))
    pair = torch.lerp(rows[..., left], rows[..., right], across[columns])
    values = torch.lerp(pair[:, 0, None], pair[:, 1, None], down[:, None])
    return values.max(dim=0).indices.to(torch.uint8).cpu().numpy()


def _positions(length: int, resized: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower neighbour, upper neighbour, weight of the upper) of every position of a resize with align_corners=True."""
    position = np.arange(resized) * ((length - 1) / (resized - 1) if resized > 1 else 0.0)
    lower = np.minimum(position.astype(np.int64), length - 1)
    return lower, np.minimum(lower + 1, length - 1), position - lower
