"""DINOv2 (Oquab et al., TMLR 2024) and DINOv3 (Siméoni et al., 2025): timm's vision transformers, and heads on them."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from core.models.backbone import Remembered
from core.models.networks import CHANNELS, arguments, flag, number, one_of, share, timm_for
from core.models.segformer import conv_norm_relu, last_layer
from core.utils.errors import UserError

SIZES = {"s": ("small", 384, 6), "b": ("base", 768, 12), "l": ("large", 1024, 16)}  # channels, attention heads
PATCH = {"dinov2": 14, "dinov3": 16}  # pixels a side
LINEAR, DPT = "linear", "dpt"
KEPT_SIZES = 8  # of images, whose rotations are kept: a few MB each
STRIDES = (4, 8, 16, 32)  # of the maps that DPT makes of the blocks' tokens


class Tokens(nn.Module):
    """timm's transformer under `backbone`, and of some of its blocks the patches' tokens, normalised.

    Positions are those of the weights, interpolated to other sizes (DINOv2), or rotations by size (DINOv3).

    Args:
        backbone: without a head of its own.
        blocks: their numbers, in ascending order; the last block's is the last.
        stride_and_multiple: of the network (see :class:`core.models.own_network.OwnNetwork`).
    """

    def __init__(self, backbone: nn.Module, blocks: Sequence[int], stride_and_multiple: tuple[int, int]):
        super().__init__()
        self.backbone, self.stride_and_multiple = backbone, stride_and_multiple
        self._blocks = list(blocks)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """B×3×H×W, normalised, sides in multiples of the patch → maps of B×D×H/patch×W/patch, one of every block."""
        return self.backbone.forward_intermediates(image, indices=self._blocks, norm=True, intermediates_only=True)

    def pretrained(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of timm or of DINO's own release under this module's names.

        Raises:
            UserError: they have biases of queries and values, and the network none.
        """
        from timm.models import eva, vision_transformer

        kind = eva if isinstance(self.backbone, eva.Eva) else vision_transformer
        state = dict(state)
        third = state.keys() & {"storage_tokens", "reg_token"}
        if third and kind is eva and "blocks.0.attn.q_bias" not in self.backbone.state_dict():
            biases = [name for name in state if name.endswith((".qkv.bias", ".q_bias", ".v_bias"))]
            if any(state[name].any() for name in biases):
                raise UserError("it has biases of queries and values: give MODEL.ARGS {qkv_bias: true}")
            state = {name: tensor for name, tensor in state.items() if name not in biases}  # zeros
        found = kind.checkpoint_filter_fn(state, self.backbone)
        return {f"backbone.{name}": tensor for name, tensor in found.items()}


class Rotations(nn.Module):
    """timm's rotations by place (DINOv3), kept for the sizes that occur.

    It makes them anew in every forward, on the host, and the copy to a GPU would have each of them wait.

    Args:
        rope: timm's module, without parameters.
    """

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope, self._kept = rope, {}

    def get_embed(self, shape: Sequence[int]) -> torch.Tensor:
        """(rows, columns) of patches → what timm gives of them."""
        drawn = any(getattr(self.rope, f"{kind}_coords", None) for kind in ("shift", "jitter", "rescale"))
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or (self.training and drawn):
            return self.rope.get_embed(shape=shape)
        if len(self._kept) > KEPT_SIZES:
            self._kept.clear()
        kept = self._kept.setdefault(tuple(shape), Remembered())
        return kept.of(lambda: self.rope.get_embed(shape=shape), *self.rope.buffers())


class LinearHead(nn.Module):
    """Batch norm and a 1×1 convolution on the last block's tokens.

    Args:
        dim: of the tokens.
        num_classes: C.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm, self.classifier = nn.BatchNorm2d(dim), last_layer(dim, num_classes)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps of B×dim×h×w, of which the last is used → B×C×h×w logits."""
        return self.classifier(self.norm(maps[-1]))


class DPTHead(nn.Module):
    """After the dense prediction transformer (Ranftl et al., ICCV 2021): four blocks' tokens, from fine to coarse.

    Each becomes a map at its stride of :data:`STRIDES`, and they are fused from the coarsest on. Maps are resized
    bilinearly, where the paper has transposed and strided convolutions: so strides need not divide the patch.

    Args:
        dim: of the tokens.
        patch: pixels of a patch's side.
        width: channels of all maps.
        num_classes: C.
    """

    def __init__(self, dim: int, patch: int, width: int, num_classes: int):
        super().__init__()
        self._patch = patch
        self.reassemble = nn.ModuleList(nn.Conv2d(dim, width, 1) for _ in STRIDES)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in STRIDES)
        self.fuse = nn.ModuleList(Residual(width) for _ in STRIDES)
        self.last = conv_norm_relu(width, width, 3)
        self.classifier = last_layer(width, num_classes)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps of B×dim×h×w → B×C×(h·patch/4)×(w·patch/4) logits, rounded up."""
        rows, columns = (side * self._patch for side in maps[0].shape[-2:])
        fused = None
        for level in reversed(range(len(STRIDES))):
            size = tuple((side + STRIDES[level] - 1) // STRIDES[level] for side in (rows, columns))
            one = self.smooth[level](_resized(self.reassemble[level](maps[level]), size))
            fused = self.fuse[level](one if fused is None else one + _resized(fused, size))
        return self.classifier(self.last(fused))


class Residual(nn.Module):
    """Two 3×3 convolutions beside the map itself.

    Args:
        width: channels.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B×width×h×w → the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def build(cfg) -> tuple[Tokens, nn.Module]:
    """The transformer of MODEL.NAME and its head, randomly initialised.

    MODEL.ARGS may hold `head` (linear | dpt), `width` (of dpt: 256), `freeze` (the transformer does not learn),
    `drop_path` (0), for a transformer of no known size `depth`, `dim` and `heads`, and for DINOv3 `qkv_bias`.

    Raises:
        UserError: MODEL.ARGS holds something else, or timm is missing or too old.
    """
    kind, _, size = cfg.MODEL.NAME.partition("_vit")
    known = {
        "head": one_of(LINEAR, DPT),
        "width": number(256, "channels of the head dpt"),
        "freeze": flag(),
        "drop_path": share(0.0, "the largest probability of leaving a block out in training"),
        "depth": number(None, "a number of blocks, of dpt at least 4"),
        "dim": number(None, "channels, a multiple of 4 × heads"),
        "heads": number(None, "a number of attention heads"),
    }
    args = arguments(cfg, **known | ({"qkv_bias": flag()} if kind == "dinov3" else {}))
    words, dim, heads = SIZES[size]
    dim, heads = args["dim"] or dim, args["heads"] or heads
    if dim % (4 * heads):  # what rotations want
        told = f"dim must be {known['dim'].words}, not {dim} with {heads} heads"
        raise UserError(f"MODEL.ARGS of {cfg.MODEL.NAME}: {told}")
    others = {"depth": args["depth"], "embed_dim": args["dim"], "num_heads": args["heads"]}
    others |= {"qkv_bias": args["qkv_bias"]} if kind == "dinov3" else {}
    name, patch = f"vit_{words}_patch{PATCH[kind]}_{kind}", PATCH[kind]
    backbone = timm_for(cfg, name).create_model(
        name,
        num_classes=0,
        dynamic_img_size=True,
        drop_path_rate=args["drop_path"],
        **{key: value for key, value in others.items() if value is not None},
    )
    if getattr(backbone, "rope", None) is not None:
        backbone.rope = Rotations(backbone.rope)
    backbone.requires_grad_(not args["freeze"])
    depth = len(backbone.blocks)
    if args["head"] == LINEAR:
        return Tokens(backbone, [depth - 1], (patch, patch)), LinearHead(dim, args[CHANNELS])
    if depth < len(STRIDES):
        raise UserError(f"MODEL.ARGS of {cfg.MODEL.NAME}: depth must be {known['depth'].words}, not {depth}")
    blocks = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    whole = patch if patch % STRIDES[0] == 0 else 2 * patch  # of which the finest stride is a part
    return Tokens(backbone, blocks, (STRIDES[0], whole)), DPTHead(dim, patch, args["width"], args[CHANNELS])


def _resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
