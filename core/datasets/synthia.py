"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): `synthia/RAND_CITYSCAPES/{RGB,GT/LABELS}/*.png`."""

from pathlib import Path

from core.datasets.images import read_red_channel
from core.datasets.reader import Reader

VALUES = {
    "road": 3,
    "sidewalk": 4,
    "building": 2,
    "wall": 21,
    "fence": 5,
    "pole": 7,
    "light": 15,
    "sign": 9,
    "vegetation": 6,
    "sky": 1,
    "person": 10,
    "rider": 17,
    "car": 8,
    "bus": 19,
    "motorcycle": 12,
    "bicycle": 11,
}


def label_path(image: Path) -> Path:
    """…/RGB/X.png → …/GT/LABELS/X.png"""
    return image.parents[1] / "GT" / "LABELS" / image.name


READER = Reader(
    folders=(
        "synthia/RAND_CITYSCAPES",
        "synthia/SYNTHIA_RAND_CITYSCAPES",
        "synthia/synthia/SYNTHIA_RAND_CITYSCAPES",
        "synthia/synthia/RAND_CITYSCAPES",
        "synthia",
    ),
    splits={"train": ("RGB/*.png",)},
    label_path=label_path,
    values=VALUES,
    no_class=tuple(value for value in range(23) if value not in VALUES.values()),
    read_values=read_red_channel,
)
