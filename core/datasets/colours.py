"""Labels by colour: palettes, and label files whose colours are the classes."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.datasets.images import read_colours
from core.datasets.reader import UNKNOWN
from core.datasets.skipping import BadImage
from core.datasets.taxonomy import COLOURS, IGNORE
from core.utils.errors import UserError, shorten, shown
from core.utils.files import open_regular

RGB = tuple[int, int, int]
_BLURRED = 64  # unknown colours in one file from which on it is told as a whole
_NUMBERS = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_LINE = re.compile(rf"{_NUMBERS}[\s,;]+(?P<after>\S.*)|(?P<before>\S.*?)[\s,;]+{_NUMBERS}")

# colour, official name, and the class of the eleven that are used since SegNet (Badrinarayanan et al., 2017)
_CAMVID = """
64 128 64 Animal person; 192 0 128 Archway building; 0 128 192 Bicyclist rider; 0 128 64 Bridge building
128 0 0 Building building; 64 0 128 Car car; 64 0 192 CartLuggagePram person; 192 128 64 Child person
192 192 128 Column_Pole pole; 64 64 128 Fence fence; 128 0 192 LaneMkgsDriv road; 192 0 64 LaneMkgsNonDriv road
128 128 64 Misc_Text sign; 192 0 192 MotorcycleScooter rider; 128 64 64 OtherMoving car
64 192 128 ParkingBlock sidewalk; 64 64 0 Pedestrian person; 128 64 128 Road road
128 128 192 RoadShoulder sidewalk; 0 0 192 Sidewalk sidewalk
192 128 128 SignSymbol sign; 128 128 128 Sky sky; 64 128 192 SUVPickupTruck car; 0 0 64 TrafficCone pole
0 64 64 TrafficLight sign; 192 64 128 Train car; 128 128 0 Tree vegetation; 192 128 192 Truck_Bus car
64 0 64 Tunnel building; 192 192 0 VegetationMisc vegetation; 0 0 0 Void -; 64 192 0 Wall building
"""
_CITYSCAPES_VOID = {
    "unlabeled": (0, 0, 0),
    "dynamic": (111, 74, 0),
    "ground": (81, 0, 81),
    "parking": (250, 170, 160),
    "rail track": (230, 150, 140),
    "guard rail": (180, 165, 180),
    "bridge": (150, 100, 100),
    "tunnel": (150, 120, 90),
    "caravan": (0, 0, 90),
    "trailer": (0, 0, 110),
}
_CITYSCAPES_NAMES = {"light": "traffic light", "sign": "traffic sign"}  # the official ones


@dataclass(frozen=True)
class Named:
    """One colour of a palette; `group`: the class that it is where none has its own name."""

    colour: RGB
    name: str
    group: str = ""


def _camvid() -> list[Named]:
    words = (entry.split() for entry in re.split("[;\n]", _CAMVID.strip()))
    return [Named((int(red), int(green), int(blue)), name, group) for red, green, blue, name, group in words]


def _cityscapes() -> list[Named]:
    classes = [Named(colour, _CITYSCAPES_NAMES.get(name, name), name) for name, colour in COLOURS.items()]
    return classes + [Named(colour, name) for name, colour in _CITYSCAPES_VOID.items()]


OFFICIAL = {"camvid": _camvid(), "cityscapes": _cityscapes()}


@dataclass(frozen=True)
class ColourTable:
    """What the colours of label files mean, as a config says it.

    Attributes:
        names: the classes.
        given: colours of classes (`colours` of the config); empty where a palette has them.
        palette: its file, or a key of OFFICIAL in any case; "": none.
        labels: class by the palette's name, for names that are no class.
        ignored: colours, and names of the palette, that are no class.
        rest: whether all other colours are none, too.
        key: of the data set in the config, with its file, for messages.
    """

    names: tuple[str, ...]
    given: Mapping[str, RGB]
    palette: str
    labels: Mapping[str, str]
    ignored: Sequence[RGB | str]
    rest: bool
    key: str

    def decoder(self, root: Path) -> "ColourLabels":
        """What reads label files.

        Args:
            root: relative palette files lie below it.
        Raises:
            UserError: a palette that cannot be read or lacks a class, two classes of one colour, …
        """
        known = self._of_palette(root) if self.palette else [(colour, name) for name, colour in self.given.items()]
        known += [(entry, "") for entry in self.ignored if not isinstance(entry, str)]
        meaning: dict[RGB, str] = {}
        for colour, name in known:
            if meaning.setdefault(colour, name) != name:
                both = " and ".join(shown(other) if other else "no class" for other in (meaning[colour], name))
                raise UserError(f"{self.key}: labels by colour, but {colour} is {both}")
        without = [name for name in self.names if name not in meaning.values()]
        if without:
            where = f"palette {self.palette} has" if self.palette else "colours has"
            raise UserError(f"{self.key}: labels by colour, but {where} no colour of {shorten(without)}")
        values = [self.names.index(name) if name else IGNORE for name in meaning.values()]
        table = f"palette {self.palette}" if self.palette else "`colours`"
        packed = tuple(int.from_bytes(bytes(colour), "big") for colour in meaning)
        return ColourLabels(packed, tuple(values), self.names, self.rest, table)

    def _of_palette(self, root: Path) -> list[tuple[RGB, str]]:
        """(colour, class or "") of every colour of the palette."""
        where = f"{self.key}.palette"
        official = OFFICIAL.get(self.palette.lower())
        entries = official or read_palette(root / Path(self.palette).expanduser(), where)
        known = [entry.name for entry in entries]
        for name in (*self.labels, *(entry for entry in self.ignored if isinstance(entry, str))):
            if name not in known:
                field = "labels" if name in self.labels else "ignore"
                raise UserError(f"{self.key}.{field}: palette {self.palette} has no {name!r}{_near(name, known)}")
        if official and not self.labels:
            own = {name.lower(): name for name in self.names}
            found = [own.get(entry.name.lower(), own.get(entry.group, "")) for entry in entries]
            pairs = zip(entries, found, strict=True)
            return [(entry.colour, "" if entry.name in self.ignored else name) for entry, name in pairs]
        meaning = {name: name for name in self.names} | dict(self.labels) | dict.fromkeys(self.ignored, "")
        unnamed = [name for name in known if name not in meaning]
        if unnamed and not self.rest and not official:
            raise UserError(
                f"{where} {self.palette}: {unnamed[0]!r} is not one of the classes{_near(unnamed[0], self.names)}; "
                "name it under labels or ignore"
            )
        return [(entry.colour, meaning.get(entry.name, "")) for entry in entries]


@dataclass(frozen=True)
class ColourLabels:
    """Decodes label files by their colours.

    Attributes:
        colours: all that are known, each 0xRRGGBB.
        values: what each is: a class index, or IGNORE.
        names: the classes.
        rest: whether any other colour is IGNORE, too.
        table: where the colours stand, for messages.
    """

    colours: tuple[int, ...]
    values: tuple[int, ...]
    names: tuple[str, ...]
    rest: bool
    table: str

    def __call__(self, path: Path) -> np.ndarray:
        """The class indices of a label file, H×W uint8, IGNORE where it has none.

        Raises:
            BadImage: as :func:`core.datasets.images.read_colours`, or a colour that is not known.
        """
        colours = read_colours(path)
        values = _lookup(self.colours, self.values, IGNORE if self.rest else UNKNOWN)[colours]
        unknown = values == UNKNOWN
        if unknown.any():
            raise BadImage(self._message(path, *np.unique(colours[unknown], return_counts=True)), path)
        return values

    def _message(self, path: Path, unknown: np.ndarray, counts: np.ndarray) -> str:
        if len(unknown) > _BLURRED:
            return (
                f"label {path} is blurred: {len(unknown)} of its colours ({counts.sum()} pixels) are not in "
                f"{self.table}, as after a resize that interpolates, or JPEG; make it anew without loss, resized by "
                "nearest neighbour"
            )
        order = np.argsort(-counts, kind="stable")
        found, known = _unpacked(unknown[order]), _unpacked(np.array(self.colours))
        nearest = ((found[:, None] - known) ** 2).sum(2).argmin(1)
        names = dict(enumerate(self.names)) | {IGNORE: "no class"}
        items = (
            f"{_tuple(colour)} ({count} pixel{'s' if count > 1 else ''}; nearest is {names[self.values[near]]} "
            f"{_tuple(known[near])})"
            for colour, count, near in zip(found, counts[order], nearest, strict=True)
        )
        return (
            f"label {path} holds colours that are not in {self.table}: {shorten(items)}; mend the file, or name them "
            "there or in `ignore`"
        )


@lru_cache(maxsize=4)
def _lookup(colours: Sequence[int], values: Sequence[int], other: int) -> np.ndarray:
    """2^24 uint8, from 0xRRGGBB to value."""
    table = np.full(1 << 24, other, np.uint8)
    table[list(colours)] = values
    return table


def _unpacked(colours: np.ndarray) -> np.ndarray:
    """N×3 int64 RGB of N colours 0xRRGGBB."""
    return colours.astype(np.int64)[:, None] >> np.array([16, 8, 0]) & 255


def _tuple(colour: np.ndarray) -> RGB:
    return tuple(colour.tolist())


def read_palette(path: Path, where: str) -> list[Named]:
    """A palette file: one colour a line, as `red green blue name` or `name,red,green,blue`; `#` begins a comment.

    Args:
        where: its key in the config, for messages.
    Raises:
        UserError: it cannot be read, a line is not so, no line is.
    """
    try:
        with open_regular(path) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        official = ", ".join(OFFICIAL)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: {path} cannot be read: {reason} (known by name are {official})") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        text = line.strip().strip(",;")
        if not text or text.startswith("#") or (not entries and not re.search(r"\d", text)):
            continue  # the last is a table's head
        match = _LINE.fullmatch(text)
        colour = tuple(int(part) for part in match.groups() if part and part.isdecimal())[:3] if match else ()
        if not colour or max(colour) > 255:
            raise UserError(
                f"{where}: {path} line {number} must be `red green blue name`, each 0 to 255, not {shown(text)}"
            )
        entries.append(Named(colour, (match["after"] or match["before"]).strip(" \t\"'")))
    if not entries:
        raise UserError(f"{where}: {path} names no colour")
    return entries


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
