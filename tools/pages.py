"""Pages that tools write: one HTML file each, from a jinja2 template, with what it shows inside."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import jinja2
import numpy as np

PARTS_FOLDER = Path(__file__).parent / "report"  # of page.css, which every page includes, and of parts.html
_QUALITY = 82  # JPEG


class Table(NamedTuple):
    """Cells are texts; `strong` is the number of the row that stands out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int = -1


def page_environment(folder: Path) -> jinja2.Environment:
    """For the templates in a folder: a text is escaped, an unknown name an error."""
    loader = jinja2.FileSystemLoader([folder, PARTS_FOLDER])
    environment = jinja2.Environment(
        autoescape=True, loader=loader, lstrip_blocks=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["losses"] = losses
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment


def losses(line: str) -> list[tuple[str, bool]]:
    """A line in pieces, of which those are losses that say what was refused or not reached, and what has sunk."""
    if line.startswith("refused"):
        return [(line, True)]
    pieces = re.split(r"(not surely better|\d+(?:\.\d+)? → \d+(?:\.\d+)?(?: %)?)", line)  # every second one is a match

    def is_loss(words: str) -> bool:
        before, arrow, after = words.removesuffix(" %").partition(" → ")
        return not arrow or float(after) < float(before)

    return [(words, place % 2 == 1 and is_loss(words)) for place, words in enumerate(pieces) if words]


def printable(text: str) -> str:
    """A page without what no XML file may hold."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def jpeg_bytes(picture: np.ndarray) -> bytes:
    """The JPEG file of H×W×3 uint8 RGB."""
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, _QUALITY))[1]
    return encoded.tobytes()
