"""What a run's writer says and shows beside its tables."""

import os
import re
import resource
import sys
import time
from datetime import datetime

import pytest
import torch

from core.configs import cfg
from core.datasets.taxonomy import CAMVID_11
from core.evaluation.metrics import Scores
from core.evaluation.pictures import Painter
from core.runs.folder import SOURCE_EVALUATION, claimed_folder
from core.runs.monitor import Monitor
from core.runs.output import RunOutput
from tests.helpers import events_of, rows_of


def output_in(folder, **vis):
    config = cfg.clone()
    config.OUTPUT_DIR, config.SOLVER.STOP_ITER, config.SOLVER.CHECKPOINT_PERIOD = str(folder), 60, 60
    config.VIS.TENSORBOARD = False
    config.VIS.update(vis)
    return RunOutput(config, CAMVID_11, torch.device("cpu"))


def test_the_expected_end_is_said_once(tmp_path, log_lines, monkeypatch):
    """After 20 of 60 iterations of 3 minutes each, two hours are left."""
    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    output, before = output_in(tmp_path), datetime.now()
    for iteration in range(1, 61):
        moment[0] += 180
        output.completed(iteration, 0.1, {"loss": torch.tensor(1.0)})
    (line,) = [line for line in log_lines if line.startswith("expected end: ")]
    end = datetime.strptime(re.search("[-0-9]+ [:0-9]+", line)[0], "%Y-%m-%d %H:%M")
    assert 119 * 60 - 1 < (end - before).total_seconds() < 121 * 60
    assert "2:00:00 left" in next(line for line in log_lines if "iteration 20/60" in line)


def test_values_per_class_are_asked_for_only_where_they_are_logged(tmp_path):
    output = output_in(tmp_path, TENSORBOARD=True)
    asked = []

    def per_class():
        asked.append(True)
        return {"half": torch.arange(11) / 2}

    for iteration in range(1, 42):
        output.completed(iteration, 0.1, {"loss": torch.tensor(float(iteration))}, per_class)
    assert len(asked) == 2
    events = events_of(tmp_path / "tensorboard")
    assert events["train/loss"] == [(20, 10.5), (40, 30.5)]
    for index, name in enumerate(CAMVID_11.names):
        assert events[f"half/{name}"] == [(20, index / 2), (40, index / 2)]


def test_a_start_that_failed_leaves_nothing_that_the_next_one_would_show(tmp_path):
    folder = tmp_path / "out"

    def fail():
        with claimed_folder(folder, "config"):
            monitor = Monitor(folder, Painter(CAMVID_11, CAMVID_11.palette()), 1, tensorboard=True)
            monitor.scalars(1, {"a": 1})
            monitor.panel(1, "", [("labels", torch.zeros(20, 40, dtype=torch.uint8).numpy())])
            shown.append({path.name.split(".")[0] for path in folder.rglob("*") if path.is_file()})
            raise ValueError("spoilt")

    shown = []
    for _ in range(2):
        with pytest.raises(ValueError, match="spoilt"):
            fail()
        (folder / "panels").mkdir(exist_ok=True)
        (folder / "panels/mine.png").touch()
    assert shown[0] == {"config", "run", "events", "iter000001"}
    assert sorted(path.name for path in folder.rglob("*")) == ["mine.png", "panels"]


@pytest.mark.parametrize("torn", [0, 7])  # bytes that a crash left of a last record
def test_tensorboard_shows_a_continued_runs_points_in_place_of_those_given_up(tmp_path, torn):
    def started(after=None):
        monitor = Monitor(tmp_path, Painter(CAMVID_11, CAMVID_11.palette()), 0, tensorboard=True)
        if after is not None:
            monitor.go_on(after)
        return monitor

    first = started()
    assert not list(tmp_path.iterdir())  # before the first record
    for step in (1, 2, 3, 4):
        first.scalars(step, {"a": step, "late" if step > 2 else "early": step, "IoU/zebra ü": 0.5, "b\n\ud800": 1})
    (path,) = (tmp_path / "tensorboard").iterdir()
    if torn:
        path.write_bytes(path.read_bytes()[:-torn])
    os.rename(path, path.with_name(path.name.replace("tfevents.", "tfevents.0")))  # began before the next one
    started(2).scalars(3, {"a": 30})
    events = events_of(tmp_path / "tensorboard")
    assert (events["a"], events["early"], events["late"]) == ([(1, 1), (2, 2), (3, 30)], [(1, 1), (2, 2)], [])
    assert events["IoU/zebra ü"] == [(1, 0.5), (2, 0.5)]
    assert events[r"b\n\ud800"] == [(1, 1), (2, 1)]


def test_a_disk_without_room_is_one_line_and_ends_nothing(tmp_path, log_lines):
    monitor = Monitor(tmp_path, Painter(CAMVID_11, CAMVID_11.palette()), 1, tensorboard=True)
    monitor.scalars(1, {"a": 1})
    (path,) = (tmp_path / "tensorboard").iterdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
    try:
        for step in range(2, 6):
            monitor.scalars(step, {"a": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = log_lines
    assert "no more of TensorBoard and panels in this run, which goes on" in line
    assert "tensorboard cannot be written (File too large)" in line
    assert not monitor.panel_due(5)
    assert events_of(tmp_path / "tensorboard")["a"] == [(1, 1)]


def test_a_package_that_does_not_load_is_one_line(tmp_path, monkeypatch, log_lines):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monitor = Monitor(tmp_path, Painter(CAMVID_11, CAMVID_11.palette()), 0, tensorboard=True)
    for step in (1, 2):
        monitor.scalars(step, {"a": 1})
    (line,) = log_lines
    assert "tensorboard cannot be imported" in line


def test_a_continued_run_drops_the_panels_of_the_course_given_up(tmp_path):
    (tmp_path / "panels").mkdir()
    for name in ("iter000002.png", "iter000004.png", "iter000006.png", "iterations.png"):
        (tmp_path / "panels" / name).touch()
    Monitor(tmp_path, Painter(CAMVID_11, CAMVID_11.palette()), 4, tensorboard=False).go_on(4)
    assert {path.name for path in (tmp_path / "panels").iterdir()} == {
        "iter000002.png",
        "iter000004.png",
        "iterations.png",
    }


def clock(monkeypatch):
    """advance(seconds) of a clock that stands still otherwise."""
    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])

    def advance(seconds):
        moment[0] += seconds

    return advance


@pytest.mark.parametrize(("seconds", "iterations"), [(0.1, [20, 40]), (2.0, [12, 20, 40]), (20.0, [1, 20, 40])])
def test_the_first_line_of_progress_comes_within_half_a_minute(tmp_path, log_lines, monkeypatch, seconds, iterations):
    advance, output = clock(monkeypatch), output_in(tmp_path)
    output.start_clock()
    for iteration in range(1, 42):
        advance(seconds)
        output.completed(iteration, 0.1, {"loss": torch.tensor(1.0)})
    lines = [line for line in log_lines if line.startswith("iteration ")]
    assert [int(re.match(r"iteration (\d+)/60", line)[1]) for line in lines] == iterations
    assert all(f"{seconds:.2f} s/iteration" in line for line in lines)
    assert iterations[0] * seconds <= 30


def test_slow_steps_are_heard_of_every_ten_minutes(tmp_path, log_lines, monkeypatch):
    advance, output = clock(monkeypatch), output_in(tmp_path)
    output.start_clock()
    for iteration in range(1, 21):
        advance(200)
        output.completed(iteration, 0.1, {"loss": torch.tensor(1.0)})
    numbers = [int(line.split("/")[0].split()[1]) for line in log_lines if line.startswith("iteration ")]
    assert numbers == [1, 4, 7, 10, 13, 16, 19, 20]


def test_a_first_step_longer_than_that_is_told_while_it_lasts(tmp_path, log_lines, monkeypatch):
    monkeypatch.setattr("core.runs.output.FIRST_LINE", 0.05)
    output = output_in(tmp_path)
    with output.heard():
        time.sleep(0.5)
        assert any(line.startswith("the first iteration ") for line in log_lines)
        output.completed(1, 0.1, {"loss": torch.tensor(1.0)})
    log_lines.clear()
    with output.heard():
        output.completed(2, 0.1, {"loss": torch.tensor(1.0)})
        time.sleep(0.2)
    assert not any(line.startswith("the first iteration ") for line in log_lines)


def test_a_new_run_in_a_folder_that_another_left_evaluates_its_own_source_model(tmp_path):
    def scores(right):
        return Scores.of(torch.diag(torch.full((11,), right)) + torch.ones(11, 11, dtype=torch.int64))

    for right in (5, 50):  # the first one failed before it had trained
        output_in(tmp_path).evaluate_once(SOURCE_EVALUATION, f"{right}.pth", 0, lambda right=right: scores(right))
    (row,) = rows_of(tmp_path / SOURCE_EVALUATION)
    assert row["checkpoint"] == "50.pth"
    again = output_in(tmp_path)
    again.load_state_dict({"sums": {}, "count": 0}, 10, -1)
    again.evaluate_once(SOURCE_EVALUATION, "50.pth", 0, lambda: pytest.fail("it was evaluated"))
    again.evaluate_once(SOURCE_EVALUATION, "60.pth", 20, lambda: scores(60))
    assert [row["iteration"] for row in rows_of(tmp_path / SOURCE_EVALUATION)] == ["0", "20"]
