"""Checks of whole programs, started as a user starts them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from core.runs.folder import HISTORY, METRICS
from core.runs.resume import load_model
from core.runs.states import StateFolder
from core.utils.tables import last_iteration
from tools.gpu_check.workplace import (
    LIMIT,
    TINY,
    TOY_SOURCE,
    TRAIN,
    Failed,
    Findings,
    Skipped,
    Workplace,
    program_of,
    rows_of,
)
from tools.memory import tree_memory

CHOOSE = (
    "import sys, torch; from core.utils.devices import choose_device; d = choose_device(sys.argv[1]); "
    "print(d, int((2 * torch.ones(8, device=d)).sum()))"
)
LONG = {"SOLVER__STOP_ITER": 100_000, "SOLVER__MAX_ITER": 100_000, "TCR__UPDATE_FREQUENCY": 100_000}
DECISION = ("iteration", "decision", "batches", "scored", "improved")  # of HISTORY
SMALL_CASES = {  # options of an adaptation in double precision, many decisions and two candidate passes
    "tiny": {
        "MODEL__NAME": TINY,
        "DTU__Query_START": 4,
        "DTU__Query_STEP": 2,
        "DTU__META_MAX_UPDATE": 9,
        "TCR__UPDATE_FREQUENCY": 15,
        "SOLVER__BASE_LR": 1e-2,
        "SOLVER__BATCH_SIZE": 4,
        "SOLVER__STOP_ITER": 30,
    },
    "ResNet-18": {
        "MODEL__NAME": f"{TINY}_resnet18",
        "INPUT__INPUT_SIZE_TEST": (96, 48),
        "INPUT__TARGET_INPUT_SIZE_TRAIN": (64, 32),
        "SOLVER__STOP_ITER": 10,
    },
}


def devices(bench: Workplace, found: Findings) -> None:
    """Every name of a device in a process of its own: the device is chosen, and computes."""
    names = list(dict.fromkeys(["auto", "cuda", "cuda:0", f"cuda:{torch.cuda.device_count() - 1}"]))
    for name, done in zip(names, bench.run(*(["-c", CHOOSE, name] for name in names)), strict=True):
        chosen, total = (done.out.split() or ["nothing", "0"])[-2:]
        found.note(**{name: chosen})
        wanted = name if ":" in name else "cuda"
        found.require(chosen.startswith(wanted) and total == "16", f"{name} gave {chosen}, 8 times 2 is {total}")


def trajectory(bench: Workplace, found: Findings) -> None:
    """Adaptations in double precision: weights and decisions are those of the CPU."""
    commands = {
        (case, device): bench.command(f"trajectory_{case}_{device}", MODEL__DEVICE=device, **options)
        for case, options in SMALL_CASES.items()
        for device in ("cpu", "cuda")
    }
    bench.run(*commands.values())
    for case, options in SMALL_CASES.items():
        on_cpu, on_gpu = (bench.folder / f"trajectory_{case}_{device}" for device in ("cpu", "cuda"))
        compare_adaptations(bench, found, case, options, on_cpu, on_gpu)


def compare_adaptations(
    bench: Workplace, found: Findings, case: str, options: dict, reference: Path, other: Path
) -> None:
    """Student and teacher have moved, and agree to 1e-9; decisions are the same."""
    model = load_model(bench.small(**options | {"MODEL__DEVICE": "cpu"}), torch.device("cpu"))
    start = torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])
    for who in ("student", "teacher"):
        one, two = (
            torch.cat([tensor.double().flatten() for tensor in last_state(folder)[who].values()])
            for folder in (reference, other)
        )
        found.require(float((one - start).norm()) > 0, f"the case is a poor one: the {case} {who} has not moved")
        found.within(f"{case} {who}", float((two - one).norm() / one.norm()), 1e-9)
    one, two = (decisions(folder) for folder in (reference, other))
    found.note(**{f"{case} decisions": len(one)})
    found.require(len(one) > 1, f"the case is a poor one: {case} took {len(one)} decisions")
    found.require(one == two, f"{case}: the teacher's decisions differ")


def deterministic(bench: Workplace, found: Findings) -> None:
    """SOLVER.DETERMINISTIC: two runs, and one that is stopped and goes on, give the same bits."""
    options = {"SOLVER__DETERMINISTIC": True}
    source = {"program": TRAIN, "config": TOY_SOURCE, "MODEL__FREEZE_BN": False, "SOLVER__BASE_LR": 1e-3}

    def command(case: str, name: str, **more) -> list[str]:
        kind, amp = case.split()
        given = options | {"SOLVER__AMP": amp} | more
        return bench.command(name, **source, **given) if kind == "source" else bench.resnet(name, **given)

    cases = ["adaptation off", "adaptation bf16", "source bf16"] + ([] if bench.quick else ["source off"])
    straight = [command(case, f"{case} {n}") for case in cases for n in (1, 2)]
    stopped = [command(case, f"{case} stopped", what="stop:4") for case in cases]
    codes = [0] * len(straight) + [128 + signal.SIGTERM] * len(stopped)
    bench.run(*straight, *stopped, codes=codes)
    bench.run(*(command(case, f"{case} stopped", resume="auto") for case in cases))
    for case in cases:
        first, *others = (last_state(bench.folder / f"{case} {n}") for n in ("1", "2", "stopped"))
        for what, other in zip(("again", "stopped and continued"), others, strict=True):
            differing = differences(first, other)
            found.note(**{f"{case} {what}": "same" if not differing else "others"})
            found.require(not differing, f"{case} {what}: {len(differing)} tensors differ, {differing[:1]}")


def differences(one: dict, other: dict) -> list[str]:
    """Names of what is not the same, bit for bit, in two states' networks, optimiser and running confidence."""
    keys = [key for key in ("student", "teacher", "model", "solver", "running_conf") if key in one]
    first, second = ({k: v for key in keys for k, v in flattened(state[key], key)} for state in (one, other))
    return [key for key, value in first.items() if key not in second or not same(value, second[key])]


def flattened(value, name: str) -> list[tuple[str, object]]:
    """The leaves of dicts and lists, by name."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, inner in pairs for leaf in flattened(inner, f"{name}.{key}")]
    return [(name, value)]


def same(one, other) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def states(bench: Workplace, found: Findings) -> None:
    """A state saved on the device is continued on the CPU, and the other way round."""
    devices = {"cuda": "cpu", "cpu": "cuda"}
    bench.run(*(bench.resnet(f"from_{first}", MODEL__DEVICE=first, SOLVER__STOP_ITER=3) for first in devices))
    again = {"SOLVER__STOP_ITER": 6, "resume": "auto"}
    bench.run(*(bench.resnet(f"from_{first}", MODEL__DEVICE=then, **again) for first, then in devices.items()))
    for first, then in devices.items():
        iteration = last_state(bench.folder / f"from_{first}")["iteration"]
        found.note(**{f"{first} to {then}": f"iteration {iteration}"})
        found.require(iteration == 6, f"continued on {then}, the run ended at iteration {iteration}, not 6")


def sigterm(bench: Workplace, found: Findings) -> None:
    """SIGTERM in mid-training: exit code 143, one line, and the state is saved."""
    folder = bench.folder / "sigterm"
    with bench.started(bench.resnet("sigterm", **LONG)) as run:
        wait_until(run, lambda: last_iteration(folder / METRICS) > 0)
        start = time.monotonic()
        run.send_signal(signal.SIGTERM)
        _, err = finish(run)
    lines = [line for line in err.splitlines() if line.startswith("stopped by SIGTERM")]
    saved = StateFolder(folder).paths()
    found.note(code=run.returncode, seconds=time.monotonic() - start, iteration=last_state(folder)["iteration"])
    found.require(run.returncode == 128 + signal.SIGTERM, f"exit code {run.returncode}, not {128 + signal.SIGTERM}")
    found.require(len(lines) == 1 and "Traceback" not in err, f"stderr has {len(lines)} lines that tell of it")
    found.require(bool(saved), "no state is saved")


def out_of_memory(bench: Workplace, found: Findings) -> None:
    """Too little memory on the device is one line, and the run goes on where there is more."""
    bench.run(bench.resnet("memory", SOLVER__STOP_ITER=2))
    again = {"SOLVER__STOP_ITER": 4, "resume": "auto"}
    (done,) = bench.run(bench.resnet("memory", what="full", **again), codes=[1])
    lines = [line for line in done.err.splitlines() if line.startswith("error:")]
    found.note(lines=len(lines), line=lines[0] if lines else "")
    told = len(lines) == 1 and "SOLVER.ACCUMULATE" in lines[0] and "SOLVER.AMP" in lines[0]
    found.require(told and "Traceback" not in done.err, f"it ended with {done.why()}")
    bench.run(bench.resnet("memory", **again))
    found.require(last_state(bench.folder / "memory")["iteration"] == 4, "it did not go on afterwards")


def loaders(bench: Workplace, found: Findings) -> None:
    """Loader processes do not use the device: none has it open, as the main process has."""
    with bench.started(bench.resnet("loaders", DATALOADER__NUM_WORKERS=2, **LONG, TCR__PASTE_LAG=16)) as run:
        wait_until(run, lambda: last_iteration(bench.folder / "loaders" / METRICS) > 0)
        using = {process: holds_device(process) for process in tree_memory(run.pid)}
        run.send_signal(signal.SIGTERM)
        finish(run)
    workers = len(using) - 1
    found.note(processes=workers, using=sum(using.values()) - using[run.pid])
    found.require(workers >= 2, f"{workers} other processes were seen, not 2")
    if not using[run.pid]:
        raise Skipped("here even the main process has no file of NVIDIA's driver open")
    found.require(sum(using.values()) == 1, "a loader's process has the device open")


def holds_device(process: int) -> bool:
    """Whether a process has a file of NVIDIA's driver open."""
    for file in Path(f"/proc/{process}/fd").glob("*"):
        try:
            if os.readlink(file).startswith("/dev/nvidia"):
                return True
        except OSError:  # closed in the meantime
            continue
    return False


def nccl(bench: Workplace, found: Findings) -> None:
    """Two processes, each with its device, adapt to the weights of one process."""
    if torch.cuda.device_count() < 2:
        raise Skipped(f"{torch.cuda.device_count()} device, two are needed")
    options = SMALL_CASES["tiny"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    bench.run(bench.command("one", **options), [*launcher, *bench.command("two", **options)])
    compare_adaptations(bench, found, "tiny", options, bench.folder / "one", bench.folder / "two")


def last_state(folder: Path) -> dict:
    """The newest state of a run.

    Raises:
        Failed: there is none.
    """
    paths = StateFolder(folder).paths()
    if not paths:
        raise Failed(f"the run {folder.name} has saved no state")
    return torch.load(paths[-1], map_location="cpu", weights_only=True)


def decisions(folder: Path) -> list[tuple[str, ...]]:
    """The rows of the dynamic teacher's history, without its scores."""
    return [tuple(row[name] for name in DECISION) for row in rows_of(folder / HISTORY)]


def wait_until(run: subprocess.Popen, there: Callable[[], bool]) -> None:
    """Until something is there; a run that ends before that, or takes too long, has failed."""
    end = time.monotonic() + LIMIT
    while not there():
        if run.poll() is not None or time.monotonic() > end:
            run.kill()
            raise Failed(f"{program_of(run.args)} came to nothing: {(run.communicate()[1].splitlines() or ['-'])[-1]}")
        time.sleep(0.1)


def finish(run: subprocess.Popen) -> tuple[str, str]:
    """Both outputs of a run that is asked to end."""
    try:
        return run.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        raise Failed("it did not end within 60 s of SIGTERM") from None
