"""Exact resume of both trainers: a run that was broken off anywhere goes on as if nothing had been."""

import gc
import random
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from core.runs.states import StateFolder
from core.utils.errors import UserError
from tests.runs.runs import KINDS, STOP, TABLES, adaptation, assert_same_run, go_on, make_config, run_until, source


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed", [14, 21, 39])
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path, pictures, straight, kind, killed):
    """States after 8, 16, …; passes after 14 and 29; the mean of 20 iterations is half summed up in most of them."""
    run_until(KINDS[kind](tmp_path / "out", pictures, make_config()), killed)
    trainer, begun = go_on(KINDS[kind], tmp_path / "out", pictures, make_config())
    assert begun == killed // 8 * 8
    assert_same_run(trainer, straight(kind))


@pytest.mark.parametrize("killed", [14, 29])
def test_a_run_killed_in_a_pass_makes_it_again(tmp_path, pictures, straight, killed):
    run_until(adaptation(tmp_path / "out", pictures, make_config()), killed, "pass")
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun < killed
    assert_same_run(trainer, straight("adaptation"))


def test_rows_that_a_crash_tore_are_dropped(tmp_path, pictures, straight):
    run_until(adaptation(tmp_path / "out", pictures, make_config()), 21)
    for name in TABLES:
        with (tmp_path / "out" / name).open("a") as file:
            file.write("1")  # of 18, say
    assert_same_run(go_on(adaptation, tmp_path / "out", pictures, make_config())[0], straight("adaptation"))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_anywhere_and_again_goes_on_as_if_nothing_had_been(tmp_path, pictures, straight, kind):
    for killed in range(8, STOP):
        folder = tmp_path / str(killed)
        run_until(KINDS[kind](folder, pictures, make_config()), killed)
        again = KINDS[kind](folder, pictures, make_config())
        again.load_state_dict(StateFolder(folder).newest()[1])
        run_until(again, min(killed + 3, STOP - 1))
        assert_same_run(go_on(KINDS[kind], folder, pictures, make_config())[0], straight(kind))


def test_states_of_such_runs_hold_what_they_are_to_bring_back(straight, tmp_path, pictures):
    """Or the tests above would not show much: sums of a row, scored batches, confidences that workers wait for."""
    run_until(adaptation(tmp_path / "out", pictures, make_config(SOLVER__KEEP_STATES=9)), 39)
    states = [torch.load(path, weights_only=True) for path in StateFolder(tmp_path / "out").paths()]
    assert [state["iteration"] for state in states] == [8, 16, 24, 32]
    assert [state["generation"] for state in states] == ["g0000", "g0001", "g0001", "g0002"]
    assert [state["stretch"] for state in states] == [[0, 14], [14, 29], [14, 29], [29, 40]]
    assert [state["output"]["count"] for state in states] == [8, 16, 4, 12]
    assert any(len(state["dynamic_teacher"]["buffer"]) > 1 for state in states)
    assert all(len(state["schedule"]["recorded"]) >= 3 for state in states)
    held = states[0]["dynamic_teacher"]["buffer"]
    assert all(batch.keys() == {"names", "points", "score"} for state in states for batch in held)


def test_workers_that_run_ahead_leave_the_state_what_it_needs(tmp_path, pictures, straight):
    """They are handed the confidences of iterations to come, which the state must not have thrown away by then."""
    config = make_config(DATALOADER__NUM_WORKERS=1)
    run_until(adaptation(tmp_path / "out", pictures, config), 26)
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, config)
    assert begun == 24
    assert_same_run(trainer, straight("adaptation"))


def test_the_rest_of_a_stretch_is_what_it_would_have_been(tmp_path, pictures):
    for kind in KINDS.values():
        trainer = kind(tmp_path / kind.__name__, pictures, make_config(TCR__PASTE=False))
        if kind is adaptation:
            trainer.update_candidates()
        whole = [batch.names for batch in trainer.batches(range(5, 20), range(5, 20))]
        assert [batch.names for batch in trainer.batches(range(12, 20), range(5, 20))] == whole[7:]
        assert [batch.names for batch in trainer.batches(range(12, 20), range(12, 20))] != whole[7:]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_may_go_on_beyond_its_end(tmp_path, pictures, straight, kind):
    short, longer = make_config(SOLVER__STOP_ITER=20), make_config()
    first = KINDS[kind](tmp_path / "out", pictures, short)
    first.run()
    trainer, begun = go_on(KINDS[kind], tmp_path / "out", pictures, longer)
    assert (begun, trainer.iteration) == (20, 40)
    assert trainer.stretch.stop == 40
    metrics = (tmp_path / "out/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in metrics] == ["iteration", "20", "40"]
    assert metrics[1] == (straight(kind).output.folder / "metrics.csv").read_text().splitlines()[1]


def test_a_balanced_run_that_goes_on_beyond_its_end_draws_anew(tmp_path, pictures):
    short = make_config(SOLVER__STOP_ITER=20, DATASETS__SOURCE_SAMPLING="balanced")
    source(tmp_path / "out", pictures, short).run()
    trainer, _ = go_on(source, tmp_path / "out", pictures, make_config(DATASETS__SOURCE_SAMPLING="balanced"))
    assert trainer.iteration == 40
    assert trainer.stretch == range(20, 40)


def test_a_stored_batch_whose_image_has_gone_bad_is_left_out(tmp_path, pictures):
    """Its scores cannot be had again; the other batches stay what they were."""
    patient = {"DTU__Query_START": 30}  # so that many batches are stored
    pictures = tuple(Path(shutil.copy(path, tmp_path)) for path in pictures)
    run_until(adaptation(tmp_path / "out", pictures, make_config(**patient)), 31)
    state = StateFolder(tmp_path / "out").newest()[1]
    held = state["dynamic_teacher"]["buffer"]
    bad = held[0]["names"][0]
    kept = [batch for batch in held if bad not in batch["names"]]
    assert len(held) > len(kept) > 0
    (tmp_path / bad).write_bytes(b"")
    trainer = adaptation(tmp_path / "out", pictures, make_config(**patient))
    with pytest.raises(UserError, match=f"{bad} cannot be decoded"):
        trainer.load_state_dict(state)
    trainer = adaptation(tmp_path / "out", pictures, make_config(DATALOADER__SKIP_BAD_IMAGES=1, **patient))
    trainer.load_state_dict(state)
    assert [batch["names"] for batch in trainer.dynamic_teacher.state_dict()["buffer"]] == [b["names"] for b in kept]
    assert trainer.samples.skipped.paths == [str(tmp_path / bad)]
    trainer.run()
    assert trainer.iteration == STOP


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_may_draw_from_the_global_generators(tmp_path, pictures, kind):
    """As a user's own may: their states are part of the run's."""

    def drawing(folder):
        trainer = KINDS[kind](folder, pictures, make_config(SOLVER__STOP_ITER=20))
        network = trainer.student if kind == "adaptation" else trainer.model

        def noisy(module, inputs, output):
            return output * (random.random() + np.random.rand()) if module.training else output  # noqa: NPY002

        network.feature_extractor[0].register_forward_hook(noisy)
        return trainer

    def seed(number):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002

    seed(3)
    straight = drawing(tmp_path / "straight")
    straight.run()
    seed(3)
    run_until(drawing(tmp_path / "out"), 13)
    seed(4)
    again = drawing(tmp_path / "out")
    again.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    again.run()
    assert_same_run(again, straight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_over_holds_no_memory(tmp_path, pictures, kind):
    """Not even until the next collection of garbage, which large tensors do not bring about."""
    trainer = KINDS[kind](tmp_path / "out", pictures, make_config(SOLVER__STOP_ITER=9))
    trainer.run()
    held = [weakref.ref(held) for held in (trainer, trainer.result, trainer.solver.optimizer, trainer.output)]
    gc.collect()
    gc.disable()
    try:
        del trainer
        assert [reference() for reference in held] == [None] * 4
    finally:
        gc.enable()
