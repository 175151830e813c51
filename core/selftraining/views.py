"""The teacher's predictions carried into the student views (DT-ST §3.1; SAC §3.2)."""

from collections.abc import Sequence

import torch

from core.datasets.transforms import View
from core.models.deeplab import resize_logits

__all__ = ["View", "warp_to_view"]


def warp_to_view(logits: torch.Tensor, views: Sequence[View], align_corners: bool = True) -> torch.Tensor:
    """Carry full-view maps into the student views.

    Args:
        logits: B×C×H×W floats at the full view's size (not yet softmaxed: softmax comes after the warp).
        views: one :class:`View` per image, all of one crop size.
        align_corners: as :func:`core.models.deeplab.resize_logits` takes it.
    Returns:
        B×C×h×w: each map resized bilinearly to its view's `scaled_size`, cropped and flipped;
        0 outside of the image.
    """
    if len(views) != len(logits):
        raise ValueError(f"{len(logits)} maps, but {len(views)} views")
    return torch.stack(
        [
            view.crop(resize_logits(single[None], view.scaled_size, align_corners)[0])
            for single, view in zip(logits, views, strict=True)
        ]
    )
