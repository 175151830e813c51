"""GTA5 (Richter et al., ECCV 2016): `gta5/{images,labels}/*.png`; labels are palette PNGs of Cityscapes' labelIds."""

from functools import partial

from core.datasets.cityscapes import LABEL_IDS, LICENCE_PLATE, NO_CLASS
from core.datasets.reader import Reader, beside

label_path = partial(beside, folders={"images": "labels"})

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
