"""The method, its data and its programs; here, the one line for systems that lack what all of it is built on."""

import sys
from importlib.util import find_spec

if sys.platform == "win32" or not (find_spec("fcntl") and find_spec("resource")):
    sys.exit(
        "error: this project runs on Linux and macOS, not on Windows itself: install WSL (`wsl --install`), and there "
        "do all as on Linux (docs/installing.md)"
    )
