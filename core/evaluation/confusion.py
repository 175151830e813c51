"""The confusion matrix of an evaluation: a table of its counts, and a picture of the shares of each class."""

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from core.datasets.images import write_png
from core.utils.errors import one_line
from core.utils.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHERS = "others"  # classes of a model that a test set does not have
HEAD = "truth"  # of the column that names the classes of the rows
NUMBERED = 40  # classes, at most, whose cells have room for a number
_LARGE, _SMALL, _LEAST = 0.38, 0.1, 4.0  # inches of a cell with a number, of one without, and of all in a row
_DPI = 100
_FONT_SIZE, _SMALL_FONT_SIZE = 9, 6  # points, of names; of numbers one less
_LETTERS, _LETTER = 24, 0.65  # of a name that are shown; × the font's size, at most, of one's width on average
_DARK = 55  # percent, from which on a cell's number is white
_GREY, _LINE = "0.93", "0.85"
_SETTINGS = {"font.family": ["DejaVu Sans"], "text.parse_math": False, "text.usetex": False}


def write_confusion(path: Path, confusion: np.ndarray, names: Sequence[str], title: str) -> np.ndarray:
    """Write a confusion matrix as `path`.csv, its counts, and as `path`.png, the picture, which is returned.

    Args:
        path: without suffix.
        confusion: C×C int64, rows are labels; one more of each for predictions that are none of the classes.
        names: of the C classes.
        title: of the picture.
    Raises:
        UserError: the disk is full, say.
    """
    if len(confusion) > len(names):
        names = (*names, OTHERS)
    write_text(f"{path}.csv", confusion_table(confusion, names))
    picture = confusion_picture(confusion, names, title)
    write_png(f"{path}.png", picture)
    return picture


def confusion_table(confusion: np.ndarray, names: Sequence[str]) -> str:
    """C×C counts as CSV: a row per class of the truth, a column per class of the prediction, under their names."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow((HEAD, *names))
    table.writerows((name, *row) for name, row in zip(names, confusion.tolist(), strict=True))
    return text.getvalue()


def shares_of_truth(confusion: np.ndarray) -> np.ndarray:
    """C×C counts → C×C percent of each row; NaN in the row of a class that the truth does not hold."""
    totals = confusion.sum(axis=1, keepdims=True)
    return np.where(totals > 0, 100 * confusion / np.maximum(totals, 1), np.nan)


def confusion_picture(confusion: np.ndarray, names: Sequence[str], title: str) -> np.ndarray:
    """C×C counts → H×W×3 uint8: of every class of the truth, a row, the shares that are taken for each class.

    They are colours, and percent from 0.05 on; on the right stands the class's own share of the truth. A class that the
    truth does not hold has a grey row that says so. Of more than :data:`NUMBERED` classes cells are small, and hold no
    numbers.
    """
    import matplotlib  # only now, as it takes long
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    large = len(names) <= NUMBERED
    size = _FONT_SIZE if large else _SMALL_FONT_SIZE
    names = [one_line(name)[:_LETTERS] for name in names]
    side = max(len(names) * (_LARGE if large else _SMALL), _LEAST)
    margin = 0.5 + max(map(len, names)) * _LETTER * size / 72
    width, height = margin + side + 0.8, margin + side + 0.4
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of a script that the font lacks
        figure = Figure(figsize=(width, height), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
        axes.set_title(one_line(title), loc="left", fontsize=size + 2)
        _draw_cells(axes, shares_of_truth(confusion), size - 1 if large else 0)
        _name_axes(axes, names, confusion.sum(axis=1) / max(confusion.sum(), 1), size)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3]


def _draw_cells(axes: "Axes", shares: np.ndarray, size: int) -> None:
    """The cells, the first row on top, with numbers of so many points (0: without)."""
    middle = {"ha": "center", "va": "center", "fontsize": size}
    axes.pcolormesh(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=100, edgecolors=_LINE, linewidth=0.5)
    axes.invert_yaxis()
    for row in np.flatnonzero(np.isnan(shares[:, 0])):
        axes.axhspan(row, row + 1, facecolor=_GREY, edgecolor=_LINE, linewidth=0.5)
        if size:
            axes.text(len(shares) / 2, row + 0.5, "not in the truth", **middle)
    for row, column in np.argwhere(shares >= 0.05) if size else ():
        share = shares[row, column]
        words = f"{share:.1f}" if share < 9.95 else f"{share:.0f}"
        axes.text(column + 0.5, row + 0.5, words, color="white" if share > _DARK else "black", **middle)


def _name_axes(axes: "Axes", names: Sequence[str], parts: np.ndarray, size: int) -> None:
    """The classes, and what share `parts` of the truth is of each."""
    count, places = len(names), np.arange(len(names)) + 0.5
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(length=0)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth (each row: 100 %)")
    right = 1 + 0.04 / axes.bbox.width * _DPI  # of the axes' width
    for place, part in zip(places, parts, strict=True):
        axes.text(right, 1 - place / count, f"{100 * part:.1f} %", va="center", fontsize=size, transform=axes.transAxes)
    axes.text(right, -0.01, "of the\ntruth", va="top", fontsize=size, transform=axes.transAxes)
