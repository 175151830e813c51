"""Data sets that a config describes itself: their own classes, files and label values (`DATASETS.CUSTOM`)."""

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path, PurePath
from typing import Any

from core.datasets.colours import OFFICIAL, ColourTable
from core.datasets.images import CHANNELS, EXTENSIONS, ImageForm, read_channel, read_label
from core.datasets.lists import Listed, read_list
from core.datasets.reader import ImageSet, label_table, name_prefixes, walk_files
from core.datasets.taxonomy import COLOURS, Taxonomy, of_names
from core.utils.errors import UserError, shown

MAX_CLASSES = 254
MAX_VALUE = 65535  # of 16-bit labels
REST = "rest"  # as `ignore`: every value that `labels` does not name
_FIELDS = ("classes", "colours", "paste", "partners", "labels", "ignore", "splits")
_FIELDS += ("by_colour", "palette", "label_channel", "bands", "merge")
_SPLIT_FIELDS = ("images", "pattern", "labels", "label_pattern", "list")
_LABEL_ENDINGS = (".png", ".tif", ".tiff", ".bmp")  # the first that is there
_NAME = re.compile(r"[A-Za-z0-9-]+")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Split:
    """Where the files of one split lie.

    Attributes:
        images: folders of the images, absolute or below DATASETS.ROOT.
        pattern: of their paths below these; each `*` is any path, as short as may be but for the last. None: every
            image file.
        labels: the folder of the label files of each; empty without labels.
        label_pattern: of the label files' paths below that; its n-th `*` is what the image's n-th `*` is, or the
            image's path without ending where it has no pattern. None: the image's path with the first of the endings
            .png, .tif, .tiff, .bmp that is there.
        list_file: names the images, and maybe their labels; None: all that fit.
    """

    images: tuple[str, ...] = ()
    pattern: str | None = None
    labels: tuple[str, ...] = ()
    label_pattern: str | None = None
    list_file: str | None = None

    def find(self, root: Path, where: str) -> list[Listed]:
        """Its images, and where their labels should be.

        Args:
            root: DATASETS.ROOT.
            where: begins every message.
        Raises:
            UserError: a folder is missing or has no image; folders lie in one another; as :func:`read_list`.
        """
        if self.list_file is not None:
            return self._listed(root, where)
        folders = [root / folder for folder in self.images]
        for folder in folders:
            if not os.path.isdir(folder):
                raise UserError(f"{where}: its folder of images {folder} does not exist")
        found = []
        for number, (folder, above) in enumerate(zip(folders, name_prefixes(folders, where), strict=True)):
            paths = [(path, path.relative_to(folder).as_posix()) for path in walk_files(folder)]
            fitting = [(path, name) for path, name in paths if _is_image(name, self.pattern)]
            if not fitting:
                raise UserError(f"{where}: no {self._wanted} below {folder}")
            for path, name in fitting:
                label = self._label(root / self.labels[number], name, path) if self.labels else None
                found.append(Listed(path, f"{above}{name}", label, ""))
        labels = {one.label for one in found}  # where images and labels share a folder
        images = sorted((one for one in found if one.image not in labels), key=lambda one: one.image)
        if not images:
            raise UserError(f"{where}: no {self._wanted} below {folders[0]}")
        return images

    @property
    def _wanted(self) -> str:
        return f"image ({', '.join(EXTENSIONS)})" if self.pattern is None else self.pattern

    def _listed(self, root: Path, where: str) -> list[Listed]:
        file = root / self.list_file
        folders = [*(root / folder for folder in self.images), root, file.parent]
        label_folders = [root / folder for folder in self.labels]
        found = read_list(file, folders, [*label_folders, *folders], where)
        if found[0].label is not None:
            if self.label_pattern is not None:
                raise UserError(f"{where}: {found[0].place} names a label: leave label_pattern out")
            return sorted(found, key=lambda one: one.image)
        for one in found if self.pattern is not None else ():
            if _stars(one.name, self.pattern) is None:
                raise UserError(f"{where}: {one.place}: image {one.name} does not fit the pattern {self.pattern}")
        if label_folders:
            found = [replace(one, label=self._label(label_folders[0], one.name, one.image)) for one in found]
        return sorted(found, key=lambda one: one.image)

    def _label(self, folder: Path, name: str, image: Path) -> Path:
        """The label file in a folder of an image of that name."""
        stem = name.removesuffix(PurePath(name).suffix)
        if self.label_pattern is None:
            files = [folder / f"{stem}{ending}" for ending in _LABEL_ENDINGS]
            return next((file for file in files if file != image and os.path.isfile(file)), files[0])
        stars = [stem] if self.pattern is None else _stars(name, self.pattern)
        parts = self.label_pattern.split("*")
        return folder / "".join(chain.from_iterable(zip_longest(parts, stars, fillvalue="")))


@dataclass(frozen=True)
class CustomReader:
    """Reads the splits of one data set of the config.

    Attributes:
        splits: by name.
        classes: the class of every label value that has one.
        no_class: further label values that may occur.
        channel: of the label files, a key of CHANNELS; None: they have one.
        colours: what the colours of label files mean, in place of values; `classes` are then those in their order.
        plain: whether nothing but the order of the classes says what values are.
        bands: of image files, see :func:`core.datasets.images.read_pixels`.
        kind: see :class:`core.datasets.reader.Reader`.
    """

    splits: Mapping[str, Split]
    classes: Mapping[int, str]
    no_class: Sequence[int]
    channel: str | None = None
    colours: ColourTable | None = None
    plain: bool = False
    bands: tuple[int, ...] = ()
    kind: str = ""
    submission: None = None

    @property
    def values(self) -> dict[str, int]:
        """The label value of every class; of several the smallest."""
        return {name: value for value, name in sorted(self.classes.items(), reverse=True)}

    def image_set(self, name: str, split: str, root: Path, taxonomy: Taxonomy, where: str) -> ImageSet:
        """The images of `split`; see :meth:`core.datasets.reader.Reader.image_set`."""
        found = self.splits[split].find(root, where)
        paths, names = tuple(one.image for one in found), tuple(one.name for one in found)
        listed = tuple(one.place for one in found if one.place)
        if found[0].label is None:
            return ImageSet(name, paths, names, listed=listed, form=ImageForm(self.bands))
        labels = {one.image: one.label for one in found}.__getitem__
        table, read_values, decoding = label_table(taxonomy, self.classes, self.no_class), read_label, ""
        if self.colours is not None:
            read_values = self.colours.decoder(root)
            decoding = repr(read_values)
        elif self.channel is not None:
            read_values, decoding = partial(read_channel, channel=self.channel), self.channel
        told = {"decoding": decoding, "guessed_void": self.plain, "listed": listed, "form": ImageForm(self.bands)}
        return ImageSet(name, paths, names, labels, table, read_values, **told)


def parse_data_set(name: Any, tree: Any, where: str) -> tuple[Taxonomy, CustomReader]:
    """One entry of DATASETS.CUSTOM: its class set, and what reads it.

    Args:
        name: its key.
        tree: its fields, as yaml gives them.
        where: the key of the section, with the file before it; begins every message.

    Raises:
        UserError: anything that is not as docs/own_data.md describes it.
    """
    key = f"{where}.{name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{key}: a data set's name is letters, digits and hyphens (after the first underscore begins the split), "
            f"not {name!r}"
        )
    fields = _fields(tree, _FIELDS, ("classes", "splits"), key)
    taxonomy = _taxonomy(fields, key)
    colours, channel = _colour_table(fields, taxonomy.names, key), fields.get("label_channel")
    if channel is not None and channel not in list(CHANNELS):  # which compares what has no hash, too
        raise UserError(f"{key}.label_channel must be one of {', '.join(CHANNELS)}, not {shown(channel)}")
    if colours is not None and channel is not None:
        raise UserError(f"{key}.label_channel has class numbers in one channel, by_colour or palette have colours")
    if colours is None:
        classes, no_class = _label_values(fields, taxonomy.names, key)
    else:
        classes, no_class = dict(enumerate(taxonomy.names)), []
    bands = fields.get("bands", [])
    if not isinstance(bands, list) or len(bands) not in (0, 1, 3) or not all(_is_value(b) and b for b in bands):
        raise UserError(f"{key}.bands must be a list of three bands, or one, counted from 1, not {shown(bands)}")
    splits = _mapping(fields["splits"], f"{key}.splits")
    if not splits:
        raise UserError(f"{key}.splits must name at least one split")
    splits = {split: _split(split, value, f"{key}.splits.{split}") for split, value in splits.items()}
    plain = colours is None and not {"labels", "ignore"} & fields.keys()
    return taxonomy, CustomReader(splits, classes, no_class, channel, colours, plain, tuple(bands))


def parse_merge(tree: Mapping, names: Sequence[str], key: str) -> dict[str, tuple[str, ...]]:
    """Field `merge` of an entry: by class of the set, the model's classes that count as it, beside that of its name.

    Args:
        tree: see :func:`parse_data_set`.
        names: the set's classes.
        key: of the entry.
    """
    merge = {}
    for name, members in _by_class({"merge": tree.get("merge") or {}}, "merge", names, key).items():
        merge[name] = _texts([members] if isinstance(members, str) else members, f"{key}.merge.{name}")
    return merge


def parse_label_kind(name: str, tree: Any, where: str, kinds: Collection[str]) -> str:
    """Of an entry of DATASETS.CUSTOM by the name of a built-in data set: the kind of label values that its files hold.

    Args:
        tree, where: see :func:`parse_data_set`.
        kinds: that it may be; none, where the data set has one of its own.
    """
    key = f"{where}.{name}"
    fields = [str(field) for field in _mapping(tree, key)]
    if not kinds or fields != ["labels"]:
        given = (
            f"only `labels: {' or '.join(kinds)}` and `merge` can be given"
            if kinds
            else "nothing of it but `merge` can be given here"
        )
        raise UserError(f"{key}: {name} is a built-in data set; {given}; an own one needs another name")
    if tree["labels"] not in tuple(kinds):
        raise UserError(f"{key}.labels must be {' or '.join(kinds)}, not {shown(tree['labels'])}")
    return tree["labels"]


def _taxonomy(fields: Mapping, key: str) -> Taxonomy:
    names = _texts(fields["classes"], f"{key}.classes")
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(f"{key}.classes must be 2 to {MAX_CLASSES} names, not {len(names)}")
    colours = _by_class(fields, "colours", names, key)
    for name, colour in colours.items():
        if not _is_colour(colour):
            raise UserError(f"{key}.colours.{name} must be [red, green, blue], each 0 to 255, not {shown(colour)}")
        colours[name] = tuple(colour)
    usual = {name: COLOURS[name] for name in names if name in COLOURS and COLOURS[name] not in colours.values()}
    given: dict[str, Any] = {"colours": usual | colours}
    if "paste" in fields:
        given["paste"] = _texts(fields["paste"], f"{key}.paste", names)
    if "partners" in fields:
        partners = _by_class(fields, "partners", names, key)
        given["partner_names"] = {n: _texts(value, f"{key}.partners.{n}", names) for n, value in partners.items()}
        for name, others in given["partner_names"].items():
            if name in others:
                raise UserError(f"{key}.partners.{name} names the class itself")
    return replace(of_names(names), **given)


def _label_values(fields: Mapping, names: Sequence[str], key: str) -> tuple[dict[int, str], list[int]]:
    """The class of every label value that has one, and the values that are no class."""
    classes = dict(enumerate(names))
    if "labels" in fields:
        classes = _mapping(fields["labels"], f"{key}.labels")
        if not classes:
            raise UserError(f"{key}.labels must give the class of at least one label value")
        for value, name in classes.items():
            if not _is_value(value):
                raise UserError(f"{key}.labels.{value}: a label value is a whole number from 0 to {MAX_VALUE}")
            _require_class(name, names, f"{key}.labels.{value}")
    ignored = fields.get("ignore", [])
    if ignored == REST:
        return classes, [value for value in range(MAX_VALUE + 1) if value not in classes]
    if not isinstance(ignored, list) or not all(map(_is_value, ignored)):
        raise UserError(f"{key}.ignore must be a list of values from 0 to {MAX_VALUE}, or {REST}, not {shown(ignored)}")
    for value in ignored:
        if value in classes:
            raise UserError(f"{key}.ignore: {value} is the label value of {classes[value]!r}")
    return classes, ignored


def _colour_table(fields: Mapping, names: Sequence[str], key: str) -> ColourTable | None:
    """What `by_colour` or `palette` say of the label files; None where they hold numbers."""
    by_colour, palette = fields.get("by_colour", "palette" in fields), fields.get("palette", "")
    if not isinstance(by_colour, bool):
        raise UserError(f"{key}.by_colour must be true or false, not {shown(by_colour)}")
    if not isinstance(palette, str) or (by_colour and palette == "" and "palette" in fields):
        known = ", ".join(OFFICIAL)
        raise UserError(
            f"{key}.palette must be a file of lines `red green blue name`, or {known}, not {shown(palette)}"
        )
    if not by_colour:
        if palette:
            raise UserError(f"{key}.palette gives the labels' colours, but by_colour is false")
        return None
    labels, ignored = fields.get("labels", {}), fields.get("ignore", [])
    if labels and not palette:
        raise UserError(f"{key}.labels gives classes of numbers; with by_colour, `colours` gives those of colours")
    for name, label in _mapping(labels, f"{key}.labels").items():
        if not isinstance(name, str):
            raise UserError(
                f"{key}.labels.{name}: with a palette, a label is one of its names, in quotes if it is a number"
            )
        _require_class(label, names, f"{key}.labels.{name}")
    rest = ignored == REST
    if rest:
        ignored = []
    names_too = isinstance(ignored, list) and all(_is_colour(entry) or isinstance(entry, str) for entry in ignored)
    if not names_too or not (palette or all(map(_is_colour, ignored))):
        kinds = "[red, green, blue] or names of the palette" if palette else "[red, green, blue]"
        raise UserError(f"{key}.ignore must be a list of {kinds}, or {REST}, not {shown(ignored)}")
    for entry in ignored:
        if isinstance(entry, str) and entry in labels:
            raise UserError(f"{key}.ignore: {entry!r} is {labels[entry]!r} under labels")
    ignored = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in ignored)
    given = {name: tuple(colour) for name, colour in fields.get("colours", {}).items()}
    return ColourTable(names, {} if palette else given, palette, labels, ignored, rest, key)


def _split(name: Any, tree: Any, key: str) -> Split:
    if not isinstance(name, str) or not _SPLIT_NAME.fullmatch(name):
        raise UserError(f"{key}: a split's name is letters, digits, hyphens and underscores, not {name!r}")
    fields = _fields(tree, _SPLIT_FIELDS, () if isinstance(tree, dict) and tree.get("list") else ("images",), key)
    for field, value in fields.items():
        several = field in ("images", "labels") and "list" not in fields
        texts = value if several and isinstance(value, list) and value else [value]
        if not all(isinstance(text, str) and text for text in texts):
            kinds = "text, or a list of folders" if several else "text"
            one = "; beside a list there is one folder" * (field in ("images", "labels") and "list" in fields)
            raise UserError(f"{key}.{field} must be {kinds}, not {shown(value)}{one}")
        if field.endswith("pattern") and ("*" not in value or "**" in value):
            raise UserError(f"{key}.{field} must hold a *, which stands for any path, or several apart, not {value!r}")
        if field.endswith("pattern") and value.startswith(("/", "./", "../")):
            raise UserError(f"{key}.{field} must be a path below its folder, not {value!r}")
    images, labels = (_folders(fields.get(field)) for field in ("images", "labels"))
    split = Split(images, fields.get("pattern"), labels, fields.get("label_pattern"), fields.get("list"))
    if not labels and split.label_pattern is not None:
        raise UserError(f"{key}.label_pattern needs `labels` beside it, the folder of the label files")
    if labels and split.list_file is None and len(labels) != len(images):
        raise UserError(
            f"{key}.labels must name a folder for each of {len(images)} folders of images, not {len(labels)}"
        )
    if split.label_pattern is not None:
        stars, label_stars = (split.pattern or "*").count("*"), split.label_pattern.count("*")
        if stars != label_stars:
            image = f"pattern has {stars}" if split.pattern else "without a pattern there is one"
            raise UserError(f"{key}.label_pattern has {label_stars} *, but {image}: the n-th is the image's n-th")
    if split.pattern is not None and split.pattern == split.label_pattern and set(images) & set(labels):
        raise UserError(f"{key}.label_pattern is the images' own pattern in the images' own folder")
    return split


def _folders(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _fields(tree: Any, known: Sequence[str], required: Sequence[str], key: str) -> dict:
    """The fields of a section, none unknown, none missing; those that are empty in the yaml left out."""
    fields = {name: value for name, value in _mapping(tree, key).items() if value is not None}
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise UserError(f"{key}.{name} is unknown; did you mean {near}? Known are {', '.join(known)}")
    for name in required:
        if name not in fields:
            raise UserError(f"{key}.{name} is missing")
    return fields


def _mapping(value: Any, key: str) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{key} must hold NAME: VALUE pairs, not {shown(value)}")
    return value


def _by_class(fields: Mapping, field: str, names: Sequence[str], key: str) -> dict[str, Any]:
    """What a field holds for some of the classes."""
    values = _mapping(fields.get(field, {}), f"{key}.{field}")
    for name in values:
        _require_class(name, names, f"{key}.{field}")
    return dict(values)


def _texts(value: Any, key: str, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """A list of names, none twice; of `classes`, if given."""
    if not isinstance(value, list):
        raise UserError(f"{key} must be a list of names, not {shown(value)}")
    seen = set()
    for name in value:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{key}: a name is text, in quotes if yaml reads it otherwise, not {shown(name)}")
        if name in seen:
            raise UserError(f"{key} names {name!r} twice")
        seen.add(name)
        if classes is not None:
            _require_class(name, classes, key)
    return tuple(value)


def _require_class(name: Any, names: Sequence[str], key: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{key}: {shown(name)} is not one of the classes{hint}")


def _is_value(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_VALUE


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_image(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return name.lower().endswith(EXTENSIONS)
    return _stars(name, pattern) is not None


def _stars(name: str, pattern: str) -> list[str] | None:
    """What each `*` of a pattern stands for in a name: as little as may be, the last one the rest; None: no fit."""
    first, *between, last = pattern.split("*")
    if not name.startswith(first) or not name.endswith(last):
        return None
    place, end, stars = len(first), len(name) - len(last), []
    for text in between:
        found = name.find(text, place + 1, end)
        if found < 0:
            return None
        stars.append(name[place:found])
        place = found + len(text)
    return [*stars, name[place:end]] if place < end else None
