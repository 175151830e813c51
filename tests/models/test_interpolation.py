"""Weights on the line between two networks."""

import numpy as np
import pytest
import torch
from torch import nn

from core.models import build_model
from core.models.interpolation import interpolate, interpolated
from tests.conftest import tiny_options


def bits(tensor):
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def network(seed, **options):
    """The tiny network, or a ResNet-18 with frozen batch norm that is not the identity."""
    torch.manual_seed(seed)
    model = build_model(tiny_options(**options))
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + (0.5 if name.endswith("var") else 0))
        else:
            buffer.fill_(seed)
    return model


@pytest.fixture(params=[True, False], ids=["frozen", "batch norm"])
def two(request):
    """Two ResNet-18s; one kind has counters."""
    return [network(seed, NAME="deeplab_resnet18", FREEZE_BN=request.param) for seed in (1, 2)]


def test_the_ends_are_the_two_networks_bit_for_bit(two):
    first, second = (model.state_dict() for model in two)
    for share, wanted in ((0, first), (1, second)):
        found = interpolated(first, second, share)
        assert list(found) == list(second)
        for key, value in found.items():
            of = wanted if value.is_floating_point() else second
            assert bits(value) == bits(of[key]), key
            assert value.data_ptr() not in (first[key].data_ptr(), second[key].data_ptr())


def test_between_parameters_and_buffers_are_mixed_and_counters_are_those_of_the_second(two):
    first, second = (model.state_dict() for model in two)
    found = interpolated(first, second, 0.25)
    buffers = [key for key in found if key.endswith(("running_mean", "running_var"))]
    assert len(buffers) == 40
    counters = [key for key in found if not found[key].is_floating_point()]
    assert len(counters) in (0, 20)
    for key, value in found.items():
        a, b = (state[key].double().numpy() for state in (first, second))
        expected = b if key in counters else 0.75 * a + 0.25 * b
        assert value.dtype == second[key].dtype
        assert np.allclose(value.numpy(), expected, rtol=1e-6, atol=1e-9)
        if key in buffers:
            assert (value.numpy() != b).any()


def test_what_both_have_stays_bit_for_bit():
    state = {"weight": torch.randn(1000, generator=torch.Generator().manual_seed(0)), "count": torch.tensor(7)}
    for share in (0.1, 0.25, 0.3, 0.5, 0.75, 0.9):
        found = interpolated(state, state, share)
        assert bits(found["weight"]) == bits(state["weight"])
        assert found["count"].item() == 7


def test_half_precision_is_mixed_in_double_and_not_a_number_stays_in_the_end_it_is_in():
    found = interpolated({"w": torch.tensor([1.0, 3.0]).half()}, {"w": torch.tensor([2.0, 4.0])}, 0.5)
    assert found["w"].dtype == torch.float32
    assert found["w"].tolist() == [1.5, 3.5]
    ends = {"w": torch.tensor([float("inf")])}, {"w": torch.tensor([1.0])}
    assert interpolated(*ends, 1)["w"].tolist() == [1.0]
    assert interpolated(*ends, 0)["w"].tolist() == [float("inf")]


def test_a_network_takes_it_and_the_folded_norms_follow(two):
    first, second = two
    states = [{key: value.clone() for key, value in model.state_dict().items()} for model in two]
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for model in two:
        model.eval()
    with torch.no_grad():
        outputs = [model(image) for model in two]
        interpolate(first, *states, 1)
        assert first(image).equal(outputs[1])
        interpolate(first, *states, 0)
        assert first(image).equal(outputs[0])
        interpolate(first, *states, 0.5)
        assert not np.allclose(first(image), outputs[0])
    assert second.state_dict()["classifier.conv2d_list.0.bias"].equal(states[1]["classifier.conv2d_list.0.bias"])


def test_two_that_do_not_belong_together_are_refused():
    small, large = nn.Linear(2, 2).state_dict(), nn.Linear(3, 2).state_dict()
    for first, second, share, message in (
        (small, large, 0.5, "weight is"),
        (small, {"weight": small["weight"]}, 0.5, "names of one only: bias"),
        (small, small, 1.5, "not in 0"),
        (small, small, float("nan"), "not in 0"),
    ):
        with pytest.raises(ValueError, match=message):
            interpolated(first, second, share)
