"""Copy-paste (method §6): cutting instances, finding them a place, and how often a class is drawn."""

from itertools import pairwise

import numpy as np
import pytest

from core.datasets.transforms import nearest_labels
from core.selftraining.copy_paste import cut_instances, paste_instances, paste_probabilities

RIDER, BICYCLE, MOTORCYCLE = 12, 18, 17
IGNORE = 255


def coloured(labels):
    """H×W labels → an image in which every pixel's colour says its label and its place."""
    rows, columns = np.indices(labels.shape)
    return np.stack([labels, rows % 256, columns % 256], axis=-1).astype(np.uint8)


def canvas(height, width):
    return np.full((height, width), IGNORE, np.uint8)


def cut(labels, *classes):
    return cut_instances(coloured(labels), labels, classes)


def shapes(instances):
    return sorted(piece.shape for _, piece in instances)


# --- cutting


def test_pieces_apart_are_separate_instances_with_tight_boxes():
    labels = canvas(30, 40)
    labels[2:8, 3:9] = RIDER  # 6×6
    labels[15:20, 20:32] = RIDER  # 5×12
    instances = cut(labels, RIDER)
    assert shapes(instances) == [(5, 12), (6, 6)]
    for image, piece in instances:
        assert (piece == RIDER).all()
        assert image.shape == (*piece.shape, 3)
        assert (image[..., 0] == RIDER).all()
    places = sorted((int(image[0, 0, 1]), int(image[0, 0, 2])) for image, _ in instances)
    assert places == [(2, 3), (15, 20)]


def test_pixels_that_touch_at_a_corner_are_one_instance():
    labels = canvas(20, 20)
    labels[2:6, 2:6] = RIDER  # 16 pixels each: alone, both would be too small
    labels[6:10, 6:10] = RIDER
    ((image, piece),) = cut(labels, RIDER)
    assert piece.shape == (8, 8)
    assert (piece == RIDER).sum() == 32
    assert (piece[:4, 4:] == IGNORE).all()
    assert image[0, 0].tolist() == [RIDER, 2, 2]


def test_anti_diagonal_chain_of_single_pixels_is_one_instance():
    labels = canvas(30, 30)
    for i in range(25):
        labels[2 + i, 27 - i] = RIDER
    ((_, piece),) = cut(labels, RIDER)
    assert piece.shape == (25, 25)
    assert (piece == RIDER).sum() == 25


@pytest.mark.parametrize(("pixels", "expected"), [(19, 0), (20, 1), (21, 1)])
def test_instances_under_20_pixels_are_skipped(pixels, expected):
    labels = canvas(10, 30)
    labels[4, 2 : 2 + pixels] = RIDER
    assert len(cut(labels, RIDER)) == expected


def test_a_box_holds_the_labels_of_its_own_piece_only():
    labels = canvas(40, 40)
    labels[5, 5:35] = RIDER  # an L whose box reaches over the block inside it
    labels[5:35, 5] = RIDER
    labels[15:25, 15:25] = RIDER
    instances = cut(labels, RIDER)
    assert shapes(instances) == [(10, 10), (30, 30)]
    piece = next(p for _, p in instances if p.shape == (30, 30))
    assert (piece == RIDER).sum() == 59
    assert (piece[1:, 1:] == IGNORE).all()


def test_other_classes_in_the_box_are_not_cut():
    labels = canvas(20, 20)
    labels[5:15, 5:15] = 3
    labels[5:15, 5:8] = RIDER
    labels[5:8, 5:15] = RIDER
    ((_, piece),) = cut(labels, RIDER, BICYCLE)
    assert set(np.unique(piece)) == {RIDER, IGNORE}
    assert (piece[3:, 3:] == IGNORE).all()


def test_touching_partners_make_one_instance_that_keeps_both_labels():
    labels = canvas(30, 30)
    labels[5:12, 10:14] = RIDER
    labels[12:18, 8:16] = BICYCLE
    ((image, piece),) = cut(labels, RIDER, BICYCLE, MOTORCYCLE)
    assert piece.shape == (13, 8)
    assert (piece == RIDER).sum() == 28
    assert (piece == BICYCLE).sum() == 48
    shown = piece != IGNORE
    assert (image[..., 0][shown] == piece[shown]).all()


def test_cutting_leaves_its_arguments_alone():
    labels = canvas(20, 20)
    labels[2:9, 2:9] = RIDER
    image, before = coloured(labels), labels.copy()
    cut_instances(image, labels, (RIDER,))
    assert (labels == before).all()
    assert (image == coloured(before)).all()


def test_nothing_of_the_classes_gives_no_instance():
    assert cut(np.zeros((20, 20), np.uint8), RIDER) == []


@pytest.mark.parametrize("size", [(30, 40), (60, 80), (61, 97), (77, 40), (30, 81), (25, 60), (27, 38)], ids=str)
def test_labels_of_another_size_are_cut_as_if_they_had_been_resized(size):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((15, 20)) < 0.3, rng.choice([RIDER, BICYCLE, 3], (15, 20)), IGNORE).astype(np.uint8)
    labels = labels.repeat(2, 0).repeat(2, 1)
    image = coloured(canvas(*size))
    found, expected = (
        sorted(
            (image.tobytes(), piece.tobytes(), piece.shape)
            for image, piece in cut_instances(image, of, (RIDER, BICYCLE))
        )
        for of in (labels, nearest_labels(labels, size))
    )
    assert found == expected != []


# --- pasting


def block(height, width, label):
    labels = np.full((height, width), label, np.uint8)
    return coloured(labels), labels


def box_of(pasted, label):
    rows, columns = np.nonzero(pasted == label)
    return rows.min(), columns.min(), rows.max(), columns.max()


def places(instances, view_size, drawn, seed):
    """(top, left, bottom, right) of every instance, None where it was left out.

    The first k instances go to the same places whatever follows, and the last one is never covered.
    """
    boxes = []
    for k in range(1, len(instances) + 1):
        view = np.zeros((*view_size, 3), np.uint8)
        marked = [(np.full((*labels.shape, 3), i, np.uint8), labels) for i, (_, labels) in enumerate(instances[:k], 1)]
        paste_instances(view, marked, drawn, np.random.default_rng(seed))
        boxes.append(box_of(view[..., 0], k) if (view == k).any() else None)
    return boxes


def holds(box, y, x):
    return box[0] <= y <= box[2] and box[1] <= x <= box[3]


@pytest.mark.parametrize("seed", range(10))
def test_pasted_pixels_overwrite_image_and_label_and_nothing_else_changes(seed):
    labels = canvas(24, 24)
    labels[2:9, 2:6] = RIDER
    labels[9:14, 1:9] = BICYCLE
    labels[16:22, 12:23] = RIDER
    view = np.full((80, 120, 3), 77, np.uint8)
    pasted = paste_instances(view, cut(labels, RIDER, BICYCLE), RIDER, np.random.default_rng(seed))
    shown = pasted != IGNORE
    assert pasted.dtype == np.uint8
    assert pasted.shape == (80, 120)
    assert set(np.unique(pasted)) == {RIDER, BICYCLE, IGNORE}
    assert (view[~shown] == 77).all()
    assert (view[..., 0][shown] == pasted[shown]).all()  # colour encodes the class


@pytest.mark.parametrize("seed", range(8))
def test_enlargement_is_nearest_and_keeps_the_aspect(seed):
    labels = np.full((20, 30), RIDER, np.uint8)
    labels[5:9, 8:20] = IGNORE  # a hole, still one piece
    image = coloured(labels)
    view = np.full((200, 300, 3), 200, np.uint8)
    pasted = paste_instances(view, [(image, labels)], RIDER, np.random.default_rng(seed))
    top, left, bottom, right = box_of(pasted, RIDER)
    height, width = bottom - top + 1, right - left + 1
    assert 20 <= height <= 50
    assert 30 <= width <= 75
    scale = np.random.default_rng(seed).uniform(1, 2.5)
    assert abs(height - 20 * scale) <= 0.5  # one factor for both, rounded to whole pixels
    assert abs(width - 30 * scale) <= 0.5
    for y in range(height):
        for x in range(width):
            source = (int(y * 20 / height + 1e-9), int(x * 30 / width + 1e-9))
            assert pasted[top + y, left + x] == labels[source]
            if labels[source] != IGNORE:
                assert view[top + y, left + x].tolist() == image[source].tolist()
            else:
                assert view[top + y, left + x].tolist() == [200] * 3


def test_scale_is_uniform_between_1_and_2_5():
    scales = []
    for seed in range(600):
        view = np.zeros((101, 101, 3), np.uint8)
        pasted = paste_instances(view, [block(40, 40, RIDER)], RIDER, np.random.default_rng(seed))
        scales.append(round(np.sqrt((pasted == RIDER).sum())) / 40)
    assert 1 <= min(scales) < 1.05
    assert 2.45 < max(scales) <= 2.5
    counts = np.histogram(scales, bins=3, range=(1, 2.5))[0]
    assert (abs(counts - 200) < 4.5 * np.sqrt(600 * 2 / 9)).all()


def test_every_instance_draws_its_own_scale():
    ratios = set()
    for seed in range(30):
        boxes = places([block(30, 30, RIDER), block(30, 30, BICYCLE)], (400, 400), 3, seed)
        ratios.add(round((boxes[0][2] - boxes[0][0] + 1) / (boxes[1][2] - boxes[1][0] + 1), 2))
    assert len(ratios) > 15


@pytest.mark.parametrize("size", [(60, 10), (10, 80), (60, 80), (100, 100)])
def test_an_instance_as_large_as_the_view_in_one_direction_is_skipped(size):
    for seed in range(20):
        view = np.zeros((60, 80, 3), np.uint8)
        pasted = paste_instances(view, [block(*size, RIDER)], RIDER, np.random.default_rng(seed))
        assert (pasted == IGNORE).all()
        assert (view == 0).all()


def test_fit_is_judged_after_rescaling():
    """A 30×30 piece fits a 46×46 view at scales up to 45/30 (exclusive of 46/30): about a third of the draws."""
    fitted = 0
    for seed in range(300):
        view = np.zeros((46, 46, 3), np.uint8)
        pasted = paste_instances(view, [block(30, 30, RIDER)], RIDER, np.random.default_rng(seed))
        shown = (pasted == RIDER).sum()
        assert shown == 0 or 900 <= shown <= 45 * 45
        fitted += shown > 0
    share = (46 / 30 - 1) / 1.5
    assert abs(fitted - 300 * share) < 4.5 * np.sqrt(300 * share * (1 - share))


@pytest.mark.parametrize("view_size", [(5, 100), (100, 5)])
def test_an_instance_that_fills_one_direction_exactly_does_not_fit(view_size):
    """4 pixels become 5 at scales from 1.25 to 1.5: one draw in six."""
    sides = set()
    for seed in range(100):
        (box,) = places([block(4, 4, RIDER)], view_size, RIDER, seed)
        sides.add(0 if box is None else box[2] - box[0] + 1)
    assert sides == {0, 4}


def test_pastes_reach_all_borders_of_the_view():
    corners = set()
    for seed in range(300):
        view = np.zeros((14, 14, 3), np.uint8)
        pasted = paste_instances(view, [block(5, 5, RIDER)], RIDER, np.random.default_rng(seed))
        if (pasted == RIDER).any():
            top, left, bottom, right = box_of(pasted, RIDER)
            corners |= {("top", top == 0), ("left", left == 0), ("bottom", bottom == 13), ("right", right == 13)}
    assert len(corners) == 8


@pytest.mark.parametrize("seed", range(40))
def test_corners_lie_in_no_earlier_box(seed):
    """Eight blocks of labels that are not the drawn class's: no anchor attracts any of them."""
    boxes = places([block(14, 18, label) for label in range(8)], (130, 130), RIDER, seed)
    boxes = [box for box in boxes if box is not None]
    assert len(boxes) >= 4
    for k, (top, left, bottom, right) in enumerate(boxes):
        for earlier in boxes[:k]:
            assert not holds(earlier, top, left)
            assert not holds(earlier, bottom, right)


def test_other_corners_may_lie_in_an_earlier_box():
    """The rule names two corners only: overlaps at the other two do happen."""
    overlaps = 0
    for seed in range(200):
        view = np.zeros((70, 70, 3), np.uint8)
        pasted = paste_instances(view, [block(20, 20, 1), block(20, 20, 2)], RIDER, np.random.default_rng(seed))
        if (pasted == 1).any() and (pasted == 2).any():
            top, left, bottom, right = box_of(pasted, 1)
            overlaps += (pasted[top : bottom + 1, left : right + 1] == 2).any()
    assert overlaps > 10


def test_an_instance_without_a_place_is_left_out():
    """Both blocks always fit by size (19·2.5 < 50), so an absent one found no place in 100 tries."""
    absent = 0
    for seed in range(150):
        first, second = places([block(19, 19, 1), block(19, 19, 2)], (50, 50), RIDER, seed)
        assert first is not None
        if second is not None:
            assert not holds(first, *second[:2])
            assert not holds(first, *second[2:])
            continue
        absent += 1
        free = []
        for side in range(19, 48):
            starts = [(y, x) for y in range(51 - side) for x in range(51 - side)]
            ends = side - 1
            free.append(np.mean([not holds(first, y, x) and not holds(first, y + ends, x + ends) for y, x in starts]))
        assert min(free) < 0.1
    assert absent > 5


def test_a_partner_starts_inside_a_single_class_box_of_the_drawn_class():
    inside = sure = 0
    for seed in range(100):
        rider, bicycle = places([block(20, 10, RIDER), block(8, 16, BICYCLE)], (400, 400), RIDER, seed)
        inside += holds(rider, *bicycle[:2])
        if rider[2] + 20 < 400 and rider[3] + 40 < 400:  # wherever its origin lies, it fits
            assert holds(rider, *bicycle[:2])
            sure += 1
    assert sure > 50
    assert inside > 90  # by chance it would be one


def test_partner_origins_spread_over_the_anchor_box():
    found = []
    for seed in range(150):
        rider, bicycle = places([block(20, 20, RIDER), block(6, 6, BICYCLE)], (400, 400), RIDER, seed)
        if rider[2] < 385 and rider[3] < 385:
            extent = np.subtract(rider[2:], rider[:2])
            found.append(np.subtract(bicycle[:2], rider[:2]) / extent)
    assert (np.min(found, axis=0) < 0.1).all()
    assert (np.max(found, axis=0) > 0.9).all()
    assert (abs(np.mean(found, axis=0) - 0.5) < 0.1).all()


def test_a_partner_goes_to_any_of_several_anchors():
    chosen = set()
    for seed in range(40):
        *riders, bicycle = places([block(9, 9, RIDER)] * 3 + [block(6, 6, BICYCLE)], (300, 300), RIDER, seed)
        chosen |= {k for k, rider in enumerate(riders) if holds(rider, *bicycle[:2])}
    assert chosen == {0, 1, 2}


@pytest.mark.parametrize(
    ("first", "second", "drawn"),
    [
        ("mixed", BICYCLE, RIDER),  # a rider on a bicycle is no single-class box
        ("partner", BICYCLE, RIDER),  # neither is a partner
        ("rider", RIDER, RIDER),  # an instance of the drawn class itself is not drawn to the others
        ("rider", "mixed", RIDER),  # nor is one that holds a pixel of it
    ],
)
def test_only_partners_are_drawn_and_only_to_single_class_boxes(first, second, drawn):
    mixed = np.full((24, 24), RIDER, np.uint8)
    mixed[12:] = BICYCLE
    anchor = {"mixed": mixed, "partner": np.full((24, 24), 17, np.uint8), "rider": np.full((24, 24), RIDER, np.uint8)}
    follower = mixed[::2, ::2].copy() if second == "mixed" else np.full((10, 10), second, np.uint8)
    for seed in range(60):
        instances = [(coloured(labels), labels) for labels in (anchor[first], follower)]
        earlier, later = places(instances, (300, 300), drawn, seed)
        assert not holds(earlier, *later[:2])  # the corner rule keeps it out


def test_a_partner_that_fits_nowhere_in_the_anchor_goes_to_a_free_place():
    found = 0
    for seed in range(300):
        rider, bicycle = places([block(10, 10, RIDER), block(4, 41, BICYCLE)], (60, 120), RIDER, seed)
        if rider[1] < 80 or bicycle is None:
            continue  # a partner of at least 41 columns does not fit from column 80 on
        assert bicycle[1] < rider[1]
        assert not holds(rider, *bicycle[:2])
        assert not holds(rider, *bicycle[2:])
        found += 1
    assert found > 10


def test_same_generator_same_paste():
    views = [np.zeros((90, 90, 3), np.uint8) for _ in range(2)]
    instances = [block(10, 10, RIDER), block(8, 8, BICYCLE)]
    pasted = [paste_instances(view, instances, RIDER, np.random.default_rng(5)) for view in views]
    assert (pasted[0] == pasted[1]).all()
    assert (views[0] == views[1]).all()


def test_no_instance_pastes_nothing():
    view = np.full((20, 20, 3), 9, np.uint8)
    assert (paste_instances(view, [], RIDER, np.random.default_rng(0)) == IGNORE).all()
    assert (view == 9).all()


# --- how often a class is drawn


@pytest.mark.parametrize(
    ("confidence", "classes", "mode", "expected"),
    [
        # classes 1, 3, 4 lack 0.9, 0.5, 0.1 of confidence
        ([0.3, 0.1, 0.7, 0.5, 0.9], (1, 3, 4), "confidence", (0.9 / 1.5, 0.5 / 1.5, 0.1 / 1.5)),
        ([0.9, 0.1], (1, 0), "confidence", (0.9, 0.1)),  # in the order of the classes
        ([0.3, 0.1, 0.7, 0.5], (0, 1, 3), "uniform", (1 / 3,) * 3),
        ([0.2, 1.0, 1.0], (1, 2), "confidence", (0.5, 0.5)),  # none lacks any
        ([0.2, 1 + 1e-7, 1.5], (1, 2), "confidence", (0.5, 0.5)),
        ([1.0, 0.5], (0, 1), "confidence", (0, 1)),
        ([1.0000001, 0.5], (0, 1), "confidence", (0, 1)),
        ([0.1, 0.2], (), "confidence", ()),
        ([0.1, 0.2], (), "uniform", ()),
    ],
)
def test_probabilities_are_proportional_to_the_lack_of_confidence(confidence, classes, mode, expected):
    assert paste_probabilities(confidence, classes, mode) == pytest.approx(expected, rel=1e-12)


def test_many_float32_confidences_sum_closely_enough_for_numpy():
    rng = np.random.default_rng(0)
    for _ in range(200):
        confidence = rng.random(19, dtype=np.float32).tolist()
        found = paste_probabilities(confidence, tuple(range(19)), "confidence")
        rng.choice(19, p=found)  # raises where the sum is off by more than 1e-8
        assert all(a >= b for (a, _), (b, _) in pairwise(sorted(zip(found, confidence, strict=True), reverse=True)))
        assert np.argmax(found) == np.argmin(confidence)
