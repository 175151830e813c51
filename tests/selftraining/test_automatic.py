"""What an automatic run does about signs of harm; whole runs are tested in tests/programs/test_automatic.py."""

import pytest
import torch

from core.runs.states import StateFolder
from core.selftraining.trainer import Trainer
from tests.selftraining.trainers import make_config, make_trainer, run_config


@pytest.mark.parametrize(("anchor", "pull"), [(0.0, 0.2), (0.01, 0.2), (0.1, 0.4), (0.5, 1.0)])
def test_the_first_alarm_pulls_the_teacher_four_times_as_hard(tmp_path, log_lines, anchor, pull):
    trainer = make_trainer(tmp_path, make_config(ADAPT__AUTO=True, DTU__ANCHOR=anchor))
    trainer.watch.count = 1
    trainer._answer(["car lost", "fewer classes"])
    assert trainer.dynamic_teacher.pull_share == pytest.approx(pull)
    assert trainer.stop == trainer.config.SOLVER.STOP_ITER
    answer = f"the teacher is pulled back by {pull:.0%} at every move now"
    assert log_lines == [f"signs of harm after iteration 0: car lost; fewer classes; {answer}"]


def alarmed(folder, pictures, period, alarms, **options):
    """An automatic run whose passes after these iterations show signs of harm; no verdict follows."""
    config = run_config(ADAPT__AUTO=True, SOLVER__STOP_ITER=12, SOLVER__CHECKPOINT_PERIOD=period, **options)
    trainer = make_trainer(folder, config, pictures)

    def see(pixels, consistency):
        signs = ["harm"] * (trainer.iteration in alarms)
        trainer.watch.count += bool(signs)
        return signs

    trainer.watch.see, trainer.finish = see, lambda: None
    return trainer


@pytest.mark.parametrize("period", [20, 5, 4])
def test_the_second_alarm_ends_the_run_with_checkpoint_and_state(tmp_path, pictures, log_lines, period):
    """Passes follow iterations 2, 5 and 8; with a period of 5 the checkpoint was due before the pass that ends it."""
    folder, last = tmp_path / "out", "model_iter000005.pth"
    trainer = alarmed(folder, pictures, period, (2, 5))
    trainer.run()
    assert (trainer.iteration, trainer.dynamic_teacher.pull_share) == (5, 0.2)
    assert [line.rpartition("; ")[2] for line in log_lines if line.startswith("signs of harm")][
        1
    ] == "the run ends here"
    assert sorted(path.name for path in folder.glob("model_iter*.pth"))[-1] == last
    saved, teacher = torch.load(folder / last, weights_only=True), trainer.teacher.feature_extractor.state_dict()
    assert all(torch.equal(value, teacher[key]) for key, value in saved["feature_extractor"].items())
    path, state = StateFolder(folder).newest()
    assert path.name == "iter000005.pth"
    again = alarmed(folder, pictures, period, ())
    again.load_state_dict(state)
    assert (again.stop, again.watch.count, again.dynamic_teacher.pull_share) == (5, 2, 0.2)
    again.train_step = lambda batch: pytest.fail("it goes on")
    again.run()
    assert again.iteration == 5


def test_a_run_killed_before_its_last_pass_ends_there_all_the_same(tmp_path, pictures):
    """The state after 4 iterations knows of the first alarm alone."""
    trainer = alarmed(tmp_path / "out", pictures, 4, (2, 5))
    trainer.run()
    again = alarmed(tmp_path / "out", pictures, 4, (2, 5))
    again.load_state_dict(torch.load(tmp_path / "out/state/iter000004.pth", weights_only=True))
    assert (again.watch.count, again.stop, again.dynamic_teacher.pull_share) == (1, 12, 0.2)
    again.run()
    assert again.iteration == 5
    for one, other in zip(trainer.teacher.parameters(), again.teacher.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_auto_nobody_watches(tmp_path, pictures):
    trainer = make_trainer(tmp_path / "out", run_config(SOLVER__STOP_ITER=4), pictures)
    assert type(trainer) is Trainer
    trainer.run()
    assert trainer.iteration == 4
    assert trainer.start is None
