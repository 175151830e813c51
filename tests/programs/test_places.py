"""Where people run the programs: into pipes that close, in terminals of any encoding, on systems that lack POSIX."""

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
    "tools.compare.__main__",
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


ON_WINDOWS = """
import runpy, sys
{fake}
for program in sys.argv[1:]:
    try:
        (runpy.run_path if program.endswith(".py") else runpy.run_module)(program, run_name="__main__")
    except SystemExit as end:
        print(program, end.code, sep=": ")
"""


@pytest.mark.parametrize(
    ("fake", "programs"),
    [
        ("sys.modules['fcntl'] = sys.modules['resource'] = None", PROGRAMS),  # which Windows does not have
        ("sys.platform = 'win32'", PROGRAMS[:3]),  # the others import what would take it for true
    ],
)
def test_on_windows_every_program_ends_with_one_line_that_names_wsl(fake, programs):
    programs = [f"{name}.py" if "." not in name else name.removesuffix(".__main__") for name in programs]
    programs = ["tools.gpu_check" if name == "tools.gpu_check.runner" else name for name in programs]
    done = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS.format(fake=fake), *programs], cwd=PROJECT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == programs
    (told,) = {line.partition(": ")[2] for line in lines}
    assert told.startswith("error: this project runs on Linux and macOS, not on Windows itself: install WSL (")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_shown_in_any_encoding(name, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert importlib.import_module(name).main(["--help"]) == 0
    stream.flush()
    told = stream.buffer.getvalue()
    assert b"usage:" in told
    assert rb"\u" not in told  # nothing has to be written out


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
