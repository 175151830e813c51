"""Scores of the dynamic teacher update and the early decision about the majority."""

import math

import numpy as np
import pytest
import torch

from core.selftraining.dynamic_teacher import entropy_score, majority_improved, snd_score


def test_snd_equals_plain_loops_on_the_chosen_rows():
    logits = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probs, points = logits.softmax(1), torch.tensor([3, 59, 0, 17, 17, 41, 8])
    rows = [probs[i].numpy() / math.sqrt(sum(v * v for v in probs[i].tolist())) for i in points]
    total = 0.0
    for a in rows:
        similarities = [math.exp(20 * sum(a * b)) for b in rows]
        shares = [s / sum(similarities) for s in similarities]
        total -= sum(s * math.log(s + 1e-5) for s in shares)
    assert float(snd_score(probs, points)) == pytest.approx(total / len(rows), rel=1e-9)


def test_snd_of_identical_rows_is_the_log_of_their_number():
    # S is uniform: -log(1/100 + 1e-5)
    probs = torch.tensor([[0.7, 0.2, 0.1]]).repeat(150, 1)
    assert float(snd_score(probs, torch.arange(100))) == pytest.approx(-math.log(0.01001), rel=1e-5)


def test_entropy_score_of_hand_values():
    # p = 1: 1; p = 0.5: 1 - 1 = 0; p = 0.25: 1 - 1 = 0; p = 0.75: 1 + 1.5 * log2(0.75) = 0.377444
    probs = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.05, 0.1, 0.1, 0.75]])
    assert [float(entropy_score(row[None])) for row in probs] == pytest.approx([1, 0, 0, 0.377444], abs=1e-6)
    assert float(entropy_score(probs)) == pytest.approx(1.377444 / 4, abs=1e-6)


def decide(stored, new):
    """The decision and the batches that were scored again, in order."""
    calls = []

    def rescore(i):
        calls.append(i)
        return new[i]

    return majority_improved(stored, rescore), calls


MAJORITIES = [
    ([1, 1, 1, 0, 0], True, 3),  # settled by the third gain of five
    ([-1, -1, -1, 1, 1], False, 3),
    ([1, -1, 1, -1, 1], True, 5),
    ([1, 1, 1, -1, -1, -1], False, 6),  # three of six are no majority
    ([1, 1, 1, 1, -1, -1], True, 4),
    ([-1, -1, -1, 1, 1, 1], False, 3),  # the other three could only reach one half
    ([0, 0, 0, 0], False, 2),  # ties are no gains
    ([1], True, 1),
    ([0], False, 1),
    ([0, 1], False, 1),
    ([], False, 0),
]


@pytest.mark.parametrize(("new", "improved", "scored"), MAJORITIES)
def test_majority_with_the_fewest_scorings_in_order(new, improved, scored):
    assert decide([0.0] * len(new), new) == (improved, list(range(scored)))


def test_the_early_decision_is_that_of_full_scoring_and_comes_with_the_first_settling_batch():
    rng = np.random.default_rng(0)
    for n in range(1, 150):
        n = n % 34
        stored, new = (rng.integers(0, 4, n).astype(float).tolist(), rng.integers(0, 5, n).astype(float).tolist())
        gains = [b > a for a, b in zip(stored, new, strict=True)]
        # settled after k scorings: the worst and the best continuation give the same answer
        k = next(k for k in range(n + 1) if (sum(gains[:k]) > n / 2) == (sum(gains[:k]) + n - k > n / 2))
        assert decide(stored, new) == (sum(gains) > n / 2, list(range(k)))
