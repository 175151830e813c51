"""For the first person with a GPU: whether this project computes there what it computes on the CPU, and how fast.

`python -m tools.gpu_check` needs no data. It prints a line per check; its exit code is how many of them failed.
"""

from tools.gpu_check.runner import main

__all__ = ["main"]
