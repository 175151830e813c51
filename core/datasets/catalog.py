"""From a data set's name in the config to its image files, label files and class set.

A data set is built in (ENTRIES) or described by the config itself (DATASETS.CUSTOM).
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from core.datasets import (
    acdc,
    bdd100k,
    camvid,
    cityscapes,
    comma10k,
    foggycityscapes,
    gta5,
    idd,
    kitti,
    mapillary,
    nightcity,
    synthia,
    toy,
)
from core.datasets.blind import BlindSpots
from core.datasets.cityscapes import TAXONOMIES
from core.datasets.custom import CustomReader, parse_data_set, parse_label_kind, parse_merge
from core.datasets.depth import Span, with_depth
from core.datasets.folders import FOLDER_PREFIX, find_folders, restricted
from core.datasets.images import image_size
from core.datasets.label_kinds import KINDS, check_kind
from core.datasets.pairs import Pairing, pair
from core.datasets.reader import ImageSet, Reader, require_utf_8
from core.datasets.sizes import check_label_sizes, spread
from core.datasets.skipping import BadImage, SkippedImages
from core.datasets.taxonomy import CAMVID_11, CITYSCAPES_16, COMMA_5, COMMA_6, IGNORE, TOY_14, Taxonomy, of_names
from core.datasets.videos import VIDEO_PREFIX, find_frames
from core.utils.errors import UserError

KEYS = ("TARGET_TRAIN", "TEST", "SOURCE_TRAIN")  # the first that has class names gives those of the run


@dataclass(frozen=True)
class Entry:
    """One data set of the catalog: its class sets, how it is read, and what of a model's classes counts as which of its
    own (:func:`core.datasets.pairs.pair`).
    """

    taxonomies: tuple[Taxonomy, ...]
    reader: Reader | CustomReader
    merge: Mapping[str, Sequence[str]] = field(default_factory=dict)


ENTRIES = {
    "cityscapes": Entry(TAXONOMIES, cityscapes.READER),
    "gta5": Entry(TAXONOMIES, gta5.READER),
    "synthia": Entry((CITYSCAPES_16,), synthia.READER),
    "bdd100k": Entry(TAXONOMIES, bdd100k.READER),
    "bdd": Entry(TAXONOMIES, bdd100k.RELEASE),
    "acdc": Entry(TAXONOMIES, acdc.READER),
    "darkzurich": Entry(TAXONOMIES, acdc.DARK_ZURICH),
    "nightcity": Entry(TAXONOMIES, nightcity.READER),
    "foggycityscapes": Entry(TAXONOMIES, foggycityscapes.READER),
    "mapillary": Entry(TAXONOMIES, mapillary.READER),
    "mapillary-v2": Entry(TAXONOMIES, mapillary.READER_V2),
    "idd": Entry(TAXONOMIES, idd.READER),
    "kitti": Entry(TAXONOMIES, kitti.READER),
    "comma10k": Entry((COMMA_5, COMMA_6), comma10k.READER),
    "camvid": Entry((CAMVID_11,), camvid.READER),
    "toy": Entry((TOY_14,), toy.READER),
}


def find_taxonomy(config) -> Taxonomy:
    """The classes of a run's model: of the first of TARGET_TRAIN, TEST and SOURCE_TRAIN that has NUM_CLASSES of them.

    The other sets have the same, or are target and test of other classes (:func:`find_pairing`). Where none has them,
    they are MODEL.CLASSES, if these are given, or were found in a checkpoint.

    Raises:
        UserError: none of them has a class set of NUM_CLASSES classes, or SOURCE_TRAIN has not; two have the same
            classes in another order, or, without SOURCE_TRAIN, as many other ones.
    """
    if config.MODEL.CLASSES and lacks_classes(config):
        return _given_taxonomy(config.MODEL)
    if not _named(config):
        raise UserError(
            "no data set of the config has class names: set DATASETS.SOURCE_TRAIN (or TEST) to the data set that the "
            f"model's classes come from, one of {', '.join(ENTRIES | config.DATASETS.CUSTOM)}"
        )
    fitting = {key: taxonomy for key in _named(config) if (taxonomy := _fitting(config, key)) is not None}
    if not fitting or ("SOURCE_TRAIN" in _named(config) and "SOURCE_TRAIN" not in fitting):
        raise UserError(_of_other_count(config, "SOURCE_TRAIN" if fitting else _named(config)[0]))
    model = fitting.get("SOURCE_TRAIN")
    if model is not None:  # others that have other names, beside being in another order, are sets of other classes
        fitting = {key: one for key, one in fitting.items() if sorted(one.names) == sorted(model.names)}
    (first, taxonomy), *others = fitting.items()
    for key, other in others:
        for index, (name, other_name) in enumerate(zip(taxonomy.names, other.names, strict=True)):
            if name != other_name:
                sets = " and ".join(f"DATASETS.{one} {config.DATASETS[one]}" for one in (first, key))
                raise UserError(
                    f"{sets} must have the same classes, but class {index} is {name!r} in the first, {other_name!r} in "
                    "the second"
                )
    return taxonomy


def find_pairing(config) -> Pairing | None:
    """What DATASETS.TEST, if its classes are others than the model's, scores; None where they are the same.

    Raises:
        UserError: no class of the one is one of the other.
    """
    if "TEST" not in _named(config):
        return None
    entry, _ = _find_entry(config, "TEST")
    model, test = find_taxonomy(config), _fitting(config, "TEST") or entry.taxonomies[0]
    return pair(model, test, entry.merge, f"DATASETS.TEST {config.DATASETS.TEST}")


def lacks_classes(config) -> bool:
    """Whether no data set of the config says what the classes of a model with NUM_CLASSES of them are."""
    named = _named(config)
    return "SOURCE_TRAIN" not in named and not any(_fitting(config, key) for key in named)


def _given_taxonomy(options) -> Taxonomy:
    """That of MODEL.CLASSES (`options`: the config node MODEL)."""
    names, colours = tuple(options.CLASSES), options.CLASS_COLOURS
    if len(names) != options.NUM_CLASSES:
        raise UserError(f"MODEL.CLASSES names {len(names)} classes, but MODEL.NUM_CLASSES is {options.NUM_CLASSES}")
    if colours and len(colours) != len(names):
        raise UserError(f"MODEL.CLASS_COLOURS has {len(colours)} colours, but MODEL.CLASSES {len(names)} names")
    taxonomy = of_names(names)
    given = dict(zip(names, map(tuple, colours), strict=True)) if colours else {}
    return replace(taxonomy, colours=given) if given else taxonomy


def find_named_taxonomy(config) -> Taxonomy | None:
    """That of :func:`find_taxonomy`; None where the config names no classes."""
    return find_taxonomy(config) if _named(config) or config.MODEL.CLASSES else None


def find_label_values(config) -> np.ndarray:
    """256 uint8 (uint16, where a value needs it), from class index to what label files hold for it, IGNORE elsewhere.

    The files are those of the data set that gives the run its class names: Cityscapes' labelIds, for one. Where none
    does, the class's own index.
    """
    taxonomy = find_taxonomy(config)
    of_model = [key for key in _named(config) if (one := _fitting(config, key)) and one.names == taxonomy.names]
    if not of_model:  # the names are MODEL.CLASSES
        return _value_table(taxonomy, {name: index for index, name in enumerate(taxonomy.names)})
    entry, _ = _find_entry(config, of_model[0])
    return _value_table(taxonomy, entry.reader.values)


def find_submission(config, images: ImageSet) -> tuple[list[str], np.ndarray]:
    """How predictions of DATASETS.TEST are written as numbers: a path for each image, and a table from class to number.

    As the set's test server wants them, where it has one; else by the images' names, as the set's labels. Where
    DATASETS.TEST has no classes of its own, the table is that of :func:`find_label_values`.

    Args:
        images: of DATASETS.TEST, in any order.
    """
    if "TEST" not in _named(config):
        return output_names(images), find_label_values(config)
    reader, taxonomy, pairing = _find_entry(config, "TEST")[0].reader, find_taxonomy(config), images.pairing
    submission, names = reader.submission, output_names(images)
    values = reader.values if submission is None or submission.values is None else submission.values
    if submission is not None:
        published = [submission.name(path) for path in images.paths]
        names = published if len(set(published)) == len(published) else names
    if pairing is None:
        return names, _value_table(taxonomy, values)
    return names, _value_table(pairing.taxonomy, values)[pairing.scored]


def _value_table(taxonomy: Taxonomy, by_name: Mapping[str, int]) -> np.ndarray:
    values = [by_name.get(name, IGNORE) for name in taxonomy.names]
    table = np.full(256, IGNORE, np.min_scalar_type(max(values)))
    table[: len(taxonomy)] = values
    return table


def find_bands(config) -> tuple[int, ...]:
    """Those that the first data set of the config with `bands` takes as red, green, blue; empty: none says any."""
    readers = [_find_entry(config, key)[0].reader for key in _named(config)]
    return next((reader.bands for reader in readers if isinstance(reader, CustomReader) and reader.bands), ())


def _named(config) -> list[str]:
    """The keys of the data sets that have class names."""
    unnamed = (FOLDER_PREFIX, VIDEO_PREFIX)
    return [key for key in KEYS if config.DATASETS[key] and not config.DATASETS[key].startswith(unnamed)]


def _fitting(config, key: str) -> Taxonomy | None:
    """The class set of a named data set that has NUM_CLASSES classes; None: it has none."""
    entry, _ = _find_entry(config, key)
    return next((one for one in entry.taxonomies if len(one) == config.MODEL.NUM_CLASSES), None)


def _of_other_count(config, key: str) -> str:
    entry, _ = _find_entry(config, key)
    counts = " or ".join(str(len(taxonomy)) for taxonomy in entry.taxonomies)
    return f"MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}, but DATASETS.{key} {config.DATASETS[key]} has {counts}"


def find_images(config, key: str) -> ImageSet:
    """The images of DATASETS.<key>, found by looking below DATASETS.ROOT (or the PATH of `folder:PATH`, `video:PATH`).

    INPUT.MASK and INPUT.MARGINS are of the target's camera, and so of TARGET_TRAIN and TEST alone. How 16-bit images
    become 8-bit ones, TEST shares with TARGET_TRAIN, where that has such images, too.

    Raises:
        UserError: unknown name, missing folder, no image in it, something in it that is named like an image but no
            file, or images of 8 bits and of 16.
    """
    images, where = _find_images(config, key), f"DATASETS.{key} {config.DATASETS[key]}"
    if key != "SOURCE_TRAIN":
        images = _with_blind_spots(images, config.INPUT)
    return with_depth(images, config.INPUT, where, partial(find_targets_range, config) if key == "TEST" else tuple)


def find_targets_range(config) -> Span:
    """What of the 16 bits of DATASETS.TARGET_TRAIN becomes 8; empty where it has 8, is not there, or not given."""
    with suppress(UserError):
        return find_images(config, "TARGET_TRAIN").form.span
    return ()


def _with_blind_spots(images: ImageSet, options) -> ImageSet:
    """The set, told where its images are blind (`options`: the config node INPUT)."""
    spots = BlindSpots.given(options)
    if spots is None:
        return images
    sizes = dict.fromkeys(filter(None, map(image_size, images.paths)))
    share = f"{100 * spots.share(sizes):.1f} % of the picture is masked"
    return replace(images, blind=spots).noted(share)


def _find_images(config, key: str) -> ImageSet:
    """Those of :func:`find_images`, whatever their depth."""
    name, where = config.DATASETS[key], f"DATASETS.{key}"
    if not name:
        others = f", or to {FOLDER_PREFIX}PATH or {VIDEO_PREFIX}PATH for any images"
        unlabelled = "" if key == "SOURCE_TRAIN" else others
        raise UserError(f"{where} is empty; set it to a data set{unlabelled}")
    where = f"{where} {name}"
    if name.startswith(FOLDER_PREFIX):
        images = find_folders(name, where)
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
        pairing = find_pairing(config) if key == "TEST" else None
        taxonomy = find_taxonomy(config) if pairing is None else pairing.test
        images = entry.reader.image_set(name, split, Path(config.DATASETS.ROOT), taxonomy, where)
        if pairing is not None:
            table = None if images.label_table is None else pairing.labels[images.label_table]
            images = replace(images, pairing=pairing, label_table=table, note=pairing.words)
    if key == "TARGET_TRAIN" and config.DATASETS.TARGET_LIST:
        images = restricted(images, Path(config.DATASETS.TARGET_LIST))
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
    told = {"left_out": found.left_out, "note": found.note, "form": found.form, "blind": found.blind}
    return ImageSet(found.name, found.paths, found.names, **told, skipped=skipped)


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
    if images.kind:
        check_kind(images, images.kind, f"DATASETS.{key}")


def _require_labels(images: ImageSet, key: str) -> None:
    labels = list(map(images.label_path, images.paths))
    require_files(labels, "label file", f"DATASETS.{key} {images.name}", images.listed)


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


def require_files(paths: Sequence[Path], kind: str, where: str, listed: Sequence[str] = ()) -> None:
    """Raise UserError if any of them is no regular file.

    Args:
        kind: image or label file.
        listed: where a list names each.
    """
    missing = [index for index, path in enumerate(paths) if not os.path.isfile(path)]
    if missing:
        what = "missing" if kind == "label file" else "no files (links to nothing, folders, pipes, …)"
        first = f"{paths[missing[0]]}{f' ({listed[missing[0]]})' if listed else ''}"
        raise UserError(f"{where}: {len(missing)} of {len(paths)} {kind}s are {what}, the first is {first}")


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
            entries[name] = Entry((taxonomy,), reader, parse_merge(fields, taxonomy.names, f"{where}.{name}"))
    if dataset not in entries:
        raise UserError(
            f"DATASETS.{key} {config.DATASETS[key]!r} is not a data set; use <data set>_<split> with one of "
            f"{', '.join(entries)}, or {FOLDER_PREFIX}PATH, or {VIDEO_PREFIX}PATH"
        )
    return entries[dataset], split


def _relabelled(name: str, fields, where: str) -> Entry:
    """A built-in entry with what DATASETS.CUSTOM says of it: the kind of its label values, and `merge`."""
    entry = ENTRIES[name]
    if isinstance(fields, dict) and "merge" in fields:
        names = dict.fromkeys(one for taxonomy in entry.taxonomies for one in taxonomy.names)
        entry = replace(entry, merge=parse_merge(fields, tuple(names), f"{where}.{name}"))
        fields = {field: value for field, value in fields.items() if field != "merge"}
        if not fields:
            return entry
    kind = parse_label_kind(name, fields, where, KINDS if entry.reader.kind else ())

    def holding(reader: Reader) -> Reader:
        if not reader.kind:
            return reader
        told = {"values": KINDS[kind].values, "no_class": KINDS[kind].no_class} if kind != reader.kind else {}
        return replace(reader, kind="", **told)  # the user has said what they hold: nothing is left to be found

    others = tuple(map(holding, entry.reader.others))
    return replace(entry, reader=replace(holding(entry.reader), others=others))
