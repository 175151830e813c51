"""A loss or gradient that is not finite leaves everything as it was."""

import copy

import pytest
import torch

from core.runs.states import StateFolder
from core.selftraining.trainer import Trainer
from core.utils.errors import UserError
from tests.runs.runs import KINDS, make_config, weights_of


def spoil(trainer, iterations, what):
    """Make the loss, the gradient of one parameter, or what flows through the network not finite in some iterations."""
    network = trainer.student if isinstance(trainer, Trainer) else trainer.model

    def bad():
        return trainer.iteration in iterations

    def on_gradient(gradient):
        return gradient * float("inf") if bad() else gradient

    def on_output(module, inputs, output):
        return output * float("nan") if bad() and module.training else output

    if what == "gradient":
        network.classifier.bias.register_hook(on_gradient)
    else:
        network.feature_extractor[0].register_forward_hook(on_output)


def touched(trainer):
    """What a bad step must leave alone."""
    held = [trainer.bad_steps, copy.deepcopy(weights_of(trainer))]
    if isinstance(trainer, Trainer):
        held += [trainer.running_conf.clone(), len(trainer.dynamic_teacher.state_dict()["buffer"])]
    return held


def assert_untouched(before, after):
    assert before[0] == after[0]
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    if len(before) > 2:
        assert torch.equal(before[2], after[2])
        assert before[3] == after[3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["gradient", "activations"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(tmp_path, pictures, kind, what):
    trainer = KINDS[kind](tmp_path / "out", pictures, make_config())
    spoil(trainer, {9}, what)
    step, seen = trainer.train_step, []

    def watched(batch):
        if trainer.iteration == 9:
            seen.extend([batch.names, touched(trainer)])
        return step(batch)

    trainer.train_step = watched
    with pytest.raises(UserError) as raised:
        trainer.run()
    assert_untouched(seen[1], touched(trainer))
    message = str(raised.value)
    rate = 0.01 * (1 - 9 / 50) ** 0.9
    parts = ["iteration 10: ", "not finite", f"learning rate {rate:.3g}", ", ".join(seen[0]), "state/iter000008.pth"]
    parts += ["gradient is" if what == "gradient" else "loss nan is", "SOLVER.MAX_BAD_STEPS"]
    assert not [part for part in parts if part not in message], message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["gradient", "activations"])
def test_some_bad_steps_may_be_skipped(tmp_path, pictures, kind, what, log_lines):
    config = make_config(SOLVER__MAX_BAD_STEPS=2)
    trainer = KINDS[kind](tmp_path / "out", pictures, config)
    spoil(trainer, {3, 9, 30}, what)
    step, skipped, names = trainer.train_step, [], []

    def watched(batch):
        before = touched(trainer)
        scalars = step(batch)
        if not scalars:
            after = touched(trainer)
            assert after[0] == before[0] + 1
            assert_untouched([after[0], *before[1:]], after)
            skipped.append(trainer.iteration)
            names.append(", ".join(batch.names))
        return scalars

    trainer.train_step = watched
    with pytest.raises(UserError, match="iteration 31: "):
        trainer.run()
    assert skipped == [4, 10]
    told = [line for line in log_lines if "step skipped" in line]
    found = "gradient" if what == "gradient" else "loss nan"
    for line, iteration, images, count in zip(told, skipped, names, (1, 2), strict=True):
        assert line.startswith(f"iteration {iteration}: {found} is not finite")
        assert line.endswith(f"images {images}): step skipped, {count} of 2")
    row = (tmp_path / "out/metrics.csv").read_text().splitlines()[1]
    assert "nan" not in row
    saved = StateFolder(tmp_path / "out").newest()[1]
    again = KINDS[kind](tmp_path / "out", pictures, config)
    again.load_state_dict(saved)
    assert (again.iteration, again.bad_steps) == (24, 2)  # a run that goes on has no more to skip, either
