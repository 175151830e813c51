"""Cityscapes (Cordts et al., CVPR 2016): `cityscapes/{leftImg8bit,gtFine}/<split>/<city>/…`."""

from functools import partial
from pathlib import Path

from core.datasets.reader import Reader, Submission, beside
from core.datasets.taxonomy import CITYSCAPES_16, CITYSCAPES_19

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
LICENCE_PLATE = 34  # in the sets that have it; Cityscapes itself says -1
TRAIN_IDS = {name: index for index, name in enumerate(CITYSCAPES_19.names)}
TAXONOMIES = (CITYSCAPES_19, CITYSCAPES_16)  # of all sets that are labelled as Cityscapes is

# …/leftImg8bit/val/city/X_leftImg8bit.png → …/gtFine/val/city/X_gtFine_labelIds.png
label_path = partial(beside, folders={"leftImg8bit": "gtFine"}, ending="_gtFine_labelIds.png", replaced="_leftImg8bit")


def _submitted(image: Path) -> str:
    """City, sequence and frame, by which the official evaluation knows a prediction."""
    return f"{image.stem.removesuffix('_leftImg8bit')}_pred.png"


READER = Reader(
    folders=("cityscapes",),
    splits={split: (IMAGES.format(split=split),) for split in ("train", "val", "test")},
    label_path=label_path,
    values=LABEL_IDS,
    no_class=NO_CLASS,
    kind="labelIds",
    unlabelled=("test",),
    submission=Submission(_submitted),
)
