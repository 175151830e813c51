"""Batch norm between two domains: running statistics against loops of numpy, for every kind of norm."""

import numpy as np
import pytest
import torch
from torch import nn

from core.adaptation.norm_mix import mix_statistics, movable_norms
from core.configs import cfg
from core.models import build_model
from core.models.backbone import FrozenBatchNorm, fold_frozen_norms
from tests.helpers import changed
from tests.networks import TINY


def norm_of(kind):
    """A convolution and a norm with statistics and weights of their own."""
    torch.manual_seed(0)
    norm = FrozenBatchNorm(4) if kind is FrozenBatchNorm else nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn(4))
        norm.running_var.copy_(torch.rand(4) + 0.5)
        norm.weight.copy_(torch.tensor([1.5, -0.7, 0.4, 2.0]))
        norm.bias.copy_(torch.randn(4))
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm).eval()


@pytest.mark.parametrize(
    ("kind", "folded"), [(nn.BatchNorm2d, False), (FrozenBatchNorm, False), (FrozenBatchNorm, True)]
)
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_statistics_are_those_of_both_domains_in_their_shares(kind, share, folded):
    model = norm_of(kind)
    mean, variance = model[1].running_mean.numpy().copy(), model[1].running_var.numpy().copy()
    batches = [torch.randn(2, 3, 9, 11), 3 + 2 * torch.randn(3, 3, 7, 8)]
    seen = [[] for _ in range(4)]
    with torch.no_grad():
        for batch in batches:
            for channel, values in enumerate(model[0](batch).numpy().transpose(1, 0, 2, 3)):
                seen[channel] += values.ravel().tolist()
    if folded:
        fold_frozen_norms(model)
    mix_statistics(model, [share], lambda: [model(batch) for batch in batches])
    for channel, values in enumerate(seen):
        found = float(model[1].running_mean[channel]), float(model[1].running_var[channel])
        expected = [
            (1 - share) * own + share * target
            for own, target in zip((mean[channel], variance[channel]), (np.mean(values), np.var(values)), strict=True)
        ]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("freeze", [True, False])
def test_deeper_layers_see_what_they_will_see_later(freeze):
    """With one batch and the target's statistics alone, the network repeats what it did while it looked."""
    model = build_model(changed(cfg, MODEL__NAME=TINY, MODEL__FREEZE_BN=freeze)).requires_grad_(False).eval()
    images, seen = torch.randn(2, 3, 32, 64), []
    before = model(images)
    mix_statistics(model, [1.0], lambda: seen.append(model(images)))
    assert not torch.allclose(before, seen[0], atol=1e-2)
    assert torch.allclose(model(images), seen[0], atol=1e-4)


def test_layers_may_have_shares_of_their_own():
    model = build_model(changed(cfg, MODEL__NAME=TINY)).requires_grad_(False).eval()
    norms, before = movable_norms(model), {k: v.clone() for k, v in model.state_dict().items()}
    shares = [0.5] + [0.0] * (len(norms) - 1)
    mix_statistics(model, shares, lambda: model(torch.randn(2, 3, 32, 64)))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    first = "feature_extractor.backbone.bn1"
    assert moved == {f"{first}.running_mean", f"{first}.running_var"}


def test_a_wrong_number_of_shares_is_an_error():
    with pytest.raises(ValueError, match="2 shares for 1 batch norms"):
        mix_statistics(norm_of(nn.BatchNorm2d), [0.1, 0.2], lambda: None)


def test_what_no_image_tells_of_stays():
    """No image at all, and a channel that comes out as 0 whatever goes in."""
    model = norm_of(FrozenBatchNorm)
    before = model[1].running_mean.clone()
    mix_statistics(model, [0.5], lambda: None)
    assert torch.equal(model[1].running_mean, before)
    model[1].weight[2] = 0
    model[1].running_var[3] = 0
    mix_statistics(model, [0.5], lambda: model(torch.randn(2, 3, 8, 8)))
    assert torch.equal(model[1].running_mean[2:], before[2:])
    assert not torch.isnan(model[1].running_var).any()
    assert (model[1].running_mean[:2] != before[:2]).all()


def test_nothing_is_left_on_the_model():
    model = norm_of(nn.BatchNorm2d)
    with pytest.raises(RuntimeError):
        mix_statistics(model, [0.5], lambda: model(torch.randn(1, 5, 8, 8)))
    assert not model[1]._forward_hooks


def test_a_network_without_batch_norm_has_nothing_to_mix():
    assert movable_norms(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))) == []
    assert movable_norms(nn.BatchNorm2d(3, track_running_stats=False)) == []
