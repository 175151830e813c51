"""What a run's writer says and shows beside its tables."""

import re
import time
from datetime import datetime

import pytest
import torch

from core.datasets.taxonomy import CAMVID_11
from core.evaluation.pictures import Painter
from core.runs.monitor import Monitor, remove_shown
from core.runs.output import RunOutput, claimed_folder
from tests.helpers import events_of


def output_in(folder, monitor=None):
    return RunOutput(folder, CAMVID_11, 60, 60, torch.device("cpu"), monitor=monitor)


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
    output = output_in(tmp_path, Monitor(tmp_path, Painter(CAMVID_11, CAMVID_11.palette()), 0, tensorboard=True))
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
            assert len(list(folder.rglob("*"))) == 6  # two folders, a file in each, the config, the lock
            raise ValueError("spoilt")

    with pytest.raises(ValueError, match="spoilt"):
        fail()
    assert not list(folder.rglob("*"))
    (folder / "panels").mkdir()
    (folder / "panels/mine.png").touch()
    remove_shown(folder)
    assert [path.name for path in folder.rglob("*")] == ["panels", "mine.png"]


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
