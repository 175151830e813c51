"""Label files that lie among images: told from them by their names, or by their few values."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

_LABEL_WORDS = (
    "mask|masks|label|labels|labelids|labeltrainids|trainids|instanceids|gt|gtfine|gtcoarse|groundtruth|seg|segmentation|"
    "segmentations|annot|annotation|annotations"
)
_IMAGE_WORDS = "image|images|img|leftimg8bit|rgb|frame"
_ENDING = re.compile(rf"[-_. ]({_LABEL_WORDS}|{_IMAGE_WORDS}|colou?r)$")
_IS_LABEL = re.compile(rf"(^|[-_. ])({_LABEL_WORDS})([-_. ]colou?r)?$")
_FEW = 64  # distinct values, that a label has at most
_READ = 16  # files, whose values are looked at


def split_masks(paths: Sequence[Path], top: Path) -> tuple[list[Path], list[Path]]:
    """Images, and the label files of some of them, both in their order.

    A file is one where another file has its name, but for words as `_mask` or `_leftImg8bit` and the ending, and where
    it or its folder is named as labels are, or all such files that were looked at hold one channel of few values.

    Args:
        top: names of folders count below it.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[_bare(path.stem)].append(path)
    several = [group for group in groups.values() if len(group) > 1]
    masks = {path for group in several for path in group if _named_as_label(path, top)}
    masks -= {path for group in several if masks.issuperset(group) for path in group}  # no image among them
    unclear = [sorted(set(group) - masks) for group in several]
    unclear = [group for group in unclear if len(group) > 1 and len({path.suffix.lower() for path in group}) > 1]
    lossless = [path for group in unclear for path in group if path.suffix.lower() == ".png"]
    if lossless and all(map(_has_few_values, lossless[:: -(-len(lossless) // _READ)])):
        masks |= set(lossless)
    return [path for path in paths if path not in masks], [path for path in paths if path in masks]


def _bare(stem: str) -> str:
    """A file's name without the words that tell what it shows."""
    stem, before = stem.lower(), ""
    while stem != before:
        before, stem = stem, _ENDING.sub("", stem)
    return stem


def _named_as_label(path: Path, top: Path) -> bool:
    folders = path.relative_to(top).parts[:-1] if path.is_relative_to(top) else ()
    return any(_IS_LABEL.search(part.lower()) for part in (*folders, path.stem))


def _has_few_values(path: Path) -> bool:
    """Whether a file holds one channel (or a palette) of few values; False where it cannot be read."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        return False
    if picture.ndim == 3:
        picture = picture.reshape(-1, picture.shape[2])
        return len(np.unique(picture, axis=0)) <= _FEW
    return len(np.unique(picture)) <= _FEW
