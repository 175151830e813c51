"""`python -m tools.gpu_check`."""

import sys
from pathlib import Path

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.gpu_check import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
