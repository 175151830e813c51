"""A panel: tiles under captions, a title, and the legend."""

import numpy as np
import pytest

from core.datasets.taxonomy import CAMVID_11
from core.evaluation.pictures import Painter

PALETTE = CAMVID_11.palette()
PAINTER = Painter(CAMVID_11, PALETTE)


def places_of(panel, wanted, tolerance=0):
    """(rows, columns) that hold a colour, as two slices; it must fill that rectangle."""
    found = (np.abs(panel.astype(int) - wanted) <= tolerance).all(-1)
    rows, columns = (np.flatnonzero(found.sum(axis) > 50) for axis in (1, 0))  # letters have such pixels, too
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    assert found[box].all()
    return box


def test_tiles_stand_three_in_a_row_each_at_its_place():
    size = (200, 400)
    tiles = [
        ("picture", np.full((*size, 3), (10, 20, 30), np.uint8)),
        ("a", np.full(size, 3, np.uint8)),
        ("none", np.full(size, 255, np.uint8)),
        ("b", np.full((*size, 3), (40, 0, 90), np.uint8)),
        ("c", np.full((*size, 3), (0, 60, 0), np.uint8)),
        ("confidence", np.full(size, 0.2, np.float32)),
    ]
    panel = PAINTER.panel("title", tiles)
    boxes = [places_of(panel, colour) for colour in ((10, 20, 30), (40, 0, 90), (0, 60, 0), (51, 51, 51))]
    (first, first_column), (second, second_column), (_, third_column), (_, fourth_column) = boxes
    assert [box[0].stop - box[0].start for box in boxes] == [200] * 4
    assert [box[1].stop - box[1].start for box in boxes] == [400] * 4
    assert first_column == second_column
    assert first.stop < second.start
    assert second_column.stop < third_column.start < third_column.stop < fourth_column.start
    classes = panel[first, third_column], panel[first, fourth_column]
    assert (classes[0] == PALETTE[3]).all()
    assert (classes[1] == 0).all()  # no label
    legend = panel[second.stop :].reshape(-1, 3)
    for colour in PALETTE[: len(CAMVID_11)]:
        assert (legend == colour).all(-1).sum() > 100
    captions = panel[first.start - 20 : first.start]
    assert (captions[:, first_column] == 0).any()


@pytest.mark.parametrize(
    ("size", "tile"), [((44, 88), (176, 352)), ((600, 1500), (410, 1024)), ((300, 320), (300, 320))]
)
def test_small_tiles_are_enlarged_and_large_ones_reduced(size, tile):
    labels = np.zeros(size, np.uint8)
    labels[:, size[1] // 2 :] = 8
    panel = PAINTER.panel("", [("labels", labels), ("sure", np.full(size, 0.4))])
    rows, columns = places_of(panel, (102, 102, 102), tolerance=1)
    assert (rows.stop - rows.start, columns.stop - columns.start) == tile
    colours = np.unique(panel[rows, : tile[1]].reshape(-1, 3), axis=0)
    assert {tuple(c) for c in colours.tolist()} == {tuple(PALETTE[0].tolist()), tuple(PALETTE[8].tolist())}


def test_any_name_makes_one_line():
    tiles = [("labels", np.zeros((200, 400), np.uint8))]
    plain = PAINTER.panel("a", tiles)
    assert PAINTER.panel("a\n\x1b[31m" + "long " * 100, tiles).shape == plain.shape
