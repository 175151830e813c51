"""What the tests of programs share."""

from pathlib import Path

import pytest

from core.configs import load_config
from train_TCR_DTU import main as adapt


@pytest.fixture
def adapted(cityscapes_root, write_config, capsys):
    """adapted(argv=(), **overrides): a tiny run in this process, which must succeed: (OUTPUT_DIR, its log lines)."""

    def run(*argv, **overrides):
        config = write_config(cityscapes_root, **overrides)
        code = adapt(["-cfg", str(config), *argv])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        out = Path(load_config(config).OUTPUT_DIR)
        return out, captured.out.splitlines()

    return run
