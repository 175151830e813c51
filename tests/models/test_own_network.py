"""MODEL.NAME module:function puts a network of the user's own into every program."""

import sys

import pytest
import torch

from test import main as evaluate
from train_TCR_DTU import main as adapt

NETWORK = """
from torch import nn

def build(cfg):
    features = nn.Sequential(nn.Conv2d(3, 12, 7, stride=4, padding=3), nn.BatchNorm2d(12), nn.ReLU())
    return features, nn.Conv2d(12, cfg.MODEL.NUM_CLASSES, 1)

def single(cfg):
    return nn.Conv2d(3, cfg.MODEL.NUM_CLASSES, 1)
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    """`own_network` is importable."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/own_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield
    sys.modules.pop("own_network", None)


def test_it_is_adapted_and_evaluated(cityscapes_root, write_config):
    config = str(write_config(cityscapes_root, **{"MODEL.NAME": "own_network:build", "resume": ""}))
    out = cityscapes_root / "out"
    assert adapt(["-cfg", config]) == 0
    checkpoint = out / "model_iter000002.pth"
    state = torch.load(checkpoint, weights_only=True)
    assert state["feature_extractor"]["0.weight"].shape == (12, 3, 7, 7)
    assert state["classifier"]["weight"].shape == (19, 12, 1, 1)
    assert evaluate(["-cfg", config, "resume", str(checkpoint), "OUTPUT_DIR", str(out / "test")]) == 0
    assert (out / "test/test_cityscapes_val.csv").is_file()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("own_netwerk:build", ["own_netwerk", "module:function"]),
        ("own_network:bild", ["bild", "module:function"]),
        ("own_network:nn", ["own_network:nn", "module:function"]),
        (".own_network:build", [".own_network", "module:function"]),
        (":build", [":build", "module:function"]),
        ("own_network:single", ["own_network:single", "(feature extractor, classifier)"]),
    ],
)
def test_what_is_no_such_function_is_one_line(cityscapes_root, write_config, capsys, name, parts):
    assert adapt(["-cfg", str(write_config(cityscapes_root, **{"MODEL.NAME": name, "resume": ""}))]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in ["MODEL.NAME", *parts])
