"""The benchmark for real, on small images."""

import json

import pytest

from tests.helpers import start
from tools.benchmark import stages
from tools.benchmark.__main__ import main

SMALL = ["MODEL.NAME", "deeplab_resnet18", "INPUT.INPUT_SIZE_TEST", "(96, 48)"]
SMALL += ["INPUT.TARGET_INPUT_SIZE_TRAIN", "(64, 32)"]


def test_every_stage_is_measured_beside_its_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "IMAGE_SIZE", (640, 320))
    monkeypatch.setattr(stages, "PASS_IMAGES", 4)
    table = tmp_path / "table.json"
    assert main(["--repeats", "1", "--device", "cpu", "--json", str(table), *SMALL]) == 0
    rows = json.loads(table.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    for row, line in zip(rows, lines[2:], strict=True):
        assert line.startswith(row["stage"])
        assert row["seconds"] > 0 < row["limit_seconds"]
        assert row["ratio"] == pytest.approx(row["seconds"] / row["limit_seconds"])
    text = "\n".join(lines)
    named = (
        "samples from a cache",
        "training step",
        "DTU query of 9",
        "forward, bf16",
        "evaluation, per image",
        "resume",
    )
    assert not [stage for stage in named if stage not in text]


def test_an_unknown_stage_is_one_line():
    done = start("-m", "tools.benchmark", "--stages", "samples,stepp")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: --stages stepp: no such stage; there are samples, step, networks, sweeps, start"
    ]
