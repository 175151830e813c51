"""Adapt a source model to unlabelled target images (core/programs/adapt.py): `python train_TCR_DTU.py --help`."""

import sys

from core.programs.adapt import main

if __name__ == "__main__":
    sys.exit(main())
