"""Families of Mix Transformers: SegFormer (Xie et al., NeurIPS 2021) and DAFormer (Hoyer et al., CVPR 2022).

They differ in their names, in the eps of their layer norms, in the order in which the head takes the four maps, and in
how logits are upsampled. No tensor tells how many heads an attention has: they are taken to be the published ones.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from core.configs.loading import as_option
from core.models.segformer import DAFORMER_WIDTH, HEADS, SIZES, encoder_state
from core.utils.errors import UserError, shown
from tools.import_model.family import IMAGENET_INPUT, SYNTHIA_NOTE, Family, Imported

State = Mapping[str, torch.Tensor]
LICENCE = "NVIDIA Source Code License for SegFormer (non-commercial), that of the published Mix Transformers"
# of transformers' config.json, what no tensor tells, as the networks here have it
_FIXED = {"num_attention_heads": [*HEADS], "strides": [4, 2, 2, 2], "hidden_act": "gelu"}
_LEFT_OUT = {  # what may stand beside a network, by how its names begin
    "decode_head.conv_seg.": "a layer that this head does not use",
    "auxiliary_head.": "an auxiliary head, for the training of its own program",
}


@dataclass(frozen=True)
class _Format:
    """Where a program's checkpoints have what.

    Attributes:
        encoder: names of the convolutions at the beginning of the four stages.
        projections: of the head's four, that of the finest map first; with `.conv` and `.bn` where `normed`.
        fuse, norm: of the convolution that fuses them, and its batch norm.
        last: of the last layer.
        backwards: the maps are fused from the coarsest on.
        args: of MODEL.ARGS, what it needs whatever its size.
        about: what the checkpoint says beside :data:`IMAGENET_INPUT`.
        notes: for the log, where there are 19 outputs.
    """

    encoder: tuple[str, ...]
    projections: tuple[str, ...]
    fuse: str
    norm: str
    last: str
    backwards: bool = False
    normed: bool = False
    args: Mapping = field(default_factory=dict)
    about: Mapping = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fits(self, state: State) -> bool:
        projections = (f"{name}.conv" if self.normed else name for name in self.projections)
        return all(f"{name}.weight" in state for name in (*self.encoder, *projections, self.fuse, self.last))

    def features(self, state: State) -> dict[str, torch.Tensor]:
        prefix = self.encoder[0].partition(".")[0]
        return encoder_state({name: state[name] for name in state if name.startswith(f"{prefix}.")})

    def imported(self, state: State, network: str, args: dict, features: dict, classifier: dict) -> Imported:
        reasons = {start: why for start, why in _LEFT_OUT.items() if start != f"{self.last}."}
        left_out = {name: why for start, why in reasons.items() for name in state if name.startswith(start)}
        about, outputs = {**IMAGENET_INPUT, "align_corners": False, **self.about}, len(classifier["classifier.weight"])
        notes = self.notes if outputs == 19 else ()
        return Imported(network, outputs, features, classifier, left_out, about, {**self.args, **args}, notes)


def _segformer(form: _Format, state: State) -> Imported:
    features = form.features(state)
    classifier = _layer(state, form.last, "classifier") | _conv_norm(state, form.fuse, form.norm, "fuse")
    if form.backwards:
        classifier["fuse.0.weight"] = torch.cat(classifier["fuse.0.weight"].chunk(4, 1)[::-1], 1)
    for index, name in enumerate(form.projections):
        ours = f"projections.{index}"
        classifier |= (
            _conv_norm(state, f"{name}.conv", f"{name}.bn", ours) if form.normed else _layer(state, name, ours)
        )
    numbers, width = _numbers(features), len(classifier["fuse.0.weight"])
    size = next((size for size in SIZES if numbers == _numbers_of(size)), "")
    args = {} if size else numbers
    size = size or "b0"
    if width != SIZES[size][2]:
        args = {**args, "width": width}
    return form.imported(state, f"segformer_{size}", args, features, classifier)


def _daformer(form: _Format, state: State) -> Imported:
    features = form.features(state)
    classifier = _layer(state, form.last, "classifier") | _conv_norm(state, form.fuse, form.norm, "bottleneck")
    for index, name in enumerate(form.projections):
        classifier |= _layer(state, name, f"projections.{index}")
        branch = f"decode_head.fuse_layer.aspp_modules.{index}"
        if index == 0:  # of dilation 1: a 1×1 convolution
            classifier |= _conv_norm(state, f"{branch}.conv", f"{branch}.bn", "aspp.0")
            continue
        for number, part in enumerate(("depthwise_conv", "pointwise_conv")):
            classifier |= _conv_norm(state, f"{branch}.{part}.conv", f"{branch}.{part}.bn", f"aspp.{index}.{number}")
    numbers, width = _numbers(features), len(classifier["bottleneck.0.weight"])
    args = {} if numbers == _numbers_of("b5") else numbers
    if width != DAFORMER_WIDTH:
        args = {**args, "width": width}
    return form.imported(state, "daformer_b5", args, features, classifier)


def described(beside: Mapping[str, Mapping]) -> dict:
    """What the files beside transformers' weights say of the images, for `about`.

    Args:
        beside: the content of `config.json` and `preprocessor_config.json`, as far as they are there.
    Raises:
        UserError: the network is another in what no tensor tells, or the images are normalised by what cannot be.
    """
    network, images = (beside.get(name, {}) for name in ("config.json", "preprocessor_config.json"))
    for key, value in _FIXED.items():
        if (found := network.get(key, value)) != value:
            raise UserError(f"config.json: {key} is {shown(found)}, not {value}: no network here has that")
    if images.get("do_normalize") is False:
        return {"mean": [0.0] * 3, "std": [1.0] * 3}
    options = {"mean": ("image_mean", "INPUT.PIXEL_MEAN"), "std": ("image_std", "INPUT.PIXEL_STD")}
    return {
        word: [*as_option(option, images[key], f"preprocessor_config.json: {key}")]
        for word, (key, option) in options.items()
        if key in images
    }


def _hrda(_: State) -> Imported:
    raise UserError(
        "HRDA (and MIC on HRDA) looks at two scales, fused by attention that it learnt: no network here does that; "
        "DAFormer, and MIC on DAFormer, are imported"
    )


def _numbers(features: State) -> dict[str, list[int]]:
    """A Mix Transformer's blocks and channels, of each stage."""
    starts = "patch_embed", *(f"stages.{stage}.downsample" for stage in (1, 2, 3))
    blocks = [re.match(r"backbone\.stages\.(\d)\.blocks\.\d+\.norm1\.weight", name) for name in features]
    of_stage = [int(found[1]) for found in blocks if found]
    return {
        "depths": [of_stage.count(stage) for stage in range(4)],
        "widths": [len(features[f"backbone.{start}.proj.weight"]) for start in starts],
    }


def _numbers_of(size: str) -> dict[str, list[int]]:
    depths, widths, _ = SIZES[size]
    return {"depths": [*depths], "widths": [*widths]}


def _layer(state: State, theirs: str, ours: str) -> dict[str, torch.Tensor]:
    """A 1×1 convolution, of one or of a linear layer."""
    found = {f"{ours}.{part}": state[f"{theirs}.{part}"] for part in ("weight", "bias") if f"{theirs}.{part}" in state}
    return {name: tensor[..., None, None] if tensor.ndim == 2 else tensor for name, tensor in found.items()}


def _conv_norm(state: State, conv: str, norm: str, ours: str) -> dict[str, torch.Tensor]:
    """A convolution and its batch norm."""
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    found = {f"{ours}.1.{part}": state[f"{norm}.{part}"] for part in parts if f"{norm}.{part}" in state}
    return _layer(state, conv, f"{ours}.0") | found


def _four(name: str, first: int = 0) -> tuple[str, ...]:
    return tuple(name.format(number) for number in range(first, first + 4))


_NVLABS = _Format(
    _four("backbone.patch_embed{}.proj", 1),
    _four("decode_head.linear_c{}.proj", 1),
    "decode_head.linear_fuse.conv",
    "decode_head.linear_fuse.bn",
    "decode_head.linear_pred",
    backwards=True,
    about={"licence": LICENCE},
)
_OF_DAFORMER = replace(
    _NVLABS,
    projections=_four("decode_head.linear_c.{}.proj"),
    backwards=False,
    about={"licence": LICENCE, "size": [1024, 512]},
    notes=(SYNTHIA_NOTE,),
)
_DAFORMER = replace(
    _OF_DAFORMER,
    projections=_four("decode_head.embed_layers.{}.proj"),
    fuse="decode_head.fuse_layer.bottleneck.conv",
    norm="decode_head.fuse_layer.bottleneck.bn",
    last="decode_head.conv_seg",
)
_CONV1 = replace(_DAFORMER, fuse="decode_head.fuse_layer.conv", norm="decode_head.fuse_layer.bn")
_MMSEG = _Format(
    _four("backbone.layers.{}.0.projection"),
    _four("decode_head.convs.{}"),
    "decode_head.fusion_conv.conv",
    "decode_head.fusion_conv.bn",
    "decode_head.conv_seg",
    normed=True,
    args={"projection": "normed", "eps": "1e-6"},
)
_TRANSFORMERS = _Format(
    _four("segformer.encoder.patch_embeddings.{}.proj"),
    _four("decode_head.linear_c.{}.proj"),
    "decode_head.linear_fuse",
    "decode_head.batch_norm",
    "decode_head.classifier",
    backwards=True,
    args={"eps": "1e-5"},
)
_TRANSFORMERS_5 = replace(
    _TRANSFORMERS,
    encoder=_four("segformer.stages.{}.patch_embeddings.proj"),
    projections=_four("decode_head.linear_projections.{}.proj"),
)
_SMP = _Format(
    _four("encoder.patch_embed{}.proj", 1),
    _four("decoder.mlp_stage.{}.linear")[::-1],
    "decoder.fuse_stage.0",
    "decoder.fuse_stage.1",
    "segmentation_head.0",
    backwards=True,
    about={"align_corners": True},
)
_KNOWN = (  # --family, in words, format, and how it is converted
    ("segformer", "SegFormer by NVlabs", _NVLABS, _segformer),
    ("segformer_daformer", "SegFormer in DAFormer's and MIC's programs", _OF_DAFORMER, _segformer),
    ("segformer_mmseg", "SegFormer by mmseg since 0.20", _MMSEG, _segformer),
    ("segformer_transformers", "SegFormer by transformers (Hugging Face)", _TRANSFORMERS, _segformer),
    ("segformer_transformers5", "SegFormer by transformers 5, as it has it in memory", _TRANSFORMERS_5, _segformer),
    ("segformer_smp", "SegFormer by segmentation_models_pytorch", _SMP, _segformer),
    ("daformer_mit", "DAFormer and MIC on a Mix Transformer", _DAFORMER, _daformer),
    ("daformer_mit_conv1", "DAFormer on a Mix Transformer, fused as SegFormer is", _CONV1, _segformer),
)
FAMILIES: tuple[Family, ...] = (
    *(
        Family(name, words, form.fits, partial(convert, replace(form, about={"origin": words, **form.about})))
        for name, words, form, convert in _KNOWN
    ),
    Family(
        "hrda",
        "HRDA and MIC on HRDA, which cannot be imported",
        lambda state: any(name.startswith("decode_head.scale_attention.") for name in state),
        _hrda,
    ),
)
