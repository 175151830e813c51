"""The house in numbers: lines and levels of packages, arrows and circles between them, files that an image meets.

Run as `python -m tests.house`. Imports are read, not run; for the last, an image is trained on, from its file to a
moved weight.
"""

import argparse
import ast
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import cv2
import numpy as np
import torch

from core.configs import cfg
from core.datasets.reader import ImageSet
from core.datasets.sampling import TensorBatch
from core.datasets.taxonomy import CAMVID_11
from core.models import build_model
from core.selftraining.samples import PasteRequest
from core.selftraining.trainer import Trainer

PROJECT = Path(__file__).resolve().parents[1]
PROGRAMS = ("train_TCR_DTU.py", "train_src.py", "test.py")
# what may import what: a package only those before it, and those of its own level none
LEVELS = (
    ("core.utils",),
    ("core.configs", "core.datasets", "core.models"),
    ("core.evaluation",),
    ("core.adaptation",),
    ("core.runs",),
    ("core.selftraining", "core.sourcetraining"),
    ("core.programs",),
    ("programs", "tools"),
)
Graph = Mapping[str, set[str]]


def modules(root: Path = PROJECT) -> dict[str, Path]:
    """Every module of core, tools and the programs, by its name."""
    files = [*(root / "core").rglob("*.py"), *(root / "tools").rglob("*.py"), *(root / name for name in PROGRAMS)]
    named = {}
    for path in sorted(files):
        parts = path.relative_to(root).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imports(root: Path = PROJECT) -> Graph:
    """Which modules of the project every module imports, wherever in its file."""
    known = modules(root)
    found = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
                wanted = [one for one in wanted if one in known][:-1] or [node.module]
            else:
                continue
            found[name] |= {one for one in wanted if one in known} - {name}
    return found


def package_of(module: str) -> str:
    """`core.runs` of `core.runs.loop`; the programs and core/solver.py count as what they are doors to."""
    first, *rest = module.split(".")
    if first == "core":
        return f"core.{rest[0]}" if rest and rest[0] != "solver" else "core.runs"
    return "tools" if first == "tools" else "programs"


def between_packages(graph: Graph) -> Graph:
    """The same for packages; `core` itself, which is empty, is left out."""
    found = defaultdict(set)
    for module, targets in graph.items():
        if module != "core":
            found[package_of(module)] |= {package_of(target) for target in targets if target != "core"}
    return {package: targets - {package} for package, targets in found.items()}


def circle(graph: Graph) -> list[str]:
    """Modules or packages that import each other in a ring; empty where none do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def depth(graph: Graph) -> int:
    """Number of levels that packages lie on."""
    levels: dict[str, int] = {}
    for package in TopologicalSorter(graph).static_order():
        levels[package] = 1 + max((levels[target] for target in graph.get(package, ())), default=0)
    return max(levels.values())


def upward(graph: Graph) -> list[str]:
    """Imports that :data:`LEVELS` does not allow, as `core.a -> core.b`."""
    level = {package: number for number, packages in enumerate(LEVELS) for package in packages}
    pairs = [(package, target) for package, targets in graph.items() for target in targets]
    return sorted(f"{one} -> {other}" for one, other in pairs if level[other] >= level[one])


def files_met(work: Callable[[], object], root: Path = PROJECT) -> tuple[list[str], list[str]]:
    """Files of core of which a function is handed or gives an image or a map while `work` runs; of which any runs."""
    met, running, prefix = set(), set(), f"{root / 'core'}/"

    def note(frame, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if name.startswith(prefix) and event in ("call", "return"):
            running.add(name.removeprefix(f"{root}/"))
            values = frame.f_locals.values() if event == "call" else [argument]
            if any(map(_holds_a_map, list(values))):
                met.add(name.removeprefix(f"{root}/"))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return sorted(met), sorted(running - met)


def _holds_a_map(value: object) -> bool:
    """Whether it is an array or tensor of at least 64 values in rows and columns, or holds one."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim > 1 and int(np.prod(value.shape)) >= 64
    if isinstance(value, TensorBatch):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list | tuple) and any(map(_holds_a_map, value))


def path_of_an_image() -> tuple[list[str], list[str]]:
    """:func:`files_met` where a target image and what is pasted into it go from disk to the student's weights.

    Whether the teacher follows is another matter, and dynamic_teacher.py's; it is not asked here.
    """
    with tempfile.TemporaryDirectory() as folder:
        names, rng = ("a.png", "b.png"), np.random.default_rng(0)
        for name in names:
            noise = rng.integers(0, 256, (6, 12, 3), np.uint8)
            cv2.imwrite(f"{folder}/{name}", cv2.resize(noise, (128, 64), interpolation=cv2.INTER_CUBIC))
        config = cfg.clone()
        config.OUTPUT_DIR, config.MODEL.NAME, config.MODEL.NUM_CLASSES = folder, "deeplab_resnet18", 11
        config.INPUT.INPUT_SIZE_TEST, config.INPUT.TARGET_INPUT_SIZE_TRAIN = (128, 64), (96, 48)
        config.DATALOADER.NUM_WORKERS, config.VIS.PERIOD, config.SOLVER.BATCH_SIZE = 0, 0, 2
        config.TCR.MIX_CLASSES, config.DTU.DYNAMIC = CAMVID_11.names, False
        images = ImageSet("frames", tuple(Path(folder) / name for name in names), names)
        trainer = Trainer(config, build_model(config), images, CAMVID_11)
        generation = str(trainer.candidate_pass.run(trainer.teacher, 0).folder)
        requests = [PasteRequest(n, n, generation, (1 / 11,) * 11) for n in range(2)]
        return files_met(
            lambda: trainer.train_step(trainer.samples.collate([trainer.samples[request] for request in requests]))
        )


def lines_of(package: str) -> int:
    """Lines of a package's Python files."""
    paths = [path for name, path in modules().items() if package_of(name) == package]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths if "gpu_check" not in path.parts)


def main(argv: Sequence[str]) -> int:
    """Print all of it; returns 1 where there is a circle or an arrow upwards."""
    parser = argparse.ArgumentParser(prog="python -m tests.house", description=__doc__)
    parser.parse_args(argv)
    graph = imports()
    packages = between_packages(graph)
    print(f"{'package':<20} lines  imports")
    total = 0
    for package in (package for level in LEVELS for package in level):
        lines = lines_of(package)
        total += lines
        print(f"{package:<20} {lines:5}  {', '.join(sorted(packages[package]))}")
    print(f"{'in all':<20} {total:5}  without tools/gpu_check")
    tests = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (PROJECT / "tests").rglob("*.py"))
    print(f"{'tests':<20} {tests:5}")
    wrong = upward(packages)
    ring = circle(graph)
    print(f"levels: {depth(packages)}; upwards: {', '.join(wrong) or 'none'}; circle: {' -> '.join(ring) or 'none'}")
    met, others = path_of_an_image()
    print(f"an image meets {len(met)} files of core from disk to weight:", *met, sep="\n  ")
    print(f"and {len(others)} of which a function runs meanwhile:", *others, sep="\n  ")
    return int(bool(wrong or ring))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
