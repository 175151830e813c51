"""Frozen batch norm in the convolution before it: made anew when something has changed, and only then."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.models.backbone import FoldedConv2d, FrozenBatchNorm, fold_frozen_norms
from core.selftraining.dynamic_teacher import ema_update


def network(seed):
    """A convolution and a frozen batch norm, one channel of which has no variance."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), FrozenBatchNorm(4))
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(model[1], name).copy_(torch.rand(4) + 0.5)
    model[1].running_var[2] = 0
    fold_frozen_norms(model)
    assert isinstance(model[0], FoldedConv2d)
    return model


def expected(model, x):
    """The convolution and then the map, from the state as it is."""
    state = model.state_dict()
    weight, bias, mean, var = (
        state[f"1.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    y = F.conv2d(x.double(), state["0.weight"].double())
    scale = torch.where(var > 0, weight / var.clamp(min=1e-30).sqrt(), 0)
    shift = torch.where(var > 0, bias - mean * scale, bias)
    return y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)


def changed_in_place(model):
    model[1].running_var.mul_(2)


def loaded(model):
    model.load_state_dict(network(7).state_dict())


def moved_by_ema(model):
    ema_update(model, network(8), 0.5)


def replaced(model):
    model[1].running_mean = torch.rand(4)


def in_double(model):
    model.double()


@pytest.mark.parametrize("change", [changed_in_place, loaded, moved_by_ema, replaced, in_double])
def test_every_change_is_seen(change):
    model, x = network(0), torch.randn(2, 3, 6, 7)
    assert torch.allclose(model(x).double(), expected(model, x), atol=1e-5)
    before = expected(model, x)
    change(model)
    x = x.to(model[0].weight.dtype)
    assert torch.allclose(model(x).double(), expected(model, x), atol=1e-5)
    assert change is in_double or not torch.allclose(expected(model, x), before, atol=1e-3)


def test_the_map_is_made_once_for_many_forwards():
    model = network(0)
    first = model[1].scale_and_shift()
    model(torch.randn(2, 3, 6, 7))
    assert all(a is b for a, b in zip(first, model[1].scale_and_shift(), strict=True))


def test_a_copy_has_a_map_of_its_own():
    model = network(0)
    x = torch.randn(2, 3, 6, 7)
    model(x)
    other = copy.deepcopy(model)
    other[1].bias.add_(1)
    assert torch.allclose(other(x).double(), expected(other, x), atol=1e-5)
    assert torch.allclose(model(x).double(), expected(model, x), atol=1e-5)


def test_a_training_step_may_follow_an_evaluation():
    """What is made in inference mode could not be kept for a gradient."""
    model, x = network(0), torch.randn(2, 3, 6, 7)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    scale = model[1].scale_and_shift()[0]
    plain = torch.autograd.grad(F.conv2d(x, model[0].weight).sum((0, 2, 3)) @ scale, model[0].weight)[0]
    assert torch.allclose(model[0].weight.grad, plain, rtol=1e-4, atol=1e-5)


def test_whole_weights_that_learn_nothing_are_kept_until_they_change():
    """As on a GPU; here asked for directly."""
    conv = network(0).requires_grad_(False)[0]
    whole = conv._folded_once(torch.bfloat16)
    assert [tensor.dtype for tensor in whole] == [torch.bfloat16] * 2
    assert torch.equal(whole[0], conv._folded()[0].bfloat16())
    assert conv._folded_once(torch.bfloat16)[0] is whole[0]
    assert conv._folded_once(torch.float32)[0].dtype == torch.float32
    torch._foreach_lerp_([conv.weight], [torch.ones_like(conv.weight)], 0.5)
    assert torch.equal(conv._folded_once(torch.bfloat16)[0], conv._folded()[0].bfloat16())
    conv._norm[0].running_var.add_(1)
    assert torch.equal(conv._folded_once(torch.bfloat16)[0], conv._folded()[0].bfloat16())


def test_a_network_made_in_inference_mode_works():
    """Its tensors do not tell when they change: the map is then made anew every time."""
    with torch.inference_mode():
        model = copy.deepcopy(network(0))
    x = torch.randn(2, 3, 6, 7)
    with torch.inference_mode():
        assert torch.allclose(model(x).double(), expected(model, x), atol=1e-5)


def test_what_is_remembered_is_no_part_of_a_pickle():
    model, x = network(0), torch.randn(2, 3, 6, 7)
    before = len(pickle.dumps(model))
    model(x)
    assert len(pickle.dumps(model)) == before
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
