"""What the tests of data sets share."""

import pytest

from core.configs import cfg


@pytest.fixture
def options(tmp_path):
    """options(**DATASETS keys, classes=19): a config whose data lie in tmp_path."""

    def make(classes=19, **datasets):
        config = cfg.clone()
        config.MODEL.NUM_CLASSES, config.DATASETS.ROOT = classes, str(tmp_path)
        for key, value in datasets.items():
            config.DATASETS[key] = value
        return config

    return make
