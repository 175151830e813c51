"""Pseudo-labels (SAC): the formulas of the running confidence and of the per-image, per-class thresholds."""

import math

import numpy as np
import pytest
import torch

from core.selftraining.pseudo_labels import select_pseudo_labels, update_running_confidence

CONFIDENT = [1.0] * 3  # exp(-1 / 1e-3) is 0 in floating point: the threshold is max(0.8 * peak, 0.2)


def as_probs(*images):
    """Images given as lists of per-pixel class distributions, as B×C×1×W."""
    return torch.tensor(images, dtype=torch.float32).permute(0, 2, 1).unsqueeze(2)


def random_probs(*shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (3 * logits).softmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_starts_from_its_mean_only_while_exactly_at_beta(dtype):
    probs = as_probs([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]], [[0.8, 0.1, 0.1], [0.4, 0.5, 0.1]]).to(dtype)
    new = update_running_confidence(torch.tensor([1e-3, 0.5, 1.01e-3], dtype=dtype), probs)
    # means 0.5, 0.4, 0.1; class 1: 0.9 * 0.5 + 0.1 * 0.4; class 2: 0.9 * 1.01e-3 + 0.1 * 0.1
    assert new.tolist() == pytest.approx([0.5, 0.49, 0.010909], rel=1e-5)


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.9e-3), (1e-9, 0.9e-3), (2e-8, 2e-8)])
def test_a_mean_up_to_1e_8_leaves_beta_to_decay_and_the_class_never_jumps_later(mean, expected):
    probs = torch.stack([torch.full((1, 4, 4), 1 - mean), torch.full((1, 4, 4), mean)], 1)
    first = update_running_confidence(torch.full((2,), 1e-3), probs)
    assert first.tolist() == pytest.approx([1.0, expected], rel=1e-4)
    second = update_running_confidence(first, torch.full((1, 2, 4, 4), 0.5))
    assert second.tolist() == pytest.approx([0.95, 0.9 * expected + 0.05], rel=1e-5)


def test_beta_and_momentum_are_options_of_the_update():
    new = update_running_confidence(torch.tensor([0.25, 1e-3]), torch.full((2, 2, 3, 5), 0.5), 0.25, 0.5)
    assert new.tolist() == pytest.approx([0.5, 0.5 * 1e-3 + 0.25], rel=1e-5)


def test_arguments_are_left_untouched():
    probs, running = random_probs(2, 4, 5, 7), torch.full((4,), 1e-3, dtype=torch.float64)
    before = probs.clone(), running.clone()
    new = update_running_confidence(running, probs)
    select_pseudo_labels(probs, running)
    assert torch.equal(probs, before[0])
    assert torch.equal(running, before[1])
    assert new.data_ptr() != running.data_ptr()


@pytest.mark.parametrize(
    ("images", "running", "expected"),
    [
        # peaks 0.9, 0.6 give the thresholds 0.72, 0.48; class 2 is absent
        ([[[0.9, 0.1, 0], [0.73, 0.2, 0.07], [0.71, 0.2, 0.09], [0.4, 0.6, 0], [0.3, 0.47, 0.23]]], CONFIDENT,
         [[0, 0, 255, 1, 255]]),
        # at half of beta class 0 has 0.9 * 0.8 * (1 - exp(-0.5)) = 0.28330; class 1 keeps 0.72
        ([[[0.9, 0.1, 0, 0], [0.285, 0.24, 0.24, 0.235], [0.282, 0.24, 0.24, 0.238], [0, 0.9, 0, 0.1],
           [0, 0.7, 0.3, 0]]], [5e-4, 1, 1, 1], [[0, 0, 255, 1, 255]]),
        # the same pixel under the peak of its own image only
        ([[[0.9, 0.1, 0], [0.6, 0.4, 0]], [[0.6, 0.4, 0], [0.6, 0.4, 0]]], CONFIDENT, [[0, 255], [0, 0]]),
        # a tie belongs to the first class; were 0.45 a peak of class 1 too, 0.34 would fall under 0.36
        ([[[0.45, 0.45, 0.1], [0.33, 0.34, 0.33]]], CONFIDENT, [[0, 1]]),
        # 0.48 is no peak of class 1, which does not win there
        ([[[0.5, 0.48, 0.02], [0.32, 0.37, 0.31]]], CONFIDENT, [[0, 1]]),
    ],
    ids=["peak", "discount", "per image", "tie", "winner only"],
)  # fmt: skip
def test_selection_of_hand_examples(images, running, expected):
    labels = select_pseudo_labels(as_probs(*images), torch.tensor(running))
    assert labels.dtype == torch.int64
    assert labels[:, 0].tolist() == expected


def test_a_pixel_at_or_below_its_threshold_is_ignored():
    probs = as_probs([[0.5, 0.25, 0.25], [0.25, 0.75, 0.0]])
    assert select_pseudo_labels(probs, torch.ones(3), lower=0.5).tolist() == [[[255, 1]]]
    # with upper = 1 the peaks are their own thresholds
    assert (select_pseudo_labels(probs, torch.ones(3), upper=1.0) == 255).all()
    # 1/6 is below 0.2 everywhere
    assert (select_pseudo_labels(torch.full((2, 6, 3, 5), 1 / 6), torch.zeros(6)) == 255).all()


@pytest.mark.parametrize("shape", [(1, 5, 7, 9), (3, 4, 1, 11), (2, 19, 5, 6)])
def test_selection_equals_plain_loops(shape):
    probs, running = random_probs(*shape), torch.linspace(0, 4e-3, shape[1], dtype=torch.float64)
    winner, best = probs.numpy().argmax(1), probs.numpy().max(1)
    expected = np.full(winner.shape, 255)
    for b, y, x in np.ndindex(*winner.shape):
        c = winner[b, y, x]
        threshold = best[b][winner[b] == c].max() * 0.8 * (1 - math.exp(-running[c] / 1e-3))
        if best[b, y, x] > max(threshold, 0.2):
            expected[b, y, x] = c
    assert 0 < (expected == 255).mean() < 1
    np.testing.assert_array_equal(select_pseudo_labels(probs, running).numpy(), expected)
