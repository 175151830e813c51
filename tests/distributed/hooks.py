"""What the processes of a forked job may do beside their program."""

import hashlib
import os
import signal

from core.runs import loop
from core.runs.loop import Training
from core.utils import distributed

MOMENTS = {"load": (loop, "load_model"), "step": (Training, "begin_step"), "end": (Training, "_run")}


def nothing():
    """The hook of most jobs."""


def after(place, name, action):
    """Have `action(self or first argument)` follow every call of a function."""
    function = getattr(place, name)

    def call(*args, **options):
        result = function(*args, **options)
        action(args[0])
        return result

    setattr(place, name, call)


def note_networks():
    """Every process notes, in its OUTPUT_DIR, what its networks have become."""

    def note(training):
        digest = hashlib.sha256()
        for model in (training.result, training.parallel):
            for tensor in model.state_dict().values():
                digest.update(tensor.numpy().tobytes())
        (training.output.folder / f"process{distributed.rank()}.txt").write_text(digest.hexdigest())

    after(Training, "run", note)


def signal_second(moment):
    """The second process, and no other, gets SIGUSR1 after a moment: load, step or end."""

    def send(_):
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    after(*MOMENTS[moment], send)
