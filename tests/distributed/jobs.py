"""Jobs of several processes: as torchrun starts them, or forked off one that has imported all that they need.

A start by torchrun takes as many seconds as there are processes, and one more: each of them imports torch.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch
from torch import distributed

from core.datasets import loading
from tests.helpers import PROJECT


class Job:
    """What all its processes wrote went to one file."""

    def __init__(self, log):
        self.log = log

    @property
    def text(self):
        return self.log.read_text()

    @property
    def errors(self):
        """The lines by which our side says why it ended."""
        return [line for line in self.text.splitlines() if line.startswith(("error:", "stopped by"))]

    def wait_until(self, condition, seconds=60):
        """While it runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.running(), self.text
            assert time.monotonic() < end, self.text
            time.sleep(0.05)

    def wait_for(self, words):
        """Until the log holds them."""
        self.wait_until(lambda: words in self.text)


class Forked(Job):
    """`main(argv)` of a program in several processes of the server that a loader's workers are forked from, too.

    Args:
        hook: is called in each of them first.
        environment: more variables.
    """

    def __init__(self, processes, program, argv, log, hook, environment):
        super().__init__(log)
        log.touch()
        # in place of torchrun's, which the processes meet at
        self._store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "WORLD_SIZE": str(processes)}
        given |= {"LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_USE_AGENT_STORE": "True"} | environment
        context = loading._worker_context()
        self._processes = []
        for rank in range(processes):
            own = given | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self._processes.append(context.Process(target=_run, args=(program, argv, log, hook, own)))
            self._processes[-1].start()

    def running(self):
        return any(process.is_alive() for process in self._processes)

    def wait(self, seconds=120):
        """0, or the exit code of the first process that fails, which ends the others as torchrun does it."""
        end, code, left = time.monotonic() + seconds, 0, {p.sentinel: p for p in self._processes}
        while left:
            ready = wait(left, end - time.monotonic())
            assert ready, self.text
            for process in [left.pop(sentinel) for sentinel in ready]:
                process.join()
                code = code or process.exitcode
            if code:
                self.end()
                return code
        return code

    def pid(self, rank):
        return self._processes[rank].pid

    def end(self):
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(60)


def _run(program, argv, log, hook, environment):
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a loader's workers are deaf to some
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.update(environment)
    os.chdir(PROJECT)
    torch.set_num_threads(1)
    hook()
    sys.exit(importlib.import_module(program).main(argv))


class Launched(Job):
    """A program that torchrun started."""

    def __init__(self, processes, program, argv, log, environment):
        super().__init__(log)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, f"{program}.py", *argv],
                cwd=PROJECT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self):
        return self.process.poll() is None

    def wait(self, seconds=120):
        """Its exit code, once it has ended."""
        return self.process.wait(seconds)

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
        if self.running():
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(60)
