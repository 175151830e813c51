"""GTA5 (Richter et al., ECCV 2016): `gta5/{images,labels}/*.png`; labels are palette PNGs of Cityscapes' labelIds."""

from pathlib import Path

from core.datasets.cityscapes import LABEL_IDS, NO_CLASS
from core.datasets.reader import Reader

LICENCE_PLATE = 34


def label_path(image: Path) -> Path:
    """…/images/X.png → …/labels/X.png"""
    return image.parents[1] / "labels" / image.name


READER = Reader(
    folders=("gta5", "gta5/GTAV"),
    splits={"train": ("images/*.png",)},
    label_path=label_path,
    values=LABEL_IDS,
    no_class=(*NO_CLASS, LICENCE_PLATE),
    skip_mismatched=True,
    balanced=True,
    kind="labelIds",
)
