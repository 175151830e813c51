"""The guard: signs of harm from pass to pass, and which model is handed over in the end."""

import numpy as np
import pytest
import torch
from torch import nn

from core.adaptation.guard import Watch, changed_classes, conclude, lost_classes
from core.adaptation.looks import Looks
from core.adaptation.survey import improved

NAMES = ("road", "car", "pole")


def test_a_class_is_lost_below_a_fifth_of_its_share():
    before, now = np.array([0.6, 0.3, 0.1]), np.array([0.95, 0.029, 0.021])
    assert lost_classes(NAMES, before, now) == ["car"]  # the pole keeps 0.21 of what it had
    assert lost_classes(NAMES, np.array([0.9997, 0, 0.0003]), np.array([1.0, 0, 0])) == []  # too rare to tell


def test_a_good_run_shows_no_sign():
    watch = Watch(NAMES)
    assert watch.see([60, 30, 10], None) == []
    assert watch.see([55, 33, 12], [0.9, 0.8, 0.6]) == []
    assert watch.see([54, 33, 13], [0.95, 0.85, 0.0]) == []
    assert watch.count == 0


def test_signs_are_told_by_name():
    watch = Watch(NAMES)
    watch.see([60, 30, 10], None)
    watch.see([60, 30, 10], [0.9, 0.9, 0.9])
    lost, fewer, apart = watch.see([97, 2, 1], [0.5, 0.5, 0.5])
    assert lost.startswith("car, pole lost 80% or more")
    assert fewer.startswith("the classes grow fewer (entropy of their shares 0.90 → 0.15")
    assert apart.startswith("passes disagree more than before (consistency 0.90 → 0.50)")
    assert watch.count == 1


def test_the_first_pass_is_what_later_ones_are_compared_with_also_after_going_on():
    watch, again = Watch(NAMES), Watch(NAMES)
    watch.see([60, 30, 10], None)
    for pixels in ([70, 22, 8], [80, 15, 5]):
        watch.see(pixels, [0.9] * 3)
    again.load_state_dict(watch.state_dict())
    assert again.see([94, 5, 1], [0.9] * 3) == watch.see([94, 5, 1], [0.9] * 3) != []
    assert again.count == watch.count


def looks(shares, confidence=0.9, entropy=0.2, kept=0.9):
    shares = np.asarray(shares, float)
    pixels = 1000 * shares
    joint = np.diag(pixels * kept)
    joint[:, 0] += pixels * (1 - kept)
    joint[0, 0], joint[0, 1] = pixels[0] * kept, pixels[0] * (1 - kept)
    return Looks(np.stack([joint, joint]), joint[None], shares, confidence, entropy, ())


def test_information_decides_and_else_steadiness_together_with_confidence():
    before = looks([0.5, 0.3, 0.2])
    assert improved(before, looks([0.5, 0.3, 0.2], entropy=0.1, kept=0.8, confidence=0.8))[0]
    assert improved(before, looks([0.5, 0.3, 0.2], entropy=0.3, kept=0.95, confidence=0.95))[0]
    assert not improved(before, looks([0.5, 0.3, 0.2], entropy=0.3, kept=0.95, confidence=0.8))[0]
    assert not improved(before, looks([0.5, 0.3, 0.2], entropy=0.3, kept=0.8, confidence=0.95))[0]
    assert not improved(before, before)[0]


class Line(nn.Module):
    """A network of one weight, which says how far it has gone from 0 to 1."""

    def __init__(self):
        super().__init__()
        self.register_buffer("at", torch.zeros(()))


def concluded(seen, shifted=True):
    model, start = Line(), looks([0.5, 0.3, 0.2])
    ends = {"at": torch.zeros(())}, {"at": torch.ones(())}
    verdict = conclude(NAMES, start, start, model, *ends, lambda model: seen(float(model.at)), shifted)
    assert float(model.at) == verdict.share
    return verdict


def test_a_good_run_hands_over_three_quarters():
    verdict = concluded(lambda at: looks([0.5, 0.3, 0.2], entropy=0.2 - 0.1 * at))
    assert (verdict.share, verdict.better, verdict.harm) == (0.75, True, ())
    assert "information" in verdict.signs
    first, last = verdict.lines("x/model_adapted.pth", "model_iter000010.pth")
    assert "x/model_adapted.pth is believed to be better than the source model" in first
    assert "75% of the way from the start of the run to model_iter000010.pth" in last


@pytest.mark.parametrize(("safe", "share"), [(0.6, 0.5), (0.3, 0.25), (0.1, 0.0)])
def test_the_more_harm_the_nearer_to_the_start(safe, share):
    verdict = concluded(lambda at: looks([0.5, 0.3, 0.2] if at < safe else [0.8, 0.2, 0.0]))
    assert verdict.share == share
    assert verdict.harm[0] == "pole would be lost"
    assert any("refused" in line for line in verdict.lines("a", "b"))


def test_a_model_that_grows_unsure_and_unsteady_is_refused():
    verdict = concluded(lambda at: looks([0.5, 0.3, 0.2], entropy=0.2 + at, kept=0.9 - 0.5 * at))
    assert (verdict.share, verdict.better) == (0.0, False)
    assert "not surely better" in verdict.lines("a", "b")[0]


def test_without_a_shift_the_source_model_stays():
    verdict = concluded(lambda at: pytest.fail("nothing to look at"), shifted=False)
    assert (verdict.share, verdict.better) == (0.0, False)
    assert verdict.lines("a", "b") == [
        "verdict: the target looks like the source domain: a is the source model as it was"
    ]


def test_the_classes_that_changed_most_come_first():
    text = changed_classes(NAMES, np.array([0.5, 0.3, 0.2]), np.array([0.52, 0.38, 0.1]), 2)
    assert text == "pole 20.0 → 10.0 %, car 30.0 → 38.0 %"
