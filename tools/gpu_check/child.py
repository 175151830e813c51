"""A training program with something amiss: `python -m tools.gpu_check.child WHAT PROGRAM ARGS …`.

WHAT: `stop:N`, SIGTERM comes during iteration N; `full`, in its first step the device has no memory left to give.
"""

import importlib
import os
import signal
import sys

import torch

from core.selftraining.trainer import Trainer
from core.sourcetraining.trainer import SourceTrainer

ROOM = 2 << 20  # bytes that a full device has left


def main(argv: list[str]) -> int:
    """Run the program so; returns its exit code."""
    (what, _, number), program = argv[0].partition(":"), argv[1].removesuffix(".py")
    for trainer in (Trainer, SourceTrainer):
        trainer.train_step = disturbed(trainer.train_step, what, int(number or 1))
    return importlib.import_module(program).main(argv[2:])


def disturbed(step, what: str, number: int):
    """`step`, before which something happens."""

    def train_step(self, batch):
        if what == "stop" and self.iteration + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)
        if what == "full":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + ROOM) / total)
        return step(self, batch)

    return train_step


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
