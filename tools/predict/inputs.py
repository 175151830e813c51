"""What a user points at: image files, folders, glob patterns and video files."""

import glob
import os
import sys
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path

from core.datasets import tiff
from core.datasets.catalog import find_bands, require_files, require_utf_8
from core.datasets.depth import with_depth
from core.datasets.images import EXTENSIONS, ImageForm
from core.datasets.masks import split_masks
from core.datasets.reader import ImageSet, walk_files
from core.datasets.skipping import SkippedImages
from core.datasets.videos import VIDEO_EXTENSIONS
from core.runs.known import known_bands
from core.utils.errors import UserError, one_line, shorten
from core.utils.files import expanded, meant
from core.utils.logging import LOGGER

_KNOWN = ", ".join((*EXTENSIONS, *VIDEO_EXTENSIONS))


class BadFiles(SkippedImages):
    """The bad files among inputs: any number is passed over, each a line of the log as it is met.

    Attributes:
        lines: what is wrong, by the file's path.
    """

    def __init__(self):
        super().__init__(limit=sys.maxsize)
        self.lines: dict[str, str] = {}

    def count(self, noted: Sequence[tuple[str, str]]) -> None:
        """Count and log what was met, (path, line) each."""
        for path, line in noted:
            if path not in self.lines:
                self.lines[path] = line
                LOGGER.info("bad file: %s", line)


def find_inputs(words: Sequence[str], leave_out: Sequence[Path] = ()) -> tuple[ImageSet, ImageSet]:
    """The images and the videos that `words` name, each once, in the order of the words, sorted within each.

    Files of other kinds in a folder or pattern are passed over; named alone they are an error, and so are links to
    nothing. The names of the set are paths below the folder that is common to all words.

    Args:
        words: paths or patterns, `~`, `$NAME` and `**` included; none: both sets are empty. A path that exists is never
            a pattern.
        leave_out: folders that a search does not enter (an earlier call's output).
    Raises:
        UserError: a word that names nothing.
    """
    paths: dict[str, Path] = {}  # from the absolute path to the one that messages show
    tops = []
    hidden = tuple(os.path.abspath(folder) + os.sep for folder in leave_out)
    for word in (expanded(word, "input") for word in words):
        found = {os.path.abspath(path): path for path in _find(word)}
        found = {absolute: path for absolute, path in found.items() if not absolute.startswith(hidden)}
        if not found:
            raise UserError(f"input {word} holds no image or video ({_KNOWN})")
        paths |= {absolute: path for absolute, path in found.items() if absolute not in paths}
        folder = os.path.abspath(word)
        tops += [folder] if os.path.isdir(folder) else map(os.path.dirname, found)
    top = os.path.commonpath(tops) if tops else ""
    require_utf_8(list(paths.values()), "inputs")
    videos = {absolute for absolute, path in paths.items() if _is_video(path)}
    return _as_set("images", top, paths, paths.keys() - videos), _as_set("videos", top, paths, videos)


def as_taken(images: ImageSet, config, checkpoint: Path) -> ImageSet:
    """The images as a checkpoint's model takes them: their bands, and how 16 bits become 8.

    Args:
        config: with what the checkpoint says of it (:func:`core.runs.known.with_known`).
    Raises:
        UserError: images of 8 bits and of 16.
    """
    bands = known_bands(checkpoint) or find_bands(config)
    if bands and any(path.name.lower().endswith(tiff.ENDINGS) for path in images.paths):  # others have colours
        LOGGER.info("images: %s", f"bands {', '.join(map(str, bands))} are red, green, blue")
        images = replace(images, form=ImageForm(bands))
    images = with_depth(images, config.INPUT, "inputs")
    if images.note:
        LOGGER.info("images: %s", images.note)
    return images


def common_folder(*sets: ImageSet) -> str:
    """The folder, absolute, below which inputs that were found together have their names."""
    path, name = next((paths.paths[0], paths.names[0]) for paths in sets if len(paths))
    return os.path.abspath(path).removesuffix(name).rstrip(os.sep) or os.sep


def _find(word: str) -> list[Path]:
    """The images and videos of one word, sorted."""
    path = Path(word)
    if os.path.isdir(path):
        return _in_folder(path)
    if os.path.lexists(path):
        if not _is_input(path):
            raise UserError(f"input {word} is not an image or video: its name must end in one of {_KNOWN}")
        require_files([path], "input", "inputs")
        return [path]
    if not glob.has_magic(str(path)):
        raise UserError(f"input {word}: there is no such file or folder{meant(word, '*')}")
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not matches:
        raise UserError(f"input {word}: no file matches it")
    found = []
    for match in matches:
        found += _find(str(match)) if os.path.isdir(match) else filter(_is_input, [match])
    return found


def _in_folder(folder: Path) -> list[Path]:
    """The images and videos below a folder, sorted, without label files of some of them, which the log names."""
    found = sorted(filter(_is_input, walk_files(folder)))
    _, masks = split_masks([path for path in found if not _is_video(path)], folder)
    if masks:
        names = shorten(path.relative_to(folder).as_posix() for path in masks)
        LOGGER.info("%d label files among the images of %s are left out: %s", len(masks), one_line(folder), names)
        found = [path for path in found if path not in {*masks}]
    return found


def _is_input(path: Path) -> bool:
    return path.name.lower().endswith(EXTENSIONS) or _is_video(path)


def _is_video(path: Path) -> bool:
    return path.name.lower().endswith(VIDEO_EXTENSIONS)


def _as_set(name: str, top: str, paths: dict[str, Path], chosen: Set[str]) -> ImageSet:
    kept = [absolute for absolute in paths if absolute in chosen]
    names = tuple(Path(os.path.relpath(absolute, top)).as_posix() for absolute in kept)
    return ImageSet(name, tuple(paths[absolute] for absolute in kept), names)
