"""The layers of networks by depth, and what of them does not decay, by hand."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, swin_t

from core.configs import cfg
from core.models import build_model
from core.models.layers import layer_numbers, layers_of, undecayed
from tests.helpers import changed


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))


class Transformer(nn.Module):
    """As DINO's, by timm's names."""

    def __init__(self, depth=3):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 5, 4))
        self.patch_embed = nn.Conv2d(3, 4, 4, 4)
        self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
        self.norm = nn.LayerNorm(4)


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.norm = nn.Conv2d(4, 4, 1), nn.ModuleList([Block(), Block()]), nn.LayerNorm(4)


class SideBySide(nn.Module):
    """As MiT of SegFormer's authors: what embeds comes first."""

    def __init__(self):
        super().__init__()
        self.embed1, self.embed2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.block1, self.norm1 = nn.ModuleList([Block()]), nn.LayerNorm(4)
        self.block2, self.norm2 = nn.ModuleList([Block(), Block()]), nn.LayerNorm(4)


class Declared(SideBySide):
    def layers(self):
        first, second = (self.embed1, self.block1, self.norm1), (self.embed2, self.block2, self.norm2)
        return [nn.ModuleList(first), nn.ModuleList(second)]


def wrapped(module):
    """With an extractor's wrapper, and a neck beside it that has blocks, too."""
    neck = nn.Sequential(*[nn.Sequential(nn.Conv2d(1, 1, 1)) for _ in range(4)])
    return nn.ModuleDict({"neck": neck, "model": nn.ModuleDict({"backbone": module})})


NETWORKS = {  # by the beginnings of names, the layer of parameters; the head's is the largest
    "resnet18": (lambda: resnet18(num_classes=2), {"conv1": 0, "bn1": 0, "layer1": 1, "layer3.1": 3, "fc": 5}),
    "transformer": (
        Transformer,
        {"cls": 0, "pos": 0, "patch": 0, "blocks.0": 1, "blocks.1.mlp": 2, "blocks.2": 3, "norm": 4},
    ),
    "one block": (lambda: Transformer(1), {"patch": 0, "blocks.0": 1, "norm": 2}),
    "stages": (
        lambda: nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 1), stages=nn.ModuleList([Stage(), Stage()]))),
        {"stem": 0, "stages.0": 1, "stages.1.embed": 2, "stages.1.norm": 2},
    ),
    "side by side": (SideBySide, {"embed": 0, "block1": 1, "norm1": 1, "block2": 2, "norm2": 3}),
    "declared": (Declared, {"embed1": 1, "norm1": 1, "embed2": 2, "norm2": 2}),
    "wrapped": (
        lambda: wrapped(Transformer()),
        {
            "neck": 0,
            "model.backbone.cls": 0,
            "model.backbone.patch": 0,
            "model.backbone.blocks.2": 3,
            "model.backbone.norm": 4,
        },
    ),
    "a wrapper's only part": (
        lambda: nn.ModuleDict({"model": nn.Sequential(OrderedDict(backbone=Transformer()))}),
        {"model.backbone.patch": 0, "model.backbone.blocks.2": 3, "model.backbone.norm": 4},
    ),
    "swin": (lambda: swin_t(num_classes=2).features, {"0": 0, "1": 1, "2": 1, "3": 2, "7": 4}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_found_by_structure_or_declared(name):
    build, expected = NETWORKS[name]
    network = build()
    numbers, top = layer_numbers(network)
    assert numbers.keys() == {id(parameter) for parameter in network.parameters()}
    assert top == len(layers_of(network)) + 1
    for beginning, number in expected.items():
        found = {numbers[id(p)] for key, p in network.named_parameters() if key.startswith(beginning)}
        assert found == {number}, beginning


@pytest.mark.parametrize("freeze", [True, False])
def test_the_published_network_has_four(freeze):
    model = build_model(changed(cfg, MODEL__NAME="deeplab_resnet18", MODEL__FREEZE_BN=freeze))
    backbone = model.feature_extractor.backbone
    assert layers_of(model.feature_extractor) == [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]


@pytest.mark.parametrize("network", [nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.ReLU()])
def test_where_there_are_none_none_are_found(network):
    assert layers_of(network) == []


def test_norms_and_embeddings_do_not_decay_and_biases_do():
    network, ids = Transformer(1), {}
    network.pool = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    network.reg_token, network.mask = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    ids = undecayed(network)
    names = {name for name, parameter in network.named_parameters() if id(parameter) in ids}
    norms = ("blocks.0.norm", "norm", "pool.1", "pool.2")
    expected = {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}
    assert names == expected | {"cls_token", "pos_embed", "reg_token"}
