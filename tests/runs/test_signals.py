"""Signals to both trainers: where the run stops, and that going on is exact."""

import os
import signal

import pytest
import torch

from core.evaluation.metrics import Scores
from core.runs.states import StateFolder
from core.utils import signals
from tests.helpers import Killed
from tests.runs.runs import KINDS, adaptation, assert_same_run, go_on, make_config, run_until


class SelfEvaluation:
    """An evaluator with the scores of a perfect model, that calls `during` first."""

    def __init__(self, during=lambda: None):
        self._during = during

    def run(self, model):
        self._during()
        return Scores.of(torch.eye(19, dtype=torch.int64))


def stopped(trainer, number=signal.SIGTERM):
    """Run until the signal that someone sends; the Stopped."""
    with signals.listening(), pytest.raises(signals.Stopped) as raised:
        trainer.run()
    assert raised.value.number == number
    return raised.value


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_ends_the_step_and_saves_the_state(tmp_path, pictures, straight, kind, number):
    trainer = KINDS[kind](tmp_path / "out", pictures, make_config())
    step = trainer.solver.step

    def signalled(loss, iteration):
        if iteration == 18:
            send(number)
        return step(loss, iteration)

    trainer.solver.step = signalled
    note = stopped(trainer, number).note
    assert note.startswith("after iteration 19, state saved as ")
    assert note.endswith("state/iter000019.pth")
    trainer, begun = go_on(KINDS[kind], tmp_path / "out", pictures, make_config())
    assert begun == 19
    assert_same_run(trainer, straight(kind))


def test_more_signals_do_not_disturb_the_saving(tmp_path, pictures):
    """A cluster may repeat itself."""
    trainer = adaptation(tmp_path / "out", pictures, make_config())
    make, write = trainer.samples.make, trainer.output.states.write

    def signalled(request):
        if request.position == 2 * 3:
            send(signal.SIGUSR1)
        return make(request)

    def signalled_again(state):
        send(signal.SIGTERM)
        return write(state)

    trainer.samples.make, trainer.output.states.write = signalled, signalled_again
    stopped(trainer, signal.SIGUSR1)
    assert StateFolder(tmp_path / "out").newest()[1]["iteration"] == 3


def test_a_signal_while_a_batch_is_waited_for_saves_what_is_done(tmp_path, pictures, straight):
    trainer = adaptation(tmp_path / "out", pictures, make_config())
    make = trainer.samples.make

    def signalled(request):
        if request.position == 2 * 21:
            send(signal.SIGUSR1)
        return make(request)

    trainer.samples.make = signalled
    stopped(trainer, signal.SIGUSR1)
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun == 21
    assert_same_run(trainer, straight("adaptation"))


@pytest.mark.parametrize(("iteration", "images"), [(0, 0), (0, 4), (14, 2), (29, 4)])
def test_a_signal_in_a_pass_drops_it_and_it_is_made_again(tmp_path, pictures, straight, iteration, images):
    trainer = adaptation(tmp_path / "out", pictures, make_config())
    entry, seen = trainer.candidate_pass._entry, []

    def signalled(index, *rest):
        if trainer.iteration == iteration:
            seen.append(index)
            if index == images:
                send(signal.SIGTERM)
        return entry(index, *rest)

    trainer.candidate_pass._entry = signalled
    assert f"after iteration {iteration}," in stopped(trainer).note
    assert seen == list(range(len(seen)))
    assert len(seen) <= images + 3  # but for what was waiting already, no further image was looked at
    assert not list((tmp_path / "out/candidates").glob("*.partial"))
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun == iteration
    assert_same_run(trainer, straight("adaptation"))


@pytest.mark.parametrize("how", ["signal", "kill"])
def test_an_evaluation_that_was_broken_off_is_made_again(tmp_path, pictures, straight, how):
    config, calls = make_config(SOLVER__CHECKPOINT_PERIOD=14), []

    def interrupt():
        calls.append(True)
        if len(calls) == 2:
            if how == "kill":
                raise Killed
            send(signal.SIGTERM)
            raise AssertionError("went on")

    trainer = adaptation(tmp_path / "out", pictures, config, SelfEvaluation(interrupt))
    if how == "kill":
        with pytest.raises(Killed):
            trainer.run()
    else:
        stopped(trainer)
    trainer = adaptation(tmp_path / "out", pictures, config, SelfEvaluation())
    trainer.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    assert trainer.iteration == 28
    trainer.run()
    assert_same_run(trainer, straight("adaptation"))
    evaluated = (tmp_path / "out/evaluation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in evaluated] == ["iteration", "14", "28", "40"]


def test_an_evaluation_that_was_done_is_not_done_again(tmp_path, pictures):
    config, calls = make_config(SOLVER__CHECKPOINT_PERIOD=14), []
    trainer = adaptation(tmp_path / "out", pictures, config, SelfEvaluation())
    run_until(trainer, 15)
    trainer = adaptation(tmp_path / "out", pictures, config, SelfEvaluation(lambda: calls.append(trainer.iteration)))
    trainer.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    trainer.run()
    assert calls == [28, 40]
