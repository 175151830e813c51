"""What all data sets share: the images of one split, how they lie on disk, and label values made class indices."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from core.datasets.blind import BlindSpots
from core.datasets.images import (
    PLAIN,
    UPRIGHT,
    ImageForm,
    image_size,
    read_label,
    stored_size,
    turned,
    turned_size,
)
from core.datasets.pairs import Pairing
from core.datasets.skipping import BadImage, SkippedImages
from core.datasets.taxonomy import IGNORE, Taxonomy
from core.datasets.tiff import ENDINGS
from core.utils.errors import UserError, shorten

_TOOL_FOLDERS = frozenset({"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "__pycache__"})
_LOOKED_AT = 200  # pairs of a set, for how their labels lie
UNKNOWN = 254  # in a label table: a value that the data set does not have; class sets have at most 254 classes


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, sorted by path.

    Attributes:
        name: as in the config.
        paths: image files.
        names: a unique name per image: its path below the split's common folder, with forward slashes.
        label_path: gives the label file of an image file; None for a set without labels. Calling it opens nothing.
        label_table: 256 or 65536 uint8, from label value to class index; IGNORE: no class, UNKNOWN: not a value of this
            set.
        read_values: decodes a label file to H×W values, uint8 or uint16.
        decoding: what `read_values` depends on beside the file (colours, a channel), as a text.
        guessed_void: nobody has said that 255 is no class.
        kind: of label values, see :class:`Reader`.
        listed: where a list names each image: `FILE line 3`; empty, where none does.
        skip_mismatched: images whose label has another size are known to occur and are left out of source training.
        balanced: source training draws class-balanced by default.
        left_out: names of label files that lay among the images.
        note: what else the log should say of them.
        form: how image files are read.
        pairing: what of a model's classes labels are held against, where those of the set are others.
        blind: where all images show the same, and have no label; None: nowhere.
        skipped: the bad images that a run did without; by default none may be.
    """

    name: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    label_path: Callable[[Path], Path] | None = None
    label_table: np.ndarray | None = None
    read_values: Callable[[Path], np.ndarray] = read_label
    skip_mismatched: bool = False
    balanced: bool = False
    decoding: str = ""
    guessed_void: bool = False
    kind: str = ""
    listed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    note: str = ""
    form: ImageForm = PLAIN
    blind: BlindSpots | None = None
    pairing: Pairing | None = None
    skipped: SkippedImages = field(default_factory=SkippedImages, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def files(self, index: int, label: bool = False) -> list[Path]:
        """The file of image `index`, and that of its label."""
        path = self.paths[index]
        return [path, self.label_path(path)] if label else [path]

    def restricted(self, indices: Sequence[int]) -> "ImageSet":
        """The same set with some of its images only."""
        per_image = {"paths": self.paths, "names": self.names, "listed": self.listed}
        return replace(self, **{key: tuple(all_of[i] for i in indices) for key, all_of in per_image.items() if all_of})

    def noted(self, words: str) -> "ImageSet":
        """The same set with more for the log to say of it."""
        return replace(self, note=f"{self.note}; {words}" if self.note else words)

    def scored_of(self, taxonomy: Taxonomy) -> Taxonomy:
        """The classes that a model of `taxonomy` is scored by on this set."""
        return taxonomy if self.pairing is None else self.pairing.taxonomy

    def blind_at(self, path: Path, size: tuple[int, int]) -> np.ndarray | None:
        """h×w bool, True where an image of the set is blind, as seen at `size` (h, w); None where none ever is."""
        own = self.blind and image_size(path)
        return self.blind.of(own, tuple(size)) if own else None

    def read_label(self, index: int) -> np.ndarray:
        """The label of image `index` as H×W uint8 class indices, 255 where it has none; upright, as the image is read.

        Raises:
            BadImage: the file is missing, cannot be decoded, or holds a value that the data set does not have; or it
                has neither the stored nor the upright size of an image that EXIF turns.
        """
        path = self.label_path(self.paths[index])
        values = self.read_values(path)
        table = self.label_table
        if len(table) > np.iinfo(values.dtype).max:
            indices = table[values]
        else:
            indices = np.append(table, np.uint8(UNKNOWN))[np.minimum(values, len(table))]
        unknown = indices == UNKNOWN
        if unknown.any():
            found = zip(*np.unique(values[unknown], return_counts=True), strict=True)
            raise BadImage(
                f"label {path} holds values that {self.name} does not have: "
                + shorten(f"{value} ({count} pixel{'s' if count > 1 else ''})" for value, count in found)
                + "; mend the file, or (of a DATASETS.CUSTOM set) name them in `labels` or `ignore`",
                path,
            )
        label = self._upright(self.paths[index], path, indices)
        blind = self.blind_at(self.paths[index], label.shape)
        return label if blind is None else np.where(blind, np.uint8(IGNORE), label)

    def _upright(self, image: Path, path: Path, label: np.ndarray) -> np.ndarray:
        """A label, turned as its image is by EXIF, if it lies as that is stored."""
        header = stored_size(image)
        if header is None or header[1] == UPRIGHT:
            return label
        own = stored_size(path)
        if path.suffix.lower() in ENDINGS and own is not None and own[1] != UPRIGHT:
            return label  # it says itself how it lies, and was turned as it was read
        (stored, orientation), size = header, label.shape[::-1]
        shown = turned_size(stored, orientation)
        if size not in (stored, shown):
            raise BadImage(
                f"label {path} is {_times(size)}, but image {image} is {_times(stored)} as stored and "
                f"{_times(shown)} as EXIF turns it; a label must have one of these sizes",
                path,
            )
        lies = size == stored if stored != shown else self._labels_lie_as_stored
        return np.ascontiguousarray(turned(label, orientation)) if lies else label

    @cached_property
    def _labels_lie_as_stored(self) -> bool:
        """For images that EXIF turns into the same size: what other pairs' sizes say; yes, if they say nothing."""
        for index in np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).astype(int):
            header = stored_size(self.paths[index])
            if header is None or header[0] == turned_size(*header):
                continue
            label = stored_size(self.label_path(self.paths[index]))
            if label is not None and label[0] in (header[0], turned_size(*header)):
                return label[0] == header[0]
        return True


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


@dataclass(frozen=True)
class Submission:
    """Predictions as a data set's test server wants them: a PNG of numbers for each image.

    Attributes:
        name: gives the path of the PNG, below the folder that is handed in, of an image file.
        values: of every class; None: as in the label files.
    """

    name: Callable[[Path], str]
    values: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Reader:
    """How a data set lies on disk.

    Attributes:
        folders: where it may lie below DATASETS.ROOT, in any case; the first is the one that messages name.
        splits: patterns (of Path.glob) of every split's images below that folder.
        label_path: gives the label file of an image file.
        values: the label value of every class; of several the one that stands for it in predictions.
        further: the class of all other values that have one.
        no_class: further values that labels may hold; 255 always is one.
        classes_in: finds the class of every value that has one in the data set's folder, if that says it (else None).
        kind: which of :data:`core.datasets.label_kinds.KINDS` these are; empty: none, or the user says what they are.
        unlabelled: splits that are published without labels.
        others: further forms in which it is found, each looked for where those before it have no image, or no label of
            the first image.
        submission: of predictions to its test server, if it has one.
        read_values, skip_mismatched, balanced: see :class:`ImageSet`.
    """

    folders: tuple[str, ...]
    splits: Mapping[str, tuple[str, ...]]
    label_path: Callable[[Path], Path]
    values: Mapping[str, int]
    further: Mapping[int, str] = field(default_factory=dict)
    no_class: Sequence[int] = ()
    classes_in: Callable[[Path], Mapping[int, str] | None] = lambda folder: None
    read_values: Callable[[Path], np.ndarray] = read_label
    skip_mismatched: bool = False
    balanced: bool = False
    kind: str = ""
    unlabelled: Sequence[str] = ()
    others: tuple["Reader", ...] = ()
    submission: Submission | None = None

    def image_set(self, name: str, split: str, root: Path, taxonomy: Taxonomy, where: str) -> ImageSet:
        """The images of `split`, found by looking below `root`.

        Raises:
            UserError: missing folder, no image in it.
        """
        first = None
        for reader in (self, *self.others):
            images = reader._look(name, split, root, taxonomy)
            if images is not None and (images.label_path is None or images.label_path(images.paths[0]).is_file()):
                return images
            first = first or images
        if first is not None:
            return first
        folders = [folder for folder in (_find_folder(root, sub) for sub in self.folders) if folder is not None]
        if not folders:
            raise UserError(
                f"{where}: folder {root / self.folders[0]} does not exist; put the data set there "
                "(datasets/README.md says how) or set DATASETS.ROOT"
            )
        missing = folders[0] / self.splits[split][0]
        raise UserError(f"{where}: no image found as {missing}; datasets/README.md shows the layout")

    def _look(self, name: str, split: str, root: Path, taxonomy: Taxonomy) -> ImageSet | None:
        """The images of `split` in this form, None if there are none."""
        for folder in filter(None, (_find_folder(root, sub) for sub in self.folders)):
            found = (path for pattern in self.splits[split] for path in folder.glob(pattern))
            paths = sorted(path for path in found if not any(map(_is_aside, path.relative_to(folder).parts)))
            if paths:
                break
        else:
            return None
        names = tuple(path.relative_to(folder).as_posix() for path in paths)
        if split in self.unlabelled:
            return ImageSet(name, tuple(paths), names)
        classes = {value: label for label, value in self.values.items()} | dict(self.further)
        table = label_table(taxonomy, self.classes_in(folder) or classes, self.no_class)
        reading = (self.label_path, table, self.read_values, self.skip_mismatched, self.balanced)
        return ImageSet(name, tuple(paths), names, *reading, kind=self.kind)


def beside(image: Path, folders: Mapping[str, str], ending: str = ".png", replaced: str = "") -> Path:
    """The label file of an image: folders on its path have other names, and its name another end.

    Args:
        folders: the other name (or path) of each; of several folders of one name the last is meant.
        ending: of the label file's name.
        replaced: what it stands for in the image's name, with the image's own ending (.png, .jpg).
    """
    parts = list(image.parts[:-1])
    for name, other in folders.items():
        parts[len(parts) - 1 - parts[::-1].index(name)] = other
    return Path(*parts, f"{image.stem.removesuffix(replaced)}{ending}")


def label_table(taxonomy: Taxonomy, classes: Mapping[int, str], no_class: Sequence[int] = ()) -> np.ndarray:
    """256 uint8, from label value to class index (see :class:`ImageSet`); 65536, where a value is above 255.

    Args:
        taxonomy: gives the indices; classes that it lacks are IGNORE.
        classes: the class of every value that has one.
        no_class: further values that may occur; 255 is one, unless it is a class.
    """
    table = np.full(256 if max((*classes, *no_class), default=0) < 256 else 65536, UNKNOWN, np.uint8)
    table[[IGNORE, *no_class]] = IGNORE
    for value, name in classes.items():
        table[value] = taxonomy.index(name) if name in taxonomy.names else IGNORE
    return table


def require_utf_8(paths: Iterable[Path], where: str) -> None:
    """Raise UserError for the first name that is not UTF-8: it could be written to no log or index."""
    for path in paths:
        try:
            str(path).encode()  # bytes that are no text are lone surrogates in Python
        except UnicodeEncodeError:
            raise UserError(f"{where}: the name of {path} is not UTF-8; rename it") from None


def walk_files(folder: Path) -> Iterator[Path]:
    """Files below `folder`, through links, each real folder once; without what is hidden, and folders of other tools.

    Raises:
        UserError: a folder that cannot be read.
    """
    entered, waiting = set(), [folder]
    while waiting:
        parent = waiting.pop()
        try:
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(parent) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
            folders = [entry.name for entry in entries if _is_folder(entry)]
        except OSError as error:
            raise UserError(f"folder {parent} cannot be read: {error.strerror}") from None
        waiting += [parent / name for name in reversed(folders) if not _is_aside(name)]
        others = set(folders)
        yield from (parent / entry.name for entry in entries if entry.name not in others and entry.name[0] != ".")


def name_prefixes(folders: Sequence[Path], where: str) -> list[str]:
    """What the names of images in each of some folders begin with: their way from the folder that all of these share.

    Raises:
        UserError: one lies in another, so that its images would count twice.
    """
    if len(folders) == 1:
        return [""]
    places = [Path(os.path.abspath(folder)) for folder in folders]
    real = [Path(os.path.realpath(folder)) for folder in folders]
    for index, folder in enumerate(folders):
        for other, above in enumerate(real):
            if other != index and real[index].is_relative_to(above):
                raise UserError(f"{where}: folder {folder} lies in {folders[other]}, which is named, too; leave it out")
    top = os.path.commonpath(places)
    return [f"{place.relative_to(top).as_posix()}/" for place in places]


def _is_aside(name: str) -> bool:
    """Whether a file or folder is hidden (.ipynb_checkpoints, .Trash-1000, ._x.png) or a tool's own (@eaDir)."""
    return name.startswith(".") or name.lower() in _TOOL_FOLDERS


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles
        return False


def _find_folder(root: Path, sub: str) -> Path | None:
    """root/sub, where the spelling of `sub` may differ in upper and lower case; None if there is none."""
    folder = root
    for part in Path(sub).parts:
        if not (folder / part).is_dir():
            spelled = (path for path in sorted(folder.glob("*")) if path.name.lower() == part.lower())
            part = next((path.name for path in spelled if path.is_dir()), None)
            if part is None:
                return None
        folder = folder / part
    return folder if folder.is_dir() else None
