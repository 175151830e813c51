"""The ghost GPU (`shared/ghost_gpu` beside the checkout): whether it can be had here, and what runs on it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.helpers import PROJECT

SOURCES = PROJECT.parent / "shared/ghost_gpu"
HERE = Path(__file__).parent
TORCH = "2.14.1"  # whose symbols the ghost has
TABLES = ("metrics.csv", "dtu_history.csv", "candidates.csv", "evaluation.csv")


def why_not():
    """Why the ghost cannot be built here, or nothing."""
    if not (SOURCES / "build.sh").exists():
        return "there is no ../shared/ghost_gpu"
    for tool in ("gcc", "g++", "nm"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if torch.version.cuda is None:
        return "this torch is a build for the CPU"
    if torch.__version__.partition("+")[0] != TORCH:
        return f"the ghost is made for torch {TORCH}, and this is {torch.__version__}"
    packages = Path(torch.__file__).parents[1] / "nvidia/cu13/include"
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
    if not any((folder / "cuda_runtime_api.h").exists() for folder in (home, packages)):
        return "there are no headers of CUDA"
    return ""


def build(out):
    """Build it into a folder, once for all processes that share it."""
    with (out.parent / f"{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "complete").exists():
            done = subprocess.run([SOURCES / "build.sh"], env=environment(out), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (out / "complete").touch()


def environment(out, **more):
    """Of a process on the ghost that lies in `out`."""
    own = {"GHOST_OUT": str(out), "PYTHON": sys.executable, "REPO": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


class Ghost:
    """A GPU that is not there.

    Args:
        out: where it was built.
        folder: for reports; it can be written to.
    """

    def __init__(self, out, folder):
        self._out, self._folder = out, folder

    def script(self, name, *argv, launcher=(), devices=1, **more):
        """Run a script of this folder; (what it wrote to stdout, to stderr)."""
        words = [SOURCES / "ghost.sh", *launcher, HERE / name, *argv]
        done = subprocess.run(
            [str(word) for word in words],
            cwd=PROJECT,
            env=environment(self._out, GHOST_DEVICES=str(devices), **more),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, done.stderr

    def figures(self, kind, *argv):
        """What published.py finds, by name."""
        path = self._folder / f"{kind}.json"
        self.script("published.py", kind, *argv, "--json", path)
        return json.loads(path.read_text())

    def programs(self, *commands, codes=None, processes=1, **how):
        """Run programs, each a list (name, words …), in one process; (reports, by process; stdout, stderr).

        None may race or find another shape than on the CPU, and each ends with its one of `codes`, or 0.
        """
        path = self._folder / "report.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        words = json.dumps([[str(word) for word in command] for command in commands])
        said = self.script("simulated.py", path, words, launcher=launcher if processes > 1 else (), **how)
        paths = [path] if processes == 1 else [Path(f"{path}.{rank}") for rank in range(processes)]
        found = [json.loads(path.read_text()) for path in paths]
        for each in found:
            for report, code in zip(each["reports"], codes or [0] * len(commands), strict=True):
                seen = (report["program"], report["code"], report["races"], report["problems"])
                assert seen == (report["program"], code, 0, {}), "".join(said)
        assert "GHOST RACE" not in said[1]
        return found, *said


def tables(folder, names=TABLES):
    """The tables in a run's folder, as bytes."""
    return {name: (Path(folder) / name).read_bytes() for name in names if (Path(folder) / name).exists()}
