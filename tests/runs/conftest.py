"""Pictures to train on, and runs that nothing broke off."""

import numpy as np
import pytest
from PIL import Image

from tests.runs.runs import KINDS, make_config


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    paths = tuple(folder / f"images/{i}.png" for i in range(5))
    for path, size in zip(paths, [(64, 32), (80, 40), (90, 48), (64, 32), (100, 50)], strict=True):
        coarse = rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
        Image.fromarray(rng.integers(0, 3, size[::-1]).astype(np.uint8)).save(folder / "labels" / path.name)
    return paths


@pytest.fixture(scope="session")
def straight(tmp_path_factory, pictures):
    """straight(kind): a run of 40 iterations that nothing broke off."""
    runs = {}

    def run(kind):
        if kind not in runs:
            runs[kind] = KINDS[kind](tmp_path_factory.mktemp("straight") / kind, pictures, make_config())
            runs[kind].run()
        return runs[kind]

    return run
