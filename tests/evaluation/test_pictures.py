"""Pictures of predictions: overlays with borders and names, what changed, legends."""

import numpy as np
import pytest

from core.configs import cfg
from core.datasets.taxonomy import CITYSCAPES_19
from core.evaluation.palettes import PALETTES
from core.evaluation.pictures import Painter, grey, outline
from tests.helpers import changed

ROAD, CAR, RIDER, SKY = (CITYSCAPES_19.index(name) for name in ("road", "car", "rider", "sky"))


def painter(colours="clear", names=True):
    return Painter.of(changed(cfg, VIS__COLOURS=colours, VIS__NAMES=names).VIS, CITYSCAPES_19)


def scene():
    """An image of noise, and classes: sky above road, a car."""
    classes = np.full((120, 240), SKY, np.uint8)
    classes[50:] = ROAD
    classes[60:90, 100:160] = CAR
    return np.random.default_rng(0).integers(0, 256, (120, 240, 3)).astype(np.uint8), classes


@pytest.mark.parametrize("size", [(40, 60), (900, 1700), (1700, 900)])
def test_an_outline_is_what_lies_near_another_value(size):
    classes = np.zeros(size, np.uint8)
    classes[:, 30:] = 7
    found = np.flatnonzero(outline(classes)[5])
    reach = 1 + max(size) // 800
    assert found.tolist() == list(range(30 - reach, 30 + reach))
    assert not outline(np.full(size, 255, np.uint8)).any()


def test_an_overlay_is_half_the_colour_within_and_the_whole_at_the_border():
    image, classes = scene()
    own, plain = painter(names=False), PALETTES["clear"](CITYSCAPES_19)[classes]
    overlay, borders = own.overlay(image, classes), outline(classes)
    assert (overlay[borders] == plain[borders]).all()
    within = ~borders
    assert np.abs(overlay[within] - (image[within] / 2 + plain[within] / 2)).max() <= 0.5
    named = painter().overlay(image, classes)
    where = (named != overlay).any(-1)
    assert set(np.unique(classes[where])) == {ROAD, CAR, SKY}  # each has its name
    assert where.mean() < 0.1
    assert (own.overlay(image, np.full_like(classes, 255))[5] == (image[5] / 2).round()).all()  # no class: no name


def test_what_changed_is_coloured_within_a_line_and_the_rest_is_grey():
    image, before = scene()
    after = before.copy()
    after[60:90, 100:160] = RIDER
    picture = painter(names=False).changed(image, before, after)
    assert (picture[60:90, 100:160] == PALETTES["clear"](CITYSCAPES_19)[RIDER]).all()
    around = np.zeros(before.shape, bool)
    around[59:91, 99:161] = True
    around[60:90, 100:160] = False
    assert (picture[around] == 0).all()
    rest = np.ones(before.shape, bool)
    rest[59:91, 99:161] = False
    assert (np.ptp(picture[rest], axis=-1) == 0).all()
    assert picture[rest].min() >= 127  # pale
    assert (painter().changed(image, before, after)[60:90, 100:160] != picture[60:90, 100:160]).any()  # its name
    same = painter().changed(image, before, before)
    assert (np.ptp(same, axis=-1) == 0).all()


@pytest.mark.parametrize(
    ("colours", "files"), [("clear", "data_set"), ("data_set", "data_set"), ("colour_blind", "colour_blind")]
)
def test_label_files_keep_the_data_sets_colours_but_for_colour_blind_readers(colours, files):
    one = painter(colours)
    assert (one.colour(np.arange(19, dtype=np.uint8)) == PALETTES[colours](CITYSCAPES_19)[:19]).all()
    assert (one.label_palette == PALETTES[files](CITYSCAPES_19)).all()
    shown = {tuple(colour) for colour in one.legend(640).reshape(-1, 3).tolist()}
    for palette in (one.palette, one.label_palette):
        assert {tuple(colour) for colour in palette[:19].tolist()} <= shown


@pytest.mark.parametrize("size", [(100, 200), (200, 100)])
def test_side_by_side_has_all_four_their_captions_and_a_scale(size):
    image, classes = np.full((*size, 3), 60, np.uint8), np.full(size, CAR, np.uint8)
    confidence = grey(np.full(size, 0.4))
    one = painter(names=False)
    picture = one.side_by_side(image, classes, confidence)
    overlay, colour = one.overlay(image, classes), one.colour(classes)
    for tile in (image, overlay, colour, np.stack([confidence] * 3, -1)):
        assert (picture == tile[0, 0]).all(-1).sum() >= tile[..., 0].size
    greys = picture[(np.ptp(picture, axis=-1) == 0)]
    assert len(np.unique(greys)) > 30  # of the scale
    assert picture.shape[1] == (404 if size == (100, 200) else 412)
