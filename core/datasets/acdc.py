"""ACDC (Sakaridis et al., ICCV 2021) and Dark Zurich (ICCV 2019): `{rgb_anon,gt}/…`, labels as Cityscapes' labelIds.

ACDC has `rgb_anon/<condition>/<split>/<sequence>/*_rgb_anon.png`. Some copies hold all conditions in
`rgb_anon/<split>/<sequence>/`, as HRDA's preparation makes them, with trainIds alone.
"""

from dataclasses import replace
from functools import partial

from core.datasets.cityscapes import LABEL_IDS, NO_CLASS, TRAIN_IDS
from core.datasets.reader import Reader, Submission, beside

CONDITIONS = ("fog", "night", "rain", "snow")
SPLITS = ("train", "val", "test")
TIMES = {"train": "night", "twilight_train": "twilight", "day_train": "day"}  # of Dark Zurich's training splits

_label_path = partial(beside, folders={"rgb_anon": "gt"}, replaced="_rgb_anon")


def _with_train_ids(reader: Reader) -> Reader:
    """The same images, with the label files that lie beside those of labelIds."""
    path = partial(_label_path, ending="_gt_labelTrainIds.png")
    return replace(reader, label_path=path, values=TRAIN_IDS, no_class=(), kind="trainIds")


_ACDC = Reader(
    folders=("acdc",),
    splits={
        f"{prefix}{split}": (f"rgb_anon/{condition}/{split}/*/*_rgb_anon.png",)
        for prefix, condition in (("", "*"), *((f"{condition}_", condition) for condition in CONDITIONS))
        for split in SPLITS
    },
    label_path=partial(_label_path, ending="_gt_labelIds.png"),
    values=LABEL_IDS,
    no_class=NO_CLASS,
    kind="labelIds",
    unlabelled=("test", *(f"{condition}_test" for condition in CONDITIONS)),
    submission=Submission(lambda image: image.name, TRAIN_IDS),
)
_MERGED = replace(
    _ACDC,
    splits={**dict.fromkeys(_ACDC.splits, ()), **{split: (f"rgb_anon/{split}/*/*_rgb_anon.png",) for split in SPLITS}},
)
READER = replace(_ACDC, others=(_with_train_ids(_ACDC), _MERGED, _with_train_ids(_MERGED)))

_DARK_ZURICH = replace(
    _ACDC,
    folders=("dark_zurich", "darkzurich", "dark-zurich"),
    splits={
        **{name: (f"rgb_anon/train/{time}/*/*_rgb_anon.png",) for name, time in TIMES.items()},
        **{split: (f"rgb_anon/{split}/night/*/*_rgb_anon.png",) for split in ("val", "test")},
    },
    unlabelled=(*TIMES, "test"),
)
DARK_ZURICH = replace(_DARK_ZURICH, others=(_with_train_ids(_DARK_ZURICH),))
