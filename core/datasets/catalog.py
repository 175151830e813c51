"""From a data set's name in the config to its image files, label files and class set."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.datasets import camvid, cityscapes
from core.datasets.images import EXTENSIONS
from core.datasets.taxonomy import CAMVID_11, CITYSCAPES_16, CITYSCAPES_19, Taxonomy
from core.utils.errors import UserError, shorten

FOLDER_PREFIX = "folder:"


@dataclass(frozen=True)
class Entry:
    """One data set of the catalog: its class sets and, where it can be read, the module that knows its files."""

    taxonomies: tuple[Taxonomy, ...]
    reader: object | None = None


ENTRIES = {
    "cityscapes": Entry((CITYSCAPES_19, CITYSCAPES_16), cityscapes),
    "camvid": Entry((CAMVID_11,), camvid),
    "gta5": Entry((CITYSCAPES_19,)),
    "synthia": Entry((CITYSCAPES_16,)),
}


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, sorted by path.

    Attributes:
        name: as in the config.
        paths: image files.
        names: a unique name per image: its path below the split's common folder, with forward slashes.
        label_path: gives the label file of an image file; None for a set without labels. Calling it opens nothing.
        label_table: 256 uint8, class index of every label value.
    """

    name: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    label_path: Callable[[Path], Path] | None = None
    label_table: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def restricted(self, indices: Sequence[int]) -> "ImageSet":
        """The same set with some of its images only."""
        return ImageSet(
            self.name,
            tuple(self.paths[i] for i in indices),
            tuple(self.names[i] for i in indices),
            self.label_path,
            self.label_table,
        )


def find_taxonomy(config) -> Taxonomy:
    """The class set of a run: that of TARGET_TRAIN, else of TEST, else of SOURCE_TRAIN, with NUM_CLASSES classes.

    Raises:
        UserError: none of them has a class set, or none of NUM_CLASSES classes.
    """
    datasets = config.DATASETS
    for key in ("TARGET_TRAIN", "TEST", "SOURCE_TRAIN"):
        name = datasets[key]
        if not name or name.startswith(FOLDER_PREFIX):
            continue
        entry, _ = _find_entry(name, f"DATASETS.{key}")
        for taxonomy in entry.taxonomies:
            if len(taxonomy) == config.MODEL.NUM_CLASSES:
                return taxonomy
        counts = " or ".join(str(len(taxonomy)) for taxonomy in entry.taxonomies)
        raise UserError(f"MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}, but DATASETS.{key} {name} has {counts}")
    raise UserError(
        "no data set of the config has class names: set DATASETS.SOURCE_TRAIN (or TEST) to the data set that the "
        f"model's classes come from, one of {', '.join(ENTRIES)}"
    )


def find_images(config, key: str) -> ImageSet:
    """The images of DATASETS.<key>, found by looking below DATASETS.ROOT (or the PATH of `folder:PATH`).

    Raises:
        UserError: unknown name, missing folder, no image in it.
    """
    name = config.DATASETS[key]
    where = f"DATASETS.{key}"
    if not name:
        raise UserError(f"{where} is empty; set it to a data set, or to folder:PATH for any images")
    if name.startswith(FOLDER_PREFIX):
        return _find_folder(name, where)
    entry, (dataset, split) = _find_entry(name, where)
    if entry.reader is None:
        raise UserError(f"{where} {name}: {dataset} is known by its classes only; its images cannot be read yet")
    reader = entry.reader
    if split not in reader.SPLITS:
        known = ", ".join(f"{dataset}_{known}" for known in reader.SPLITS)
        raise UserError(f"{where} {name}: {dataset} has no split {split!r}; known are {known}")
    root = Path(config.DATASETS.ROOT)
    folder = next((root / sub for sub in reader.FOLDERS if (root / sub).is_dir()), None)
    if folder is None:
        raise UserError(
            f"{where} {name}: folder {root / reader.FOLDERS[0]} does not exist; put the data set there "
            "(datasets/README.md says how) or set DATASETS.ROOT"
        )
    paths = reader.list_images(folder, split)
    if not paths:
        raise UserError(f"{where} {name}: no image found below {folder}; datasets/README.md shows the layout")
    return ImageSet(
        name,
        tuple(paths),
        tuple(path.relative_to(folder).as_posix() for path in paths),
        reader.label_path,
        reader.label_table(find_taxonomy(config)),
    )


def find_target_images(config) -> ImageSet:
    """The unlabelled images to adapt to: DATASETS.TARGET_TRAIN, restricted by TARGET_LIST; label files play no part."""
    found = find_images(config, "TARGET_TRAIN")
    images = ImageSet(found.name, found.paths, found.names)
    if config.DATASETS.TARGET_LIST:
        images = _restrict(images, Path(config.DATASETS.TARGET_LIST))
    return images


def find_test_images(config) -> ImageSet:
    """The images of DATASETS.TEST, whose label files must be there if the set has labels.

    Raises:
        UserError: as :func:`find_images`, or a label file is missing.
    """
    images = find_images(config, "TEST")
    if images.label_path is not None:
        missing = [path for path in map(images.label_path, images.paths) if not path.is_file()]
        if missing:
            raise UserError(
                f"DATASETS.TEST {images.name}: {len(missing)} of {len(images)} label files are missing, "
                f"the first is {missing[0]}"
            )
    return images


def output_names(images: ImageSet) -> list[str]:
    """A unique .png name per image for files made from it: its name with the ending replaced.

    Where two images differ by nothing else (a.jpg, a.png) their endings stay: a.jpg.png, a.png.png.
    """
    stems = [name.rsplit(".", 1)[0] for name in images.names]
    counts = Counter(stems)
    chosen = [f"{stem if counts[stem] == 1 else name}.png" for stem, name in zip(stems, images.names, strict=True)]
    return chosen if len(set(chosen)) == len(chosen) else [f"{name}.png" for name in images.names]


def _find_entry(name: str, where: str) -> tuple[Entry, tuple[str, str]]:
    dataset, _, split = name.partition("_")
    if dataset not in ENTRIES:
        raise UserError(
            f"{where} {name!r} is not a data set; use <data set>_<split> with one of {', '.join(ENTRIES)}, "
            f"or {FOLDER_PREFIX}PATH"
        )
    return ENTRIES[dataset], (dataset, split)


def _find_folder(name: str, where: str) -> ImageSet:
    folder = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
    if not folder.is_dir():
        raise UserError(f"{where} {name}: {folder} is not a folder")
    paths = sorted(_walk_images(folder))
    if not paths:
        raise UserError(f"{where} {name}: no image ({', '.join(EXTENSIONS)}) below {folder}")
    return ImageSet(name, tuple(paths), tuple(path.relative_to(folder).as_posix() for path in paths))


def _walk_images(folder: Path) -> Iterator[Path]:
    """Image files below `folder`, through links, each real folder once; hidden files are left out."""
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(parent, name)


def _restrict(images: ImageSet, list_file: Path) -> ImageSet:
    """The images that a list file names, each by the end of its path, with or without ending."""
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
    chosen, unknown = set(), []
    for number, line in enumerate(lines, start=1):
        entry = line.strip().removeprefix("./")
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
