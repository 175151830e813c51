"""The two losses of a step: who is counted, by what the sum is divided, and what happens in empty cases."""

import math

import numpy as np
import pytest
import torch

from core.selftraining.losses import negative_loss, positive_loss, positive_loss_sum

SHAPES = [(1, 2, 1, 3), (2, 5, 3, 7)]


def randn(*shape, seed=0):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_positive_loss_is_a_mean_over_all_pixels(shape):
    logits, labels = randn(*shape), randn(shape[0], *shape[2:], seed=1).abs().long().clamp(max=shape[1] - 1)
    labels[..., 1:3] = 255
    total = 0.0
    for b, y, x in np.ndindex(*labels.shape):
        if labels[b, y, x] != 255:
            z = logits[b, :, y, x].tolist()
            total += math.log(sum(math.exp(v) for v in z)) - z[labels[b, y, x]]
    assert positive_loss(logits, labels).item() == pytest.approx(total / labels.numel(), rel=1e-9)


def test_weights_multiply_the_pixels_of_their_class():
    # −log softmax: log 4 for either class of logits (0, log 3) and (log 3, 0) that the label says is the weaker one
    logits = torch.tensor([[0.0, math.log(3), 0.0, 0.0], [math.log(3), 0.0, 0.0, 0.0]]).view(1, 2, 1, 4)
    labels = torch.tensor([0, 1, 1, 255]).view(1, 1, 4)
    weights = torch.tensor([0.5, 3.0])
    expected = 0.5 * math.log(4) + 3 * (math.log(4) + math.log(2))
    logits.requires_grad_()
    loss = positive_loss_sum(logits, labels, weights)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()  # weight · (softmax − label); nothing where there is none
    first = [0.5 * (0.25 - 1), 3 * 0.75, 3 * 0.5, 0]
    assert logits.grad[0, 0, 0].tolist() == pytest.approx(first)
    assert logits.grad[0, 1, 0].tolist() == pytest.approx([-value for value in first])
    assert torch.equal(positive_loss_sum(logits, labels, torch.ones(2)), positive_loss_sum(logits, labels))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_negative_loss_is_half_the_mean_over_its_pairs(shape, masked):
    logits, probs = randn(*shape), randn(*shape, seed=1).softmax(1)
    valid = torch.ones(shape[0], *shape[2:], dtype=torch.bool)
    valid[..., 1:3] = not masked
    terms = [
        math.log(1 + math.exp(logits[b, c, y, x]))
        for b, c, y, x in np.ndindex(*shape)
        if probs[b, c, y, x] <= 1 / shape[1] and valid[b, y, x]
    ]
    loss = negative_loss(logits, probs, valid if masked else None)
    assert loss.item() == pytest.approx(0.5 * sum(terms) / len(terms), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 7, 11, 16, 19])
def test_every_pair_of_a_uniform_teacher_is_negative(classes):
    logits = randn(1, classes, 2, 2).float()
    loss = negative_loss(logits, torch.full((1, classes, 2, 2), 1 / classes))
    assert loss.item() == pytest.approx(0.5 * torch.log1p(logits.exp()).mean().item(), rel=1e-5)


def test_a_probability_just_above_one_over_c_is_no_negative():
    probs = torch.tensor([0.2501, 0.2499, 0.25, 0.25]).view(1, 4, 1, 1)
    loss = negative_loss(torch.tensor([50.0, 0, 0, 0]).view(1, 4, 1, 1), probs)
    # softplus(0) = log 2 three times, and no softplus(50)
    assert loss.item() == pytest.approx(0.5 * math.log(2), rel=1e-6)


NOWHERE = torch.zeros(2, 3, 3, dtype=torch.bool)
EMPTY = {
    "all ignored": lambda z: positive_loss(z, torch.full((2, 3, 3), 255)),
    "nothing valid": lambda z: negative_loss(z, torch.zeros(2, 4, 3, 3), NOWHERE),
    "no pair": lambda z: negative_loss(z, torch.full((2, 4, 3, 3), 0.9)),
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_empty_loss_is_zero_with_zero_gradient(case):
    logits = randn(2, 4, 3, 3).requires_grad_()
    loss = EMPTY[case](logits)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_negative_gradient_is_half_a_sigmoid_on_the_pairs_and_never_reaches_the_teacher():
    logits, probs = randn(1, 3, 2, 2).requires_grad_(), randn(1, 3, 2, 2, seed=1).softmax(1).requires_grad_()
    negative_loss(logits, probs).backward()
    pairs = (probs <= 1 / 3).double()
    torch.testing.assert_close(logits.grad, 0.5 * logits.detach().sigmoid() * pairs / pairs.sum())
    assert probs.grad is None or not probs.grad.any()


def test_large_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    positive = positive_loss(logits, torch.ones(1, 1, 1, dtype=torch.int64))
    negative = negative_loss(logits, torch.full((1, 2, 1, 1), 0.5))
    assert positive.item() == pytest.approx(2e4)
    assert negative.item() == pytest.approx(0.5 * (1e4 + 0) / 2)
    (positive + negative).backward()
    assert logits.grad.isfinite().all()
