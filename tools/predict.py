"""`python tools/predict.py …`: the same as `python -m tools.predict …`, from any folder."""

import sys
from pathlib import Path

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tools.predict.__main__ import main  # of the package, which goes before this file of the same name

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
