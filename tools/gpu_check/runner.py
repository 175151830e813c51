"""Check on a GPU what can only be seen there: numbers against the CPU's, whole runs, memory and speed. Needs no data.

A line per check; the exit code is the number of checks that failed.
"""

import argparse
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from core.configs import cfg
from core.programs.frame import Parser, run_program
from core.utils.devices import prepare_device
from core.utils.environment import PROJECT, find_commit
from core.utils.errors import UserError, one_line
from tools.gpu_check import numbers, runs, speed
from tools.gpu_check.workplace import Failed, Findings, Skipped, Workplace

MOST = 125  # exit codes above mean something else to a shell
AT_A_TIME = 4  # cores for each check whose work is done by programs


@dataclass(frozen=True)
class Check:
    """A check by name.

    Attributes:
        body: measures, and says what is wrong by what it notes and raises.
        programs: all is done by other processes, so that several such checks may run at a time.
        real: it means nothing on a simulated device.
    """

    name: str
    body: Callable[[Workplace, Findings], None]
    programs: bool = False
    real: bool = False


CHECKS = (
    Check("devices", runs.devices, programs=True),
    Check("trajectory", runs.trajectory, programs=True),
    Check("deterministic", runs.deterministic, programs=True),
    Check("states", runs.states, programs=True),
    Check("sigterm", runs.sigterm, programs=True),
    Check("out_of_memory", runs.out_of_memory, programs=True),
    Check("loaders", runs.loaders, programs=True, real=True),
    Check("nccl", runs.nccl, programs=True),
    Check("network", numbers.network, real=True),
    Check("method", numbers.method),
    Check("passes", numbers.passes),
    Check("waits", speed.waits),
    Check("memory", speed.memory, real=True),
    Check("speed", speed.speed, real=True),
    Check("profile", speed.kernel_profile, real=True),
    Check("passes_speed", speed.passes_speed, real=True),
    Check("speed_compiled", speed.speed_compiled, real=True),
)
SLOW = ("speed_compiled",)  # left out by --quick


@dataclass(frozen=True)
class Result:
    """The outcome of a check; `status` is ok, FAIL or skip."""

    name: str
    status: str
    seconds: float
    figures: dict
    message: str

    def line(self) -> str:
        shown = (f"{key} {_digits(value)}" for key, value in self.figures.items() if not isinstance(value, dict | list))
        text = "; ".join(part for part in (self.message, ", ".join(shown)) if part)
        return f"{self.status:<5} {self.name}: {text or 'as it should be'} ({self.seconds:.1f} s)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks; returns how many failed, or 1 where there is no device."""
    parser = Parser(__doc__, "python -m tools.gpu_check --quick --json gpu.json")
    parser.add_argument("--quick", action="store_true", help="fewer iterations and timings, nothing compiled")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured, after every check")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of {', '.join(c.name for c in CHECKS)}")
    parser.add_argument("--verbose", action="store_true", help="tracebacks on stderr")
    failed = []

    def body(args: argparse.Namespace) -> None:
        failed.append(run(args))

    code = run_program(body, parser, sys.argv[1:] if argv is None else argv)
    return code or min(sum(failed), MOST)


def run(args: argparse.Namespace) -> int:
    """Make the checks asked for; returns how many failed."""
    chosen = choose(args.only, args.quick)
    card = describe_card()
    about = {**card, "commit": find_commit(PROJECT), "quick": args.quick}
    print(", ".join(f"{key} {value}" for key, value in card.items()), flush=True)
    results = []
    if args.json:
        write_report(args.json, about, results)  # while nothing is lost if that cannot be
    with tempfile.TemporaryDirectory(prefix="dtst-gpu-check-", ignore_cleanup_errors=True) as folder:
        bench = Workplace(Path(folder), args.quick)
        for result in results_of(chosen, bench, args.verbose):
            print(result.line(), flush=True)
            results.append(result)
            if args.json:
                write_report(args.json, about, results)
    return sum(result.status == "FAIL" for result in results)


def choose(names: Sequence[str] | None, quick: bool) -> list[Check]:
    """The checks so named, else all, the slow ones only where there is time."""
    known = {check.name: check for check in CHECKS}
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"--only {' '.join(unknown)}: no such check; there are {', '.join(known)}")
    return [check for check in CHECKS if (check.name in names if names else not (quick and check.name in SLOW))]


def describe_card() -> dict:
    """What the figures belong to.

    Raises:
        UserError: there is no CUDA device that torch can use.
    """
    try:
        torch.cuda.init()
        name = torch.cuda.get_device_name()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"there is no CUDA device to check ({reason})") from None
    return {
        "card": name,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "memory_GB": round(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 1e9, 1),
        "devices": torch.cuda.device_count(),
        "driver": driver_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn_version(),
    }


def cudnn_version() -> int | str:
    try:
        return torch.backends.cudnn.version()
    except RuntimeError:
        return "another than torch was made for"


def driver_version() -> str:
    """NVIDIA's, as its own program tells it; `unknown` where that is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        text = ""
    return next(iter(re.findall(r"\d+\.[\d.]+", text)), "unknown")


def results_of(checks: Iterable[Check], bench: Workplace, verbose: bool) -> Iterator[Result]:
    """The results as they come: first of the checks by programs, several at a time, then one by one."""
    checks = list(checks)
    programs = [check for check in checks if check.programs]
    with ThreadPoolExecutor(max(bench.cores // AT_A_TIME, 1)) as pool:
        for future in as_completed([pool.submit(result_of, check, bench, verbose) for check in programs]):
            yield future.result()
    for check in checks:
        if not check.programs:
            yield result_of(check, bench, verbose)
            bench.tidy()
            prepare_device(cfg)  # whatever the check has set


def result_of(check: Check, bench: Workplace, verbose: bool) -> Result:
    """Make one check, whatever becomes of it."""
    found, status, start = Findings(), "ok", time.monotonic()
    try:
        if check.real and bench.simulated:
            raise Skipped("not on a simulated device")
        check.body(bench, found)
    except Skipped as reason:
        status, message = "skip", str(reason)
    except Exception as error:  # of any kind: the other checks go on
        if verbose:
            traceback.print_exc()
        kind = "" if isinstance(error, Failed | UserError) else f"{type(error).__name__}: "
        found.problems.append(f"{kind}{str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}")
    if found.problems:
        status = "FAIL"
    if status != "skip":
        message = "; ".join(found.problems)
    figures = {key: anonymous(value, bench.folder) for key, value in found.figures.items()}
    return Result(check.name, status, time.monotonic() - start, figures, anonymous(message, bench.folder))


def anonymous(value, folder: Path):
    """`value` without the names of this machine, and of the folders above a file."""
    if isinstance(value, dict):
        return {str(key): anonymous(inner, folder) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [anonymous(inner, folder) for inner in value]
    if not isinstance(value, str):
        return value
    text = one_line(value)
    for known in (folder, PROJECT):
        text = text.replace(f"{known}/", "")
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "this machine", text)
    return re.sub(r"(?<![\w.)>])/(?:[^\s/'\",;:]+/)+", "…/", text)


def write_report(path: Path, about: dict, results: Sequence[Result]) -> None:
    """All so far, as JSON; a reader never sees half of it."""
    tree = about | {"checks": [asdict(result) for result in results]}
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(json.dumps(tree, indent=1, default=str) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror})") from None


def _digits(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
