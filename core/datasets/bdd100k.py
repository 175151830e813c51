"""BDD100K (Yu et al., CVPR 2020): `bdd100k/images/10k/<split>/*.jpg`, `bdd100k/labels/sem_seg/masks/<split>/*.png`."""

from pathlib import Path

from core.datasets.reader import Reader
from core.datasets.taxonomy import CITYSCAPES_19


def label_path(image: Path) -> Path:
    """…/images/10k/val/X.jpg → …/labels/sem_seg/masks/val/X.png"""
    return image.parents[3] / "labels" / "sem_seg" / "masks" / image.parent.name / f"{image.stem}.png"


READER = Reader(
    folders=("bdd100k", "BDD/bdd-100k"),
    splits={split: (f"images/10k/{split}/*.jpg",) for split in ("train", "val")},
    label_path=label_path,
    values={name: index for index, name in enumerate(CITYSCAPES_19.names)},
    kind="trainIds",
)
