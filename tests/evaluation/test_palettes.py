"""Colours of pictures: the simulation of colour blindness against published values, palettes by what they promise."""

import numpy as np
import pytest

from core.datasets.taxonomy import CITYSCAPES_19, STREET_SCENES, Taxonomy
from core.evaluation.palettes import as_seen, clear_palette, colour_blind_palette, distances

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


def smallest(colours, normal=False):
    return (distances(colours, colours, normal) + np.diag(np.full(len(colours), np.inf))).min()


def test_distances_are_those_of_the_worst_case_solid_or_in_an_overlay():
    """By hand: of one pair, for every vision, solid, and twice that of the mixtures with three greys."""
    pair = np.array([(0, 0, 142), (0, 0, 70)])
    layers = [pair] + [(pair + ground) / 2 for ground in (40, 128, 215)]
    expected = [
        [factor * np.linalg.norm(one - other) for one, other in as_seen(layer)]
        for layer, factor in zip(layers, (1, 2, 2, 2), strict=True)
    ]
    assert distances(pair[:1], pair[1:])[0, 0] == pytest.approx(np.min(expected))
    assert distances(pair[:1], pair[1:], normal=True)[0, 0] == pytest.approx(np.min(expected, axis=0)[NORMAL])
    assert np.argmin(expected) > 0  # car and truck are told apart worst upon something


@pytest.mark.parametrize("taxonomy", STREET_SCENES, ids=len)
def test_colour_blind_readers_tell_the_classes_apart(taxonomy):
    count = len(taxonomy)
    palette, usual = colour_blind_palette(taxonomy), taxonomy.palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert not palette[count:].any()
    assert smallest(palette[:count]) > 7.9 > 4 * smallest(usual[:count])
    assert distances(palette[:count], np.zeros((1, 3))).min() > 13
    assert (palette == colour_blind_palette(taxonomy)).all()


@pytest.mark.parametrize("taxonomy", STREET_SCENES, ids=len)
def test_the_clear_colours_are_told_apart_and_most_are_the_usual_ones(taxonomy):
    count = len(taxonomy)
    palette, usual = clear_palette(taxonomy), taxonomy.palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert not palette[count:].any()
    assert smallest(palette[:count], normal=True) > 12 > 2 * smallest(usual[:count], normal=True)
    assert distances(palette[:count], np.zeros((1, 3)), normal=True).min() > 20
    assert (palette[:count] == usual[:count]).all(axis=1).mean() > 0.55


@pytest.mark.parametrize(
    "alike", [("person", "rider"), ("car", "truck", "bus", "train", "motorcycle"), ("rider", "bicycle", "motorcycle")]
)
def test_what_is_alike_in_life_differs_most_in_the_clear_colours(alike):
    indices = [CITYSCAPES_19.index(name) for name in alike]
    assert smallest(clear_palette(CITYSCAPES_19)[indices], normal=True) > 16
    assert smallest(colour_blind_palette(CITYSCAPES_19)[indices]) > 7.9


def test_a_class_has_the_same_clear_colour_in_every_class_set():
    found = {}
    for taxonomy in STREET_SCENES:
        for name, colour in zip(taxonomy.names, clear_palette(taxonomy).tolist(), strict=False):
            assert found.setdefault(name, colour) == colour


def test_colours_that_a_user_gave_stay():
    own = Taxonomy(("rider", "floor"), colours={"rider": (1, 2, 3)})
    assert (clear_palette(own) == own.palette()).all()


def test_many_classes():
    palette = colour_blind_palette(Taxonomy(tuple(f"class {number}" for number in range(100))))
    assert len(np.unique(palette[:100], axis=0)) == 100
    assert smallest(palette[:100]) > 2
