"""Programs, one after the other, in this process on the ghost GPU, which computes numbers here; writes what it saw.

ghost.sh simulated.py FILE WORDS, where FILE gets a JSON list with a report for each list of words (JSON, too) in WORDS:
[["train_src", "-cfg", "tiny.yaml"], …]. Of several processes each has a FILE of its own: FILE.0, FILE.1, …
"""

import collections
import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.append(os.environ["GHOST_DIR"])

import ghostlib
import simcuda
import torch
import torch.distributed

WAITS = ("cudaMemcpy", "streamSync", "deviceSync", "eventSync")
CORE = str(Path(__file__).resolve().parents[2] / "core")

ghostlib.start(lazy=False, asynchronous=True, copy=True)  # in a loader's workers, too
torch.set_num_threads(1)


def where():
    """The function of the project that is being called, and the file that it is in."""
    frame = sys._getframe(1)
    while frame:
        if frame.f_code.co_filename.startswith(CORE):
            return f"{frame.f_code.co_filename.removeprefix(CORE)[1:]} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@contextlib.contextmanager
def without_numbers():
    """What the ghost's kernels compute is nothing here, for a program that needs none: tracing sees through no mode."""
    simcuda.MODE.__exit__(None, None, None)
    try:
        yield
    finally:
        simcuda.MODE.__enter__()


def run(program, argv):
    """A report of one program: its exit code, and what the ghost saw meanwhile."""
    simcuda.PROBLEMS.clear()
    races, seconds = ghostlib.L.ghost_races(), time.process_time()
    traces = program == "tools.export"
    with ghostlib.recording() as events, without_numbers() if traces else contextlib.nullcontext():
        code = importlib.import_module(program).main(argv)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    waits = collections.Counter()
    for (kind, _, place), times in events.items():
        if kind in WAITS or kind.startswith("data-dependent"):
            waits[f"{kind}: {place}"] += times
    return {
        "program": program,
        "code": code,
        "processor_seconds": time.process_time() - seconds,
        "races": ghostlib.L.ghost_races() - races,
        "problems": dict(simcuda.PROBLEMS),
        "waits": dict(waits),
        "operators": dict(simcuda.COUNTS),
    }


def main():
    ghostlib.where = where
    torch.distributed.is_nccl_available = lambda: False  # gloo carries CUDA tensors, too
    simcuda.install()
    path, words = sys.argv[1:]
    reports = [run(program, argv) for program, *argv in json.loads(words)]
    _, calls = ghostlib.dump()
    devices = {name: times for name, times in calls.items() if name.startswith("device ")}
    rank = os.environ.get("RANK")
    suffix = "" if rank is None else f".{rank}"
    Path(path + suffix).write_text(json.dumps({"reports": reports, "devices": devices}))


if __name__ == "__main__":
    main()
