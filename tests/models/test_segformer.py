"""SegFormer and DAFormer as networks by name: their parts, sizes, options, weights and exported form."""

import sys
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from torch import nn

from core.configs.node import OpenConfig
from core.models import segformer
from core.models.own_network import build_own_network
from core.utils.errors import UserError
from tools.export import FORMATS, Deployed

TINY = {"depths": [1, 2, 1, 1], "widths": [8, 8, 10, 16], "width": 6}
BUILD, DAFORMER = "core.models.segformer:build", "core.models.segformer:build_daformer"
PUBLISHED = {"b0": 3.8, "b1": 13.7, "b2": 27.5, "b5": 84.7}  # millions, of Xie et al., Table 1


def config(name=BUILD, classes=5, **args):
    options = OpenConfig()
    options.merge(args, "MODEL.ARGS")
    return SimpleNamespace(
        MODEL=SimpleNamespace(
            NAME=name, ARGS=options, NUM_CLASSES=classes, CLASSES_OUT=(), FREEZE_BN=False, FREEZE_BN_PARAMETERS=True
        )
    )


def network(name=BUILD, **args):
    """As every program builds it: tried on a small image."""
    torch.manual_seed(0)
    model = build_own_network(config(name, **TINY | args))
    model.fit(5, (64, 64))
    return model


@pytest.mark.parametrize("name", [BUILD, DAFORMER])
def test_contract_sizes_and_a_step(name):
    model = network(name)
    assert (model.stride, model.multiple) == (4, 1)
    assert model.idle_parameters() == []
    for height, width in ((29, 29), (64, 96), (75, 61)):
        image = torch.randn(2, 3, height, width)
        assert model(image).shape == (2, 5, -(-height // 4), -(-width // 4))
        maps = model.feature_extractor(image)
        assert [x.shape[1:] for x in maps] == [
            (channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(TINY["widths"], (4, 8, 16, 32), strict=True)
        ]
    with pytest.raises(UserError, match="images of 61×28 are too small for SegFormer: it needs 29 pixels a side"):
        model(torch.randn(2, 3, 28, 61))
    model.train()
    torch.manual_seed(1)
    loss = nn.functional.cross_entropy(model(image), torch.zeros(2, 19, 16, dtype=torch.long))
    loss.backward()
    assert [key for key, value in model.named_parameters() if not value.grad.any()] == []
    torch.optim.SGD(model.parameters(), 0.01).step()
    with torch.no_grad():
        model.eval()
        assert nn.functional.cross_entropy(model(image), torch.zeros(2, 19, 16, dtype=torch.long)) < loss


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size):
    """Millions of parameters, with 150 classes."""
    with torch.device("meta"):
        parts = segformer.build(config(f"segformer_{size}", 150))
    assert round(sum(p.numel() for part in parts for p in part.parameters()) / 1e6, 1) == PUBLISHED[size]


@pytest.mark.parametrize(("eps", "coarser", "others"), [("nvlabs", 1e-5, 1e-6), ("1e-5",) * 3, (1e-6,) * 3])
def test_layer_norms_have_their_eps(eps, coarser, others):
    features, _ = segformer.build(config(**TINY, eps=eps))
    found = {name: module.eps for name, module in features.backbone.named_modules() if isinstance(module, nn.LayerNorm)}
    where = ("patch_embed.norm", "downsample.norm", "attn.norm")
    changing = {name: value for name, value in found.items() if name.endswith(where)}
    assert (len(found), len(changing)) == (4 + 4 + 4 + 10, 4 + 4)  # embedding, reduction, stage; two of every block
    assert set(changing.values()) == {float(coarser)}
    assert {value for name, value in found.items() if name not in changing} == {float(others)}


def test_options_of_its_own():
    features, head = segformer.build(config(size="b1", projection="normed", drop_path=0.3, width=8))
    assert [type(layer) for layer in head.projections[0]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert head.fuse[0].weight.shape == (8, 32, 1, 1)
    assert len(features.backbone.stages[3].blocks) == 2
    assert features.backbone.stages[3].blocks[1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        (BUILD, {"colour": 1}, "colour"),
        (BUILD, {"size": "b6"}, "b0 or b1 or b2 or b3 or b4 or b5, not 'b6'"),
        ("segformer_b2", {"size": "b3"}, "size"),
        (BUILD, {"widths": [8, 8, 8, 8]}, "multiples of 1, 2, 5, 8"),
        (BUILD, {"widths": [8, 8, 10]}, "widths"),
        (BUILD, {"eps": "1e-4"}, "nvlabs or 1e-5 or 1e-6"),
        (DAFORMER, {"projection": "normed"}, "projection"),
    ],
)
def test_other_options_are_refused(name, args, told):
    build = segformer.build_daformer if name == DAFORMER else segformer.build
    with pytest.raises(UserError, match=told):
        build(config(name, **args))


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="needs timm: pip install"):
        segformer.build(config(**TINY))


@pytest.mark.parametrize("before", ["", "backbone.", "encoder."])
def test_pretrained_weights_of_its_own_format(before):
    """timm's, with the classifier that such files have."""
    features, _ = segformer.build(config(**TINY))
    state = {f"{before}{name}": tensor for name, tensor in features.backbone.state_dict().items()}
    found = features.pretrained(state | {"head.weight": torch.zeros(1000, 16), "head.bias": torch.zeros(1000)})
    assert found.keys() == features.state_dict().keys()
    features.load_state_dict(found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patch_embed1.proj.weight", "patch_embed.proj.weight"),
        ("backbone.patch_embed3.norm.bias", "stages.2.downsample.norm.bias"),
        ("block2.1.attn.kv.weight", "stages.1.blocks.1.attn.kv.weight"),
        ("block4.0.mlp.dwconv.dwconv.bias", "stages.3.blocks.0.mlp.dwconv.bias"),
        ("norm1.weight", "stages.0.norm.weight"),
        ("layers.0.0.projection.bias", "patch_embed.proj.bias"),
        ("layers.2.1.3.attn.attn.out_proj.weight", "stages.2.blocks.3.attn.proj.weight"),
        ("layers.2.1.3.ffn.layers.4.bias", "stages.2.blocks.3.mlp.fc2.bias"),
        ("layers.3.2.weight", "stages.3.norm.weight"),
        ("segformer.encoder.patch_embeddings.0.layer_norm.weight", "patch_embed.norm.weight"),
        ("encoder.block.0.1.attention.self.layer_norm.bias", "stages.0.blocks.1.attn.norm.bias"),
        ("encoder.block.0.1.layer_norm_2.bias", "stages.0.blocks.1.norm2.bias"),
        ("encoder.layer_norm.3.bias", "stages.3.norm.bias"),
        ("stages.1.blocks.2.attention.sequence_reduction.sequence_reduction.bias", "stages.1.blocks.2.attn.sr.bias"),
        ("segformer.stages.0.layer_norm.weight", "stages.0.norm.weight"),
        ("other.weight", "other.weight"),
    ],
)
def test_names_of_pretrained_weights(name, expected):
    features, _ = segformer.build(config(**TINY))
    heads = {
        "head.weight": torch.zeros(2),
        "classifier.bias": torch.zeros(2),
        "decode_head.conv.weight": torch.zeros(2),
    }
    assert list(features.pretrained({name: torch.zeros(2), **heads})) == [f"backbone.{expected}"]


@pytest.mark.long
def test_onnx_of_any_size():
    """Long, as torch takes its time over sizes that it does not know."""
    model = network(depths=[1, 1, 1, 1])
    deployed, metadata = Deployed(model, None).eval(), {"output": {"name": "logits"}}
    with torch.no_grad():
        data = FORMATS["onnx"].write(deployed, torch.zeros(2, 3, 75, 61), metadata, False, None)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 64, 96), (2, 3, 75, 61)):
        image = torch.randn(shape)
        with torch.no_grad():
            expected = model(image, shape[2:])
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
