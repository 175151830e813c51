"""From a data set's name in the config to its image files, label files and class set.

A data set is built in (ENTRIES) or described by the config itself (DATASETS.CUSTOM).
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.datasets import bdd100k, camvid, cityscapes, gta5, synthia, toy
from core.datasets.custom import CustomReader, parse_data_set, parse_label_kind
from core.datasets.images import EXTENSIONS
from core.datasets.label_kinds import KINDS, check_kind
from core.datasets.masks import like_masks, split_masks
from core.datasets.reader import ImageSet, Reader, require_utf_8, walk_files
from core.datasets.sizes import check_label_sizes, spread
from core.datasets.skipping import BadImage, SkippedImages
from core.datasets.taxonomy import CAMVID_11, CITYSCAPES_16, CITYSCAPES_19, IGNORE, TOY_14, Taxonomy
from core.datasets.videos import VIDEO_PREFIX, find_frames
from core.utils.errors import UserError, shorten
from core.utils.files import meant

FOLDER_PREFIX = "folder:"
KEYS = ("TARGET_TRAIN", "TEST", "SOURCE_TRAIN")  # the first that has class names gives those of the run


@dataclass(frozen=True)
class Entry:
    """One data set of the catalog: its class sets and how it is read."""

    taxonomies: tuple[Taxonomy, ...]
    reader: Reader | CustomReader


ENTRIES = {
    "cityscapes": Entry((CITYSCAPES_19, CITYSCAPES_16), cityscapes.READER),
    "gta5": Entry((CITYSCAPES_19, CITYSCAPES_16), gta5.READER),
    "synthia": Entry((CITYSCAPES_16,), synthia.READER),
    "bdd100k": Entry((CITYSCAPES_19, CITYSCAPES_16), bdd100k.READER),
    "camvid": Entry((CAMVID_11,), camvid.READER),
    "toy": Entry((TOY_14,), toy.READER),
}


def find_taxonomy(config) -> Taxonomy:
    """The class set of a run: that of TARGET_TRAIN, else of TEST, else of SOURCE_TRAIN, with NUM_CLASSES classes.

    Raises:
        UserError: none of them has a class set, one has none of NUM_CLASSES classes, or two have different ones.
    """
    found = {f"DATASETS.{key} {config.DATASETS[key]}": _taxonomy_of(config, key) for key in _named(config)}
    if not found:
        raise UserError(
            "no data set of the config has class names: set DATASETS.SOURCE_TRAIN (or TEST) to the data set that the "
            f"model's classes come from, one of {', '.join(ENTRIES | config.DATASETS.CUSTOM)}"
        )
    (first, taxonomy), *others = found.items()
    for where, other in others:
        for index, (name, other_name) in enumerate(zip(taxonomy.names, other.names, strict=True)):
            if name != other_name:
                raise UserError(
                    f"{first} and {where} must have the same classes, but class {index} is {name!r} in the first, "
                    f"{other_name!r} in the second"
                )
    return taxonomy


def class_names(config) -> tuple[str, ...]:
    """Those of :func:`find_taxonomy`; none where no data set of the config has any."""
    return find_taxonomy(config).names if _named(config) else ()


def find_label_values(config) -> np.ndarray:
    """256 uint8 (uint16, where a value needs it), from class index to what label files hold for it, IGNORE elsewhere.

    The files are those of the data set that gives the run its class names: Cityscapes' labelIds, for one.
    """
    taxonomy = find_taxonomy(config)
    entry, _ = _find_entry(config, _named(config)[0])
    values = [entry.reader.values.get(name, IGNORE) for name in taxonomy.names]
    table = np.full(256, IGNORE, np.min_scalar_type(max(values)))
    table[: len(taxonomy)] = values
    return table


def _named(config) -> list[str]:
    """The keys of the data sets that have class names."""
    unnamed = (FOLDER_PREFIX, VIDEO_PREFIX)
    return [key for key in KEYS if config.DATASETS[key] and not config.DATASETS[key].startswith(unnamed)]


def _taxonomy_of(config, key: str) -> Taxonomy:
    """The class set of one data set of the config."""
    name = config.DATASETS[key]
    entry, _ = _find_entry(config, key)
    for taxonomy in entry.taxonomies:
        if len(taxonomy) == config.MODEL.NUM_CLASSES:
            return taxonomy
    counts = " or ".join(str(len(taxonomy)) for taxonomy in entry.taxonomies)
    raise UserError(f"MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}, but DATASETS.{key} {name} has {counts}")


def find_images(config, key: str) -> ImageSet:
    """The images of DATASETS.<key>, found by looking below DATASETS.ROOT (or the PATH of `folder:PATH`, `video:PATH`).

    Raises:
        UserError: unknown name, missing folder, no image in it, or something in it that is named like an image but no
            file.
    """
    name, where = config.DATASETS[key], f"DATASETS.{key}"
    if not name:
        others = f", or to {FOLDER_PREFIX}PATH or {VIDEO_PREFIX}PATH for any images"
        unlabelled = "" if key == "SOURCE_TRAIN" else others
        raise UserError(f"{where} is empty; set it to a data set{unlabelled}")
    where = f"{where} {name}"
    if name.startswith(FOLDER_PREFIX):
        images = _find_folder(name, where)
    elif name.startswith(VIDEO_PREFIX):
        if key == "SOURCE_TRAIN":
            raise UserError(f"{where} has no labels; source training needs them")
        images = find_frames(config, name, where)
    else:
        entry, split = _find_entry(config, key)
        if split not in entry.reader.splits:
            dataset = name.partition("_")[0]
            known = ", ".join(f"{dataset}_{known}" for known in entry.reader.splits)
            raise UserError(f"{where}: {dataset} has no split {split!r}; known are {known}")
        images = entry.reader.image_set(name, split, Path(config.DATASETS.ROOT), find_taxonomy(config), where)
    require_utf_8(images.paths, where)
    if key == "TEST" or not config.DATALOADER.SKIP_BAD_IMAGES:
        require_files(images.paths, "image", where)
    return images


def find_target_images(config) -> ImageSet:
    """The unlabelled images to adapt to: DATASETS.TARGET_TRAIN, restricted by TARGET_LIST; label files play no part.

    A run may do without SKIP_BAD_IMAGES of them.
    """
    found = find_images(config, "TARGET_TRAIN")
    skipped = SkippedImages(config.DATALOADER.SKIP_BAD_IMAGES)
    told = {"left_out": found.left_out, "note": found.note}
    images = ImageSet(found.name, found.paths, found.names, **told, skipped=skipped)
    list_file = config.DATASETS.TARGET_LIST
    return _restrict(images, Path(list_file)) if list_file else images


def find_test_images(config) -> ImageSet:
    """The images of DATASETS.TEST, whose label files must be there if the set has labels.

    Raises:
        UserError: as :func:`find_images`, a label file is missing, or as :func:`check_test_labels`.
    """
    images = find_images(config, "TEST")
    if images.label_path is not None:
        _require_labels(images, "TEST")
        check_test_labels(config, images)
    return images


def find_source_images(config) -> ImageSet:
    """The labelled images of DATASETS.SOURCE_TRAIN; a run may do without SKIP_BAD_IMAGES of them.

    Raises:
        UserError: as :func:`find_images`, the set has no labels, a label file is missing, or they are of another kind
            than the set's.
    """
    images = find_images(config, "SOURCE_TRAIN")
    if images.label_path is None:
        raise UserError(f"DATASETS.SOURCE_TRAIN {images.name} has no labels; source training needs them")
    if not config.DATALOADER.SKIP_BAD_IMAGES:
        _require_labels(images, "SOURCE_TRAIN")
    _check_kind(config, "SOURCE_TRAIN", images)
    return replace(images, skipped=SkippedImages(config.DATALOADER.SKIP_BAD_IMAGES))


def check_test_labels(config, images: ImageSet) -> None:
    """Look at the labels of (some of) the images of DATASETS.TEST before anything is computed, rather than on the way.

    Raises:
        UserError: one has another size than its image, or they are of another kind than the set's.
    """
    check_label_sizes(images, f"DATASETS.TEST {images.name}")
    _check_kind(config, "TEST", images)


def _check_kind(config, key: str, images: ImageSet) -> None:
    _refuse_plain_masks(images, f"DATASETS.{key}")
    entry, _ = _find_entry(config, key)
    if entry.reader.kind:
        check_kind(images, entry.reader.kind, f"DATASETS.{key}")


def _require_labels(images: ImageSet, key: str) -> None:
    require_files(list(map(images.label_path, images.paths)), "label file", f"DATASETS.{key} {images.name}")


def _refuse_plain_masks(images: ImageSet, where: str) -> None:
    """Raise UserError if labels hold 0 and 255 only, and nobody has said whether the latter is a class.

    Mostly one label is opened.
    """
    if not images.guessed_void:
        return
    seen = False
    for index in spread(len(images)):
        try:
            values = images.read_values(images.label_path(images.paths[index]))
        except BadImage:  # whoever trains or evaluates on it will say so
            continue
        void = values == IGNORE
        if not (void | (values == 0)).all():
            return
        seen |= bool(void.any())
    if seen:
        raise UserError(
            f"{where} {images.name}: its labels hold 0 and 255 only, and 255 is no class unless the config says "
            "so; write `labels: {0: CLASS, 255: CLASS}`, or `ignore: [255]` if it is meant to be none"
        )


def require_files(paths: Sequence[Path], kind: str, where: str) -> None:
    """Raise UserError if any of them is no regular file; `kind`: image or label file."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        what = "missing" if kind == "label file" else "no files (links to nothing, folders, pipes, …)"
        raise UserError(f"{where}: {len(missing)} of {len(paths)} {kind}s are {what}, the first is {missing[0]}")


def output_names(images: ImageSet, ending: str = ".png") -> list[str]:
    """A unique name per image for files made from it: its name with the ending replaced.

    Where two images differ by nothing else (a.jpg, a.png) their endings stay: a.jpg.png, a.png.png.
    """
    stems = [name.rsplit(".", 1)[0] for name in images.names]
    counts = Counter(stems)
    chosen = [f"{stem if counts[stem] == 1 else name}{ending}" for stem, name in zip(stems, images.names, strict=True)]
    return chosen if len(set(chosen)) == len(chosen) else [f"{name}{ending}" for name in images.names]


def _find_entry(config, key: str) -> tuple[Entry, str]:
    """The entry and the split that DATASETS.<key> names."""
    dataset, _, split = config.DATASETS[key].partition("_")
    entries = dict(ENTRIES)
    for name, fields, where in config.DATASETS.CUSTOM.written("DATASETS.CUSTOM"):  # a mistake in any is an error
        if name in ENTRIES:
            entries[name] = _relabelled(name, fields, where)
        else:
            taxonomy, reader = parse_data_set(name, fields, where)
            entries[name] = Entry((taxonomy,), reader)
    if dataset not in entries:
        raise UserError(
            f"DATASETS.{key} {config.DATASETS[key]!r} is not a data set; use <data set>_<split> with one of "
            f"{', '.join(entries)}, or {FOLDER_PREFIX}PATH, or {VIDEO_PREFIX}PATH"
        )
    return entries[dataset], split


def _relabelled(name: str, fields, where: str) -> Entry:
    """A built-in entry whose label files hold values of the kind that DATASETS.CUSTOM says."""
    entry = ENTRIES[name]
    reader = replace(entry.reader, kind="")  # the user has said what they hold: nothing is left to be found
    kind = parse_label_kind(name, fields, where, KINDS if entry.reader.kind else ())
    if kind != entry.reader.kind:
        reader = replace(reader, values=KINDS[kind].values, no_class=KINDS[kind].no_class)
    return replace(entry, reader=reader)


def _find_folder(name: str, where: str) -> ImageSet:
    folder = Path(name.removeprefix(FOLDER_PREFIX))
    if not os.path.isdir(folder):  # unlike Path's, false for whatever cannot be a folder
        raise UserError(f"{where}: {folder} is not a folder{meant(folder, '*/')}")
    found = sorted(path for path in walk_files(folder) if path.name.lower().endswith(EXTENSIONS))
    if not found:
        raise UserError(f"{where}: no image ({', '.join(EXTENSIONS)}) below {folder}")
    paths, masks = split_masks(found, folder)
    names, left_out = (tuple(path.relative_to(folder).as_posix() for path in some) for some in (paths, masks))
    note = ""
    if doubtful := [path.relative_to(folder).as_posix() for path in like_masks(paths)]:
        note = f"some hold few values, as label files do; take these out, if they are: {shorten(doubtful)}"
    return ImageSet(name, tuple(paths), names, left_out=left_out, note=note)


def _restrict(images: ImageSet, list_file: Path) -> ImageSet:
    """The images that a list file names, each as the set does, or by the end of its path, with or without ending."""
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"DATASETS.TARGET_LIST {list_file} cannot be read: {error}") from None
    by_tail: dict[str, list[int]] = {}
    for index, path in enumerate(images.paths):
        parts = path.absolute().as_posix().split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for key in {tail, tail.rsplit(".", 1)[0]}:
                by_tail.setdefault(key, []).append(index)
    by_name = {name: index for index, name in enumerate(images.names)}
    chosen, unknown = set(), []
    for number, line in enumerate(lines, start=1):
        entry = line.strip().removeprefix("./")
        if line in by_name:
            chosen.add(by_name[line])
            continue
        if not entry or entry.startswith("#"):
            continue
        found = by_tail.get(entry, [])
        if len(found) != 1:
            unknown.append(f"line {number} {entry!r} ({len(found)} images)")
        chosen.update(found)
    if unknown:
        raise UserError(
            f"DATASETS.TARGET_LIST {list_file}: each line must name one image of {images.name}, but {shorten(unknown)}"
        )
    if not chosen:
        raise UserError(f"DATASETS.TARGET_LIST {list_file} names no image")
    return images.restricted(sorted(chosen))
