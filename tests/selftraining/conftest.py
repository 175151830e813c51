"""Fixtures of the adaptation's tests."""

import numpy as np
import pytest
from PIL import Image

from core.datasets.reader import ImageSet
from tests.selftraining.trainers import picture


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{i}.png" for i in range(5))
    for path, size in zip(paths, [(32, 64), (40, 80), (48, 90), (32, 64), (50, 100)], strict=True):
        Image.fromarray(picture(rng, size)).save(path)
    return ImageSet("folder:pictures", paths, tuple(path.name for path in paths))
