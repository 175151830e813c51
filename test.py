"""Evaluate checkpoints, save predictions, order or select (core/programs/evaluate.py): `python test.py --help`."""

import sys

from core.programs.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
