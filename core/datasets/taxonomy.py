"""Class sets: names, colours, which classes are pasted and which go together. Everything refers to classes by name."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from core.utils.errors import UserError

IGNORE = 255  # in labels: no class, or none that counts

# of street scenes; other class sets bring their own
COLOURS = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "light": (250, 170, 30),
    "sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
PARTNERS = {
    "rider": ("bicycle", "motorcycle"),
    "bicycle": ("rider",),
    "motorcycle": ("rider",),
    "pole": ("light", "sign"),
    "light": ("pole",),
    "sign": ("pole",),
}


@dataclass(frozen=True)
class Taxonomy:
    """An ordered class set.

    Attributes:
        names: the class of index 0, 1, …
        paste: names of the classes that copy-paste draws unless TCR.MIX_CLASSES says otherwise (method §6).
        subsets: named smaller class sets over which a mean IoU is also reported.
        colours: RGB of classes by name; a class that has none is given one that no other has.
        partner_names: the classes that are pasted along with a class, all by name.
    """

    names: tuple[str, ...]
    paste: tuple[str, ...] = ()
    subsets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    colours: Mapping[str, tuple[int, int, int]] = field(default_factory=lambda: COLOURS)
    partner_names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PARTNERS)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        return self.names.index(name)

    def partners(self, index: int) -> tuple[int, ...]:
        """Indices of the classes that are pasted along with class `index` where the image holds them."""
        names = self.partner_names.get(self.names[index], ())
        return tuple(self.index(name) for name in names if name in self.names)

    def paste_classes(self, chosen: Sequence[str] = ()) -> tuple[int, ...]:
        """Indices of the `chosen` names (TCR.MIX_CLASSES), or of the set's own paste classes.

        Raises:
            UserError: a name that the set does not have.
        """
        for name in chosen:
            if name not in self.names:
                raise UserError(f"TCR.MIX_CLASSES: {name!r} is not one of {', '.join(self.names)}")
        return tuple(self.index(name) for name in dict.fromkeys(chosen or self.paste))

    def palette(self) -> np.ndarray:
        """256×3 uint8 RGB: the classes' colours, black elsewhere."""
        palette = np.zeros((256, 3), np.uint8)
        spare = _spare_colours({tuple(self.colours[name]) for name in self.names if name in self.colours})
        palette[: len(self)] = [self.colours[name] if name in self.colours else next(spare) for name in self.names]
        return palette


def _spare_colours(taken: set[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Colours that are neither black nor taken, without end: those of PASCAL VOC, in its order.

    Bit 3k + j of the running number becomes bit 7 − k of channel j, so that neighbours differ in the highest bits.
    """
    for number in count(1):
        colour = tuple(sum((number >> 3 * k + j & 1) << 7 - k for k in range(8)) for j in range(3))
        if colour not in taken:
            yield colour


def _without(names: tuple[str, ...], *left_out: str) -> tuple[str, ...]:
    return tuple(name for name in names if name not in left_out)


_PASTE_19 = ("fence", "pole", "light", "sign", "rider", "train", "motorcycle", "bicycle")
_PASTE_16 = ("wall", "pole", "light", "sign", "rider", "motorcycle", "bicycle")
_NAMES_19 = tuple(COLOURS)
_NAMES_16 = _without(_NAMES_19, "terrain", "truck", "train")

CITYSCAPES_19 = Taxonomy(_NAMES_19, _PASTE_19)
CITYSCAPES_16 = Taxonomy(
    _NAMES_16,
    _PASTE_16,
    subsets=(("13 classes (without wall, fence, pole)", _without(_NAMES_16, "wall", "fence", "pole")),),
)
CAMVID_11 = Taxonomy(
    ("sky", "building", "pole", "road", "sidewalk", "vegetation", "sign", "fence", "car", "person", "rider")
)
TOY_14 = Taxonomy(
    _without(_NAMES_19, "wall", "terrain", "bus", "train", "motorcycle"),
    ("fence", "pole", "light", "sign", "rider", "bicycle", "truck", "person"),
)
COMMA_6 = Taxonomy(
    ("road", "lane-marking", "undrivable", "movable", "my-car", "movable-in-my-car"),
    colours={
        "road": (64, 32, 32),
        "lane-marking": (255, 0, 0),
        "undrivable": (128, 128, 96),
        "movable": (0, 255, 102),
        "my-car": (204, 0, 255),
        "movable-in-my-car": (0, 204, 255),
    },
    partner_names={},
)
COMMA_5 = Taxonomy(COMMA_6.names[:5], colours=COMMA_6.colours, partner_names={})  # of a camera that looks ahead
STREET_SCENES = (CITYSCAPES_19, CITYSCAPES_16, CAMVID_11, TOY_14)


def of_names(names: tuple[str, ...]) -> Taxonomy:
    """The street scenes' class set of these names, or one of them alone, without paste classes and partners."""
    return next((one for one in STREET_SCENES if one.names == names), Taxonomy(names, partner_names={}))
