"""Networks by name: what each is, gives and takes, MODEL.ARGS, and the weights that their libraries have."""

import sys

import pytest
import timm
import torch
from torch.nn import functional as F
from torchvision.models.segmentation import deeplabv3_resnet50, fcn_resnet50

from core.configs import cfg, load_config, rules
from core.models import build_model, networks
from core.models.backbone import ARCHITECTURES, DilatedBasicBlock
from core.models.own_network import OwnNetwork, build_own_network
from core.utils.checkpoints import load_imagenet_weights
from core.utils.errors import UserError

CLASSES = 5
DINO = {"depth": 4, "dim": 24, "heads": 2}
MIX = {"depths": (1, 1, 1, 1), "widths": (8, 8, 10, 16), "width": 6}
TINY = {  # a tiny one of each kind: name, MODEL.ARGS, stride, multiple
    "segformer": ("segformer_b0", MIX, 4, 1),
    "daformer": ("daformer_b5", MIX, 4, 1),
    "deeplabv3": ("deeplabv3_resnet101", {}, 8, 1),
    "fcn": ("fcn_resnet50", {}, 8, 1),
    "dinov2": ("dinov2_vits", DINO, 14, 14),
    "dinov2 dpt": ("dinov2_vitb", DINO | {"head": "dpt", "width": 8}, 4, 28),
    "dinov3": ("dinov3_vitl", DINO, 16, 16),
    "dinov3 dpt": ("dinov3_vits", DINO | {"head": "dpt", "width": 8}, 4, 16),
}
IMAGE = torch.randn(2, 3, 45, 61, generator=torch.Generator().manual_seed(1))


def options(name, args=(), **others):
    others = {f"MODEL.{key}": value for key, value in others.items()}
    return cfg.changed({"MODEL.NAME": name, "MODEL.ARGS": dict(args), "MODEL.NUM_CLASSES": CLASSES} | others)


@pytest.fixture
def shallow(monkeypatch):
    """ResNets of few and narrow blocks."""
    for name in ("resnet50", "resnet101"):
        monkeypatch.setitem(ARCHITECTURES, name, (DilatedBasicBlock, (1, 1, 1, 1)))


def test_the_rule_of_the_name_knows_them():
    others = {name for name in rules.NETWORK.known if not name.startswith("deeplab_")}
    assert others == set(networks.NAMED)
    assert all(rules.NETWORK.holds(name) for name in networks.NAMED)


PARAMETERS = {  # in millions, without the head: of the papers, and of torchvision's and timm's tables
    "deeplabv3_resnet50": 23.5,
    "deeplabv3_resnet101": 42.5,
    "fcn_resnet50": 23.5,
    "fcn_resnet101": 42.5,
    "segformer_b0": 3.3,
    "segformer_b1": 13.2,
    "segformer_b2": 24.2,
    "segformer_b3": 44.1,
    "segformer_b4": 60.8,
    "segformer_b5": 81.4,
    "daformer_b5": 81.4,
    "dinov2_vits": 22.1,
    "dinov2_vitb": 86.6,
    "dinov2_vitl": 304.4,
    "dinov3_vits": 21.6,
    "dinov3_vitb": 85.6,
    "dinov3_vitl": 303.1,
}


@pytest.mark.parametrize("name", networks.NAMED)
def test_each_is_built_at_its_size(name):
    """Without numbers in them: on the meta device."""
    with torch.device("meta"):
        model = build_own_network(options(name))
    assert isinstance(model, OwnNetwork)
    parameters = sum(parameter.numel() for parameter in model.feature_extractor.parameters())
    assert parameters / 1e6 == pytest.approx(PARAMETERS[name], abs=0.06)


@pytest.mark.parametrize("kind", TINY)
def test_what_it_gives_and_says_of_itself(shallow, kind):
    """The stride and multiple that it names are those that are found where it does not."""
    name, args, stride, multiple = TINY[kind]
    model = build_model(options(name, args)).eval()
    assert (model.stride, model.multiple) == (stride, multiple)
    assert model(IMAGE).shape == (2, CLASSES, -(-45 // stride), -(-61 // stride))
    assert model.idle_parameters() == []
    assert {name.split(".")[1] for name, _ in model.feature_extractor.named_parameters(prefix="f")} == {"backbone"}
    model.feature_extractor.stride_and_multiple = None
    model.fit(CLASSES, (64, 32))
    assert model.stride == stride
    assert multiple % model.multiple == 0  # 14 would do for 28, but for where the points lie


def test_a_stride_that_is_not_the_named_one_is_found():
    model = build_model(options("dinov3_vits", DINO))
    model.feature_extractor.stride_and_multiple = 8, 16
    with pytest.raises(UserError, match=r"5×7 points for 80×112 pixels: the stride that it names, 8, does not"):
        model.fit(CLASSES, (64, 32))


@pytest.mark.parametrize(("name", "library"), [("deeplabv3", deeplabv3_resnet50), ("fcn", fcn_resnet50)])
def test_torchvisions_networks_and_weights(tmp_path, log_lines, name, library):
    """Under its own names, but for the parts', and with its logits; MODEL.WEIGHTS is the backbone alone."""
    torch.manual_seed(0)
    theirs = library(weights=None, weights_backbone=None, aux_loss=True, num_classes=CLASSES).eval()
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    ours = build_model(options(f"{name}_resnet50")).eval()
    load_imagenet_weights(ours.feature_extractor, tmp_path / "coco.pth")
    assert log_lines == [
        f"MODEL.WEIGHTS {tmp_path / 'coco.pth'}: left out, as it is no part of the backbone: classifier, aux_classifier"
    ]
    ours.classifier.load_state_dict(theirs.classifier.state_dict())
    with torch.no_grad():
        expected = theirs.double()(IMAGE.double())["out"]
        found = F.interpolate(ours.double()(IMAGE.double()), size=(45, 61), mode="bilinear", align_corners=False)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


def test_more_channels_than_classes(shallow):
    model = build_model(options("fcn_resnet50", {"channels": 21}, CLASSES_OUT=(0, 15, 7, 2, 20)))
    assert model.classifier[-1].out_channels == 21
    expected = model.eval().classifier(model.feature_extractor(IMAGE))[:, [0, 15, 7, 2, 20]]
    assert torch.equal(model(IMAGE), expected)
    with pytest.raises(UserError, match=r"it gives 21 channels, MODEL\.NUM_CLASSES is 5: give MODEL\.CLASSES_OUT"):
        build_model(options("fcn_resnet50", {"channels": 21}))


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norms_are_held_still_where_freeze_bn_says_so(shallow, frozen):
    model = build_model(options("deeplabv3_resnet50", FREEZE_BN=frozen)).train()
    norm = model.classifier[2]
    assert norm.training is not frozen
    assert norm.weight.requires_grad is not frozen


def test_a_frozen_transformer_does_not_learn():
    model = build_model(options("dinov2_vits", DINO | {"freeze": True}))
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == [
        name for name, _ in model.named_parameters() if name.startswith("feature_extractor.")
    ]


def test_rotations_are_made_once_for_a_size(monkeypatch):
    """On the host, by timm: a GPU would wait for each."""
    model = build_model(options("dinov3_vits", DINO)).train()
    images = [torch.randn(1, 3, *size) for size in ((32, 48), (48, 64))]
    rope, made = model.feature_extractor.backbone.rope.rope, []
    make = type(rope).get_embed
    monkeypatch.setattr(rope, "get_embed", lambda shape: made.append(shape) or make(rope, shape=shape))
    with torch.inference_mode():  # a training step may be the next to use them
        expected = [model.eval()(image) for image in images]
    found = [model(image) for image in images]
    found[0].sum().backward()
    assert made == [(2, 3), (3, 4)]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_dsu_acts_in_resnets_alone(shallow):
    uncertain = {"UNCERTAINTY": 0.5, "POS": (0, 2)}
    assert "dsu_layer1" in dict(
        build_model(options("fcn_resnet50", **uncertain)).feature_extractor.backbone.named_children()
    )
    with pytest.raises(UserError, match=r"MODEL\.UNCERTAINTY \(DSU\) is for ResNets, not dinov2_vits"):
        build_model(options("dinov2_vits", DINO, **uncertain))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        (
            "dinov2_vits",
            {"hed": "dpt"},
            ["unknown key 'hed'; known are channels, depth, dim, drop_path, freeze, head, "],
        ),
        ("dinov2_vits", {"hed": "dpt"}, ["did you mean head?"]),
        ("dinov2_vits", {"qkv_bias": True}, ["unknown key 'qkv_bias'"]),
        ("dinov3_vits", {"head": "DPT"}, ["head must be linear or dpt, not 'DPT'"]),
        ("dinov3_vits", {"freeze": 1}, ["freeze must be true or false, not 1"]),
        ("dinov3_vits", {"drop_path": 1.0}, ["drop_path must be", "from 0 to below 1, not 1.0"]),
        ("dinov3_vits", {"width": True}, ["width must be", "not True"]),
        ("dinov2_vits", {"head": "dpt", "depth": 2}, ["depth must be", "at least 4, not 2"]),
        (
            "dinov2_vits",
            {"dim": 25, "heads": 2},
            ["dim must be channels, a multiple of 4 × heads, not 25 with 2 heads"],
        ),
        (
            "dinov3_vits",
            {"dim": 12, "heads": 2},
            ["dim must be channels, a multiple of 4 × heads, not 12 with 2 heads"],
        ),
        ("dinov3_vits", {"heads": 7}, ["dim must be channels, a multiple of 4 × heads, not 384 with 7 heads"]),
        ("segformer_b0", {"hed": 3}, ["unknown key 'hed'; known are channels, depths, ", "eps", "width"]),
        ("segformer_b0", {"depths": (2, 2, 2)}, ["depths must be four numbers of blocks, not (2, 2, 2)"]),
        ("fcn_resnet50", {"depth": 3}, ["unknown key 'depth'; known are channels"]),
        ("fcn_resnet50", {"channels": 0}, ["channels must be", "not 0"]),
        ("deeplab_resnet18", {"channels": 5}, ["MODEL.ARGS is for networks of your own and others by name"]),
    ],
)
def test_arguments_that_are_not_known(name, args, words):
    with pytest.raises(UserError) as caught:
        build_model(options(name, args))
    if not name.startswith("deeplab_"):
        assert str(caught.value).startswith((f"MODEL.ARGS of {name}: ", f"MODEL.NAME {name}: "))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(("name", "near"), [("segformer_b7", "segformer_b"), ("dinov2_vit_s", "dinov2_vits")])
def test_an_unknown_name_is_told_the_known_ones(tmp_path, name, near):
    (tmp_path / "a.yaml").write_text(f"MODEL: {{NAME: {name}}}\n")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "a.yaml")
    assert str(caught.value).startswith("MODEL.NAME must be one of deeplab_resnet18, ")
    assert f", or module:function, not '{name}'; did you mean {near}" in str(caught.value)


@pytest.mark.parametrize("name", ["dinov2_vits", "dinov3_vitb"])
def test_timm_may_be_missing_or_old(monkeypatch, name):

    with monkeypatch.context() as patch:
        patch.setattr(timm, "is_model", lambda model: False)
        with pytest.raises(
            UserError, match=rf"MODEL\.NAME {name} needs a newer timm than {timm.__version__}: pip inst"
        ):
            build_model(options(name))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=rf"MODEL\.NAME {name} needs timm: pip install 'timm>=1\.0\.20'"):
        build_model(options(name))


# --- weights of their libraries


def dino_release(version, dim=24, depth=4):
    """A state as DINO's own repositories name it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, dim), "norm.weight": (dim,), "norm.bias": (dim,), "patch_embed.proj.bias": (dim,)}
    patch = {2: 14, 3: 16}[version]
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "mask_token": (1, dim)}
    shapes |= {"pos_embed": (1, 1 + 37 * 37, dim)} if version == 2 else {"storage_tokens": (1, 4, dim)}
    for block in (f"blocks.{number}" for number in range(depth)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (dim,), f"{block}.{norm}.bias": (dim,)}
        for scale in ("ls1", "ls2"):
            shapes |= {f"{block}.{scale}.gamma": (dim,)}
        for layer, outputs, inputs in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", 4 * dim, dim),
            ("mlp.fc2", dim, 4 * dim),
        ):
            shapes |= {f"{block}.{layer}.weight": (outputs, inputs), f"{block}.{layer}.bias": (outputs,)}
    state = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    if version == 3:
        state |= {"rope_embed.periods": torch.ones(dim // 8)}
        for block in range(depth):
            state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(3 * dim)
            state[f"blocks.{block}.attn.qkv.bias"] = torch.zeros(3 * dim)
    return state


def attend(tokens, state, block, heads):
    """One block of a DINO transformer without rotations, written out: tokens are N×D."""

    def part(name, x):
        return F.linear(x, state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{block}.{name}.weight"], state[f"{block}.{name}.bias"], 1e-6)

    query, key, value = part("attn.qkv", norm("norm1", tokens)).unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
    shares = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    tokens = tokens + state[f"{block}.ls1.gamma"] * part("attn.proj", (shares @ value).transpose(0, 1).flatten(1))
    return tokens + state[f"{block}.ls2.gamma"] * part("mlp.fc2", F.gelu(part("mlp.fc1", norm("norm2", tokens))))


def test_dinov2s_own_weights_give_its_tokens(tmp_path):
    """At the size of its positions, with the network written out here."""
    state = dino_release(2)
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    features = build_model(options("dinov2_vits", DINO)).eval().feature_extractor
    load_imagenet_weights(features, tmp_path / "dinov2_vits14_pretrain.pth")
    image = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(1))
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = F.conv2d(image, weight, bias, stride=14).flatten(2).transpose(1, 2)
    tokens = (torch.cat([state["cls_token"], patches], 1) + state["pos_embed"])[0]
    for block in range(4):
        tokens = attend(tokens, state, f"blocks.{block}", 2)
    tokens = F.layer_norm(tokens, (24,), state["norm.weight"], state["norm.bias"], 1e-6)
    with torch.no_grad():
        (found,) = features(image)
    assert torch.allclose(found[0].flatten(1).T, tokens[1:], atol=1e-4)


@pytest.mark.parametrize("biased", [False, True])
def test_dinov3s_own_weights(tmp_path, biased):
    """Biases of queries and values are zeros in most of them, and then no part of timm's network."""
    state = dino_release(3)
    if biased:
        state["blocks.1.attn.qkv.bias"][:24] = 0.5
    torch.save(state, tmp_path / "dinov3.pth")
    features = build_model(options("dinov3_vits", DINO)).feature_extractor
    if biased:
        with pytest.raises(UserError, match=r"MODEL\.WEIGHTS .*dinov3\.pth .*give MODEL\.ARGS \{qkv_bias: true\}"):
            load_imagenet_weights(features, tmp_path / "dinov3.pth")
        features = build_model(options("dinov3_vits", DINO | {"qkv_bias": True})).feature_extractor
    load_imagenet_weights(features, tmp_path / "dinov3.pth")
    found = features.state_dict()
    assert torch.equal(found["backbone.reg_token"], state["storage_tokens"])
    assert torch.equal(found["backbone.blocks.2.gamma_1"], state["blocks.2.ls1.gamma"])
    assert torch.equal(found["backbone.blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])
    assert not biased or torch.equal(found["backbone.blocks.1.attn.q_bias"], torch.full((24,), 0.5))


@pytest.mark.parametrize("name", ["dinov2_vits", "dinov3_vits"])
def test_timms_own_weights_as_safetensors(tmp_path, monkeypatch, name):
    from safetensors.torch import save_file

    torch.manual_seed(2)
    theirs = build_model(options(name, DINO)).feature_extractor.backbone.state_dict()
    save_file({key: value.contiguous() for key, value in theirs.items()}, tmp_path / "model.safetensors")
    torch.manual_seed(3)
    features = build_model(options(name, DINO)).feature_extractor
    load_imagenet_weights(features, tmp_path / "model.safetensors")
    found = features.backbone.state_dict()
    assert all(torch.equal(found[key], value) for key, value in theirs.items())
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:400])
    with pytest.raises(
        UserError, match=r"MODEL\.WEIGHTS: .*model\.safetensors is no safetensors file that can be read"
    ):
        load_imagenet_weights(features, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"needs a package: pip install safetensors"):
        load_imagenet_weights(features, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("dinov2_vits", dino_release(3), ["missing: backbone.pos_embed", "unexpected: backbone.storage_tokens"]),
        ("dinov3_vits", dino_release(2), ["missing: backbone.reg_token", "unexpected: backbone."]),
        ("dinov2_vits", dino_release(2, depth=3), ["missing: backbone.blocks.3.norm1.weight"]),
        ("dinov2_vits", dino_release(2, dim=16), ["is 1×1×16 in the file, 1×1×24 in the model"]),
        ("dinov2_vits", {"pos_embed": torch.zeros(3)}, ["does not fit the backbone"]),
        ("dinov2_vits", {"pos_embed": "none"}, ["not a tensor", "missing"]),
    ],
)
def test_weights_of_another_network_are_one_line(tmp_path, name, state, words):
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError) as caught:
        load_imagenet_weights(build_model(options(name, DINO)).feature_extractor, tmp_path / "other.pth")
    assert str(caught.value).startswith(f"MODEL.WEIGHTS {tmp_path / 'other.pth'} does not fit the backbone: ")
    assert [word for word in words if word not in str(caught.value)] == []
