"""BDD100K (Yu et al., CVPR 2020): `bdd100k/images/10k/<split>/*.jpg`, `bdd100k/labels/sem_seg/masks/<split>/*.png`.

Its first release lay in `bdd100k/seg/{images,labels}/<split>/`.
"""

from dataclasses import replace
from functools import partial

from core.datasets.cityscapes import TRAIN_IDS
from core.datasets.reader import Reader, Submission, beside

SPLITS = ("train", "val", "test")

NEW = Reader(
    folders=("bdd100k", "BDD/bdd-100k/bdd100k", "BDD/bdd-100k"),
    splits={split: (f"images/10k/{split}/*.jpg",) for split in SPLITS},
    label_path=partial(beside, folders={"images": "labels", "10k": "sem_seg/masks"}),
    values=TRAIN_IDS,
    kind="trainIds",
    unlabelled=("test",),
    submission=Submission(lambda image: f"{image.stem}.png"),
)
OLD = replace(
    NEW,
    splits={split: (f"seg/images/{split}/*.jpg",) for split in SPLITS},
    label_path=partial(beside, folders={"images": "labels"}, ending="_train_id.png"),
)
READER = replace(NEW, others=(OLD,))
RELEASE = replace(READER, folders=NEW.folders[1:] + NEW.folders[:1])  # as the DT-ST release looks for it
