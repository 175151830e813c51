"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): `synthia/RAND_CITYSCAPES/{RGB,GT/LABELS}/*.png`."""

from functools import partial

from core.datasets.images import read_red_channel
from core.datasets.reader import Reader, beside

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

READER = Reader(
    folders=(
        "synthia/RAND_CITYSCAPES",
        "synthia/SYNTHIA_RAND_CITYSCAPES",
        "synthia/synthia/SYNTHIA_RAND_CITYSCAPES",
        "synthia/synthia/RAND_CITYSCAPES",
        "synthia",
        "RAND_CITYSCAPES",
    ),
    splits={"train": ("RGB/*.png",)},
    label_path=partial(beside, folders={"RGB": "GT/LABELS"}),
    values=VALUES,
    no_class=tuple(value for value in range(23) if value not in VALUES.values()),
    read_values=read_red_channel,
)
