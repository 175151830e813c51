"""Whether a run's memory stays flat: adapts on data that it makes, watches, and exits with 1 if it grew by over 3 %.

RssAnon of the run and its loader processes is summed several times a second. Two candidate passes, checkpoints and the
dynamic teacher's queries are on the way.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.runs.folder import METRICS
from core.utils.tables import last_iteration

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 300
WARM_UP = 50  # iterations, during which memory may grow
LIMIT = 3.0  # per cent
PERIOD = 0.2  # seconds between two looks
IMAGES, SIZE = 12, (96, 64)  # (width, height)


class Sample(NamedTuple):
    """One look: iterations completed (as far as the run has told), processes, and bytes of anonymous memory in all."""

    iteration: int
    processes: int
    memory: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print a table and the growth; 1 if that is above 3 %."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.memory",
        description=__doc__,
        epilog="example: python -m tools.memory --iterations 300",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help=f"of the run (default {ITERATIONS})")
    iterations = parser.parse_args(argv).iterations
    with tempfile.TemporaryDirectory(prefix="dtst-memory-") as folder:
        samples = watch_run(write_experiment(Path(folder), iterations), Path(folder) / "out" / METRICS)
    print("\n".join(table(samples)))
    percent = growth(samples, iterations)
    verdict = "flat" if percent <= LIMIT else "NOT flat"
    print(f"growth after the first {WARM_UP} iterations: {percent:+.2f} % (limit {LIMIT:g} %): {verdict}")
    return int(percent > LIMIT)


def write_experiment(folder: Path, iterations: int) -> Path:
    """Images and a config in `folder`; the config's path."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(IMAGES):
        blocks = rng.integers(0, 256, (SIZE[1] // 16, SIZE[0] // 16, 3), np.uint8)
        Image.fromarray(blocks.repeat(16, 0).repeat(16, 1)).save(folder / f"images/{number}.png")
    tree = {
        "OUTPUT_DIR": str(folder / "out"),
        "resume": "random",
        "MODEL": {"NAME": "deeplab_resnet18", "NUM_CLASSES": 14, "FREEZE_BN": True, "DEVICE": "cpu"},
        "DATASETS": {"SOURCE_TRAIN": "toy_source_train", "TARGET_TRAIN": f"folder:{folder / 'images'}"},
        "DATALOADER": {"NUM_WORKERS": 2},
        "INPUT": {
            "INPUT_SIZE_TEST": list(SIZE),
            "TARGET_INPUT_SIZE_TRAIN": [64, 32],
            "INPUT_SCALES_TRAIN": [0.75, 1.25],
            "HORIZONTAL_FLIP_PROB_TRAIN": 0.5,
        },
        "TCR": {"UPDATE_FREQUENCY": 2 * iterations // 3},  # a pass at the start, and one more
        "SOLVER": {
            "BASE_LR": 1e-6,
            "STOP_ITER": iterations,
            "MAX_ITER": iterations,
            "BATCH_SIZE": 2,
            "CHECKPOINT_PERIOD": iterations // 3 or 1,
        },
    }
    path = folder / "memory.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def watch_run(config: Path, metrics: Path) -> list[Sample]:
    """Adapt in a process of its own, and look at its memory until it ends.

    Raises:
        CalledProcessError: it failed; what it said went to stderr.
    """
    command = [sys.executable, str(ROOT / "train_TCR_DTU.py"), "-cfg", str(config), "--skip-test"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr) as run:
        try:
            samples = list(watch(run, metrics))
        finally:
            run.kill()
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    return samples


def watch(run: subprocess.Popen, metrics: Path) -> Iterator[Sample]:
    """Looks at a process and its descendants until it ends."""
    while run.poll() is None:
        memory = tree_memory(run.pid)
        if memory:
            yield Sample(last_iteration(metrics), len(memory), sum(memory.values()))
        time.sleep(PERIOD)


def tree_memory(root: int, proc: Path = Path("/proc")) -> dict[int, int]:
    """RssAnon in bytes of a process and all its descendants, by process id; those that just ended are left out."""
    parents, memory = {}, {}
    for status in proc.glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        process = int(status.parent.name)
        parents[process] = int(fields["PPid"])
        memory[process] = 1024 * int(fields.get("RssAnon", "0 kB").split()[0])
    found = {root}
    while children := {process for process, parent in parents.items() if parent in found} - found:
        found |= children
    return {process: memory[process] for process in found if memory.get(process)}


def growth(samples: Sequence[Sample], iterations: int) -> float:
    """Per cent by which the memory at the end exceeds that after the warm-up: medians over 50 iterations each.

    A median, because processes come and go: around a candidate pass there are others than in training.

    Raises:
        ValueError: a run too short to tell.
    """
    early = [sample.memory for sample in samples if WARM_UP <= sample.iteration < 2 * WARM_UP]
    late = [sample.memory for sample in samples if sample.iteration >= max(iterations - WARM_UP, 2 * WARM_UP)]
    if not early or not late:
        raise ValueError(f"no samples after iteration {WARM_UP}, or none at the end: a longer run is needed")
    return 100 * (median(late) / median(early) - 1)


def table(samples: Sequence[Sample]) -> list[str]:
    """Lines: per iteration told, how many looks, and the median and largest sum of memory."""
    lines = ["iteration   looks   processes   RssAnon, median   largest (MB)"]
    for iteration in sorted({sample.iteration for sample in samples}):
        here = [sample for sample in samples if sample.iteration == iteration]
        memory = [sample.memory / 1e6 for sample in here]
        most = max(sample.processes for sample in here)
        lines.append(f"{iteration:9d} {len(here):7d} {most:11d} {median(memory):17.1f} {max(memory):9.1f}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
