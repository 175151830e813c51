"""SegFormer (Xie et al., NeurIPS 2021) and DAFormer (Hoyer et al., CVPR 2022): Mix Transformer and their heads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from core.models.networks import CHANNELS, Argument, arguments, number, one_of, share, timm_for
from core.utils.errors import UserError

SIZES = {  # of the Mix Transformer: blocks and channels of its stages, and channels of SegFormer's head
    "b0": ((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "b1": ((2, 2, 2, 2), (64, 128, 320, 512), 256),
    "b2": ((3, 4, 6, 3), (64, 128, 320, 512), 768),
    "b3": ((3, 4, 18, 3), (64, 128, 320, 512), 768),
    "b4": ((3, 8, 27, 3), (64, 128, 320, 512), 768),
    "b5": ((3, 6, 40, 3), (64, 128, 320, 512), 768),
}
HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)  # of every stage's attention
MLP_RATIO = 4
SMALLEST = 4 * (REDUCTIONS[0] - 1) + 1  # pixels of a side: the first reduction needs as many points as its kernel has
EPS = "nvlabs", "1e-5", "1e-6"  # of layer norms
DAFORMER_WIDTH, DAFORMER_RATES = 256, (6, 12, 18)
DROPOUT, DROP_PATH = 0.1, 0.1
INITIAL_STD = 0.01  # of a head's last layer


class MixTransformer(nn.Module):
    """The encoder, MiT: timm's PyramidVisionTransformerV2 with MiT's numbers, under timm's names.

    Args:
        cfg: MODEL.NAME, for messages.
        depths: blocks of each of the four stages.
        widths: channels of each, multiples of :data:`HEADS`.
        eps: of layer norms: `nvlabs`, 1e-5 where the resolution changes and 1e-6 elsewhere, or one for all.
        drop_path: largest probability with which training skips a block.
    Raises:
        UserError: timm is missing.
    """

    stride_and_multiple = 4, 1

    def __init__(self, cfg, depths: Sequence[int], widths: Sequence[int], eps: str, drop_path: float):
        super().__init__()
        self.backbone = timm_for(cfg).models.PyramidVisionTransformerV2(
            num_classes=0,
            depths=tuple(depths),
            embed_dims=tuple(widths),
            num_heads=HEADS,
            sr_ratios=REDUCTIONS,
            mlp_ratios=(MLP_RATIO,) * len(HEADS),
            drop_path_rate=drop_path,
        )
        for name, module in self.backbone.named_modules():
            if isinstance(module, nn.LayerNorm):
                coarser = name.endswith(("patch_embed.norm", "downsample.norm", "attn.norm"))
                module.eps = (1e-5 if coarser else 1e-6) if eps == EPS[0] else float(eps)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """B×3×H×W normalised image → four maps, B×widths[i]×⌈H/s⌉×⌈W/s⌉ with s = 4, 8, 16, 32.

        Raises:
            UserError: the image has fewer than :data:`SMALLEST` pixels a side.
        """
        known = not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        if known and min(image.shape[-2:]) < SMALLEST:
            height, width = image.shape[-2:]
            raise UserError(
                f"images of {width}×{height} are too small for SegFormer: it needs {SMALLEST} pixels a side"
            )
        maps = [self.backbone.patch_embed(image)]
        for stage in self.backbone.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def pretrained(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of a Mix Transformer in any of its formats, under this one's names; heads are left out."""
        return encoder_state({name: tensor for name, tensor in state.items() if not _HEADS.match(name)})


class SegFormerHead(nn.Module):
    """Every stage's map projected and upsampled to the first one's size, and all of them fused point by point.

    Args:
        widths: channels of the four maps.
        width: of the projections, and of their fusion.
        num_classes: C.
        normed: projections end in batch norm and ReLU, as in mmseg since 0.20; else they are linear, as published.
    """

    def __init__(self, widths: Sequence[int], width: int, num_classes: int, normed: bool = False):
        super().__init__()
        project = conv_norm_relu if normed else nn.Conv2d
        self.projections = nn.ModuleList(project(channels, width, 1) for channels in widths)
        self.fuse = conv_norm_relu(len(widths) * width, width, 1)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = last_layer(width, num_classes)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps, from the finest on → B×C×h×w logits of the finest's size."""
        return self.classifier(self.dropout(self.fuse(_stacked(self.projections, maps))))


class DAFormerHead(nn.Module):
    """As SegFormer's, but fused by depthwise separable convolutions with dilation 1, 6, 12 and 18, side by side.

    Args:
        widths: channels of the four maps.
        width: of their projections, and of all that follows.
        num_classes: C.
    """

    def __init__(self, widths: Sequence[int], width: int, num_classes: int):
        super().__init__()
        stacked = len(widths) * width
        self.projections = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)
        self.aspp = nn.ModuleList([conv_norm_relu(stacked, width, 1)])
        for rate in DAFORMER_RATES:
            depthwise = conv_norm_relu(stacked, stacked, 3, dilation=rate, groups=stacked)
            self.aspp.append(nn.Sequential(depthwise, conv_norm_relu(stacked, width, 1)))
        self.bottleneck = conv_norm_relu(len(self.aspp) * width, width, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = last_layer(width, num_classes)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps, from the finest on → B×C×h×w logits of the finest's size."""
        stacked = _stacked(self.projections, maps)
        context = torch.cat([branch(stacked) for branch in self.aspp], 1)
        return self.classifier(self.dropout(self.bottleneck(context)))


def build(cfg) -> tuple[MixTransformer, SegFormerHead]:
    """SegFormer, randomly initialised: of MODEL.NAME segformer_b0 … b5, or of `size` in MODEL.ARGS.

    Raises:
        UserError: MODEL.ARGS holds what is not known, or timm is missing.
    """
    named = cfg.MODEL.NAME.removeprefix("segformer_")
    sizes = (named,) if named in SIZES else tuple(SIZES)
    args = _arguments(cfg, sizes, projection=one_of("linear", "normed"))
    head = SegFormerHead(args["widths"], args["width"], args[CHANNELS], args["projection"] == "normed")
    return _encoder(cfg, args), head


def build_daformer(cfg) -> tuple[MixTransformer, DAFormerHead]:
    """DAFormer, randomly initialised.

    Raises:
        UserError: MODEL.ARGS holds what is not known, or timm is missing.
    """
    args = _arguments(cfg, ("b5",), DAFORMER_WIDTH)
    return _encoder(cfg, args), DAFormerHead(args["widths"], args["width"], args[CHANNELS])


def encoder_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A Mix Transformer's weights under the names of :class:`MixTransformer`.

    Known are the names of NVlabs (and DAFormer and segmentation_models_pytorch), mmseg since 0.20, transformers
    (before 5, and as 5 has them in memory) and timm, with or without the encoder's own prefix. What is of none of
    them keeps its name.
    """
    found = {f"backbone.{_timm_name(name)}": tensor for name, tensor in state.items()}
    for name in [name for name in found if ".attn.qkv." in name]:  # mmseg's, one below the other
        query, *rest = found.pop(name).chunk(3)
        found[name.replace("qkv", "q")], found[name.replace("qkv", "kv")] = query, torch.cat(rest)
    for name in [name for name in found if ".attn.k." in name]:  # transformers', apart
        value = name.replace(".k.", ".v.")
        if value in found:
            found[name.replace(".k.", ".kv.")] = torch.cat([found.pop(name), found.pop(value)])
    for name, tensor in found.items():
        if re.search(r"\.fc[12]\.weight$", name):  # mmseg has them as 1×1 convolutions
            found[name] = tensor.flatten(1)
    return found


def conv_norm_relu(inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the size, batch norm and ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def last_layer(width: int, num_classes: int) -> nn.Conv2d:
    """A 1×1 convolution to logits."""
    layer = nn.Conv2d(width, num_classes, 1)
    nn.init.normal_(layer.weight, std=INITIAL_STD)
    nn.init.zeros_(layer.bias)
    return layer


def _stacked(projections: nn.ModuleList, maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Every map projected, upsampled to the first one's size, and all of them one behind the other."""
    size = maps[0].shape[-2:]
    projected = [project(one) for project, one in zip(projections, maps, strict=True)]
    upsampled = [F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in projected[1:]]
    return torch.cat([projected[0], *upsampled], 1)


def _arguments(cfg, sizes: tuple[str, ...], width: int | None = None, **more: Argument) -> dict[str, Any]:
    """MODEL.ARGS, and what they leave out: of a size, and `width` of the head, which the size says as well if None."""
    known = {
        "size": one_of(*sizes),
        "depths": number(None, "four numbers of blocks", count=4),
        "widths": Argument(None, f"four numbers of channels, multiples of {', '.join(map(str, HEADS))}", _are_widths),
        "width": number(width, "the channels of its head"),
        # as yaml reads 1.0e-5, too, where 1e-5 is a word
        "eps": Argument(EPS[0], " or ".join(EPS), lambda value: value in EPS or value in map(float, EPS[1:])),
        "drop_path": share(DROP_PATH, "the probability of skipping the last block in training"),
    }
    args = arguments(cfg, **known, **more)
    of_size = dict(zip(("depths", "widths", "width"), SIZES[args["size"]], strict=True))
    return args | {name: value for name, value in of_size.items() if args[name] is None}


def _are_widths(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != len(HEADS):
        return False
    return all(type(one) is int and one > 0 and one % heads == 0 for one, heads in zip(value, HEADS, strict=True))


def _encoder(cfg, args: Mapping[str, Any]) -> MixTransformer:
    return MixTransformer(cfg, args["depths"], args["widths"], args["eps"], args["drop_path"])


_FORMATS = (  # (pattern of the beginning of a name, what stands there in timm's, what its stage's number counts from)
    # NVlabs
    (r"patch_embed(\d)\.", "stages.{}.downsample.", 1),
    (r"block(\d)\.", "stages.{}.blocks.", 1),
    (r"norm(\d)\.", "stages.{}.norm.", 1),
    # mmseg
    (r"layers\.(\d)\.0\.", "stages.{}.downsample.", 0),
    (r"layers\.(\d)\.1\.", "stages.{}.blocks.", 0),
    (r"layers\.(\d)\.2\.", "stages.{}.norm.", 0),
    # transformers, before 5 and since
    (r"patch_embeddings\.(\d)\.", "stages.{}.downsample.", 0),
    (r"block\.(\d)\.", "stages.{}.blocks.", 0),
    (r"layer_norm\.(\d)\.", "stages.{}.norm.", 0),
    (r"stages\.(\d)\.patch_embeddings\.", "stages.{}.downsample.", 0),
    (r"stages\.(\d)\.layer_norm\.", "stages.{}.norm.", 0),
)
_WITHIN = (  # a stage, patterns → timm's names
    (r"downsample\.projection\.", "downsample.proj."),
    (r"downsample\.layer_norm\.", "downsample.norm."),
    (r"attention\.(self\.query|q_proj)\.", "attn.q."),
    (r"attention\.(self\.key|k_proj)\.", "attn.k."),
    (r"attention\.(self\.value|v_proj)\.", "attn.v."),
    (r"attention\.(self\.sr|sequence_reduction\.sequence_reduction)\.", "attn.sr."),
    (r"attention\.(self|sequence_reduction)\.layer_norm\.", "attn.norm."),
    (r"attention\.(output\.dense|o_proj)\.", "attn.proj."),
    (r"attn\.attn\.in_proj_", "attn.qkv."),
    (r"attn\.attn\.out_proj\.", "attn.proj."),
    (r"layer_norm_1\.|layernorm_before\.", "norm1."),
    (r"layer_norm_2\.|layernorm_after\.", "norm2."),
    (r"(mlp\.dense1|ffn\.layers\.0)\.", "mlp.fc1."),
    (r"ffn\.layers\.1\.|mlp\.dwconv\.dwconv\.", "mlp.dwconv."),
    (r"(mlp\.dense2|ffn\.layers\.4)\.", "mlp.fc2."),
)
_HEADS = re.compile(r"(head|classifier|fc|decode_head|auxiliary_head|decoder|segmentation_head)\.")


def _timm_name(name: str) -> str:
    """A parameter's name in timm, of a name in any format; an unknown one without the encoder's prefix."""
    name = re.sub(r"^(segformer\.|backbone\.|encoder\.)+", "", name)
    for pattern, words, first in _FORMATS:
        if found := re.match(pattern, name):
            name = words.format(int(found[1]) - first) + name[found.end() :]
    for pattern, words in _WITHIN:
        name = re.sub(pattern, words, name)
    return name.replace("stages.0.downsample.", "patch_embed.")
