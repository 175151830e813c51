"""List files: the images of a split, a line each, maybe with their labels beside them."""

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.datasets.images import EXTENSIONS
from core.utils.errors import UserError, one_line
from core.utils.files import open_regular

_BETWEEN = re.compile(r"\s*[,;]\s*|\s+")  # two columns, where no tab is


@dataclass(frozen=True)
class Listed:
    """What one line names.

    Attributes:
        image: its file, which is there.
        name: its path below the folder that it was found in, or from the top; no other image has it.
        label: its label file, which nobody may have looked for; None without a second column.
        place: file and line, for messages.
    """

    image: Path
    name: str
    label: Path | None
    place: str


def read_list(file: Path, images: Sequence[Path], labels: Sequence[Path], where: str) -> list[Listed]:
    """The images that a list file names, in its order.

    A line is an image, or an image and its label. Paths may have a backslash for `/`, a `/` at the beginning that means
    nothing, and, of images, no ending. Blank lines and those that begin with `#` are left out.

    Args:
        images: folders, in the first of which that has the image a path begins.
        labels: the same of labels.
        where: begins every message.
    Raises:
        UserError: the file cannot be read or names nothing; an image is missing, or stands in it twice; only some of
            the lines have a label.
    """
    try:
        with open_regular(file) as opened:
            data = opened.read()
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError("it is UTF-16; save it as UTF-8")
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: list {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found: dict[str, Listed] = {}  # by absolute path
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    for number, line in lines:
        if not line or line.startswith("#"):
            continue
        place = f"{file} line {number}"
        if _find(line, images)[0] is None:
            line = re.sub(r"\s+#.*", "", line)
        image, label = _columns(line, images)
        path, name = _find(image, images)
        if path is None:
            of = f", of the line {line!r}," if label else ""
            raise UserError(f"{where}: {place}: image {one_line(_below(images[0], image))}{of} is missing")
        whole = os.path.abspath(path)
        if whole in found:
            raise UserError(f"{where}: {place}: image {path} stands in line {_number(found[whole])} already")
        label_path = (_find(label, labels)[0] or _below(labels[0], label)) if label else None
        found[whole] = Listed(path, name, label_path, place)
        first = next(iter(found.values()))
        if (label_path is None) != (first.label is None):
            has, other = ("no label", "has one") if label_path is None else ("a label", "has none")
            raise UserError(f"{where}: {place} names {has}, but line {_number(first)} {other}")
    if not found:
        raise UserError(f"{where}: list {file} names no image")
    return list(found.values())


def _number(listed: Listed) -> str:
    return listed.place.rpartition(" ")[2]


def _columns(line: str, folders: Sequence[Path]) -> tuple[str, str]:
    """An image's path and its label's, which is empty where the line has one column; names may hold blanks."""
    if line.startswith('"'):  # as spreadsheets write it
        columns = next(csv.reader([line], delimiter=";" if '";' in line else ","))
        return columns[0].strip(), columns[1].strip() if len(columns) > 1 else ""
    if "\t" in line:
        image, _, label = line.partition("\t")
        return image.strip(), label.strip()
    cuts = list(_BETWEEN.finditer(line))
    readings = [(line, ""), *((line[: cut.start()], line[cut.end() :]) for cut in cuts)]
    known = (reading for reading in readings if _find(reading[0], folders)[0] is not None)
    return next(known, readings[len(cuts) == 1])


def _find(text: str, folders: Sequence[Path]) -> tuple[Path | None, str]:
    """The file that a path means, in the first folder that has it, there maybe with an image's ending; and its name.

    An absolute one is taken as it stands, if it is there.
    """
    if os.path.isabs(text) and os.path.isfile(text):
        path = Path(os.path.normpath(text))
        above = os.path.abspath(folders[0])
        return path, path.relative_to(above if path.is_relative_to(above) else "/").as_posix()
    endings = ("",) if text.lower().endswith(EXTENSIONS) else ("", *EXTENSIONS, *map(str.upper, EXTENSIONS))
    for folder in folders:
        for ending in endings:
            path = _below(folder, f"{text}{ending}")
            if os.path.isfile(path):
                inside = os.path.relpath(path, folder)
                return path, (os.path.abspath(path).lstrip("/") if inside.startswith("..") else inside)
    return None, ""


def _below(folder: Path, text: str) -> Path:
    return Path(os.path.normpath(folder / text.replace("\\", "/").lstrip("/")))
