"""The poly schedule, and steps with a bounded gradient."""

import copy

import pytest
import torch
from torch import nn

from core.configs import cfg
from core.models.deeplab import Segmentor
from core.runs.solver import Solver, poly_lr


def test_poly_lr_of_hand_values():
    # 0.5^0.9 = 0.535887; 0.75^0.9 = 0.771890
    rates = [poly_lr(i, 0.1, 100) for i in (0, 25, 50, 100)]
    assert rates == pytest.approx([0.1, 0.0771890, 0.0535887, 0], rel=1e-5)
    assert poly_lr(25, 8.0, 100, power=2) == pytest.approx(8 * 0.5625)


def test_the_rate_stays_0_beyond_max_iter():
    assert poly_lr(101, 0.1, 100) == 0


def descend(solver, loss):
    """One whole step of iteration 0."""
    solver.zero_gradients()
    solver.backward(loss, torch.ones_like(loss))
    return solver.step(loss, 0)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_speed_is_gradient_by_weights_of_each_group_at_its_rate(amp):
    model = Segmentor(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    options = cfg.SOLVER.clone()
    options.AMP = amp
    solver = Solver(model, options)
    assert solver.loss_scale == (2.0**16 if amp == "fp16" else 1)
    # norms: backbone 13 of weights, 26 of gradients; classifier 5, and 1 (its bias has none)
    values = [([3, 4], [6, 8]), ([12, 0], [0, 24]), ([3, 0], [0.6, 0.8]), ([4], None)]
    for parameter, (weights, gradient) in zip(model.parameters(), values, strict=True):
        parameter.data.copy_(torch.tensor(weights).view_as(parameter))
        if gradient is not None:
            parameter.grad = solver.loss_scale * torch.tensor(gradient).float().view_as(parameter)
    before = [p.grad.clone() for p in list(model.parameters())[:3]]
    assert solver.speed() == pytest.approx(26 / 13 + 10 * 1 / 5)
    assert all(torch.equal(p.grad, old) for p, old in zip(model.parameters(), before, strict=False))


# --- CLIP_GRAD -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Segmentor(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))


def moves_of(model, clip, scale=1.0, groups=2):
    """By how much one step of rate 1 (and 10), without momentum and decay, moves the parameters: (−gradient, norm).

    The classifier's tenfold rate is taken out. `scale` multiplies the loss; of one group (0 of 2) only the first
    part has a gradient.
    """
    model, options = copy.deepcopy(model), cfg.SOLVER.clone()
    options.BASE_LR, options.MOMENTUM, options.WEIGHT_DECAY, options.CLIP_GRAD = 1.0, 0.0, 0.0, clip
    start = [p.detach().clone() for p in model.parameters()]
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    outputs = model(images) if groups == 2 else model.feature_extractor(images)
    descend(Solver(model, options), scale * outputs.square().mean())
    factors = (1, 1, 10, 10)
    moved = [(p.detach() - old) / factor for p, old, factor in zip(model.parameters(), start, factors, strict=True)]
    return torch.cat([part.flatten() for part in moved])


def test_the_bound_is_of_the_norm_over_all_parameters_and_keeps_the_direction(model):
    free = moves_of(model, 0.0)
    norm = free.norm().item()
    assert norm > 0.1
    bound = norm / 3
    clipped = moves_of(model, bound)
    assert clipped.norm().item() == pytest.approx(bound, rel=1e-3)
    assert torch.allclose(clipped, free / 3, rtol=1e-3, atol=1e-5)
    backbone = sum(p.numel() for p in model.feature_extractor.parameters())
    assert free[:backbone].norm() < bound * 3  # neither part alone has this norm
    assert clipped[:backbone].norm().item() == pytest.approx(free[:backbone].norm().item() / 3, rel=1e-3)


def test_however_large_the_gradient_the_bound_holds(model):
    assert moves_of(model, 0.5, scale=1e4).norm().item() == pytest.approx(0.5, rel=1e-3)


def test_below_the_bound_nothing_changes(model):
    free = moves_of(model, 0.0)
    assert torch.equal(moves_of(model, free.norm().item() * 1.01), free)


def test_0_is_no_bound(model):
    assert torch.allclose(moves_of(model, 0.0, scale=1e4), 1e4 * moves_of(model, 0.0), rtol=1e-2)
    assert cfg.SOLVER.CLIP_GRAD == 0


def test_parameters_without_a_gradient_do_not_matter(model):
    moved = moves_of(model, 0.01, groups=1)
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_momentum_and_decay_come_after_the_bound(model):
    """They are added to the bounded gradient: with both, the move of a first step is −(g/3 + decay · p)."""
    free = moves_of(model, 0.0)
    options = cfg.SOLVER.clone()
    options.BASE_LR, options.WEIGHT_DECAY, options.CLIP_GRAD = 1.0, 0.5, free.norm().item() / 3
    start = torch.cat([p.detach().flatten() for p in model.feature_extractor.parameters()])
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    descend(Solver(model, options), model(images).square().mean())
    end = torch.cat([p.detach().flatten() for p in model.feature_extractor.parameters()])
    expected = start + free[: len(start)] / 3 - 0.5 * start
    assert torch.allclose(end, expected, rtol=1e-3, atol=1e-4)


# --- fp16 ------------------------------------------------------------------------------------------------------------


def half_solver(model):
    options = cfg.SOLVER.clone()
    options.AMP, options.BASE_LR, options.WEIGHT_DECAY, options.MOMENTUM = "fp16", 0.1, 0.0, 0.0
    return Solver(model, options)


def test_the_scale_of_the_loss_does_not_show_in_a_step(model):
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(model)
    options = cfg.SOLVER.clone()
    options.BASE_LR, options.WEIGHT_DECAY, options.MOMENTUM = 0.1, 0.0, 0.0
    solver = half_solver(model)
    assert solver.loss_scale == 2.0**16
    assert descend(solver, model(images).square().mean())
    assert descend(Solver(plain, options), plain(images).square().mean())
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_gradient_that_does_not_fit_halves_the_scale_and_moves_nothing(model):
    solver, before = half_solver(model), [p.clone() for p in model.parameters()]
    largest = 2.0**14
    model.classifier.weight.register_hook(lambda g: g * float("inf") if solver.loss_scale > largest else g)
    images = torch.ones(1, 3, 3, 3)
    for scale in (2.0**15, 2.0**14):
        assert not descend(solver, model(images).square().mean())
        assert solver.overflowed
        assert solver.loss_scale == scale
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    state = solver.state_dict()
    again = half_solver(model)
    again.load_state_dict(state)
    assert again.loss_scale == 2.0**14
    assert descend(again, model(images).square().mean())
    assert not again.overflowed


def test_a_loss_that_is_not_finite_is_not_an_overflow(model):
    solver = half_solver(model)
    outputs = model(torch.ones(1, 3, 3, 3)).sum()
    assert not descend(solver, float("nan") * outputs)
    assert not solver.overflowed


def test_a_gradient_too_large_for_single_precision_is_not_one_either(model):
    """Its norm is not finite; no scale would help."""
    solver = half_solver(model)
    assert not descend(solver, 1e30 * model(torch.ones(1, 3, 3, 3)).sum())
    assert not solver.overflowed
