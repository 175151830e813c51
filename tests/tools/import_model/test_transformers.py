"""Checkpoints of SegFormer's and DAFormer's programs, made by networks of their structure, names and numbers."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.configs.node import OpenConfig
from core.models.networks import NAMED
from core.utils.errors import UserError
from tools.import_model.family import IMAGENET_INPUT, Taker
from tools.import_model.transformers import FAMILIES, described

WIDTHS, DEPTHS, WIDTH, CLASSES = (8, 8, 10, 16), (1, 2, 1, 1), 6, 5
HEADS, REDUCTIONS, KERNELS, STRIDES = (1, 2, 5, 8), (8, 4, 2, 1), (7, 3, 3, 3), (4, 2, 2, 2)
STAGES = tuple(zip((3, *WIDTHS[:3]), WIDTHS, DEPTHS, HEADS, REDUCTIONS, KERNELS, STRIDES, strict=True))
SIZE = (75, 61)  # (height, width): odd, and at every stage other than half of the one before


def attend(query, key, value, heads):
    """B×N×C, B×M×C, B×M×C → B×N×C."""
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def tokens(image):
    return image.flatten(2).transpose(1, 2)


def image_of(x, size):
    return x.transpose(1, 2).unflatten(2, size)


def holding(**modules):
    return nn.ModuleDict(modules)


def maps_of(x, stages, conv, norm):
    """What every stage gives: of its embedding (by names of its two parts), its blocks and its last norm."""
    maps = []
    for embed, blocks, last in stages:
        x = embed[conv](x)
        size, x = x.shape[2:], embed[norm](tokens(x))
        for block in blocks:
            x = block(x, size)
        x = image_of(last(x), size)
        maps.append(x)
    return maps


class NvidiaBlock(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = holding(q=nn.Linear(width, width), kv=nn.Linear(width, 2 * width), proj=nn.Linear(width, width))
        if reduction > 1:
            self.attn.update({"sr": nn.Conv2d(width, width, reduction, reduction), "norm": nn.LayerNorm(width)})
        dwconv = holding(dwconv=nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width))
        self.mlp = holding(fc1=nn.Linear(width, 4 * width), dwconv=dwconv, fc2=nn.Linear(4 * width, width))

    def forward(self, x, size):
        y = self.norm1(x)
        reduced = self.attn["norm"](tokens(self.attn["sr"](image_of(y, size)))) if "sr" in self.attn else y
        key, value = self.attn["kv"](reduced).chunk(2, -1)
        x = x + self.attn["proj"](attend(self.attn["q"](y), key, value, self.heads))
        y = self.mlp["dwconv"]["dwconv"](image_of(self.mlp["fc1"](self.norm2(x)), size))
        return x + self.mlp["fc2"](F.gelu(tokens(y)))


class NvidiaEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        for n, (inner, width, depth, heads, reduction, kernel, stride) in enumerate(STAGES, 1):
            conv = nn.Conv2d(inner, width, kernel, stride, kernel // 2)
            setattr(self, f"patch_embed{n}", holding(proj=conv, norm=nn.LayerNorm(width)))
            setattr(self, f"block{n}", nn.ModuleList(NvidiaBlock(width, heads, reduction) for _ in range(depth)))
            setattr(self, f"norm{n}", nn.LayerNorm(width, eps=1e-6))

    def forward(self, x):
        parts = ([getattr(self, f"{name}{n}") for name in ("patch_embed", "block", "norm")] for n in range(1, 5))
        return maps_of(x, parts, "proj", "norm")


class MmsegBlock(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = holding(attn=nn.MultiheadAttention(width, heads, batch_first=True))
        if reduction > 1:
            self.attn.update({"sr": nn.Conv2d(width, width, reduction, reduction), "norm": nn.LayerNorm(width, 1e-6)})
        depthwise = nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width)
        first, last = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.ffn = holding(layers=nn.Sequential(first, depthwise, nn.GELU(), nn.Dropout(0.0), last))

    def forward(self, x, size):
        y = self.norm1(x)
        reduced = self.attn["norm"](tokens(self.attn["sr"](image_of(y, size)))) if "sr" in self.attn else y
        x = x + self.attn["attn"](y, reduced, reduced, need_weights=False)[0]
        return x + tokens(self.ffn["layers"](image_of(self.norm2(x), size)))


class MmsegEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList()
        for inner, width, depth, heads, reduction, kernel, stride in STAGES:
            conv = nn.Conv2d(inner, width, kernel, stride, kernel // 2)
            blocks = nn.ModuleList(MmsegBlock(width, heads, reduction) for _ in range(depth))
            embed = holding(projection=conv, norm=nn.LayerNorm(width, 1e-6))
            self.layers.append(nn.ModuleList([embed, blocks, nn.LayerNorm(width, 1e-6)]))

    def forward(self, x):
        return maps_of(x, self.layers, "projection", "norm")


class FaceBlock(nn.Module):
    def __init__(self, width, heads, reduction):
        super().__init__()
        self.heads, self.layer_norm_1, self.layer_norm_2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        own = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        if reduction > 1:
            own |= {"sr": nn.Conv2d(width, width, reduction, reduction), "layer_norm": nn.LayerNorm(width)}
        self.attention = holding(self=holding(**own), output=holding(dense=nn.Linear(width, width)))
        dwconv = holding(dwconv=nn.Conv2d(4 * width, 4 * width, 3, padding=1, groups=4 * width))
        self.mlp = holding(dense1=nn.Linear(width, 4 * width), dwconv=dwconv, dense2=nn.Linear(4 * width, width))

    def forward(self, x, size):
        y, own = self.layer_norm_1(x), self.attention["self"]
        reduced = own["layer_norm"](tokens(own["sr"](image_of(y, size)))) if "sr" in own else y
        y = attend(own["query"](y), own["key"](reduced), own["value"](reduced), self.heads)
        x = x + self.attention["output"]["dense"](y)
        y = self.mlp["dwconv"]["dwconv"](image_of(self.mlp["dense1"](self.layer_norm_2(x)), size))
        return x + self.mlp["dense2"](F.gelu(tokens(y)))


class FaceEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embeddings, self.block, self.layer_norm = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for inner, width, depth, heads, reduction, kernel, stride in STAGES:
            conv = nn.Conv2d(inner, width, kernel, stride, kernel // 2)
            self.patch_embeddings.append(holding(proj=conv, layer_norm=nn.LayerNorm(width)))
            self.block.append(nn.ModuleList(FaceBlock(width, heads, reduction) for _ in range(depth)))
            self.layer_norm.append(nn.LayerNorm(width))

    def forward(self, x):
        stages = zip(self.patch_embeddings, self.block, self.layer_norm, strict=True)
        return maps_of(x, stages, "proj", "layer_norm")


def conv_bn(inner, outer, kernel=1, rate=1, groups=1):
    conv = nn.Conv2d(inner, outer, kernel, padding=rate * (kernel // 2), dilation=rate, groups=groups, bias=False)
    return holding(conv=conv, bn=nn.BatchNorm2d(outer))


def conv_bn_relu(modules, x):
    return modules["bn"](modules["conv"](x)).relu()


def enlarged(x, like):
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def linear(layer, x):
    """A linear layer on every point."""
    return image_of(layer(tokens(x)), x.shape[2:])


class NvidiaHead(nn.Module):
    def __init__(self):
        super().__init__()
        for n, width in enumerate(WIDTHS, 1):
            setattr(self, f"linear_c{n}", holding(proj=nn.Linear(width, WIDTH)))
        self.linear_fuse = conv_bn(4 * WIDTH, WIDTH)
        self.linear_pred, self.conv_seg = (nn.Conv2d(WIDTH, CLASSES, 1) for _ in range(2))

    def forward(self, maps):
        c1, c2, c3, c4 = (linear(getattr(self, f"linear_c{n}")["proj"], x) for n, x in enumerate(maps, 1))
        fused = torch.cat([enlarged(c4, c1), enlarged(c3, c1), enlarged(c2, c1), c1], 1)
        return self.linear_pred(conv_bn_relu(self.linear_fuse, fused))


class ListedHead(nn.Module):
    """SegFormer's in DAFormer's program."""

    def __init__(self):
        super().__init__()
        self.linear_c = nn.ModuleList(holding(proj=nn.Linear(width, WIDTH)) for width in WIDTHS)
        self.linear_fuse, self.linear_pred = conv_bn(4 * WIDTH, WIDTH), nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, maps):
        projected = [linear(layer["proj"], x) for layer, x in zip(self.linear_c, maps, strict=True)]
        fused = torch.cat([enlarged(x, maps[0]) for x in projected], 1)
        return self.linear_pred(conv_bn_relu(self.linear_fuse, fused))


class MmsegHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(conv_bn(width, WIDTH) for width in WIDTHS)
        self.fusion_conv, self.conv_seg = conv_bn(4 * WIDTH, WIDTH), nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, maps):
        projected = [enlarged(conv_bn_relu(conv, x), maps[0]) for conv, x in zip(self.convs, maps, strict=True)]
        return self.conv_seg(conv_bn_relu(self.fusion_conv, torch.cat(projected, 1)))


class FaceHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear_c = nn.ModuleList(holding(proj=nn.Linear(width, WIDTH)) for width in WIDTHS)
        self.linear_fuse, self.batch_norm = nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH)
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, maps):
        projected = [linear(layer["proj"], x) for layer, x in zip(self.linear_c, maps, strict=True)]
        fused = torch.cat([enlarged(x, maps[0]) for x in reversed(projected)], 1)
        return self.classifier(self.batch_norm(self.linear_fuse(fused)).relu())


class Smp(nn.Module):
    def __init__(self):
        super().__init__()
        fuse = nn.Sequential(nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        stages = nn.ModuleList(holding(linear=nn.Linear(width, WIDTH)) for width in reversed(WIDTHS))
        self.encoder, self.decoder = NvidiaEncoder(), holding(mlp_stage=stages, fuse_stage=fuse)
        self.segmentation_head = nn.Sequential(nn.Conv2d(WIDTH, CLASSES, 1))  # and an upsampling, of no weights

    def forward(self, x):
        maps = self.encoder(x)[::-1]
        projected = [linear(stage["linear"], x) for stage, x in zip(self.decoder["mlp_stage"], maps, strict=True)]
        fused = torch.cat([enlarged(x, maps[-1]) for x in projected], 1)
        return self.segmentation_head(self.decoder["fuse_stage"](fused))


class Fusion(nn.Module):
    def __init__(self):
        super().__init__()
        channels, width = 4 * WIDTH, WIDTH
        self.aspp_modules = nn.ModuleList([conv_bn(channels, width)])
        for rate in (6, 12, 18):
            depthwise = conv_bn(channels, channels, 3, rate, groups=channels)
            self.aspp_modules.append(holding(depthwise_conv=depthwise, pointwise_conv=conv_bn(channels, width)))
        self.bottleneck = conv_bn(4 * width, width, 3)

    def forward(self, x):
        first, *others = self.aspp_modules
        branches = [conv_bn_relu(first, x)]
        for other in others:
            branches.append(conv_bn_relu(other["pointwise_conv"], conv_bn_relu(other["depthwise_conv"], x)))
        return conv_bn_relu(self.bottleneck, torch.cat(branches, 1))


class DAFormerHead(nn.Module):
    def __init__(self, fuse_layer):
        super().__init__()
        self.embed_layers = nn.ModuleDict({str(n): holding(proj=nn.Linear(c, WIDTH)) for n, c in enumerate(WIDTHS)})
        self.fuse_layer, self.conv_seg = fuse_layer, nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, maps):
        projected = [linear(self.embed_layers[str(n)]["proj"], x) for n, x in enumerate(maps)]
        fused = torch.cat([enlarged(x, maps[0]) for x in projected], 1)
        plain = isinstance(self.fuse_layer, nn.ModuleDict)
        return self.conv_seg(conv_bn_relu(self.fuse_layer, fused) if plain else self.fuse_layer(fused))


class Whole(nn.Module):
    def __init__(self, encoder, decode_head):
        super().__init__()
        self.backbone, self.decode_head = encoder, decode_head

    def forward(self, x):
        return self.decode_head(self.backbone(x))


class Face(nn.Module):
    def __init__(self):
        super().__init__()
        self.segformer, self.decode_head = holding(encoder=FaceEncoder()), FaceHead()

    def forward(self, x):
        return self.decode_head(self.segformer["encoder"](x))


def face_of_library():
    """As transformers itself has it in memory."""
    library = pytest.importorskip("transformers")
    config = library.SegformerConfig(
        hidden_sizes=list(WIDTHS), depths=list(DEPTHS), decoder_hidden_size=WIDTH, num_labels=CLASSES
    )
    return library.SegformerForSemanticSegmentation(config)


PROGRAMS = {  # family → a network as its program has it, and MODEL.ARGS that it needs here beside its size
    "segformer": (lambda: Whole(NvidiaEncoder(), NvidiaHead()), {}),
    "segformer_daformer": (lambda: Whole(NvidiaEncoder(), ListedHead()), {}),
    "segformer_mmseg": (lambda: Whole(MmsegEncoder(), MmsegHead()), {"projection": "normed", "eps": "1e-6"}),
    "segformer_transformers": (Face, {"eps": "1e-5"}),
    "segformer_transformers5": (face_of_library, {"eps": "1e-5"}),
    "segformer_smp": (Smp, {}),
    "daformer_mit": (lambda: Whole(NvidiaEncoder(), DAFormerHead(Fusion())), {}),
    "daformer_mit_conv1": (lambda: Whole(NvidiaEncoder(), DAFormerHead(conv_bn(4 * WIDTH, WIDTH))), {}),
}


def randomised(module):
    """In float64 and eval mode, with parameters and statistics that nothing starts from."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in module.double().state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim > 1:
            state[name] = noise / tensor[0].numel() ** 0.5
        else:  # of norms, and biases
            state[name] = noise.abs() + 0.5 if name.endswith(("weight", "running_var")) else 0.3 * noise
    module.load_state_dict(state)
    return module.eval()


def ours(imported):
    """The network that a checkpoint so imported asks for, with its weights."""
    args = OpenConfig()
    args.merge(imported.args, "the file")
    module, function = NAMED[imported.network].split(":")
    model = SimpleNamespace(NAME=imported.network, ARGS=args, NUM_CLASSES=imported.outputs)
    features, classifier = getattr(importlib.import_module(module), function)(SimpleNamespace(MODEL=model))
    network = nn.Sequential(features, classifier).double().eval()
    features.load_state_dict(imported.feature_extractor)
    classifier.load_state_dict(imported.classifier)
    return network


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_family_is_known_and_computed_as_its_program_does(name):
    build, args = PROGRAMS[name]
    theirs = randomised(build())
    state = Taker(theirs.state_dict() | {"auxiliary_head.conv_seg.weight": torch.zeros(1)})
    (family,) = [one for one in FAMILIES if one.fits(state)]
    assert family.name == name
    state.taken.clear()
    imported = family.convert(state)
    assert state.forgotten(imported.left_out) == []
    assert "auxiliary_head.conv_seg.weight" in imported.left_out
    assert ("decode_head.conv_seg.weight" in imported.left_out) == (name == "segformer")
    tiny = {"depths": list(DEPTHS), "widths": list(WIDTHS), "width": WIDTH}
    assert imported.args == {**args, **tiny}
    assert imported.about.items() >= {**IMAGENET_INPUT, "align_corners": name == "segformer_smp"}.items()
    network = "daformer_b5" if name == "daformer_mit" else "segformer_b0"
    assert (imported.network, imported.outputs) == (network, CLASSES)
    image = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected, found = theirs(image), ours(imported)(image)
    expected = expected if isinstance(expected, torch.Tensor) else expected.logits
    assert found.shape == expected.shape == (2, CLASSES, 19, 16)
    # far below 1e-5, which another eps would come close to
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()


@pytest.mark.parametrize(("name", "heads"), [("segformer_b3", 768), ("segformer_b1", 256)])
def test_sizes_are_known_by_blocks_and_channels(name, heads):
    """And only what differs from a size is said in MODEL.ARGS."""
    module, function = NAMED[name].split(":")
    model = SimpleNamespace(NAME=name, ARGS={}, NUM_CLASSES=CLASSES)
    with torch.device("meta"):
        features, _ = getattr(importlib.import_module(module), function)(SimpleNamespace(MODEL=model))
        head = NvidiaHead()
        head.linear_fuse = conv_bn(4 * heads, heads)
    names = {"patch_embed.": "patch_embed1.", **{f"stages.{n}.downsample.": f"patch_embed{n + 1}." for n in (1, 2, 3)}}
    names |= {f"stages.{n}.blocks.": f"block{n + 1}." for n in range(4)}
    names |= {f"stages.{n}.norm.": f"norm{n + 1}." for n in range(4)}
    state = {f"decode_head.{key}": tensor for key, tensor in head.state_dict().items()}
    for key, tensor in features.backbone.state_dict().items():
        start = next(start for start in names if key.startswith(start))
        inner = key.removeprefix(start).replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
        state[f"backbone.{names[start]}{inner}"] = tensor
    (family,) = [one for one in FAMILIES if one.fits(state)]
    imported = family.convert(state)
    assert (imported.network, imported.args) == (name, {})
    assert imported.feature_extractor.keys() == features.state_dict().keys()


def test_what_a_folder_of_transformers_says_and_no_tensor_does_is_heeded():
    config = {"num_attention_heads": [1, 2, 5, 8], "hidden_act": "gelu"}
    assert described({"config.json": config}) == {}
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    found = described({"config.json": config, "preprocessor_config.json": processor})
    assert found == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    plain = described({"preprocessor_config.json": {**processor, "do_normalize": False}})
    assert plain == {"mean": [0.0] * 3, "std": [1.0] * 3}
    with pytest.raises(UserError, match=r"^config\.json: num_attention_heads is \[2, 4, 10, 16\], not \[1, 2, 5, 8\]"):
        described({"config.json": {**config, "num_attention_heads": [2, 4, 10, 16]}})
    with pytest.raises(UserError, match=r"^preprocessor_config\.json: image_std must be "):
        described({"preprocessor_config.json": {**processor, "image_std": [0, 1, "x"]}})


def test_hrda_is_known_and_refused():
    state = {"decode_head.head.conv_seg.weight": torch.zeros(1), "decode_head.scale_attention.0.weight": torch.zeros(1)}
    (family,) = [one for one in FAMILIES if one.fits(state)]
    with pytest.raises(UserError, match="two scales"):
        family.convert(state)
