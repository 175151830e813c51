"""MODEL.COMPILE: a compiled network is the same network, and where nothing can be compiled one line says so."""

import copy

import pytest
import torch
from torch import nn

from core.models.backbone import DilatedBasicBlock, FoldedConv2d, FrozenBatchNorm, fold_frozen_norms
from core.models.build import compile_networks
from core.models.deeplab import AtrousClassifier, Segmentor
from core.selftraining.dynamic_teacher import ema_update
from core.utils.devices import autocast
from test import main as evaluate
from tests.helpers import start
from tests.models.test_models import image, randomise_norms
from train_TCR_DTU import main as adapt

TOLERANCE = 1e-5  # of the largest value, in single precision


def small_network():
    """One of every kind of layer that the networks have."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 16, 7, 2, 3, bias=False), FrozenBatchNorm(16), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    features = nn.Sequential(*stem, DilatedBasicBlock(16, 16, dilation=2, norm_layer=FrozenBatchNorm))
    fold_frozen_norms(features)
    model = Segmentor(randomise_norms(features), AtrousClassifier(16, 5))
    assert sum(isinstance(module, FoldedConv2d) for module in model.modules()) == 3
    return model.to(memory_format=torch.channels_last)


def same(found, expected):
    return (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_logits_and_gradients_are_those_of_the_network_as_it_was():
    plain, compiled = small_network().train(), small_network().train()
    compile_networks(compiled)
    graphs = compiled_graphs()
    x = image(40, 56)
    weights = torch.randn(1, 5, 10, 14, generator=torch.Generator().manual_seed(1))
    for model in (plain, compiled):
        (model(x) * weights).sum().backward()
    for (name, expected), found in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert expected.grad.abs().max() > 0
        assert same(found.grad, expected.grad), name
    assert compiled_graphs() == graphs + 1
    assert list(compiled.state_dict()) == list(plain.state_dict())

    before, other = compiled(x), copy.deepcopy(compiled)
    assert same(before, plain(x))
    for parameter in other.parameters():
        parameter.data.mul_(1.5)
    for model in (plain, compiled):
        ema_update(model, other, 0.5)  # as the teacher moves: the old weights are no part of what was compiled
    moved = compiled(x)
    assert same(moved, plain(x))
    assert not same(moved, before)
    assert compiled_graphs() == graphs + 1


@pytest.mark.long
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_logits_of_inference(amp):
    plain, compiled = small_network().eval(), small_network().eval()
    compile_networks(compiled)
    x = image(40, 56)
    with torch.inference_mode(), autocast(torch.device("cpu"), amp):
        expected, found = plain(x), compiled(x)
    tolerance = TOLERANCE if amp == "off" else 0.02  # as of half precision itself
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def compiled_graphs():
    """How many graphs torch has compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("program", [adapt, evaluate])
def test_programs_compile_where_asked(program, cityscapes_root, write_config, own_checkpoint):
    options = {"MODEL.COMPILE": True, "MODEL.NAME": "tools.benchmark.data:small_network", "resume": own_checkpoint}
    options |= {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 1}
    torch._dynamo.reset()  # the other program's network may be the same
    graphs = compiled_graphs()
    assert program(["-cfg", str(write_config(cityscapes_root, **options))]) == 0
    assert compiled_graphs() > graphs


@pytest.fixture
def own_checkpoint(tmp_path, make_checkpoint):
    """The path of a checkpoint of tools.benchmark's small network."""
    return str(make_checkpoint(tmp_path / "small.pth", NAME="tools.benchmark.data:small_network"))


def test_without_a_compiler_one_line_says_so(cityscapes_root, write_config, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no_compiler"))
    process = start("train_TCR_DTU.py", "-cfg", write_config(cityscapes_root), "MODEL.COMPILE", "True")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    line = process.stderr.splitlines()[-1]
    assert line.startswith("error: MODEL.COMPILE: nothing can be compiled for cpu here")
    assert "C++ compiler" in line
    assert not (cityscapes_root / "out").exists()
