"""Jobs of several processes on this machine, as torchrun starts them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from test import main as evaluate
from tests.distributed.double_network import SECONDS
from tests.helpers import PROJECT
from train_src import main as train
from train_TCR_DTU import main as adapt

PROGRAMS = {"train_TCR_DTU.py": adapt, "train_src.py": train, "test.py": evaluate}
NETWORK = "tests.distributed.double_network:build"
OPTIONS = {
    "MODEL.NAME": NETWORK,
    "MODEL.FREEZE_BN": False,  # the network has no batch norm
    "resume": "",
    "DATASETS.TEST": "",
    "INPUT.SOURCE_INPUT_SIZE_TRAIN": [96, 48],
    "DTU.Query_START": 4,
    "DTU.Query_STEP": 2,
    "DTU.META_MAX_UPDATE": 9,
    "TCR.UPDATE_FREQUENCY": 15,
    "TCR.PASTE_LAG": 3,
    "SOLVER.BASE_LR": 1e-2,
    "SOLVER.STOP_ITER": 30,
    "SOLVER.BATCH_SIZE": 4,
    "SOLVER.CHECKPOINT_PERIOD": 30,
}


class Job:
    """A program that was started.

    Args:
        processes: how many; 1: by python alone.
        log: file that both its outputs go to.
        seconds: of a forward without gradient, at least.
        timeout: DTST_TIMEOUT.
    """

    def __init__(self, processes, argv, log, seconds, timeout):
        launcher = (
            [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        )
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *map(str, argv)],
                cwd=PROJECT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "DTST_TIMEOUT": timeout, SECONDS: str(seconds)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds=120):
        """Its exit code, once it has ended."""
        return self.process.wait(seconds)

    @property
    def text(self):
        return self.log.read_text()

    @property
    def errors(self):
        """The lines by which our side says why it ended."""
        return [line for line in self.text.splitlines() if line.startswith(("error:", "stopped by"))]

    def wait_for(self, words, seconds=60):
        """Until the log holds `words`."""
        end = time.monotonic() + seconds
        while words not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)

    def pid(self, rank):
        """Of the process with that number."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "environ").read_bytes().split(b"\0")
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == self.process.pid and f"RANK={rank}".encode() in words:
                return int(folder.name)
        raise AssertionError(f"no process {rank}")

    def workers_block(self, number):
        """Whether process 0's loader workers are deaf to a signal, as the process is that they are forked from."""
        parent = f"PPid:\t{self.pid(0)}\n"
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status, command = (folder / "status").read_text(), (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if parent in status and b"forkserver" in command:
                blocked = int(status.split("SigBlk:", 1)[1].split()[0], 16)
                return bool(blocked >> (number - 1) & 1)
        raise AssertionError("no loader's worker")

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(60)


@pytest.fixture
def start(tmp_path):
    """start(processes, *argv, seconds=0, timeout="60") → Job."""
    jobs = []

    def begin(processes, *argv, seconds=0, timeout="60"):
        jobs.append(Job(processes, argv, tmp_path / f"job{len(jobs)}.log", seconds, timeout))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.end()


@pytest.fixture
def finish(start):
    """finish(processes, *argv) → Job that has ended well."""

    def run(processes, *argv):
        job = start(processes, *argv)
        assert job.wait() == 0, job.text
        return job

    return run


@pytest.fixture
def alone(capfd):
    """alone(program, *argv) → what it wrote: one process, this one, to a good end."""

    def run(program, *argv):
        assert PROGRAMS[program]([*map(str, argv)]) == 0
        return capfd.readouterr().out

    return run


@pytest.fixture
def config(tmp_path, write_config):
    """config(name, **overrides) → a yaml whose runs go to tmp_path/name."""

    def write(name, **overrides):
        path = write_config(tmp_path, **{**OPTIONS, "OUTPUT_DIR": str(tmp_path / name), **overrides})
        return path.rename(tmp_path / f"{name}.yaml")

    return write
