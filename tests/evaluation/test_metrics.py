"""Confusion matrix and IoU."""

import numpy as np
import pytest
import torch

from core.evaluation import metrics
from core.evaluation.metrics import confusion_matrix, iou, joint_counts, mean_iou_in_label, value_counts


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_a_hand_example_with_labels_in_rows_and_an_absent_class(make):
    label, pred = make([[0, 0, 1], [1, 255, 2]]), make([[0, 1, 1], [1, 2, 0]])
    confusion = confusion_matrix(pred, label, 4)
    assert str(confusion.dtype).endswith("int64")
    assert np.asarray(confusion).tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    # class 0: 1 / (1 + 1 + 1); class 1: 2 / (2 + 1); class 2: 0 / 1; class 3: 0 / 0
    assert np.asarray(iou(confusion)).tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0], abs=1e-6)


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_byte_maps_of_19_classes_do_not_overflow(to):
    pred, label = np.random.default_rng(0).integers(0, 19, (2, 2, 17, 13), dtype=np.uint8)
    label[0, :3] = 255
    expected = np.zeros((20, 19), dtype=int)
    for row, column in zip(label.ravel().tolist(), pred.ravel().tolist(), strict=True):
        expected[min(row, 19), column] += 1
    np.testing.assert_array_equal(np.asarray(confusion_matrix(to(pred), to(label), 19)), expected[:19])


@pytest.mark.parametrize("ignore", [255, 7])
def test_only_ignored_pixels_count_nothing(ignore):
    confusion = confusion_matrix(np.zeros((2, 2), int), np.full((2, 2), ignore), 3, ignore=ignore)
    assert np.asarray(confusion).tolist() == [[0] * 3] * 3
    assert np.asarray(iou(confusion)).tolist() == [0, 0, 0]


def test_byte_maps_are_counted_as_any_others(monkeypatch):
    """In parts, as where a part has more pixels than single precision counts."""
    pred, label = np.random.default_rng(0).integers(0, 7, (2, 23, 31), dtype=np.uint8)
    label[3:9] = 255
    expected = confusion_matrix(pred.astype(int), label.astype(int), 7)
    for pixels in (1, 100, 1 << 24):
        monkeypatch.setattr(metrics, "_EXACT", pixels)
        assert torch.equal(confusion_matrix(pred, label, 7), expected)
        assert value_counts(label)[:7].tolist() == [(label == c).sum() for c in range(7)]
        assert joint_counts(label, pred)[255, 2] == ((label == 255) & (pred == 2)).sum()
    assert not confusion_matrix(pred[:0], label[:0], 7).any()


@pytest.mark.parametrize("kind", [np.uint8, int])
def test_values_beyond_the_classes_are_named(kind):
    pred, label = np.zeros((2, 4, 5), kind)
    label[1, 2] = 9
    with pytest.raises(ValueError, match="label value 9 is not one of the 7 classes"):
        confusion_matrix(pred, label, 7)
    label[1, 2], pred[1, 2], pred[2, 2], label[2, 2] = 0, 8, 99, 255  # the last does not count
    with pytest.raises(ValueError, match="prediction value 8 is not one of the 7 classes"):
        confusion_matrix(pred, label, 7)


def test_the_mean_of_one_image_is_of_the_classes_in_its_label():
    confusion = torch.tensor([[6, 2, 0], [0, 0, 0], [0, 0, 4]])  # the second class is predicted, and not there
    assert mean_iou_in_label(confusion) == pytest.approx(100 * (6 / 8 + 1) / 2)
    assert np.isnan(mean_iou_in_label(torch.zeros(3, 3)))
