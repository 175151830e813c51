"""NightCity (Tan et al., TIP 2021): `NightCity-images/<split>/*.png`, `NightCity-label/label/<split>/*_labelIds.png`.

Copies have one more folder (`NightCity-images/images`, `NightCity-label/NightCity-label`), trainIds lie in `trainid`
beside `label`; NightCity-fine (Wei et al., 2023) has `<split>/{img,lbl}/*.png`, with trainIds.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from core.datasets.cityscapes import LABEL_IDS, LICENCE_PLATE, NO_CLASS, TRAIN_IDS
from core.datasets.reader import Reader, beside

SPLITS = ("train", "val")


def _label_path(image: Path, labels: str, ending: str) -> Path:
    """The label of …/NightCity-images[/images]/<split>/X.png; `labels`: a folder beside NightCity-images."""
    deeper = image.parents[1].name == "images"
    return image.parents[3 if deeper else 2] / labels / image.parent.name / f"{image.stem}{ending}"


def _form(labels: str, ending: str, **fields) -> Reader:
    return Reader(
        folders=("nightcity", ""),
        splits={s: (f"NightCity-images/{s}/*.png", f"NightCity-images/images/{s}/*.png") for s in SPLITS},
        label_path=partial(_label_path, labels=labels, ending=ending),
        **fields,
    )


_IDS = {"values": LABEL_IDS, "no_class": (*NO_CLASS, LICENCE_PLATE), "kind": "labelIds"}
_TRAIN_IDS = {"values": TRAIN_IDS, "kind": "trainIds"}
_LABELS = ("NightCity-label", "NightCity-label/NightCity-label")
_FINE = Reader(
    folders=("nightcity", "NightCity-fine"),
    splits={split: (f"{split}/img/*.png",) for split in SPLITS},
    label_path=partial(beside, folders={"img": "lbl"}),
    **_TRAIN_IDS,
)
_FORMS = (
    *(_form(f"{labels}/label", "_labelIds.png", **_IDS) for labels in _LABELS),
    *(_form(f"{labels}/trainid", "_trainIds.png", **_TRAIN_IDS) for labels in _LABELS),
    _FINE,
)
READER = replace(_FORMS[0], others=_FORMS[1:])
