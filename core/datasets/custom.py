"""Data sets that a config describes itself: their own classes, files and label values (`DATASETS.CUSTOM`)."""

import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.datasets.images import EXTENSIONS
from core.datasets.reader import ImageSet, label_table, walk_files
from core.datasets.taxonomy import COLOURS, IGNORE, STREET_SCENES, Taxonomy
from core.utils.errors import UserError, shown

MAX_CLASSES = 254
REST = "rest"  # as `ignore`: every value that `labels` does not name
_FIELDS = ("classes", "colours", "paste", "partners", "labels", "ignore", "splits")
_SPLIT_FIELDS = ("images", "pattern", "labels", "label_pattern")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Split:
    """Where the files of one split lie.

    Attributes:
        images: folder of the images, absolute or below DATASETS.ROOT.
        pattern: of their paths below it; its one `*` is any path. None: every image file.
        labels: folder of the label files, None without labels.
        label_pattern: of the label files' paths below that; its `*` is what the image's `*` is, or the image's path
            without ending where it has no pattern. None: the image's path with the ending .png.
    """

    images: str
    pattern: str | None = None
    labels: str | None = None
    label_pattern: str | None = None


def _label_file(split: Split, image_folder: Path, label_folder: Path, image: Path) -> Path:
    name = image.relative_to(image_folder).as_posix()
    stem = name.removesuffix(image.suffix)
    if split.label_pattern is None:
        return label_folder / f"{stem}.png"
    star = stem if split.pattern is None else _star(name, split.pattern)
    return label_folder / split.label_pattern.replace("*", star)


@dataclass(frozen=True)
class CustomReader:
    """Reads the splits of one data set of the config.

    Attributes:
        splits: by name.
        classes: the class of every label value that has one.
        no_class: further label values that may occur.
    """

    splits: Mapping[str, Split]
    classes: Mapping[int, str]
    no_class: Sequence[int]

    @property
    def values(self) -> dict[str, int]:
        """The label value of every class; of several the smallest."""
        return {name: value for value, name in sorted(self.classes.items(), reverse=True)}

    def image_set(self, name: str, split: str, root: Path, taxonomy: Taxonomy, where: str) -> ImageSet:
        """The images of `split`; see :meth:`core.datasets.reader.Reader.image_set`."""
        files = self.splits[split]
        folder = root / files.images
        if not os.path.isdir(folder):
            raise UserError(f"{where}: its folder of images {folder} does not exist")
        paths = sorted(path for path in walk_files(folder) if _is_image(path.relative_to(folder), files.pattern))
        labels = None
        if files.labels is not None:
            labels = partial(_label_file, files, folder, root / files.labels)
            masks = set(map(labels, paths))  # where images and labels share a folder
            paths = [path for path in paths if path not in masks]
        if not paths:
            wanted = f"image ({', '.join(EXTENSIONS)})" if files.pattern is None else files.pattern
            raise UserError(f"{where}: no {wanted} below {folder}")
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        table = None if labels is None else label_table(taxonomy, self.classes, self.no_class)
        return ImageSet(name, tuple(paths), names, labels, table)


def parse_data_set(name: Any, tree: Any, where: str, built_in: Collection[str]) -> tuple[Taxonomy, CustomReader]:
    """One entry of DATASETS.CUSTOM: its class set, and what reads it.

    Args:
        name: its key.
        tree: its fields, as yaml gives them.
        where: the key of the section, with the file before it; begins every message.
        built_in: names that are taken.

    Raises:
        UserError: anything that is not as datasets/README.md describes it.
    """
    key = f"{where}.{name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{key}: a data set's name is letters, digits and hyphens (after the first underscore begins the split), "
            f"not {name!r}"
        )
    if name in built_in:
        raise UserError(f"{key}: {name} is the name of a built-in data set; choose another")
    fields = _fields(tree, _FIELDS, ("classes", "splits"), key)
    taxonomy = _taxonomy(fields, key)
    classes, no_class = _label_values(fields, taxonomy.names, key)
    splits = _mapping(fields["splits"], f"{key}.splits")
    if not splits:
        raise UserError(f"{key}.splits must name at least one split")
    splits = {split: _split(split, value, f"{key}.splits.{split}") for split, value in splits.items()}
    return taxonomy, CustomReader(splits, classes, no_class)


def _taxonomy(fields: Mapping, key: str) -> Taxonomy:
    names = _texts(fields["classes"], f"{key}.classes")
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(f"{key}.classes must be 2 to {MAX_CLASSES} names, not {len(names)}")
    colours = _by_class(fields, "colours", names, key)
    for name, colour in colours.items():
        if not isinstance(colour, list) or len(colour) != 3 or not all(map(_is_byte, colour)):
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
    same = (taxonomy for taxonomy in STREET_SCENES if taxonomy.names == names)
    return replace(next(same, Taxonomy(names, partner_names={})), **given)


def _label_values(fields: Mapping, names: Sequence[str], key: str) -> tuple[dict[int, str], list[int]]:
    """The class of every label value that has one, and the values that are no class."""
    classes = dict(enumerate(names))
    if "labels" in fields:
        classes = _mapping(fields["labels"], f"{key}.labels")
        if not classes:
            raise UserError(f"{key}.labels must give the class of at least one label value")
        for value, name in classes.items():
            if not _is_byte(value):
                raise UserError(f"{key}.labels.{value}: a label value is a whole number from 0 to 255")
            if value == IGNORE:
                raise UserError(f"{key}.labels.{value}: {IGNORE} always means no class")
            _require_class(name, names, f"{key}.labels.{value}")
    ignored = fields.get("ignore", [])
    if ignored == REST:
        return classes, [value for value in range(256) if value not in classes]
    if not isinstance(ignored, list) or not all(map(_is_byte, ignored)):
        raise UserError(f"{key}.ignore must be a list of values from 0 to 255, or {REST}, not {shown(ignored)}")
    for value in ignored:
        if value in classes:
            raise UserError(f"{key}.ignore: {value} is the label value of {classes[value]!r}")
    return classes, ignored


def _split(name: Any, tree: Any, key: str) -> Split:
    if not isinstance(name, str) or not _SPLIT_NAME.fullmatch(name):
        raise UserError(f"{key}: a split's name is letters, digits, hyphens and underscores, not {name!r}")
    fields = _fields(tree, _SPLIT_FIELDS, ("images",), key)
    for field, value in fields.items():
        if not isinstance(value, str) or not value:
            raise UserError(f"{key}.{field} must be text, not {shown(value)}")
        if field.endswith("pattern") and value.count("*") != 1:
            raise UserError(f"{key}.{field} must hold exactly one *, which stands for any path, not {value!r}")
        if field.endswith("pattern") and value.startswith(("/", "./", "../")):
            raise UserError(f"{key}.{field} must be a path below its folder, not {value!r}")
    split = Split(**fields)
    if split.labels is None and split.label_pattern is not None:
        raise UserError(f"{key}.label_pattern needs `labels` beside it, the folder of the label files")
    if split.pattern is not None and (split.images, split.pattern) == (split.labels, split.label_pattern):
        raise UserError(f"{key}.label_pattern is the images' own pattern in the images' own folder")
    return split


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


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _is_image(path: Path, pattern: str | None) -> bool:
    if pattern is None:
        return path.name.lower().endswith(EXTENSIONS)
    return _star(path.as_posix(), pattern) is not None


def _star(name: str, pattern: str) -> str | None:
    """What the pattern's `*` stands for in a name, None if the name does not fit."""
    before, _, after = pattern.partition("*")
    if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
        return name[len(before) : len(name) - len(after)]
    return None
