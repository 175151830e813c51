"""What a run was made with: its command, versions, device, and the state of this project's own files."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision

from core.utils import distributed

PROJECT = Path(__file__).resolve().parents[2]
INSTALLED = {  # the programs by the file or module that Python starts, and their names where the package is installed
    "train_TCR_DTU.py": "dtst-adapt",
    "train_src.py": "dtst-train-source",
    "test.py": "dtst-test",
    "tools.predict": "dtst-predict",
    "tools.report": "dtst-report",
    "tools.compare": "dtst-compare",
    "tools.export": "dtst-export",
    "tools.import_model": "dtst-import",
    "tools.toy_domains": "dtst-toy-domains",
    "tools.gpu_check": "dtst-gpu-check",
}


def available_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def started_as(program: str) -> tuple[str, ...]:
    """The words that start this program as it was started: `python train_TCR_DTU.py`, `dtst-adapt`, `torchrun …`.

    Args:
        program: its file or module, `train_TCR_DTU.py` or `tools.predict`: as which it was started where it cannot be
            seen, because it was called (in a notebook, or a test).
    """
    given, spec = sys.argv[0], getattr(sys.modules["__main__"], "__spec__", None)
    if _is_installed(given):
        return _installed(Path(given)) if distributed.count() == 1 else (*distributed.launcher(), given)
    module = spec.name.removesuffix(".__main__") if spec is not None else ""
    if module.startswith("core.programs.") or module == program:
        return *distributed.launcher(), "-m", module
    file = _file(program)
    known = Path(given).resolve() in (file, file / "__main__.py", file.with_suffix(".py"))
    return *distributed.launcher(), *((given,) if known else _by_python(program))


def start_of(program: str) -> tuple[str, ...]:
    """The words that start another program of the project from this folder, by its name where this one was started so.

    Args:
        program: one of :data:`INSTALLED`.
    """
    if _is_installed(sys.argv[0]):
        return _installed(Path(sys.argv[0]).with_name(INSTALLED[program]))
    return "python", *from_here(_by_python(program))


def from_here(words: Sequence[str]) -> list[str]:
    """What Python is given to start a program in the project's folder, made to work from this one.

    Args:
        words: `FILE …` or `-m MODULE …`; others are left as they are.
    """
    program, others = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    path = _file(program)
    return list(words) if Path.cwd() == PROJECT or not path.exists() else [str(path), *others]


def _by_python(program: str) -> tuple[str, ...]:
    """What Python is given in the project's folder."""
    return (program,) if program.endswith(".py") else ("-m", program)


def _file(program: str) -> Path:
    """What Python is given in any folder: a file, or a folder with `__main__.py`."""
    if program.endswith(".py"):
        return PROJECT / program
    path = PROJECT.joinpath(*program.split("."))
    return path if path.is_dir() else path.with_suffix(".py")


def _is_installed(path: str) -> bool:
    return Path(path).name in INSTALLED.values()


def _installed(path: Path) -> tuple[str, ...]:
    """An installed program, by its name where the shell finds it so."""
    found = shutil.which(path.name)
    same = found is not None and path.exists() and os.path.samefile(found, path)
    return (path.name if same else str(path),)


def describe_environment(command: str, device: str, precision: str) -> dict:
    """Strings and numbers by name, for people and for :mod:`tools.report`."""
    return {
        "command": command,
        "device": device,
        "precision": precision,
        "processes": distributed.count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "processor cores": available_cores(),
        "commit": find_commit(PROJECT),
    }


def find_commit(folder: Path) -> str:
    """The git commit of the files in `folder`, `… with changes` where they differ; empty outside a repository."""
    if not (folder / ".git").exists():  # nor that of a repository around it
        return ""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
