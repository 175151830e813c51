"""KITTI's semantic segmentation (Alhaija et al., IJCV 2018): `kitti/{training,testing}/image_2/*_10.png`, 200 each."""

from functools import partial

from core.datasets.cityscapes import LABEL_IDS, LICENCE_PLATE, NO_CLASS
from core.datasets.reader import Reader, Submission, beside

READER = Reader(
    folders=("kitti", "kitti/data_semantics", "data_semantics", "kitti_semantics"),
    splits={"train": ("training/image_2/*_10.png",), "test": ("testing/image_2/*_10.png",)},  # *_11: the next frames
    label_path=partial(beside, folders={"image_2": "semantic"}),
    values=LABEL_IDS,
    no_class=(*NO_CLASS, LICENCE_PLATE),
    kind="labelIds",
    unlabelled=("test",),
    submission=Submission(lambda image: f"semantic/{image.name}"),
)
