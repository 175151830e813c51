"""Foggy Cityscapes (Sakaridis et al., IJCV 2018): `leftImg8bit_foggy/<split>/<city>/*_foggy_beta_<beta>.png`.

Three densities of fog; the labels are Cityscapes', in `gtFine` beside these images or in `cityscapes`' own folder.
"""

from dataclasses import replace
from functools import partial
from os.path import normpath
from pathlib import Path

from core.datasets import cityscapes
from core.datasets.reader import beside

BETAS = ("0.02", "0.01", "0.005")  # the attenuation per metre; the first, 150 m of sight, is what is meant without one


def _label_path(image: Path, gt_fine: str) -> Path:
    """The label of an image; `gt_fine`: seen from the folder that leftImg8bit_foggy lies in."""
    stem = image.stem.partition("_leftImg8bit_foggy_beta_")[0]
    path = beside(image, {"leftImg8bit_foggy": gt_fine}).with_name(f"{stem}_gtFine_labelIds.png")
    return Path(normpath(path))  # of a linked folder, `..` is where the link lies


_BESIDE = replace(
    cityscapes.READER,
    folders=("foggycityscapes", "foggy_cityscapes", "cityscapes_foggy", "cityscapes"),
    splits={
        f"{prefix}{split}": (f"leftImg8bit_foggy/{split}/*/*_leftImg8bit_foggy_beta_{beta}.png",)
        for prefix, beta in (("", BETAS[0]), *((f"beta-{beta}_", beta) for beta in BETAS))
        for split in ("train", "val")
    },
    label_path=partial(_label_path, gt_fine="gtFine"),
    unlabelled=(),
    submission=None,
)
_LABELS = [partial(_label_path, gt_fine=f"../{name}/gtFine") for name in ("cityscapes", "Cityscapes", "CITYSCAPES")]
READER = replace(_BESIDE, others=tuple(replace(_BESIDE, label_path=path) for path in _LABELS))
