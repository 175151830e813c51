"""Cityscapes (Cordts et al., CVPR 2016): `cityscapes/{leftImg8bit,gtFine}/<split>/<city>/…`."""

from pathlib import Path

from core.datasets.reader import Reader

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
NO_CLASS = tuple(value for value in range(34) if value not in LABEL_IDS.values())


def label_path(image: Path) -> Path:
    """…/leftImg8bit/val/city/X_leftImg8bit.png → …/gtFine/val/city/X_gtFine_labelIds.png"""
    split, city = image.parts[-3:-1]
    name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
    return image.parents[3] / "gtFine" / split / city / name


READER = Reader(
    folders=("cityscapes",),
    splits={split: (IMAGES.format(split=split),) for split in ("train", "val", "test")},
    label_path=label_path,
    values=LABEL_IDS,
    no_class=NO_CLASS,
    kind="labelIds",
)
