"""MODEL.NAME module:function puts a network of the user's own into every program."""

import re
import sys

import pytest
import torch

from core.configs import load_config
from core.models import build_model
from test import main as evaluate
from train_TCR_DTU import main as adapt

NETWORK = """
import time

import torch
from torch import nn

def build(cfg):
    features = nn.Sequential(nn.Conv2d(3, 12, 7, stride=4, padding=3), nn.BatchNorm2d(12), nn.ReLU())
    return features, nn.Conv2d(12, cfg.MODEL.NUM_CLASSES, 1)

def with_weights(cfg):
    features, classifier = build(cfg)
    with torch.random.fork_rng():
        torch.manual_seed(3)  # as if read from a file
        classifier.load_state_dict({"weight": torch.randn(cfg.MODEL.NUM_CLASSES, 12, 1, 1), "bias": torch.zeros(19)})
        features[0].load_state_dict({"weight": torch.randn(12, 3, 7, 7), "bias": torch.zeros(12)})
    return features, classifier

def with_a_backbone(cfg):
    return with_weights(cfg)[0], build(cfg)[1]

def no_module(cfg):
    return "resnet"

def with_arguments(cfg):
    args = cfg.MODEL.ARGS
    width, (rows, columns) = args.width, args.head["kernel"]
    return nn.Conv2d(3, width, 8, stride=8), nn.Conv2d(width, cfg.MODEL.NUM_CLASSES, (rows, columns), padding="same")

class Pooled(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.pooled, self.classifier = nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.Conv2d(8, classes, 1)

    def forward(self, x):
        x = self.body(x)
        return self.classifier(x + self.pooled(x.mean((2, 3), keepdim=True)))

def pooled(cfg):
    return Pooled(cfg.MODEL.NUM_CLASSES)

class UNet(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.classifier = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(24, classes, 1)

    def forward(self, x):  # sides must be multiples of 32
        x = self.body(x)
        low = nn.functional.interpolate(nn.functional.avg_pool2d(x, 32), scale_factor=32.0)
        return {"out": self.classifier(torch.cat([x, low], 1)[..., ::2, ::2])}

def single(cfg):
    return UNet(cfg.MODEL.NUM_CLASSES + 1)

class SlowAtFirst(nn.Module):
    learnt = False

    def forward(self, x):
        if torch.is_grad_enabled() and not SlowAtFirst.learnt:
            SlowAtFirst.learnt = True
            time.sleep(4)
        return x

def compiled_say(cfg):
    return nn.Sequential(SlowAtFirst(), nn.Conv2d(3, 12, 8, stride=8)), nn.Conv2d(12, cfg.MODEL.NUM_CLASSES, 1)
"""


NORM_AT_START = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    """`own_network` is importable."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/own_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield
    sys.modules.pop("own_network", None)


def test_it_is_adapted_and_evaluated(cityscapes_root, write_config):
    config = str(write_config(cityscapes_root, **{"MODEL.NAME": "own_network:build", "resume": "random"}))
    out = cityscapes_root / "out"
    assert adapt(["-cfg", config]) == 0
    checkpoint = out / "model_iter000002.pth"
    state = torch.load(checkpoint, weights_only=True)
    assert state["feature_extractor"]["0.weight"].shape == (12, 3, 7, 7)
    assert state["classifier"]["weight"].shape == (19, 12, 1, 1)
    assert evaluate(["-cfg", config, "resume", str(checkpoint), "OUTPUT_DIR", str(out / "test")]) == 0
    assert (out / "test/test_cityscapes_val.csv").is_file()


def test_one_module_of_other_sizes_and_more_channels(cityscapes_root, write_config, capsys):
    options = {"MODEL.NAME": "own_network:single", "resume": "random", "MODEL.CLASSES_OUT": tuple(range(1, 20))}
    config = str(write_config(cityscapes_root, **options))
    sizes = ["INPUT.INPUT_SIZE_TEST", "(72, 40)"]
    assert adapt(["-cfg", config, *sizes]) == 0
    told = "own_network:single: stride 2; images are padded to multiples of 32, its output is cropped again"
    assert capsys.readouterr().out.count(told) == 1
    checkpoint = cityscapes_root / "out/model_iter000002.pth"
    state = torch.load(checkpoint, weights_only=True)
    assert set(state["feature_extractor"]) == {"body.weight", "body.bias", "classifier.weight", "classifier.bias"}
    assert state["classifier"] == {}
    out = str(cityscapes_root / "test")
    assert evaluate(["-cfg", config, *sizes, "resume", str(checkpoint), "OUTPUT_DIR", out]) == 0
    assert adapt(["-cfg", config, "OUTPUT_DIR", str(cityscapes_root / "second"), "MODEL.CLASSES_OUT", "()"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "it gives 20 channels, MODEL.NUM_CLASSES is 19: give MODEL.CLASSES_OUT" in error


def test_its_own_options(cityscapes_root, write_config, capsys):
    """They come with the run's own config, and a run goes on with the same ones only."""
    args = {"width": 6, "head": {"kernel": [3, 5]}, "note": None}
    options = {"MODEL.NAME": "own_network:with_arguments", "resume": "random", "MODEL.ARGS": args}
    config = write_config(cityscapes_root, **options)
    assert adapt(["-cfg", str(config)]) == 0
    out = cityscapes_root / "out"
    checkpoint = out / "model_iter000002.pth"
    state = torch.load(checkpoint, weights_only=True)
    assert state["classifier"]["weight"].shape == (19, 6, 3, 5)
    assert load_config(out / "config.yaml").MODEL.ARGS == load_config(config).MODEL.ARGS
    words = ["resume", str(checkpoint), "OUTPUT_DIR", str(out / "test")]
    assert evaluate(["-cfg", str(out / "config.yaml"), *words]) == 0
    further = ["resume", "auto", "SOLVER.STOP_ITER", "3"]
    assert adapt(["-cfg", str(config), *further]) == 0
    capsys.readouterr()
    for changed, part, words in (
        (args | {"width": 7}, "'width': 7}, but the run to go on with has ", further),
        (
            {"head": args["head"]},
            "with_arguments(cfg) fails: AttributeError: width, at ",
            ["OUTPUT_DIR", str(out / "n")],
        ),
    ):
        other = write_config(cityscapes_root, **options | {"MODEL.ARGS": changed})
        assert adapt(["-cfg", str(other), *words]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert part in error


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"MODEL.NAME": "deeplab_resnet18", "MODEL.ARGS": {"width": 6}}, "MODEL.ARGS is for networks of your own"),
        ({"MODEL.NAME": "own_network:with_arguments", "MODEL.ARGS": [6]}, "MODEL.ARGS must hold NAME: VALUE pairs"),
        ({"MODEL.NAME": "own_network:with_arguments", "MODEL.width": 6}, "unknown option MODEL.width"),
    ],
)
def test_options_outside_their_place(cityscapes_root, write_config, capsys, options, part):
    assert adapt(["-cfg", str(write_config(cityscapes_root, **options))]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert part in error


def test_one_that_brings_its_weights_needs_no_word_for_them(cityscapes_root, write_config, capsys):
    """The others would have random labels, and are told so."""
    for name, code in (("with_weights", 0), ("with_a_backbone", 1), ("build", 1)):
        config = str(write_config(cityscapes_root, **{"MODEL.NAME": f"own_network:{name}", "resume": ""}))
        assert adapt(["-cfg", config, "OUTPUT_DIR", str(cityscapes_root / name)]) == code
        captured = capsys.readouterr()
        assert ("error: no source model" in captured.err) == code
        assert (" M parameters, from its own function\n" in captured.out) == (not code)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("with_weights", "its own function"),
        ("with_a_backbone", "its own function, 2 of its 9 tensors random"),  # weight and bias of the last
        ("build", "its own function, 4 of its 9 tensors random"),
    ],
)
def test_random_weights_are_named_where_there_are_any(cityscapes_root, write_config, capsys, name, words):
    config = str(write_config(cityscapes_root, **{"MODEL.NAME": f"own_network:{name}", "resume": "random"}))
    assert adapt(["--check", "-cfg", config]) == 0
    assert f" M parameters, from {words}\n" in capsys.readouterr().out


def test_weights_that_torch_saved_are_a_source_model(cityscapes_root, write_config, capsys):
    """As docs/networks.md shows it; of a network that is one module, or a pair."""
    for name in ("single", "build"):
        options = {"MODEL.NAME": f"own_network:{name}", "resume": str(cityscapes_root / "my_source.pth")}
        options |= {"MODEL.CLASSES_OUT": tuple(range(1, 20))} if name == "single" else {}
        config = write_config(cityscapes_root, **options)
        network = build_model(load_config(config))
        network = network.feature_extractor if name == "single" else network
        torch.save(network.state_dict(), cityscapes_root / "my_source.pth")
        out = cityscapes_root / name
        words = ["OUTPUT_DIR", str(out), "SOLVER.STOP_ITER", "1", "SOLVER.BASE_LR", "1e-12"]
        assert adapt(["-cfg", str(config), *words]) == 0
        state = torch.load(out / "model_iter000001.pth", weights_only=True)["feature_extractor"]
        expected = network.state_dict() if name == "single" else network.feature_extractor.state_dict()
        assert all(torch.allclose(state[key], value, atol=1e-6) for key, value in expected.items())
        assert f"M parameters, from {cityscapes_root / 'my_source.pth'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("frozen", "parameters", "words"),
    [
        (True, True, "1 batch norm is held still\n"),
        (True, False, "1 batch norm is held still; its parameters learn\n"),
        (False, True, "1 batch norm is trained, by the statistics of every batch (MODEL.FREEZE_BN False)\n"),
    ],
)
def test_its_batch_norms_are_held_still_where_freeze_bn_says_so(
    cityscapes_root, write_config, capsys, frozen, parameters, words
):
    options = {"MODEL.NAME": "own_network:build", "resume": "random", "MODEL.FREEZE_BN": frozen, "SOLVER.BASE_LR": 0.05}
    options |= {"MODEL.FREEZE_BN_PARAMETERS": parameters}
    options |= {"DTU.DYNAMIC": False, "DTU.FIX_ITERATION": 1, "DTU.EMA_WEIGHT": 0.0}  # the teacher is the student
    assert adapt(["-cfg", str(write_config(cityscapes_root, **options))]) == 0
    state = torch.load(cityscapes_root / "out/model_iter000002.pth", weights_only=True)["feature_extractor"]
    untouched = [torch.equal(state[f"1.{name}"], torch.full((12,), value)) for name, value in NORM_AT_START.items()]
    assert untouched == [frozen and parameters] * 2 + [frozen] * 2
    assert words in capsys.readouterr().out
    assert state["1.num_batches_tracked"] == (0 if frozen else 2)


def test_frozen_norms_admit_a_batch_in_parts(cityscapes_root, write_config):
    options = {"MODEL.NAME": "own_network:build", "resume": "random", "SOLVER.ACCUMULATE": 2, "SOLVER.BATCH_SIZE": 2}
    assert adapt(["-cfg", str(write_config(cityscapes_root, **options))]) == 0


@pytest.mark.parametrize(("size", "frozen"), [(1, False), (1, True), (2, False)])
def test_batch_norm_of_one_value_is_one_line(cityscapes_root, write_config, capsys, size, frozen):
    """As of the image pooling of a DeepLabV3."""
    options = {"MODEL.NAME": "own_network:pooled", "resume": "random", "MODEL.FREEZE_BN": frozen}
    options |= {"SOLVER.BATCH_SIZE": size}
    code = adapt(["--check", "-cfg", str(write_config(cityscapes_root, **options))])
    error = capsys.readouterr().err
    refused = size == 1 and not frozen
    assert code == int(refused)
    assert error.count("\n") == int(refused)
    assert ("SOLVER.BATCH_SIZE 1: of each channel, feature_extractor.pooled of own_network:pooled" in error) == refused


def test_check_tells_what_a_step_costs_once_it_runs(cityscapes_root, write_config, capsys):
    """The first step takes four seconds more, as where networks are compiled."""
    options = {"MODEL.NAME": "own_network:compiled_say", "resume": "random"}
    assert adapt(["--check", "-cfg", str(write_config(cityscapes_root, **options))]) == 0
    text = capsys.readouterr().out
    first, second = map(float, re.search(r"the first step took ([\d.]+) s, the second ([\d.]+) s", text).groups())
    assert first >= 4
    assert second < 3
    assert float(re.search(r"time: ([\d.]+) s/iteration", text)[1]) == pytest.approx(second, abs=0.01)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("own_netwerk:build", ["own_netwerk", "module:function"]),
        ("own_network:bild", ["bild", "module:function"]),
        ("own_network:nn", ["own_network:nn", "module:function"]),
        (".own_network:build", [".own_network", "module:function"]),
        (":build", [":build", "module:function"]),
        ("own_network:no_module", ["own_network:no_module", "(feature extractor, classifier)"]),
    ],
)
def test_what_is_no_such_function_is_one_line(cityscapes_root, write_config, capsys, name, parts):
    assert adapt(["-cfg", str(write_config(cityscapes_root, **{"MODEL.NAME": name, "resume": "random"}))]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in ["MODEL.NAME", *parts])
