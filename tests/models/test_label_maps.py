"""Labels at full size against interpolating every pixel."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.models import label_maps
from core.models.deeplab import resize_logits
from core.models.label_maps import first_largest, winning_labels

SIZES = [(41, 77), (6, 9), (5, 8), (3, 100), (100, 3), (1, 7), (7, 1), (1, 1), (48, 72)]


def smooth_logits(shape, seed):
    """A scene: few cells in which classes meet."""
    rng = np.random.default_rng(seed)
    classes, height, width = shape
    coarse = torch.from_numpy(rng.normal(0, 4, (1, classes, 3, 3)))
    return resize_logits(coarse, (height, width))[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", [(5, 6, 9), (19, 1, 9), (3, 6, 1), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("kind", ["scene", "noise"])
def test_labels_are_those_of_the_whole_map(size, shape, kind, corners):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        logits = smooth_logits(shape, seed) if kind == "scene" else torch.from_numpy(rng.normal(0, 2, shape))
        labels = winning_labels(logits, size, corners)
        assert (labels.dtype, labels.shape) == (np.uint8, size)
        whole = F.interpolate(logits[None], size, mode="bilinear", align_corners=corners)[0]
        assert np.array_equal(labels, whole.argmax(0).numpy())


def test_a_class_that_wins_between_the_grid_points_only_is_found():
    """At the corners a and b win by turns, and c, second everywhere, wins in the middle."""
    logits = torch.tensor([[[9.0, 0], [0, 9]], [[0, 9.0], [9, 0]], [[5.0, 5], [5, 5]]])
    assert winning_labels(logits, (3, 3)).tolist() == [[0, 2, 1], [2, 2, 2], [1, 2, 0]]


def test_single_precision_differs_at_ties_at_most():
    logits = smooth_logits((19, 24, 48), 0)
    exact = resize_logits(logits[None], (256, 512))[0].argmax(0).numpy()
    assert (winning_labels(logits.float(), (256, 512)) != exact).mean() < 1e-4


def test_one_class_everywhere_and_equal_classes():
    assert not winning_labels(torch.zeros(4, 5, 6), (31, 40)).any()  # the first of equals, as max has it
    logits = torch.zeros(4, 5, 6)
    logits[2] = 1
    assert (winning_labels(logits, (31, 40)) == 2).all()


@pytest.mark.parametrize("cells", [1, 40, 1 << 30])
def test_labels_do_not_depend_on_how_many_cells_are_interpolated_at_once(cells, monkeypatch):
    monkeypatch.setattr(label_maps, "_CACHE_BYTES", cells * 5 * 8 * 9 * 8)
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (5, 6, 9)))
    labels = winning_labels(logits, (41, 77))
    assert np.array_equal(labels, resize_logits(logits[None], (41, 77))[0].argmax(0).numpy())


def test_labels_are_in_rows():
    """What reads them takes many times as long where columns follow each other in memory."""
    assert winning_labels(smooth_logits((5, 6, 9), 0), (41, 77)).flags.c_contiguous


def test_logits_that_are_not_numbers_give_some_class():
    logits = smooth_logits((5, 6, 9), 0)
    logits[:, 2:4, 3:5] = torch.nan
    assert winning_labels(logits, (41, 77)).max() < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_first_largest_is_what_argmax_gives(dtype):
    values = torch.from_numpy(np.random.default_rng(0).integers(-2, 3, (7, 8, 9))).to(dtype)  # many equals
    index = first_largest(values)
    assert index.dtype == torch.uint8
    assert torch.equal(index.long(), values.max(0).indices)
    assert first_largest(torch.eye(256)).tolist() == list(range(256))
