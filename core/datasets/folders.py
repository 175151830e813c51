"""Any folders of images, without labels (`folder:PATH`), and list files that name some images of a set."""

import os
import re
from pathlib import Path

from core.datasets.images import EXTENSIONS
from core.datasets.masks import like_masks, split_masks
from core.datasets.reader import ImageSet, name_prefixes, walk_files
from core.utils.errors import UserError, shorten
from core.utils.files import meant

FOLDER_PREFIX = "folder:"
_NEXT_FOLDER = re.compile(rf"\s*[,;]\s*{FOLDER_PREFIX}")


def folders_of(name: str) -> list[str]:
    """The folders of `folder:PATH`, of which several may follow one another: `folder:A,folder:B`."""
    return _NEXT_FOLDER.split(name.removeprefix(FOLDER_PREFIX))


def find_folders(name: str, where: str) -> ImageSet:
    """The images of `folder:PATH`, or of several.

    Args:
        where: begins every message.
    Raises:
        UserError: what is no folder, or holds no image.
    """
    folders = [Path(folder) for folder in folders_of(name)]
    for folder in folders:
        if not os.path.isdir(folder):  # unlike Path's, false for whatever cannot be a folder
            several = f"; several are written {FOLDER_PREFIX}A,{FOLDER_PREFIX}B"
            hint = several if re.search("[,;]", str(folder)) else meant(folder, "*/")
            raise UserError(f"{where}: {folder} is not a folder{hint}")
    images, left_out = [], []
    for folder, above in zip(folders, name_prefixes(folders, where), strict=True):
        found = sorted(path for path in walk_files(folder) if path.name.lower().endswith(EXTENSIONS))
        if not found:
            raise UserError(f"{where}: no image ({', '.join(EXTENSIONS)}) below {folder}")
        for kind, paths in zip((images, left_out), split_masks(found, folder), strict=True):
            kind += [(path, f"{above}{path.relative_to(folder).as_posix()}") for path in paths]
    paths, names = zip(*sorted(images), strict=True)
    note, doubtful = "", {*like_masks(paths)}
    if doubtful:
        seen = shorten(name for path, name in zip(paths, names, strict=True) if path in doubtful)
        note = f"some hold few values, as label files do; take these out, if they are: {seen}"
    return ImageSet(name, paths, names, left_out=tuple(name for _, name in left_out), note=note)


def restricted(images: ImageSet, list_file: Path) -> ImageSet:
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
