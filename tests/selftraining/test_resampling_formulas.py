"""Thresholds of the candidate passes and the class-balanced drawing of images."""

import itertools
import math

import numpy as np
import pytest

from core.selftraining.resampling import confidence_thresholds, consistency, consistency_thresholds, draw_images

# topk = 0.5, n -> rank: halves go to the even neighbour (0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 4.5 -> 4)
RANKS = {1: 0, 2: 1, 3: 2, 4: 2, 5: 2, 7: 4, 9: 4, 11: 6}
# n = 5, topk -> rank, which is at most n - 1
RANKS_OF_FIVE = {0.0: 0, 0.25: 1, 0.3: 2, 0.9: 4, 1.0: 4}
CASES = [(n, 0.5, RANKS[n]) for n in RANKS] + [(5, topk, RANKS_OF_FIVE[topk]) for topk in RANKS_OF_FIVE]


@pytest.mark.parametrize(("n", "topk", "rank"), CASES)
def test_thresholds_take_the_rounded_and_clamped_rank(n, topk, rank):
    values = np.linspace(0.1, 0.9, n).astype(np.float32)
    shuffled = np.random.default_rng(n).permutation(values)
    assert confidence_thresholds(np.zeros(n, np.int64), shuffled, 1, topk)[0] == values[rank]
    assert consistency_thresholds(shuffled[:, None].astype(float), topk)[0] == values[rank]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_confidence_thresholds_ignore_255_and_give_0_to_absent_classes(dtype):
    labels = np.array([[0, 0, 2, 255], [0, 2, 255, 255]], dtype)
    confidences = np.array([[0.5, 0.75, 0.25, 0.875], [0.625, 1.0, 1.0, 0.0]], np.float32)
    # class 0: rank 2 of 0.5, 0.625, 0.75; class 2: rank 1 of 0.25, 1
    assert list(confidence_thresholds(labels, confidences, 4, 0.5)) == [0.75, 0, 1.0, 0]


def test_confidence_thresholds_are_exact_among_confidences_next_to_one():
    rng = np.random.default_rng(0)
    confidences = 1 - rng.integers(0, 1600, 40_000).astype(np.float32) * np.float32(2**-24)
    confidences[:4000] = rng.random(4000, dtype=np.float32)
    confidences[4000:6000] = 1
    assert (confidences > 0.9999).mean() >= 0.9
    labels = rng.integers(0, 5, 40_000)
    for topk in (0.5, 0.8):
        ordered = [np.sort(confidences[labels == c]) for c in range(5)]
        expected = [values[round(len(values) * topk)] for values in ordered]
        assert list(confidence_thresholds(labels, confidences, 5, topk)) == expected
    assert list(confidence_thresholds(labels, np.ones_like(confidences), 5, 0.5)) == [1] * 5


def test_consistency_is_the_iou_of_each_class():
    # class 0: 1 of 4 pixels; class 1: 2 of 4; class 2 only in new; class 3 in neither
    hand = consistency(np.array([[0, 0, 1], [1, 1, 2]]), np.array([[0, 1, 1], [1, 0, 0]]), 4)
    assert list(hand) == pytest.approx([1 / 4, 2 / 4, 0, 0])
    new, old = np.random.default_rng(1).integers(0, 19, (2, 23, 37), dtype=np.uint8)
    pairs = list(zip(new.ravel().tolist(), old.ravel().tolist(), strict=True))
    expected = [sum(a == c == b for a, b in pairs) / sum(c in pair for pair in pairs) for c in range(19)]
    np.testing.assert_allclose(consistency(new, old, 19), expected, rtol=1e-9)


def test_consistency_thresholds_rank_the_positive_values_only():
    table = np.array([[0.0, 0.9, 0, 0.3], [0.0, 0.0, 0, 0.1], [0.4, 0.7, 0, 0.2], [0.0, 0.8, 0, 0.4]])
    # class 1: rank 2 of three; class 3: rank 2 of four
    assert list(consistency_thresholds(table, 0.5)) == [0.4, 0.9, 0, 0.3]


def test_sequences_within_a_block_have_the_probabilities_of_the_formula():
    # each class has one image (class 5 none), so the weights alone give the probability of a sequence
    presence = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=bool)
    drawn = draw_images(presence, 90_000, np.random.default_rng(0), block=3).reshape(-1, 3)
    distance = 0.0
    for sequence in itertools.product(range(2), repeat=3):
        probability, seen = 1.0, [0] * 5
        for image in sequence:
            weights = [1 / math.log(1.01 + n / max(sum(seen), 1)) for n in seen]
            probability *= sum(w for c, w in enumerate(weights) if presence[image, c]) / sum(weights)
            seen = [n + int(presence[image, c]) for c, n in enumerate(seen)]
        expected = probability * len(drawn)
        if expected > 5:  # all but image 1 three times
            distance += ((drawn == sequence).all(1).sum() - expected) ** 2 / expected
    assert distance < 29.9  # chi-square with 7 degrees of freedom: exceeded once in 10,000


def test_a_block_is_balanced_between_a_class_of_one_image_and_one_of_many():
    presence = np.zeros((100, 3), dtype=bool)  # the third class has no image
    presence[0, 0], presence[1:, 1] = True, True
    assert 200 < (np.asarray(draw_images(presence, 500, np.random.default_rng(0))) == 0).sum() < 300


def test_a_class_goes_through_all_of_its_images_before_it_repeats_one():
    for times in (1, 2):
        count = 40 * times
        drawn = draw_images(np.ones((40, 1), dtype=bool), count, np.random.default_rng(0), block=count)
        assert np.bincount(drawn).tolist() == [times] * 40
        assert list(drawn[:40]) != sorted(drawn[:40])


def test_every_image_with_a_class_is_used_and_no_other():
    presence = np.random.default_rng(3).random((60, 6)) < 0.1
    drawn = draw_images(presence, 3000, np.random.default_rng(0))
    assert sorted(set(drawn)) == np.flatnonzero(presence.any(1)).tolist()


def test_the_generator_alone_decides():
    presence = np.eye(9, 4, dtype=bool)
    first, again, other = (list(draw_images(presence, 99, np.random.default_rng(s))) for s in (5, 5, 6))
    assert first == again
    assert first != other
