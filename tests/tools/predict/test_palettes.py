"""Colours for the colour-blind: the simulation against published values, the palette by what it promises."""

import numpy as np
import pytest

from core.datasets.taxonomy import STREET_SCENES, Taxonomy
from tools.predict.palettes import as_seen, colour_blind_palette, distances

NORMAL, PROTANOPIA, DEUTERANOPIA, TRITANOPIA = range(4)


def test_oklab_of_known_colours():
    """White, and sRGB's primaries as Ottosson's article and CSS Color 4 give them."""
    seen = as_seen(np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]))[NORMAL]
    expected = [[100, 0, 0], [62.8, 22.49, 12.58], [86.64, -23.39, 17.95], [45.2, -3.25, -31.15], [0, 0, 0]]
    assert np.abs(seen - expected).max() < 0.02


def test_greys_look_the_same_to_everyone():
    seen = as_seen(np.arange(0, 256, 5)[:, None].repeat(3, 1))
    assert np.abs(seen - seen[NORMAL]).max() < 0.05


def test_who_confuses_what():
    def apart(first, second):
        one, two = as_seen(np.array([first, second])).transpose(1, 0, 2)
        return np.linalg.norm(one - two, axis=-1)

    red_green = apart((190, 90, 0), (110, 130, 0))
    assert red_green[NORMAL] > 15 > 3 * red_green[DEUTERANOPIA]
    assert red_green[TRITANOPIA] > 10
    blue_green = apart((0, 160, 140), (0, 140, 255))
    assert blue_green[TRITANOPIA] < blue_green[PROTANOPIA] / 2


def smallest(colours):
    return (distances(colours, colours) + np.diag(np.full(len(colours), np.inf))).min()


@pytest.mark.parametrize("taxonomy", STREET_SCENES, ids=len)
def test_classes_are_told_apart_by_everyone(taxonomy):
    count = len(taxonomy)
    palette, usual = colour_blind_palette(taxonomy), taxonomy.palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert not palette[count:].any()
    assert smallest(palette[:count]) > 8 > 4 * smallest(usual[:count])
    assert distances(palette[:count], np.zeros((1, 3))).min() > 20
    assert (palette == colour_blind_palette(taxonomy)).all()


def test_many_classes():
    palette = colour_blind_palette(Taxonomy(tuple(f"class {number}" for number in range(100))))
    assert len(np.unique(palette[:100], axis=0)) == 100
    assert smallest(palette[:100]) > 2
