"""What tests of several modules share, beside the fixtures of conftest.py."""

import csv
import ctypes
import importlib
import io
import os
import re
import struct
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from core.utils.checkpoints import PARTS
from core.utils.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
_MAIN = re.compile("^def main", re.MULTILINE)
_FILES = sorted([*(PROJECT / "tools").glob("*.py"), *(PROJECT / "tools").glob("*/__main__.py")])
TOOLS = [
    f"tools.{p.parent.name if p.stem == '__main__' else p.stem}" for p in _FILES if _MAIN.search(p.read_text("utf-8"))
]
SHORT = {  # what makes the tiny experiment of write_config a run of two iterations without evaluation
    "DATASETS.TEST": "",
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.INPUT_SIZE_TEST": (64, 32),
    "INPUT.TARGET_INPUT_SIZE_TRAIN": (48, 24),
    "SOLVER.STOP_ITER": 2,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "VIS.PERIOD": 0,
}
SOURCE = {  # what makes the tiny experiment of write_config a source training
    "resume": "",
    "MODEL.FREEZE_BN": False,
    "DATASETS.TARGET_TRAIN": "",
    "INPUT.SOURCE_INPUT_SIZE_TRAIN": (48, 24),
    "INPUT.INPUT_SIZE_TEST": (64, 32),
}


def outcome(action, *args):
    """(what the action returns, None), or (None, the line of its UserError)."""
    try:
        return action(*args), None
    except UserError as error:
        return None, str(error)


class Killed(BaseException):
    """Stands for a kill -9: nothing of the program's own catches it."""


def changed(config, **options):
    """A copy of a config with other values of some options: changed(cfg, SOLVER__BASE_LR=0.1)."""
    return config.changed({key.replace("__", "."): value for key, value in options.items()})


def start(program, *argv, folder=PROJECT):
    """Run a program as a user does, from a folder; its completed process. It imports torch for six seconds first."""
    command = [sys.executable, program, *map(str, argv)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def call(program, *argv):
    """`start` without a process, for what is not about one: this one has imported torch already."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = importlib.import_module(program.removesuffix(".py")).main([*map(str, argv)])
    return subprocess.CompletedProcess([program, *argv], code, out.getvalue(), err.getvalue())


def rows_of(path):
    """The rows of a CSV file, a dict each."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_details(log):
    """The text of a log file without the lines that only it has."""
    lines = log.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match("[-0-9]+ [:0-9]+ (option|class names)", line))


def events_of(folder):
    """What TensorBoard finds in a folder: (iteration, value) of every scalar and (iteration, height) of every image."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    tags = found.Tags()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags["scalars"]}
    return scalars | {tag: [(event.step, event.height) for event in found.Images(tag)] for tag in tags["images"]}


def contents(folder):
    """The bytes of every file below a folder, by its name there."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def read_checkpoint(path):
    """Its content, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def same_weights(first, second):
    """Whether two checkpoints' files hold the same networks, bit for bit."""
    first, second = read_checkpoint(first), read_checkpoint(second)
    return all(
        first[part].keys() == second[part].keys()
        and all(torch.equal(value, second[part][key]) for key, value in first[part].items())
        for part in PARTS
    )


class OpenWatch:
    """Asks the kernel which of the files in some folders are opened, by whatever process (Linux's inotify)."""

    def __init__(self, folders):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._queue = self._libc.inotify_init1(os.O_NONBLOCK)
        opened = 0x20
        for folder in folders:
            assert self._libc.inotify_add_watch(self._queue, os.fsencode(folder), opened) >= 0

    def opened(self):
        """Names of what was opened since the last call; an empty name is a folder itself."""
        try:
            data = os.read(self._queue, 1 << 16)
        except BlockingIOError:
            return []
        names = []
        while data:
            length = struct.unpack_from("iIII", data)[3]
            names.append(data[16 : 16 + length].rstrip(b"\0").decode())
            data = data[16 + length :]
        return names
