"""Families of networks on a ResNet: DeepLabV2 in its several geometries, and torchvision's DeepLabV3 and FCN.

Most have the names and shapes of a torchvision ResNet-101, but are other networks: with a stride in the 1×1
convolutions and pooling that rounds up (:data:`CAFFE`), with a deep stem (:data:`V1C`), with a part of the head unused.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from core.models.backbone import ARCHITECTURES
from core.models.deeplab import RATES
from core.utils.checkpoints import ALIGN_CORNERS, BGR255, BN_EPS, MEAN, SIZE, STD
from core.utils.errors import UserError
from tools.import_model.family import IMAGENET_INPUT, SYNTHIA_NOTE, Family, Imported

State = Mapping[str, torch.Tensor]
EPS = 1e-5  # of torch's batch norms, which ours has not: it is added to the variances
CAFFE, V1C = "deeplab_caffe_resnet101", "deeplab_v1c_resnet101"
CAFFE_INPUT = {  # Caffe's: blue first, 0 … 255, without a division
    MEAN: [104.00698793, 116.66876762, 122.67891434],
    STD: [1.0, 1.0, 1.0],
    BGR255: True,
}
HALF, FULL = [1024, 512], [2048, 1024]  # of a Cityscapes image: the sizes that the families' own tests use
ALIASES = {  # other programs that write the same, under the names of --family
    "minent": "advent", "fda": "advent", "bdl": "advent", "iapc": "advent", "ldbe": "advent",
    "crots": "adaptsegnet", "diga": "adaptsegnet", "refign": "cma", "fada": "ours", "dtst": "ours",
}  # fmt: skip
# what the branches of such a head start from, normal with this deviation; those without gradient stay there
_START, _STD_OFF, _KURTOSIS_OFF = 0.01, 2e-4, 0.15
_COUNTER = ".num_batches_tracked"
_DOUBTFUL = 2, 3  # branches that some programs leave unused, by a return within their loop
_AUXILIARY, _IMAGENET = "an auxiliary head, for its training", "the classifier of ImageNet"


def _is_resnet(state: State, architecture: str, prefix: str = "") -> bool:
    """Whether a ResNet's layers stand below a prefix, with as many blocks in its stages as the architecture has."""
    block, depths = ARCHITECTURES[architecture]
    conv = "conv3" if block.expansion == 4 else "conv2"
    return all(
        f"{prefix}layer{stage}.{depth - 1}.{conv}.weight" in state
        and f"{prefix}layer{stage}.{depth}.{conv}.weight" not in state
        for stage, depth in enumerate(depths, 1)
    )


def _channels(state: State, name: str) -> int:
    """That a convolution takes; 0 where there is none of that name."""
    return state[name].shape[1] if name in state and state[name].ndim == 4 else 0


def _main_head(state: State) -> str:
    """The head on the last stage, whatever its name; empty where there is none."""
    width = 512 * ARCHITECTURES["caffe_resnet101"][0].expansion
    heads = [f"layer{number}.conv2d_list" for number in (5, 6)]
    return next((head for head in heads if _channels(state, f"{head}.0.weight") == width), "")


def untrained(weight: torch.Tensor) -> bool:
    """Whether a branch's weight is as such heads begin: normal, with a deviation of 0.01. A hint, not a proof."""
    values = weight.double().flatten()
    values = values - values.mean()
    std = float(values.square().mean().sqrt())
    return abs(std - _START) < _STD_OFF and abs(float(values.pow(4).mean()) / std**4 - 3) < _KURTOSIS_OFF


def _branches_of(state: State, head: str) -> set[int]:
    """How many branches of a head were in use, by what can be seen: 2, 4, or either."""
    names = [f"{head}.{branch}.weight" for branch in _DOUBTFUL]
    if any(name not in state for name in names):
        return {2}
    idle = [untrained(state[name]) for name in names]
    return {2} if all(idle) else {2, 4} if any(idle) else {4}


def _seen(branches: int, seen: set[int]) -> str:
    """What was decided of a head's branches, as they look."""
    which = f"branches {' and '.join(map(str, _DOUBTFUL))} of the head"
    if branches == 2:
        if 2 in seen:
            return f"{which} are as they were drawn, never trained: left out, as zeros (--branches 4 keeps them)"
        return f"{which} look trained, but this family does not use them: left out (--branches 4 keeps them)"
    if 2 in seen:
        return f"{which} look as they were drawn, never trained, but are kept (--branches 2 leaves them out)"
    return f"{which} look trained, and are kept"


def _deeplabv2(
    state: State,
    network: str,
    features: dict[str, torch.Tensor],
    head: str,
    branches: int,
    reasons: Mapping[str, str],
    about: dict,
    names: str = "{}",
) -> Imported:
    """A network with our classifier of four branches; those that are not in use, or are not there, are zero.

    Args:
        features: the ResNet under our names.
        head: its name in `state`; `names`: of a branch's convolution below it.
        branches: in use.
        reasons: why tensors are not needed whose names begin so.
    """
    classifier, left_out = {}, {name: why for start, why in reasons.items() for name in state if name.startswith(start)}
    for branch in range(len(RATES)):
        for part in ("weight", "bias"):
            name = f"{head}.{names.format(branch)}.{part}"
            if branch < branches:
                if name not in state:
                    raise UserError(f"its head has no branch {branch} ({name}): give --branches 2")
                tensor = state[name]
            else:
                tensor = torch.zeros_like(classifier[f"conv2d_list.0.{part}"])
                if name in state:
                    left_out[name] = "a branch that its own program does not use: zero here"
            classifier[f"conv2d_list.{branch}.{part}"] = tensor
    left_out |= {name: "a counter, which no forward uses" for name in state if name.endswith(_COUNTER)}
    weights = [f"{head}.{names.format(branch)}.weight" for branch in _DOUBTFUL]
    notes = (_seen(branches, _branches_of(state, head)),) if all(name in state for name in weights) else ()
    outputs = len(classifier["conv2d_list.0.bias"])
    return Imported(network, outputs, features, classifier, left_out, about, notes=notes)


def _backbone(state: State, prefix: str, folded: bool = True) -> dict[str, torch.Tensor]:
    """A ResNet under our names, without counters.

    Args:
        folded: it is for frozen batch norms without an epsilon, which is added to its variances.
    """
    layers = ("stem.", "conv1.", "bn1.", *(f"layer{stage}." for stage in range(1, 5)))
    found = {}
    for name in state:
        inner = name.removeprefix(prefix)
        if name.startswith(prefix) and inner.startswith(layers) and not inner.endswith(_COUNTER):
            shifted = folded and inner.endswith("running_var")
            found[f"backbone.{inner}"] = state[name].double() + EPS if shifted else state[name]
    return found


def _fits_caffe(state: State) -> bool:
    plain = _is_resnet(state, "caffe_resnet101") and _channels(state, "conv1.weight") == 3
    return plain and bool(_main_head(state))


def _likely(branches: int, state: State) -> bool:
    return branches in _branches_of(state, _main_head(state))


def _caffe(state: State, branches: int) -> Imported:
    head = _main_head(state)
    other = {"layer5.": "layer6.", "layer6.": "layer5."}[head[:7]]
    channels = _channels(state, f"{other}conv2d_list.0.weight")
    reasons = {other: f"a head on {channels} channels, auxiliary: {head} is the main one", "fc.": _IMAGENET}
    about = {**CAFFE_INPUT, SIZE: HALF, ALIGN_CORNERS: True, BN_EPS: EPS}
    return _deeplabv2(state, CAFFE, _backbone(state, ""), head, branches, reasons, about)


def _noted(imported: Imported) -> Imported:
    """With the note on SYNTHIA, where it is called for."""
    return replace(imported, notes=(*imported.notes, SYNTHIA_NOTE)) if imported.outputs == 19 else imported


_SAC = "backbone.model."


def _fits_sac(state: State) -> bool:
    head = f"{_SAC}layer5.conv2d_list.0.weight"
    return _is_resnet(state, "caffe_resnet101", _SAC) and bool(_channels(state, head))


def _sac(state: State, branches: int) -> Imported:
    slow, training = "the slow network: its own inference uses backbone.", "a state of its training"
    reasons = {"slow_net.": slow, "running_conf": training, "slow_init": training, f"{_SAC}fc.": _IMAGENET}
    about = {**IMAGENET_INPUT, SIZE: FULL, ALIGN_CORNERS: True, BN_EPS: EPS}
    head = f"{_SAC}layer5.conv2d_list"
    return _noted(_deeplabv2(state, CAFFE, _backbone(state, _SAC), head, branches, reasons, about))


_STEM = {"backbone.stem.6.": "backbone.conv1.", "backbone.stem.7.": "backbone.bn1."}  # where ResNet has its own


def _v1c(state: State) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in _backbone(state, "backbone.").items():
        start = next((start for start in _STEM if name.startswith(start)), "")
        found[_STEM.get(start, "") + name.removeprefix(start)] = tensor
    return found


def _is_v1c(state: State) -> bool:
    stem = [f"backbone.stem.{number}.weight" for number in (0, 3, 6)]
    return all(name in state for name in stem) and _is_resnet(state, "v1c_resnet101", "backbone.")


_MMSEG_HEAD = "decode_head.aspp_modules"


def _fits_daformer(state: State) -> bool:
    plain = f"{_MMSEG_HEAD}.0.conv.bias" in state and f"{_MMSEG_HEAD}.0.bn.weight" not in state
    return plain and _is_v1c(state)


def _daformer(state: State, branches: int | None = None) -> Imported:
    there = sum(f"{_MMSEG_HEAD}.{branch}.conv.weight" in state for branch in range(len(RATES)))
    reasons = {"auxiliary_head.": _AUXILIARY, "decode_head.conv_seg.": "a layer that this head does not use"}
    about = {**IMAGENET_INPUT, SIZE: HALF, ALIGN_CORNERS: False, BN_EPS: EPS}
    return _noted(_deeplabv2(state, V1C, _v1c(state), _MMSEG_HEAD, branches or there, reasons, about, "{}.conv"))


def _fits_cma(state: State) -> bool:
    return "head.conv2d_list.0.weight" in state and _is_v1c(state)


def _cma(state: State, branches: int) -> Imported:
    others = [head for name in state if (head := name.partition(".")[0]) not in ("backbone", "head")]
    reasons = dict.fromkeys(others, "for its training: the network is backbone. and head.")
    about = {**IMAGENET_INPUT, ALIGN_CORNERS: False, BN_EPS: EPS}  # resized as in DAFormer, which both follow
    return _deeplabv2(state, V1C, _v1c(state), "head.conv2d_list", branches, reasons, about)


_OURS, _OUR_HEAD = "feature_extractor.backbone.", "classifier.conv2d_list"


def _own_architecture(state: State) -> str:
    """Which of ours a file in the published format holds; its geometry cannot be seen, and is torchvision's."""
    plain = [name for name in ARCHITECTURES if name.startswith("resnet")]
    return next((name for name in plain if _is_resnet(state, name, _OURS)), "")


def _fits_ours(state: State) -> bool:
    return f"{_OUR_HEAD}.0.weight" in state and bool(_own_architecture(state))


def _ours(state: State, branches: int) -> Imported:
    network, features = f"deeplab_{_own_architecture(state)}", _backbone(state, _OURS, folded=False)
    about = {**IMAGENET_INPUT, ALIGN_CORNERS: True}
    return _deeplabv2(state, network, features, _OUR_HEAD, branches, {}, about)


_TORCHVISION = {  # by which layers the heads are known, of which the last gives the classes
    "deeplabv3": ("classifier.0.convs.0.0.weight", "classifier.4.bias"),
    "fcn": ("classifier.0.weight", "classifier.4.bias"),
}


def _depth(state: State) -> str:
    return next((name for name in ("resnet50", "resnet101") if _is_resnet(state, name, "backbone.")), "")


def _fits_torchvision(kind: str, state: State) -> bool:
    return all(name in state for name in _TORCHVISION[kind]) and bool(_depth(state))


def _torchvision(kind: str, state: State) -> Imported:
    """Its batch norms are torch's here, too, with epsilon and counters."""
    features, head = ({n: state[n] for n in state if n.startswith(part)} for part in ("backbone.", "classifier."))
    classifier = {name.removeprefix("classifier."): tensor for name, tensor in head.items()}
    left_out = {name: _AUXILIARY for name in state if name.startswith("aux_classifier.")}
    about = {**IMAGENET_INPUT, ALIGN_CORNERS: False}
    outputs = len(state[_TORCHVISION[kind][-1]])
    return Imported(f"{kind}_{_depth(state)}", outputs, features, classifier, left_out, about)


def branches_of(family: Family) -> int | None:
    """How many branches of its head a family uses; None where it has no such head, or its file tells."""
    return getattr(family.convert, "keywords", {}).get("branches")


def with_branches(family: Family, branches: int) -> Family:
    """A family with so many branches of its head in use, whatever it has by itself.

    Raises:
        UserError: it has no such head.
    """
    convert = getattr(family.convert, "func", family.convert)
    if convert not in (_caffe, _sac, _daformer, _cma, _ours):
        raise UserError(f"--branches is of DeepLabV2's head, which {family.name} has not: leave it out")
    return replace(family, convert=partial(convert, branches=branches))


FAMILIES = (
    Family(
        "adaptsegnet",
        "AdaptSegNet (single and multi), CROTS, DIGA: DeepLabV2 on Caffe's ResNet-101, 2 of 4 branches in use",
        _fits_caffe,
        partial(_caffe, branches=2),
        partial(_likely, 2),
    ),
    Family(
        "advent",
        "ADVENT, MinEnt, FDA, BDL, IAPC, LDBE's teacher: DeepLabV2 on Caffe's ResNet-101, 4 branches",
        _fits_caffe,
        partial(_caffe, branches=4),
        partial(_likely, 4),
    ),
    Family(
        "sac",
        "SAC: DeepLabV2 on a ResNet-101 of Caffe's geometry and torchvision's normalisation",
        _fits_sac,
        partial(_sac, branches=4),
    ),
    Family("daformer_deeplab", "DAFormer and MIC on DeepLabV2: a ResNet-101-v1c (mmseg)", _fits_daformer, _daformer),
    Family("cma", "CMA and Refign on DeepLabV2: a ResNet-101-v1c", _fits_cma, partial(_cma, branches=4)),
    Family(
        "ours",
        "FADA, DT-ST, SND, TRSFUDA and these programs: ours already, to be cleaned",
        _fits_ours,
        partial(_ours, branches=4),
    ),
    *(
        Family(kind, words, partial(_fits_torchvision, kind), partial(_torchvision, kind))
        for kind, words in (
            ("deeplabv3", "torchvision's DeepLabV3 on a ResNet-50 or 101"),
            ("fcn", "torchvision's FCN on a ResNet-50 or 101"),
        )
    ),
)
