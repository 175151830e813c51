"""A training program whose second process, and no other, gets SIGUSR1 at a given moment.

python tests/distributed/signalling.py load|step|end train_TCR_DTU.py …
"""

import importlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from core.runs import loop
from core.runs.loop import Training
from core.utils import distributed

MOMENTS = {"load": (loop, "load_model"), "step": (Training, "begin_step"), "end": (Training, "_run")}
place, name = MOMENTS[sys.argv[1]]
function = getattr(place, name)


def call_and_signal(*args, **options):
    result = function(*args, **options)
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    return result


setattr(place, name, call_and_signal)
sys.exit(importlib.import_module(Path(sys.argv[2]).stem).main(sys.argv[3:]))
