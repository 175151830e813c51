"""What a run was made with: its command, versions, device, and the state of this project's own files."""

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch
import torchvision

from core.utils import distributed

PROJECT = Path(__file__).resolve().parents[2]


def available_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
