"""AdamW, warm-up, the head's factor and the decay of layers, against plain loops."""

import copy

import pytest
import torch
from torch import nn

from core.adaptation.choices import choose_rate
from core.configs import cfg, load_config
from core.configs.choices import Choices
from core.models import build_model
from core.models.deeplab import Segmentor
from core.runs.resume import check_length
from core.runs.solver import Solver, warm_up
from core.utils.errors import UserError
from tests.helpers import SHORT, changed
from tests.models.test_layers import Transformer as Parts
from tests.runs.runs import KINDS, assert_same_run, go_on, make_config, run_until
from train_TCR_DTU import main as adapt

ADAMW = {"SOLVER__OPTIMIZER": "AdamW", "SOLVER__BASE_LR": 1e-3, "SOLVER__WEIGHT_DECAY": 0.1}


class Transformer(Parts):
    def forward(self, x):
        """B×3×16×16 → B×4×2×2."""
        x = self.patch_embed(x).flatten(2).mT[:, :4] + self.pos_embed[:, 1:] + self.cls_token
        for block in self.blocks:
            x = x + block.proj(block.norm(x)) + block.mlp(x)
        return self.norm(x).mT.unflatten(2, (2, 2))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Segmentor(Transformer(), nn.Conv2d(4, 2, 1))


def options(**others):
    return changed(cfg, **ADAMW | others).SOLVER


def descend(solver, model, iteration, scale=1.0):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(iteration))
    solver.zero_gradients()
    loss = scale * model(images).square().mean()
    solver.backward(loss)
    return solver.step(loss, iteration)


def plain_factor(name, decay):
    """By hand, of three blocks: the head is layer 4."""
    if name.startswith("classifier"):
        return 7.0
    name = name.removeprefix("feature_extractor.")
    if name.startswith("blocks."):
        return decay ** (4 - 1 - int(name.split(".")[1]))
    return 1.0 if name.startswith("norm") else decay**4


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_steps_are_those_of_torchs_adamw_with_a_group_for_every_parameter(model, clip):
    plain = copy.deepcopy(model)
    rates = {"SOLVER__LAYER_DECAY": 0.8, "SOLVER__HEAD_FACTOR": 7.0, "SOLVER__WARMUP": 3, "SOLVER__MAX_ITER": 10}
    solver = Solver(model, options(**rates, SOLVER__MOMENTUM=0.8, SOLVER__CLIP_GRAD=clip))
    groups = []
    for name, parameter in plain.named_parameters():
        free = "norm" in name or name.split(".")[1] in ("cls_token", "pos_embed")
        factor = plain_factor(name, 0.8)
        groups.append({"params": [parameter], "factor": factor, "weight_decay": 0.0 if free else 0.1})
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.999))
    for iteration in range(5):
        assert descend(solver, model, iteration)
        images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(iteration))
        optimizer.zero_grad()
        plain(images).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        warm = [1e-6, 1e-6 + (1 - 1e-6) / 3, 1e-6 + (1 - 1e-6) * 2 / 3, 1, 1][iteration]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - iteration / 10) ** 0.9 * warm * group["factor"]
        optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7), name


def test_under_sgd_everything_decays_and_there_are_two_rates(model):
    groups = Solver(model, cfg.SOLVER).optimizer.param_groups
    assert [(g["lr_factor"], g["weight_decay"], len(g["params"])) for g in groups] == [(1, 5e-4, 30), (10, 5e-4, 2)]


def test_the_layers_of_a_resnet_by_hand():
    model = build_model(changed(cfg, MODEL__NAME="deeplab_resnet18"))
    solver = Solver(model, options(SOLVER__LAYER_DECAY=0.5))
    names = {id(p): name.removeprefix("feature_extractor.backbone.") for name, p in model.named_parameters()}
    found = {}
    for group in solver.optimizer.param_groups:
        for parameter in group["params"]:
            found.setdefault(names[id(parameter)].split(".")[0], set()).add(group["lr_factor"])
    assert found == {
        "conv1": {1 / 32}, "bn1": {1 / 32}, "layer1": {1 / 16}, "layer2": {1 / 8}, "layer3": {1 / 4}, "layer4": {1 / 2},
        "classifier": {10},
    }  # fmt: skip


def test_a_network_without_layers_is_told_how_to_declare_them():
    model = Segmentor(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(UserError, match=r"^SOLVER\.LAYER_DECAY 0\.9: no layers are found.*method layers\(\).*or set"):
        Solver(model, options(SOLVER__LAYER_DECAY=0.9))


def test_warm_up_by_hand():
    """mmcv's: 1 − (1 − i/n)(1 − 1e-6)."""
    assert [warm_up(i, 4) for i in range(6)] == pytest.approx([1e-6, 0.25000075, 0.5000005, 0.75000025, 1, 1], rel=1e-9)
    assert warm_up(0, 0) == 1
    solver = Solver(Segmentor(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), options(SOLVER__WARMUP=4, SOLVER__MAX_ITER=100))
    assert solver.learning_rate(2) == pytest.approx(1e-3 * 0.5000005 * 0.98**0.9)  # the schedule runs beneath it
    assert solver.learning_rate(50) == pytest.approx(1e-3 * 0.5**0.9)


@pytest.mark.parametrize(("warmup", "fits"), [(9, True), (10, False), (1500, False)])
def test_warm_up_ends_within_the_run(warmup, fits):
    solver = options(SOLVER__WARMUP=warmup, SOLVER__STOP_ITER=10)
    if fits:
        check_length(solver)
        return
    with pytest.raises(UserError, match=rf"^SOLVER\.WARMUP {warmup} is not below SOLVER\.STOP_ITER 10: .*smaller"):
        check_length(solver)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_speed_is_how_far_the_first_step_moves_each_part(model, amp):
    """Measured on the step itself: the decay of layers counts, and the size of the gradient does not."""
    words = {"SOLVER__AMP": amp, "SOLVER__LAYER_DECAY": 0.5, "SOLVER__WEIGHT_DECAY": 0.0, "SOLVER__BASE_LR": 1e-4}
    model.feature_extractor.blocks[0].norm.requires_grad_(False)  # some learn nothing
    start, scale = copy.deepcopy(model), 100.0
    solver = Solver(model, options(**words))
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    solver.zero_gradients()
    solver.backward(scale * model(images).square().mean())
    speed = solver.speed()
    assert descend(solver, model, 0, scale)
    expected = 0.0
    for part in ("feature_extractor", "classifier"):
        before, after = (
            nn.utils.parameters_to_vector(getattr(one, part).parameters()).detach() for one in (start, model)
        )
        expected += float((after - before).norm() / before.norm()) / 1e-4
    assert speed == pytest.approx(expected, rel=1e-2)


def test_speed_by_hand():
    """√n / |w| of each part: 2 of 2 and 2 weights with gradient; 10 × 1 of 1."""
    model = Segmentor(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1, bias=False))
    solver = Solver(model, options())
    values = [([3, 4], [6, -8]), ([12, 0], None), ([3, 4], [1e-3, 0])]
    for parameter, (weights, gradient) in zip(model.parameters(), values, strict=True):
        parameter.data.copy_(torch.tensor(weights).view_as(parameter))
        if gradient is not None:
            parameter.grad = torch.tensor(gradient).float().view_as(parameter)
    assert solver.speed() == pytest.approx(2**0.5 / 13 + 10 * 1 / 5)


@pytest.mark.parametrize(("optimizer", "rate"), [("SGD", 5.2e-6), ("AdamW", 1.5e-4)])
def test_the_rate_of_an_automatic_run_follows_from_the_speed(tmp_path, optimizer, rate):
    (tmp_path / "own.yaml").write_text(f"SOLVER: {{OPTIMIZER: {optimizer}}}", encoding="utf-8")
    choices = Choices(load_config(tmp_path / "own.yaml"))
    choose_rate(choices, 10.0)
    assert rate == choices.config.SOLVER.BASE_LR
    assert "10 of the weights" in choices.lines[0]


def test_a_bad_step_leaves_moments_and_weights(model):
    solver = Solver(model, options())
    assert descend(solver, model, 0)
    before = copy.deepcopy([solver.state_dict(), model.state_dict()])
    assert not descend(solver, model, 1, scale=float("inf"))
    state, weights = solver.state_dict(), model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in before[1].items())
    for number, moments in before[0]["state"].items():
        assert all(torch.equal(state["state"][number][key], value) for key, value in moments.items())


def test_a_state_of_a_gpu_goes_on_here(model):
    """There AdamW is one kernel (fused), and keeps its counts on the device: settings are the machine's own."""
    solver = Solver(model, options())
    descend(solver, model, 0)
    state = copy.deepcopy(solver.state_dict())
    for group in state["param_groups"]:
        group["fused"] = True
    again = Solver(copy.deepcopy(model), options())
    again.load_state_dict(state)
    assert not any(group["fused"] for group in again.optimizer.param_groups)
    assert again.optimizer.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, pictures, kind):
    words = ADAMW | {"SOLVER__WARMUP": 12, "SOLVER__STOP_ITER": 16, "TCR__UPDATE_FREQUENCY": 6}
    straight = KINDS[kind](tmp_path / "straight", pictures, make_config(**words))
    straight.run()
    run_until(KINDS[kind](tmp_path / "out", pictures, make_config(**words)), 10)
    trainer, begun = go_on(KINDS[kind], tmp_path / "out", pictures, make_config(**words))
    assert begun == 8
    assert {*trainer.solver.state_dict()["state"][0]} == {"step", "exp_avg", "exp_avg_sq"}
    assert_same_run(trainer, straight)


def test_a_program_trains_by_it_and_says_what_it_found(cityscapes_root, write_config, capsys):
    words = {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.LAYER_DECAY": 0.5, "SOLVER.WARMUP": 1, "SOLVER.MAX_ITER": 4}
    config = write_config(cityscapes_root, **SHORT | words)
    assert adapt(["-cfg", str(config), "SOLVER.WARMUP", "2"]) == 1
    assert capsys.readouterr().err.startswith("error: SOLVER.WARMUP 2 is not below SOLVER.STOP_ITER 2: ")
    assert adapt(["-cfg", str(config)]) == 0
    lines = capsys.readouterr().out
    assert "10 batch norms are held still\n" in lines
    assert "3 layers, whose rates decay towards the stem: it learns at 0.062 × SOLVER.BASE_LR\n" in lines
    assert adapt(["-cfg", str(config), "resume", "auto", "SOLVER.STOP_ITER", "3", "SOLVER.OPTIMIZER", "SGD"]) == 1
    error = capsys.readouterr().err
    assert error == (
        "error: SOLVER.OPTIMIZER is 'SGD', but the run to go on with has 'AdamW': give that, or start another run\n"
    )
