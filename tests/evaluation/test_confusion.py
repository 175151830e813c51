"""A confusion matrix as a table and as a picture."""

import csv
import warnings

import cv2
import matplotlib
import numpy as np
import pytest

from core.datasets.images import read_image
from core.evaluation.confusion import NUMBERED, confusion_picture, shares_of_truth, write_confusion

GREY = (237, 237, 237)  # of a row that the truth does not hold
NAMES = ("road", "car, parked", 'the "rest"')


def coloured(confusion, names=NAMES):
    """H×W booleans each: (strong blue, the grey of an absent row) in the picture of a matrix, but for letters."""
    picture = confusion_picture(np.array(confusion), names, "title").astype(int)
    found = picture[..., 2] - picture[..., 0] > 90, (picture == GREY).all(axis=-1)
    return [cv2.morphologyEx(one.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5))) > 0 for one in found]


def test_a_table_holds_every_pixel_under_the_names_of_the_classes(tmp_path):
    confusion = np.array([[2**60 + 1, 0, 3], [0, 0, 0], [5, 2**53 + 1, 7]])
    shown = write_confusion(tmp_path / "a.b", confusion, NAMES, "title")
    with (tmp_path / "a.b.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["truth", *NAMES]
    assert [row[0] for row in rows] == [*NAMES]
    assert [[int(cell) for cell in row[1:]] for row in rows] == confusion.tolist()
    assert (read_image(tmp_path / "a.b.png") == shown).all()
    assert len(list(tmp_path.iterdir())) == 2


def test_shares_are_of_the_truth():
    shares = shares_of_truth(np.array([[3, 1, 0], [0, 0, 0], [0, 10, 0]]))
    assert shares[0].tolist() == [75, 25, 0]
    assert np.isnan(shares[1]).all()  # also where it is predicted
    assert shares[2].tolist() == [0, 100, 0]


def test_the_colour_is_the_share_of_the_truth_and_not_the_count():
    """A rare class that is always found is as blue as a frequent one, and stands on the diagonal, from the top left."""
    blue, grey = coloured([[10**9, 0, 0], [0, 20, 0], [0, 0, 3]])
    assert not grey.any()
    rows, columns = np.nonzero(blue)
    assert np.corrcoef(rows, columns)[0, 1] > 0.85
    thirds = np.array_split(np.arange(rows.min(), rows.max() + 1), 3)
    areas = [blue[third].sum() for third in thirds]
    assert max(areas) < 1.05 * min(areas)
    assert blue.sum() == pytest.approx(coloured([[9, 0, 0], [0, 9, 0], [9, 0, 0]])[0].sum(), rel=0.05)
    assert not coloured([[1, 1, 1], [2, 2, 2], [3, 3, 3]])[0].any()


def test_a_class_that_the_truth_does_not_hold_has_a_row_that_says_so():
    _, grey = coloured([[9, 1, 0], [0, 0, 0], [0, 0, 4]])
    rows, columns = np.nonzero(grey)
    height, width = np.ptp(rows), np.ptp(columns)
    assert 2.5 < width / height < 3.5  # one row of three
    inside = grey[rows.min() : rows.max(), columns.min() : columns.max()]
    assert 0.5 < inside.mean() < 1  # words stand in it
    assert coloured([[0] * 3] * 3)[1].sum() > 2.5 * grey.sum()  # an evaluation without a labelled pixel


def test_numbers_stand_in_the_cells_of_few_classes():
    """Two shares of nearly one colour are two pictures; of many classes the cells have no room."""

    def differ(count, cell):
        names = [f"class {number}" for number in range(count)]
        first, second = (np.eye(count, dtype=int) * 1000 for _ in range(2))
        first[0, 1], second[0, 1] = cell
        return (confusion_picture(first, names, "") != confusion_picture(second, names, "")).any(axis=-1).sum()

    assert differ(19, (11, 12)) > 10  # 1.1 and 1.2 %
    assert differ(19, (0, 0)) == 0
    many = confusion_picture(np.eye(NUMBERED + 80, dtype=int), [f"class {n}" for n in range(NUMBERED + 80)], "")
    few = confusion_picture(np.eye(NUMBERED, dtype=int), [f"class {n}" for n in range(NUMBERED)], "")
    assert max(many.shape) < 1.2 * max(few.shape)


def test_any_name_and_any_settings_of_matplotlib_will_do():
    names = ("$\\frac{", "日本", "x" * 5000, "two\nlines")
    with matplotlib.rc_context({"text.usetex": True, "font.family": ["none"]}), warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = confusion_picture(np.eye(4, dtype=int), names, "$_{")
    assert max(picture.shape) < 1000
