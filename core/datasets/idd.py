"""IDD's segmentation, 20k (Varma et al., WACV 2019): `idd/{leftImg8bit,gtFine}/<split>/<n>/*`, in one or two parts.

`preparation/createLabels.py` of the AutoNUE public code makes the label files, with `--id-type csTrainId`, level3Id or
id. The first are Cityscapes' trainIds; of the others there is one table each, by Cityscapes' names.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from core.datasets.cityscapes import TRAIN_IDS
from core.datasets.reader import Reader, beside

PARTS = ("", "IDD_Segmentation/", "idd20kII/")  # merged, or each in the folder that its archive makes

# non-drivable fallback is earth and grass beside the road
LEVEL_3 = {"road": 0, "sidewalk": 2, "terrain": 3, "person": 4, "rider": 5, "motorcycle": 6, "bicycle": 7, "car": 9}
LEVEL_3 |= {"truck": 10, "bus": 11, "wall": 14, "fence": 15, "sign": 18, "light": 19, "pole": 20, "building": 22}
LEVEL_3 |= {"vegetation": 24, "sky": 25}  # trains are among other vehicles
IDS = {"road": 0, "sidewalk": 3, "terrain": 5, "person": 6, "rider": 8, "motorcycle": 9, "bicycle": 10, "car": 12}
IDS |= {"truck": 13, "bus": 14, "train": 17, "wall": 20, "fence": 21, "sign": 24, "light": 25, "pole": 26}
IDS |= {"building": 29, "vegetation": 32, "sky": 33}


def _label_path(ending: str) -> partial:
    return partial(
        beside, folders={"leftImg8bit": "gtFine"}, ending=f"_gtFine_label{ending}.png", replaced="_leftImg8bit"
    )


_TRAIN = Reader(
    folders=("idd",),
    splits={
        split: tuple(f"{part}leftImg8bit/{split}/*/*_leftImg8bit.{end}" for part in PARTS for end in ("png", "jpg"))
        for split in ("train", "val", "test")
    },
    label_path=_label_path("csTrainIds"),
    values=TRAIN_IDS,
    kind="trainIds",
    unlabelled=("test",),
)


def _other(ending: str, values: Mapping[str, int], count: int) -> Reader:
    return replace(_TRAIN, label_path=_label_path(ending), values=values, no_class=tuple(range(count)), kind="")


READER = replace(_TRAIN, others=(_other("level3Ids", LEVEL_3, 26), _other("ids", IDS, 40)))
