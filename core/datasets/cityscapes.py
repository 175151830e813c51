"""Cityscapes (Cordts et al., CVPR 2016): `cityscapes/{leftImg8bit,gtFine}/<split>/<city>/…`."""

from pathlib import Path

import numpy as np

from core.datasets.taxonomy import Taxonomy

FOLDERS = ("cityscapes",)
SPLITS = ("train", "val", "test")
IMAGES = "leftImg8bit/{split}/*/*_leftImg8bit.png"

LABEL_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "light": 19,
    "sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


def list_images(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(IMAGES.format(split=split)))


def label_path(image: Path) -> Path:
    """…/leftImg8bit/val/city/X_leftImg8bit.png → …/gtFine/val/city/X_gtFine_labelIds.png"""
    split, city = image.parts[-3:-1]
    name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
    return image.parents[3] / "gtFine" / split / city / name


def label_table(taxonomy: Taxonomy) -> np.ndarray:
    """256 uint8: the class index of every label value, 255 for the others."""
    table = np.full(256, 255, np.uint8)
    for index, name in enumerate(taxonomy.names):
        table[LABEL_IDS[name]] = index
    return table
