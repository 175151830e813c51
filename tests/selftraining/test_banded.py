"""The banded computations of a step against the straightforward ones, which hold every map whole."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from core.models import bands
from core.models.bands import BandedMap, resize_rows
from core.models.deeplab import resize_logits
from core.selftraining.banded import loss_sums, probability_sum, view_predictions
from core.selftraining.losses import negative_loss_sum, negative_pairs, positive_loss_sum
from core.selftraining.views import View, warp_to_view

CLASSES, SIZE, FULL = 5, (6, 9), (43, 70)
VIEWS = (
    View((43, 70), (0, 0), (24, 40), False),
    View((55, 90), (13, 41), (24, 40), True),
    View((20, 33), (-4, -7), (24, 40), False),  # the whole image in a padded view
    View((20, 90), (-3, 12), (24, 40), True),
    View((1, 1), (-2, -3), (24, 40), False),
)


@pytest.fixture(autouse=True, params=[1, 3000, 1 << 30], ids=["row by row", "some rows", "whole"])
def band(request, monkeypatch):
    monkeypatch.setattr(bands, "band_bytes", lambda device: request.param)


def random_logits(count=5, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, 3, (count, CLASSES, *SIZE))).to(dtype)


@pytest.mark.parametrize(("length", "resized"), [(6, 43), (43, 6), (1, 5), (5, 1), (7, 7), (2, 2), (1, 1)])
def test_resize_weights_are_those_of_align_corners(length, resized):
    """Against a plain loop: row i reads position i·(length − 1)/(resized − 1)."""
    expected = np.zeros((resized, length))
    for row in range(resized):
        position = row * (length - 1) / (resized - 1) if resized > 1 else 0
        for column in range(length):
            expected[row, column] = max(0, 1 - abs(position - column))
    assert resize_rows(np.eye(length), resized) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_are_those_that_are_warped(dtype):
    logits = random_logits(dtype=dtype)
    expected = warp_to_view(resize_logits(logits, FULL), VIEWS)
    for image, view in enumerate(VIEWS):
        parts = [values.permute(1, 0, 2) for _, values in BandedMap(logits[image], *view.matrices(SIZE, FULL))]
        assert torch.cat(parts, 1).dtype == dtype
        assert torch.allclose(torch.cat(parts, 1), expected[image], atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_probability_sums():
    logits = random_logits()
    expected = resize_logits(logits, FULL).softmax(1).sum((0, 2, 3))
    assert torch.allclose(probability_sum(logits, FULL), expected, rtol=1e-12)


def test_predictions_in_the_views():
    logits = random_logits()
    confidence, label, unlikely = view_predictions(logits, FULL, VIEWS)
    probs = warp_to_view(resize_logits(logits, FULL), VIEWS).softmax(1)
    assert confidence.shape == label.shape == (len(VIEWS), 24, 40)
    assert torch.allclose(confidence, probs.amax(1), rtol=1e-12)
    inside = torch.stack([view.valid() for view in VIEWS])
    assert torch.equal(label[inside], probs.argmax(1)[inside])
    assert torch.equal(unlikely & inside.unsqueeze(1), negative_pairs(probs, inside))
    assert confidence[~inside].numpy() == pytest.approx(1 / CLASSES)


@pytest.mark.parametrize("case", ["mixed", "all ignored", "no pair", "one image"])
def test_losses_and_their_gradients(case):
    rng = np.random.default_rng(1)
    count = 1 if case == "one image" else 3
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, 4, 255], (count, 24, 40)))
    pairs = torch.from_numpy(rng.random((count, CLASSES, 24, 40)) < 0.6)
    if case == "all ignored":
        labels.fill_(255)
    if case == "no pair":
        pairs.fill_(False)
    logits = 10 * random_logits(count)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = loss_sums(ours, labels, pairs)
    large = resize_logits(plain, labels.shape[1:])
    expected = positive_loss_sum(large, labels), negative_loss_sum(large, pairs)
    for value, wanted in zip(found, expected, strict=True):
        assert value.item() == pytest.approx(wanted.item(), rel=1e-10)
    (found[0] / 7 + found[1] / 11).backward()
    (expected[0] / 7 + expected[1] / 11).backward()
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-7, atol=1e-8)  # beyond 20, torch takes softplus for linear


def test_float32_losses_agree_to_single_precision():
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.choice([0, 4, 255], (2, 24, 40)))
    pairs = torch.from_numpy(rng.random((2, CLASSES, 24, 40)) < 0.6)
    logits = random_logits(2)
    ours, exact = logits.float().requires_grad_(), logits.clone().requires_grad_()
    large = F.interpolate(exact, (24, 40), mode="bilinear", align_corners=True)
    sum(loss_sums(ours, labels, pairs)).backward()
    (positive_loss_sum(large, labels) + negative_loss_sum(large, pairs)).backward()
    assert torch.allclose(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)


class LargestFloats(TorchDispatchMode):
    """Notes the most elements of any floating-point tensor that comes out of an operation."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("straightforward", [False, True])
def test_no_map_of_all_classes_is_ever_held_at_full_size(monkeypatch, straightforward):
    monkeypatch.setattr(bands, "band_bytes", lambda device: 1 << 14)
    full, view = (256, 512), View((250, 500), (3, 60), (200, 400), True)
    logits = torch.randn(1, CLASSES, 32, 64).requires_grad_()
    with LargestFloats() as largest:
        if straightforward:
            probs = warp_to_view(resize_logits(logits.detach(), full), [view]).softmax(1)
            positive_loss_sum(resize_logits(logits, view.crop_size), probs.argmax(1)).backward()
        else:
            probability_sum(logits.detach(), full)
            _, label, pairs = view_predictions(logits.detach(), full, [view])
            sum(loss_sums(logits, label, pairs)).backward()
    assert (largest.elements >= CLASSES * 200 * 400) == straightforward
    assert straightforward or largest.elements <= CLASSES * 32 * 512  # resized in width alone
