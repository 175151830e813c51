"""Train a source model on labelled images (core/programs/train_source.py): `python train_src.py --help`."""

import sys

from core.programs.train_source import main

if __name__ == "__main__":
    sys.exit(main())
