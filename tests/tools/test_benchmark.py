"""The benchmark for real, on small images."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from tests.helpers import call
from tools.benchmark import stages
from tools.benchmark.__main__ import main

SMALL = ["INPUT.INPUT_SIZE_TEST", "(96, 48)", "INPUT.TARGET_INPUT_SIZE_TRAIN", "(64, 32)", "MODEL.NAME"]


@pytest.fixture
def in_process(monkeypatch):
    """The first command is a process; the others run in this one, which has imported torch already."""
    commands = []

    def run(command, **options):
        commands.append(command)
        if len(commands) == 1:
            subprocess.run(command, **options)
        elif command[1] == "-c":
            exec(command[2], {})
        else:
            call(*command[1:]).check_returncode()

    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(run=run))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("wanted", "network", "named"),
    [
        (
            "samples,step,sweeps",
            "tools.benchmark.data:small_network",
            ("samples from a cache", "training step", "DTU query of 9", "evaluation, per image"),
        ),
        ("start", "tools.benchmark.data:small_network", ("resume auto",)),
        ("networks", "deeplab_resnet18", ("forward, fp32", "forward and backward, bf16")),
    ],
)
def test_every_stage_is_measured_beside_its_limit(tmp_path, monkeypatch, capsys, wanted, network, named):
    monkeypatch.setattr(stages, "IMAGE_SIZE", (640, 320))
    monkeypatch.setattr(stages, "PASS_IMAGES", 4)
    table = tmp_path / "table.json"
    options = ["--repeats", "1", "--device", "cpu", "--json", str(table), "--stages", wanted]
    assert main([*options, *SMALL, network]) == 0
    rows = json.loads(table.read_text())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 2
    for row, line in zip(rows, lines[2:], strict=True):
        assert line.startswith(row["stage"])
        assert row["seconds"] > 0 < row["limit_seconds"]
        assert row["ratio"] == pytest.approx(row["seconds"] / row["limit_seconds"])
    assert not [stage for stage in named if stage not in "\n".join(lines)]


def test_an_unknown_stage_is_one_line(capsys):
    assert main(["--stages", "samples,stepp"]) == 1
    expected = "error: --stages stepp: no such stage; there are samples, step, networks, sweeps, start\n"
    assert capsys.readouterr().err == expected
