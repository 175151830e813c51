"""Words in pictures: names lie inside of their regions, scales have the greys that they tell, long lines are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.evaluation.lettering import line, name_places, write_names


def random_regions(seed, height, width):
    """H×W uint8 of 4 classes, in regions of all sizes, some without a class."""
    rng = np.random.default_rng(seed)
    classes = np.full((height, width), 255, np.uint8)
    for _ in range(12):
        top, left = rng.integers(0, height), rng.integers(0, width)
        classes[top : top + rng.integers(1, height), left : left + rng.integers(1, width)] = rng.choice(
            [0, 1, 2, 3, 255]
        )
    return classes


@given(st.integers(0, 10**6), st.integers(20, 300), st.integers(20, 600))
def test_a_box_lies_in_one_region_of_its_class(seed, height, width):
    classes, sizes = random_regions(seed, height, width), [(9, 20), (9, 31), (14, 14)]  # class 3 has no name
    for index, (top, left) in name_places(classes, sizes):
        inside = classes[top : top + sizes[index][0], left : left + sizes[index][1]]
        assert inside.shape == sizes[index]
        assert (inside == index).all()


def test_each_large_region_has_one_name_and_a_small_one_none():
    classes = np.zeros((100, 200), np.uint8)
    classes[:, 90:110] = 1  # too narrow for its name: between two regions of class 0
    classes[95:] = 1
    assert [index for index, _ in name_places(classes, [(12, 30), (12, 30)])] == [0, 0]
    (left, right) = sorted(x for _, (_, x) in name_places(classes, [(12, 30), (12, 30)]))
    assert abs(left - 30) <= 1  # in the middle
    assert abs(right - 140) <= 1
    assert name_places(classes, [(12, 120), (12, 120)]) == []


def test_names_are_written_upon_their_regions_alone():
    classes = np.full((120, 300), 1, np.uint8)
    classes[:, 150:] = 255
    picture = np.full((120, 300, 3), 100, np.uint8)
    write_names(picture, classes, ["road", "a very long name\nof two lines " * 9])
    assert (picture == 100).all()  # no room, no name
    write_names(picture, classes, ["road", "sky"])
    assert (picture[:, 150:] == 100).all()
    assert picture[:, :150].max() > 240  # letters
    assert picture[:, :150].min() < 10  # and their rim


@pytest.mark.parametrize("width", [60, 128, 400])
def test_a_scale_runs_from_black_to_white_at_the_right_end(width):
    plain, scaled = line("words", width, 13), line("words", width, 13, scale=True)
    assert plain.shape == scaled.shape
    changed = np.flatnonzero((plain != scaled).any(axis=(0, 2)))
    assert changed[0] >= width // 2 - 10
    row = scaled[4, -min(9 * 13, width // 2) + 1 : -1].astype(int)  # above the numbers
    assert (np.diff(row[:, 0]) >= 0).all()
    assert row[0, 0] < 16
    assert row[-1, 0] > 239
