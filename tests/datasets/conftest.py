"""What the tests of data sets share."""

import pytest
import yaml

from core.configs import cfg, load_config


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


@pytest.fixture
def load(tmp_path):
    """load(data sets, **DATASETS keys): a config of so many classes, from a yaml file; data in tmp_path."""

    def make(custom, classes=4, **datasets):
        tree = {
            "MODEL": {"NUM_CLASSES": classes},
            "DATASETS": {"ROOT": str(tmp_path), "CUSTOM": custom, **datasets},
        }
        (tmp_path / "some.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        return load_config(tmp_path / "some.yaml")

    return make
