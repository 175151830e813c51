"""Families that are recognised, but cannot be imported so that they give their own logits: one line each says why."""

from collections.abc import Callable, Mapping

import torch

from core.utils.errors import UserError
from tools.import_model.family import Family, Imported

State = Mapping[str, torch.Tensor]
_LDBE_HEAD = tuple(f"layer{number}.{part}." for number in (5, 6) for part in ("bottleneck", "head"))
# of networks whose outputs are masks and their classes: layers of the one, and of the other
_MASKS = "mask_head.", "mask_embed", "mask_predictor."
_MASK_CLASSES = "class_head.", "cls_embed.", "class_embed.", "class_predictor."


def _fits_ldbe_student(state: State) -> bool:
    return "layer4.0.conv1.weight" in state and any(name.startswith(_LDBE_HEAD) for name in state)


def _fits_masks(state: State) -> bool:
    return all(any(part in name for name in state for part in parts) for parts in (_MASKS, _MASK_CLASSES))


def _refusing(why: str) -> Callable[[State], Imported]:
    def refuse(_: State) -> Imported:
        raise UserError(f"it cannot be imported: {why}")

    return refuse


FAMILIES = (
    Family(
        "ldbe_student",
        "LDBE's student: recognised, and refused",
        _fits_ldbe_student,
        _refusing("LDBE's student has a head of its own (group norm, squeeze and excitation); its teacher will do"),
    ),
    Family(
        "masks",
        "EoMT, Rein, Mask2Former and others that classify masks: recognised, and refused",
        _fits_masks,
        _refusing("it predicts masks and their classes, and has no logits of pixels to learn from"),
    ),
)
