"""ResNet-101 as Caffe and as ResNet-v1c have it: geometry, folding, DSU (its logits: tests/tools/import_model)."""

import pytest
import torch
from torchvision.models import resnet

from core.models import backbone
from core.models.backbone import DSU_POSITIONS, FeatureExtractor, FrozenBatchNorm, plain_copy

NAMES = ("caffe_resnet101", "v1c_resnet101")
DILATIONS = {"caffe_resnet101": (1, 1, 1, 2, 2, 4, 4), "v1c_resnet101": (1, 1, 1, 1, 2, 2, 4)}  # of the blocks below


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    for name in NAMES:
        monkeypatch.setitem(backbone.ARCHITECTURES, name, (resnet.Bottleneck, (1, 2, 2, 2)))


def made(name, freeze=True, **options):
    torch.manual_seed(0)
    return FeatureExtractor(name, freeze, **options).eval().requires_grad_(False)


@pytest.mark.parametrize("name", NAMES)
def test_stride_and_dilation_of_every_block(name):
    network = made(name).backbone
    blocks = [block for number in range(1, 5) for block in getattr(network, f"layer{number}")]
    assert tuple(block.conv2.dilation[0] for block in blocks) == DILATIONS[name]
    assert all(block.conv2.padding == block.conv2.dilation for block in blocks)
    first, second = (1, 2) if name == "v1c_resnet101" else (2, 1)
    assert [block.conv1.stride[0] for block in blocks] == [1, first, 1, 1, 1, 1, 1]
    assert [block.conv2.stride[0] for block in blocks] == [1, second, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("size", [(64, 104), (63, 97), (62, 57), (1, 8)])
def test_how_many_points_an_image_has(size):
    found = {name: tuple(made(name)(torch.zeros(1, 3, *size)).shape[-2:]) for name in NAMES}
    assert found["v1c_resnet101"] == tuple(-(-side // 8) for side in size)
    assert found["caffe_resnet101"] == tuple((side + 1) // 8 + 1 for side in size)


@pytest.mark.parametrize("name", NAMES)
def test_every_frozen_norm_is_folded_and_none_is_lost(name):
    network, plain = made(name), made(name, freeze=False).double()
    norms = [module for module in network.modules() if isinstance(module, FrozenBatchNorm)]
    for norm in norms:
        for buffer in norm.buffers():
            buffer.uniform_(0.5, 1.5)
    assert all(norm.folded for norm in norms)
    plain.load_state_dict(network.state_dict(), strict=False)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
    image = torch.randn(1, 3, 41, 56)
    expected = plain(image.double())
    for found in (network(image), plain_copy(network)(image)):
        assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_dsu_stands_behind_its_layers(name):
    layers = [*made(name, uncertainty=0.5, positions=range(6)).backbone._modules]
    assert [layers[layers.index(f"dsu_{layer}") - 1] for layer in DSU_POSITIONS] == [*DSU_POSITIONS]
    assert layers.index("dsu_conv1") + 1 == layers.index("bn1")
    plain = made(name)
    assert plain.state_dict().keys() == made(name, uncertainty=0.5, positions=range(6)).state_dict().keys()
