"""Candidates compared on a few labelled images: against values by hand, and against plain loops."""

import math

import numpy as np
import pytest

from core.evaluation.bootstrap import ImageCounts, Z, compare, draw_weights, images_needed
from core.evaluation.metrics import confusion_matrix

UNLABELLED = 255


def counts_of(labels, predictions, num_classes):
    """Of lists of maps, by the confusion matrices that an evaluation makes."""
    maps = zip(labels, predictions, strict=True)
    matrices = [confusion_matrix(np.uint8(p), np.uint8(t), num_classes).numpy() for t, p in maps]
    return ImageCounts.of(np.stack(matrices))


def random_maps(rng, images=7, num_classes=5, missing=3):
    """Labels without the class `missing`, one image without any, and two candidates that make mistakes."""
    labels = rng.integers(0, num_classes, (images, 6, 8))
    labels[labels == missing] = UNLABELLED
    labels[2] = UNLABELLED
    wrong = [np.where(rng.random(labels.shape) < rate, rng.integers(0, num_classes, labels.shape), labels % 5)
             for rate in (0.5, 0.3)]  # fmt: skip
    return labels, wrong


def looped_mean_iou(labels, predictions, weights, classes):
    """mIoU in percent, pixel by pixel."""
    ious = []
    for c in classes:
        hits = unions = 0.0
        for label, prediction, weight in zip(labels, predictions, weights, strict=True):
            for t, p in zip(label.flat, prediction.flat, strict=True):
                if t != UNLABELLED:
                    hits += weight * (t == c and p == c)
                    unions += weight * (t == c or p == c)
        ious.append(hits / unions)
    return 100 * sum(ious) / len(ious)


def test_counts_by_hand():
    """Two images of four pixels; the last pixel is not labelled: what it is predicted as is no error."""
    counts = counts_of([[[0, 0, 1, 1]], [[1, 1, 1, 255]]], [[[0, 1, 1, 2]], [[1, 0, 1, 2]]], 3)
    assert counts.hits.tolist() == [[1, 1, 0], [0, 2, 0]]
    assert counts.unions.tolist() == [[2, 3, 1], [1, 3, 0]]
    assert counts.truths.tolist() == [[2, 2, 0], [0, 3, 0]]
    found = compare([counts], seed=0)
    assert found.classes.tolist() == [0, 1]  # class 2 is in no ground truth, though it is predicted
    assert found.iou[0] == pytest.approx([100 / 3, 100 * 3 / 6])
    assert found.mean_iou[0] == pytest.approx((100 / 3 + 50) / 2)


def test_everything_against_loops():
    labels, wrong = random_maps(np.random.default_rng(1))
    found = compare([counts_of(labels, predictions, 5) for predictions in wrong], seed=4, draws=20)
    kept = [0, 1, 3, 4, 5, 6]  # the one without labels is no image
    assert (found.images, found.classes.tolist(), found.best) == (6, [0, 1, 2, 4], 1)
    draws = draw_weights(6, 4, 20)
    drawn = [
        [looped_mean_iou(labels[kept], p[kept], weights, [0, 1, 2, 4]) for weights in [np.ones(6), *draws]]
        for p in wrong
    ]
    whole, drawn = np.array(drawn)[:, 0], np.array(drawn)[:, 1:]
    assert found.mean_iou == pytest.approx(whole)
    assert found.interval == pytest.approx(np.array([np.percentile(one, [5, 95]) for one in drawn]))
    difference = drawn[1] - drawn[0]
    assert found.behind == pytest.approx([whole[1] - whole[0], 0])
    assert found.behind_interval[0] == pytest.approx(np.percentile(difference, [5, 95]))
    error = math.sqrt(sum((one - difference.mean()) ** 2 for one in difference) / 19)
    assert found.behind_error == pytest.approx([error, 0])
    needed = math.ceil(6 * (1.6449 * error / (whole[1] - whole[0])) ** 2)
    assert found.images_needed(0) == max(6, needed)


def test_a_class_of_one_image_is_in_every_draw():
    """Images drawn with replacement would lack it in every third draw."""
    labels = np.zeros((10, 1, 4), int)
    labels[0] = 1
    found = compare([counts_of(labels, labels, 2)], seed=0)
    assert found.mean_iou.tolist() == [100]
    assert found.interval[0] == pytest.approx([100, 100])


def test_draws_are_of_the_seed_positive_and_as_wide_as_students_t():
    weights = draw_weights(12, 3, 40_000)
    assert (weights > 0).all()
    assert weights.sum(axis=1) == pytest.approx(np.ones(40_000))
    values = np.arange(12.0) ** 2
    assert (weights @ values).std() == pytest.approx(values.std(ddof=3) / math.sqrt(12), rel=0.02)
    assert (draw_weights(12, 3) == draw_weights(12, 3)).all()
    assert (draw_weights(12, 3) != draw_weights(12, 4)).all()


def test_identical_candidates_differ_by_nothing_and_the_first_is_the_best():
    labels, (predictions, _) = random_maps(np.random.default_rng(2))
    found = compare([counts_of(labels, predictions, 5) for _ in range(3)], seed=0)
    assert found.best == 0
    assert found.behind_interval.tolist() == [[0, 0]] * 3
    assert found.behind_error.tolist() == [0, 0, 0]
    assert not any(map(found.told_apart, range(3)))
    assert found.images_needed(1) is None


def test_one_image_gives_scores_and_no_interval():
    labels, wrong = random_maps(np.random.default_rng(3))
    found = compare([counts_of(labels[:1], predictions[:1], 5) for predictions in wrong], seed=0)
    assert found.behind[0] > 0
    assert np.isnan([*found.interval.flat, *found.behind_interval.flat, *found.behind_error]).all()
    assert not found.told_apart(0)
    assert found.images_needed(0) is None


def test_a_candidate_that_is_better_on_every_image_is_told_apart_and_one_that_is_so_on_half_is_not():
    labels = np.zeros((10, 1, 100), int)
    labels[:, :, 50:] = 1
    worse, mixed = labels.copy(), labels.copy()
    worse[:, :, 40:50] = 1
    mixed[::2, :, 40:50] = 1
    good = labels.copy()
    good[1::2, :, 45:50] = 1  # by 0.25 wrong pixels an image less than `mixed`
    found = compare([counts_of(labels, p, 2) for p in (worse, mixed, good)], seed=0)
    assert found.best == 2
    assert [found.told_apart(place) for place in range(3)] == [True, False, False]
    low, high = found.behind_interval[1]
    assert low < 0 < found.behind[1] < high
    assert found.images_needed(0) == 10
    expected = 10 * (Z * found.behind_error[1] / found.behind[1]) ** 2
    assert found.images_needed(1) == math.ceil(expected) > 10


@pytest.mark.parametrize(
    ("images", "difference", "error", "needed"),
    [(20, 1.0, 1.0, 55), (20, 1.0, 0.1, 20), (20, 0.0, 0.1, None), (1, 1.0, math.nan, None), (20, 0.5, 0.0, 20)],
)
def test_images_needed(images, difference, error, needed):
    """20·1.645² is 54.1."""
    assert images_needed(images, difference, error) == needed


def test_no_label_at_all_is_refused():
    nothing = np.full((2, 1, 4), UNLABELLED)
    with pytest.raises(ValueError, match="no labelled pixel"):
        compare([counts_of(nothing, np.zeros((2, 1, 4), int), 3)], seed=0)


PRESENCE = np.array([1, 1, 1, 1, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15])  # share of the images that have each class
PIXELS = 1e5 * np.array([0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.03, 0.02, 0.01, 0.005, 0.005])


def simulated(images, rng):
    """Counts of two models on images that are hard or easy for both; the second is a little better in the mean."""
    size = images, len(PIXELS)
    truths = ((rng.random(size) < PRESENCE) * PIXELS * rng.gamma(2, 0.5, size)).astype(int)
    ease, shared = rng.normal(0, 0.5, (images, 1)), rng.normal(0, 0.7, size)
    found = []
    for lead in (0.0, 0.15):
        right = 1 / (1 + np.exp(-(1 + lead + ease + shared + rng.normal(0, 0.3, size))))
        hits = (truths * right).astype(int)
        wrong = (0.15 * PIXELS * rng.gamma(1, 1, size) * np.exp(-ease)).astype(int)
        found.append(ImageCounts(hits, truths + wrong, truths))
    return found


@pytest.mark.long
@pytest.mark.parametrize("images", [10, 20, 30])
def test_intervals_hold_the_truth_nearly_as_often_as_they_say(images):
    """The figures of docs/evaluation.md, but for the draws: of two fixed models, so without the choice among many."""
    rng = np.random.default_rng(images)
    true = [100 * one.hits.sum(axis=0) / one.unions.sum(axis=0) for one in simulated(200_000, rng)]
    held = []
    for seed in range(300):
        found = compare(simulated(images, rng), seed, draws=600)
        (first, second), worse = (float(iou[found.classes].mean()) for iou in true), 1 - found.best
        behind = (second - first) * (1 if found.best == 1 else -1)
        intervals = (found.behind_interval[worse], behind), (found.interval[1], second)
        held.append([low <= value <= high for (low, high), value in intervals])
    difference, score = np.mean(held, axis=0)
    print(f"{images} images: {100 * difference:.0f} % of the differences, {100 * score:.0f} % of the scores")
    assert 0.82 < difference < 0.95
    assert 0.74 < score < 0.95
