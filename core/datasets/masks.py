"""Label files that lie among images: told from them by their names, and by their few values."""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from core.utils.files import open_regular

_LABEL_WORDS = (
    "masks?|labels?|label_?ids|label_?train_?ids|train_?ids?|gt|gtfine|gtcoarse|groundtruth|seg|segmentations?|semantic|"
    "semantic_rgb|instances?|instance_?ids|panoptic|annot|annotations?|lbl"
)
_IMAGE_WORDS = "images?|img|leftimg8bit|rgb|frame"
_ENDING = re.compile(rf"[-_. ]({_LABEL_WORDS}|{_IMAGE_WORDS}|colou?r)$")
_IS_LABEL = re.compile(rf"(^|[-_. ]|train|val|test)({_LABEL_WORDS})([-_. ]colou?r)?$")
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
_FEW_LEVELS, _FEW_COLOURS = 64, 256  # that a label has at most: of 8 bits in one channel, else
_READ = 16  # files of a kind, whose values are looked at
_DRAWN = 64  # images, among which one looks for what has no name of a label


def split_masks(paths: Sequence[Path], top: Path) -> tuple[list[Path], list[Path]]:
    """Images, and the label files of some of them, both in their order.

    A label file has the name of another file, but for words as `_mask` or `_leftImg8bit` and the ending; it or its
    folder is named as labels are, or the other file has another ending; it is stored without loss, and all of its kind
    that were looked at hold few values.

    Args:
        paths: below `top`; names of folders count from there.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[_bare(path.stem)].append(path)
    kinds: dict[tuple[Path, str], list[Path]] = defaultdict(list)  # by folder and the words at the end of the name
    for group in groups.values():
        for path in _suspects(group, top):
            kinds[path.parent, path.stem.lower().removeprefix(_bare(path.stem))].append(path)
    masks = {path for kind in kinds.values() if _hold_few_values(kind) for path in kind}
    return [path for path in paths if path not in masks], [path for path in paths if path in masks]


def like_masks(paths: Sequence[Path]) -> list[Path]:
    """Of at most 64 images, drawn evenly, those that may be label files by their values, whatever their names.

    That is, stored without loss in one channel, of few values; none where all are so.
    """
    drawn = [path for path in paths[:: -(-len(paths) // _DRAWN)] if os.path.isfile(path)]  # a pipe would be waited for
    found = [path for path in drawn if path.suffix.lower() in _LOSSLESS and _is_grey(path) and _has_few_values(path)]
    return found if len(found) < len(drawn) else []


def _is_grey(path: Path) -> bool:
    """Whether a file's header says that it holds one channel, or a palette; False where it cannot be read."""
    try:
        with warnings.catch_warnings(), open_regular(path) as file, Image.open(file) as picture:
            warnings.simplefilter("ignore")
            return len(picture.getbands()) == 1
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def _bare(stem: str) -> str:
    """A file's name without the words that tell what it shows."""
    stem, before = stem.lower(), ""
    while stem != before:
        before, stem = stem, _ENDING.sub("", stem)
    return stem


def _suspects(group: Sequence[Path], top: Path) -> list[Path]:
    """Of files of one name those that may be labels of another one among them."""
    named = [path for path in group if _named_as_label(path, top)]
    others = [path for path in group if path not in named]
    endings = {path.suffix.lower() for path in others}
    unclear = [path for path in others if len(endings) > 1 and path.suffix.lower() == ".png"]
    found = [path for path in (*named, *unclear) if path.suffix.lower() in _LOSSLESS]
    return found if len(found) < len(group) else []


def _named_as_label(path: Path, top: Path) -> bool:
    return any(_IS_LABEL.search(part.lower()) for part in (*path.relative_to(top).parts[:-1], path.stem))


def _hold_few_values(paths: Sequence[Path]) -> bool:
    return all(map(_has_few_values, paths[:: -(-len(paths) // _READ)]))


def _has_few_values(path: Path) -> bool:
    """Whether a picture holds few levels or colours; False where it cannot be read."""
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        return False
    few = _FEW_LEVELS if picture.ndim == 2 and picture.dtype == np.uint8 else _FEW_COLOURS
    if picture.ndim == 3:
        weights = 65536 ** np.arange(picture.shape[2], dtype=np.uint64)
        picture = picture.astype(np.uint64) @ weights  # one number a colour
    return len(np.unique(picture)) <= few
