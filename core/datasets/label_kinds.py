"""The numbers that label files may hold for Cityscapes' classes, and telling from a few files which they are.

There are two kinds: labelIds, of all 34 classes, and trainIds, of the 19 that count. Each is made of numbers that the
other one has as well, so that a single value tells nothing; the values of a set do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from core.datasets.cityscapes import LABEL_IDS, LICENCE_PLATE, NO_CLASS, TRAIN_IDS
from core.datasets.reader import ImageSet
from core.datasets.sizes import spread
from core.datasets.skipping import BadImage
from core.datasets.taxonomy import IGNORE
from core.utils.errors import UserError

LOOKED_AT = 32  # label files: sky, vegetation, cars are in almost any street scene
_STRAY = 1e-3  # share of pixels that may be no value of a kind which the set is taken for, and that a road has at least
_EMPTY = 4  # what has no class is labelled below, as all of Cityscapes' test split
_ROAD = 0.1  # share of pixels that a road has, to tell by it alone
_SIGNS = 0.02  # share of pixels that traffic signs have at most
_COMMON = ("road", "building", "pole")  # each more common than those that have the labelIds before and after it
_PLAIN = 0.5  # share of classes that a kind must show where the labels cannot be what is expected


@dataclass(frozen=True)
class Kind:
    """What label values mean.

    Attributes:
        values: of every class.
        no_class: further ones, beside 0 and 255.
        of: the kind that it is a mistaken form of; itself, where it is none.
        margin: how much larger a share of pixels must have a class by it than by another kind, to be taken for it.
    """

    values: Mapping[str, int]
    no_class: tuple[int, ...]
    of: str
    margin: float

    @property
    def classes(self) -> np.ndarray:
        """256 bool: values that are a class."""
        return np.isin(np.arange(256), list(self.values.values()))

    @property
    def possible(self) -> np.ndarray:
        """256 bool: values that may occur."""
        return self.classes | np.isin(np.arange(256), (0, *self.no_class, IGNORE))

    def shifted(self, by: int, margin: float) -> "Kind":
        """The same with every value that much larger."""
        values = {name: value + by for name, value in self.values.items()}
        return Kind(values, tuple(value + by for value in self.no_class if value + by >= 0), self.of, margin)


_VOID_19, _FROM_1 = "trainIds with 19 for no class", "trainIds counted from 1"
_COMMON_IDS = np.array([TRAIN_IDS[name] for name in ("building", "vegetation", "sky", "car")])  # then: rare ones
KINDS = {
    "labelIds": Kind(LABEL_IDS, (*NO_CLASS, LICENCE_PLATE), "labelIds", 0.2),
    "trainIds": Kind(TRAIN_IDS, (), "trainIds", 0.2),
}
_FOUND = KINDS | {
    _VOID_19: Kind(TRAIN_IDS, (19,), "trainIds", 0.2),
    _FROM_1: KINDS["trainIds"].shifted(1, 0.2),
    "labelIds plus 1": KINDS["labelIds"].shifted(1, 0),
    "labelIds minus 1": KINDS["labelIds"].shifted(-1, 0),
}


def tell_kind(counts: np.ndarray, expected: str) -> str | None:
    """What the labels of a set of street scenes plainly are, if not what is expected; else None.

    Args:
        counts: 256 int64, pixels of every label value over the set.
        expected: one of KINDS.
    Returns:
        one of KINDS, or such a kind with every value shifted, in words.
    """
    evidence = counts.copy()
    evidence[[0, IGNORE]] = 0  # 0 is a road to one kind, and often no class to another
    pixels, labelled = counts.sum(), evidence.sum()
    if not labelled or (expected == "labelIds" and not counts[_EMPTY:IGNORE].any()):
        return None
    shares = {name: evidence[kind.classes].sum() / labelled for name, kind in _FOUND.items()}
    own = KINDS[expected]
    can_be = not counts[~own.possible].any()
    if expected == "labelIds" and _has_train_ids_road(counts):
        return _VOID_19 if counts[19] > _STRAY * pixels else "trainIds"

    def is_plain(name: str, kind: Kind) -> bool:
        if counts[~kind.possible].sum() > (_STRAY * pixels if can_be else 0):
            return False
        if counts[kind.values["road"]] < _STRAY * pixels:
            return False
        if name in (_VOID_19, _FROM_1) and _is_shifted(counts) != (name == _FROM_1):
            return False
        if expected == "trainIds" and can_be:  # every number is a class: which of them is the road?
            road, other = counts[own.values["road"]], counts[kind.values["road"]]
            return kind.of == expected and road < _STRAY * pixels and other > _ROAD * pixels and _is_shifted(counts)
        if kind.of == "labelIds" and name != "labelIds":
            more = [counts[kind.values[one]] - counts[LABEL_IDS[one]] for one in _COMMON]
            if min(more) < 0 or min(more) > 0:
                return min(more) > 0
        return shares[name] > (shares[expected] + kind.margin if can_be else _PLAIN)

    plain = [name for name, kind in _FOUND.items() if name != expected and is_plain(name, kind)]
    return max(plain, key=shares.get, default=None)


def _has_train_ids_road(counts: np.ndarray) -> bool:
    """Whether 0 is a road rather than nothing: common, beside other numbers that trainIds have, and no others."""
    pixels = counts.sum()
    few = counts[20:IGNORE].sum() <= _STRAY * pixels and counts[1:19].any()
    road = counts[0] > max(_ROAD * pixels, counts[1]) and counts[LABEL_IDS["road"]] < _SIGNS * pixels
    return bool(few and road and not _is_shifted(counts))


def _is_shifted(counts: np.ndarray) -> bool:
    """Whether what is common in streets stands where trainIds plus 1 have it."""
    return bool(counts[_COMMON_IDS + 1].sum() > counts[_COMMON_IDS].sum())


def count_values(images: ImageSet) -> np.ndarray:
    """How often each label value stands in at most :data:`LOOKED_AT` label files of a set, drawn evenly: 256 int64.

    Files that cannot be read are left to whoever needs them; values above 254 of 16-bit files count as 254.
    """
    counts = np.zeros(256, np.int64)
    for index in spread(len(images), LOOKED_AT):
        try:
            values = images.read_values(images.label_path(images.paths[index]))
        except BadImage:
            continue
        values = values if values.dtype == np.uint8 else np.minimum(values, IGNORE - 1)
        counts += np.bincount(values.ravel(), minlength=256)
    return counts


def check_kind(images: ImageSet, expected: str, where: str) -> None:
    """Raise UserError if the labels of a set plainly are of another kind than its layout has; opens some of them.

    Args:
        expected: one of KINDS.
        where: the option that names the set.
    """
    found = tell_kind(count_values(images), expected)
    if found is None:
        return
    data_set, first = images.name.partition("_")[0], images.label_path(images.paths[0])
    if found in KINDS:
        advice = f"`{_line(data_set, found)}` in the yaml file reads them"
    else:
        advice = "mend them, or describe them in the yaml file as a DATASETS.CUSTOM set of your own, with its `labels`"
    raise UserError(
        f"{where} {images.name}: its label files (as {first}) should hold {expected}, but their values are those of "
        f"{found}: {advice} (and `{_line(data_set, expected)}` if they are {expected} all the same)"
    )


def _line(data_set: str, kind: str) -> str:
    return f"DATASETS: {{CUSTOM: {{{data_set}: {{labels: {kind}}}}}}}"
