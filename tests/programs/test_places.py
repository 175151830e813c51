"""Where people run the programs: into pipes that close, in terminals of any encoding."""

import importlib
import io
import os
import subprocess
import sys

import pytest

from tests.helpers import PROJECT, rows_of, without_details

PROGRAMS = [
    "train_TCR_DTU",
    "train_src",
    "test",
    "tools.benchmark.__main__",
    "tools.demo",
    "tools.export",
    "tools.gpu_check.runner",
    "tools.predict.__main__",
    "tools.report.__main__",
    "tools.shifts.__main__",
    "tools.toy_domains.__main__",
]
TINY_RUN = {
    "SOLVER.STOP_ITER": 3,
    "SOLVER.BATCH_SIZE": 1,
    "INPUT.INPUT_SIZE_TEST": (64, 32),
    "INPUT.TARGET_INPUT_SIZE_TRAIN": (48, 24),
    "VIS.PERIOD": 0,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_shown_in_any_encoding(name, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert importlib.import_module(name).main(["--help"]) == 0
    stream.flush()
    assert b"usage:" in stream.buffer.getvalue()


def test_a_run_goes_on_where_nobody_reads_what_it_says(cityscapes_root, write_config, tiny_checkpoint):
    """`| head -1`, in an ASCII terminal: log.txt is complete, checkpoint and scores are there."""
    out = cityscapes_root / "out"
    config = write_config(cityscapes_root, **TINY_RUN, resume=str(tiny_checkpoint), OUTPUT_DIR=str(out))
    command = [sys.executable, "train_TCR_DTU.py", "-cfg", str(config)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(command, cwd=PROJECT, env=environment, **pipes) as process:
        assert "writing to" in process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        assert (process.wait(timeout=240), error) == (0, "")
    lines = without_details((out / "log.txt").read_text(encoding="utf-8")).splitlines()
    assert "…" in lines[3]  # of the names of the classes
    assert " next, " in lines[-1]
    assert (out / "model_iter000003.pth").is_file()
    assert len(rows_of(out / "evaluation.csv")) == 1
