"""Checkpoints in the format of FADA and DT-ST: {iteration, feature_extractor, classifier}."""

import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from core.utils.errors import UserError, shorten, shown
from core.utils.files import near, open_regular, replacing
from core.utils.logging import LOGGER

PARTS = ("feature_extractor", "classifier")
ABOUT = "about"  # beside them: what else the weights are,
CLASSES, SIZE = "classes", "size"  # the names of their classes, the (width, height) that the network is used to,
DEPTH, BANDS = "depth", "bands"  # the values of 16-bit images that become 0 and 255, the bands that it sees,
DOMAIN, SOURCE = "domain", "source"  # whose values these are: source or target
# MODEL.NAME, MODEL.ARGS and MODEL.CLASSES_OUT, that of the resize of its logits,
NETWORK, ARGS, CLASSES_OUT, ALIGN_CORNERS = "network", "args", "classes_out", "align_corners"
MEAN, STD, BGR255 = "mean", "std", "bgr255"  # INPUT.PIXEL_MEAN, PIXEL_STD and TO_BGR255 of its images,
COLOURS = "colours"  # of its classes, [red, green, blue] each,
BN_EPS = "bn_eps"  # what was added to the variances of its batch norms, of which frozen ones have no epsilon,
FAMILY, ORIGIN, LICENCE = "family", "origin", "licence"  # in words, of weights that come from elsewhere
# what wrappers put before every name of a state, and the key under which others keep it
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "state_dict.")
WITHIN = ("state_dict", "model_state_dict", "model", "net", "module")
# how names begin in files of pretrained weights that are of what stands upon a backbone
HEADS = (
    "fc.",
    "head.",
    "classifier.",
    "aux_classifier.",
    "decode_head.",
    "auxiliary_head.",
    "decoder.",
    "segmentation_head.",
)
_LEVELS = 3  # of dicts, of which the last is the state
ARCHIVE = b"PK\3\4"  # how a file begins that torch has written since 1.6
_PICKLE = b"\x80"
_LINES = {ord(c): " " for c in "\t\r\n"}
_LOOKED_AT = 512  # bytes, of what a file may be instead
_STATES = {  # by the keys that tell them
    "pytorch-lightning_version": "a checkpoint of PyTorch Lightning",
    "meta": "a checkpoint of OpenMMLab",
    "optimizer": "another program's training state",
}


def read_tensors(path: str | Path, mapped: bool = False, load: Callable[[str | Path], object] | None = None) -> dict:
    """Load a dict of tensors, numbers, strings, lists and dicts; nothing else in the file is ever executed.

    That is torch's `weights_only`. It would wait for a pipe to be written to, and unpack an archive made to fill the
    memory: both are looked for here. Nothing looks for tuples within tuples as keys, which would keep it busy.

    Args:
        mapped: tensors are not read before they are looked at, where the file's kind allows it.
        load: what loads the file instead, as safely.
    Raises:
        UserError: missing, unreadable, or anything but such a dict.
    """
    try:
        with open_regular(path) as file:
            beginning = file.read(_LOOKED_AT)
            if told := _other_file(beginning):
                raise UserError(f"{path} is not a checkpoint: {told}")
            if beginning.startswith(ARCHIVE):  # by which torch tells it from a plain pickle
                with zipfile.ZipFile(file) as archive:
                    names = archive.namelist()
                    claimed = sum(entry.file_size for entry in archive.infolist())
                if not any(name.endswith("data.pkl") for name in names):
                    what = f"it is a zip archive that holds {shorten(names) or 'nothing'}"
                    raise UserError(f"{path} is not a checkpoint: {what}: unpack it")
                size = os.fstat(file.fileno()).st_size
                if claimed > size:  # torch writes uncompressed
                    raise ValueError(f"it has {size} bytes, but claims to hold {claimed}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapped = mapped and beginning.startswith(ARCHIVE)
            content = load(path) if load else torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist{near(path, '*.pth')}") from None
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever a broken or hostile file makes the unpickler raise
        raise UserError(f"{path} is not a checkpoint{_reason(error, path, beginning)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(content).__name__}, not a dict")
    return content


def _reason(error: Exception, path: str | Path, beginning: bytes) -> str:
    """Why a file that begins so could not be loaded."""
    ends_early = isinstance(error, zipfile.BadZipFile | EOFError) or "unexpected EOF" in str(error)
    if ends_early and beginning.startswith((ARCHIVE, _PICKLE)):
        return f": it is cut off after {os.path.getsize(path)} bytes; copy or download it again"
    refused = re.search(r"Unsupported [^\n]{,100}", str(error))
    reason = refused[0] if refused else str(error).strip().split("\n")[0][:120]
    return f" that can be loaded safely ({reason})"


def _other_file(beginning: bytes) -> str:
    """What a file is that begins so, and what to do; empty where it may be a checkpoint."""
    text = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not beginning:
        return "it is empty; copy or download it again"
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "it is a web page (the download met an error or a sign-in); download the file itself"
    if text.startswith(b"version https://git-lfs"):
        size = re.search(rb"\bsize (\d+)", text)
        whole = f" of {int(size[1])} bytes" if size else ""
        return f"it is a Git LFS pointer in the place of the file{whole}: fetch that by `git lfs pull`"
    if beginning.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")) or beginning[257:262] == b"ustar":
        return "it is a compressed file or an archive: unpack it"
    if is_safetensors(beginning):
        known = "`python -m tools.import_model` makes a checkpoint of the networks that it knows"
        return f"it is a safetensors file: {known}; of others, load its tensors and torch.save them"
    if beginning.isascii() and beginning.decode().translate(_LINES).isprintable():
        return f"it is a text, {shown(beginning.decode())} (the download met an error); download the file itself"
    return ""


def load_checkpoint(model: nn.Module, path: str | Path) -> int:
    """Load weights into `model.feature_extractor` and `model.classifier`; returns the `iteration` that the file names.

    The file is in the published format, or holds one state that fits by names and shapes, of the whole model or of the
    one module that it is, perhaps under one of :data:`WITHIN`. All names of a state may carry :data:`_PREFIXES`, which
    the model's then need not; num_batches_tracked may be present or not; half precision is widened. The :data:`BN_EPS`
    that a file names is taken off again where the model's batch norms have an epsilon of their own.

    Raises:
        UserError: not such a file, weights that do not fit (which keys, which shapes), that are not numbers (the first
            tensor), or that are of the same classes in another order, where the file names them.
    """
    content = read_tensors(path)
    lacking = [part for part in PARTS if not isinstance(content.get(part), Mapping)]
    if lacking:
        if {"format", "program", "generation"} <= content.keys():
            raise UserError(
                f"{path} is a run's state, not a checkpoint: `resume auto`, or the run's folder, goes on with the run; "
                "else give the model_iter*.pth beside the folder of states"
            )
        state = _plain_state(content)
        states = _of_whole(model, state) if state else []
        if not states:
            other = next((words for key, words in _STATES.items() if key in content), None)
            what = f"is {other}, not a checkpoint of these programs" if other else "is not a segmentation checkpoint"
            raise UserError(f"{path} {what}: it lacks {' and '.join(lacking)}; it holds {shorten(content)}")
    else:
        states = [(getattr(model, part), f"{part}.", _fitted(getattr(model, part), content[part])) for part in PARTS]
    about = content.get(ABOUT) if isinstance(content.get(ABOUT), Mapping) else {}
    _compare_classes(model, about, path)
    eps = added_epsilon(about)
    states = [(module, prefix, _with_epsilon(module, state, -eps)) for module, prefix, state in states]
    problems = [problem for module, _, state in states for problem in misfits(module, state)]
    if problems:
        raise UserError(
            f"{path} does not fit the model: {'; '.join(problems)}. Set MODEL.NAME and MODEL.NUM_CLASSES to the "
            "checkpoint's"
        )
    ruined = [words for module, prefix, state in states for words in not_finite(module, state, prefix)]
    if ruined:
        raise UserError(
            f"{path} is ruined: {first_of(ruined)}; the training that wrote it diverged: give an earlier checkpoint"
        )
    for module, _, state in states:
        module.load_state_dict(state, strict=False)
    iteration = content.get("iteration", 0)
    return iteration if isinstance(iteration, int) else 0


def read_about(path: str | Path) -> Mapping:
    """What a checkpoint says of its weights; empty where it says nothing. Raises UserError as :func:`read_tensors`."""
    about = read_tensors(path, mapped=True).get(ABOUT)
    return about if isinstance(about, Mapping) else {}


def added_epsilon(about: Mapping) -> float:
    """The :data:`BN_EPS` of what a checkpoint says; 0 where it says none, or what is none."""
    eps = about.get(BN_EPS)
    return eps if isinstance(eps, float) and 0 < eps < 1 else 0.0


def _with_epsilon(module: nn.Module, state: Mapping, eps: float) -> dict:
    """A state of `module` with `eps` added to the variances of torch's batch norms, which have an epsilon of their own.

    Frozen ones have none: their variances, and those of a file that names :data:`BN_EPS`, hold it already.
    """
    if not eps:
        return dict(state)
    norms = [name for name, norm in module.named_modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    held = {key: state[key] for name in norms if _is_plain(state.get(key := f"{name}.running_var"))}
    return {**state, **{key: (variance + eps).clamp(min=0) for key, variance in held.items()}}


def _compare_classes(model: nn.Module, about: Mapping, path: str | Path) -> None:
    """Raise UserError if a checkpoint names the model's classes in another order; log it if it names others."""
    named = about.get(CLASSES)
    names = list(getattr(model, "about", {}).get(CLASSES, ()))
    if not isinstance(named, list) or len(named) != len(names):  # if other in number, weights do not fit
        return
    plain = [[re.sub("[-_ ]", "", str(name)).lower() for name in some] for some in (named, names)]
    if plain[0] == plain[1]:
        return
    index = next(n for n, (theirs, ours) in enumerate(zip(*plain, strict=True)) if theirs != ours)
    differ = f"class {index} is {shown(named[index])} there, {names[index]!r} in the config"
    if sorted(plain[0]) == sorted(plain[1]):
        raise UserError(f"{path} has its classes in another order: {differ}; it has {shorten(named, len(named))}")
    LOGGER.info("%s names its classes otherwise: %s", path, differ)


def load_imagenet_weights(feature_extractor: nn.Module, path: str | Path) -> None:
    """Load weights that others have pretrained (MODEL.WEIGHTS), torch's or safetensors, into a feature extractor.

    They are torchvision's `resnet*.pth`, or what its method `pretrained` puts under its names. Heads (:data:`HEADS`)
    are left out, and the log says so.

    Raises:
        UserError: not such a file, or weights that do not fit (which keys, which shapes).
    """
    try:
        weights = read_safetensors(path) if is_safetensors(_beginning(path)) else read_tensors(path)
    except UserError as error:
        raise UserError(
            f"MODEL.WEIGHTS: {error}; give another file, or start from a checkpoint with `resume`"
        ) from None
    found = _plain(_plain_state(weights) or weights)
    heads = {name.partition(".")[0]: None for name in found if name.startswith(HEADS)}
    state = {name: value for name, value in found.items() if not name.startswith(HEADS)}
    convert = getattr(feature_extractor, "pretrained", None)
    if convert is None or not all(map(_is_plain, state.values())):
        state = {f"backbone.{name}": value for name, value in state.items()}
    else:
        try:
            state = convert(state)
        except Exception as error:  # whatever a library makes of other tensors than it expects
            raise UserError(f"MODEL.WEIGHTS {path} does not fit the backbone: {error}") from None
    problems = misfits(feature_extractor, state)
    if problems:
        raise UserError(f"MODEL.WEIGHTS {path} does not fit the backbone: {'; '.join(problems)}. Set MODEL.NAME")
    if ruined := not_finite(feature_extractor, state):
        raise UserError(f"MODEL.WEIGHTS {path} is ruined: {first_of(ruined)}; download it again, or give another file")
    feature_extractor.load_state_dict(state, strict=False)
    if heads:
        LOGGER.info("MODEL.WEIGHTS %s: left out, as it is no part of the backbone: %s", path, ", ".join(heads))


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: unreadable, or the package is missing.
    """
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} is a safetensors file, which needs a package: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:  # whatever the package makes of a broken file
        raise UserError(f"{path} is no safetensors file that can be read ({error})") from None


def is_safetensors(beginning: bytes) -> bool:
    """Whether a file that begins so is a safetensors file: the length of its JSON in 8 bytes, then that."""
    return beginning[8:9] == b"{" and beginning[:8].endswith(b"\0\0\0")


def _beginning(path: str | Path) -> bytes:
    """Of a file, as much as tells its kind; empty where it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(_LOOKED_AT)
    except OSError:
        return b""


def save_checkpoint(model: nn.Module, path: str | Path, iteration: int) -> None:
    """Write the model in the published format, atomically; beside it, under `about`, what the model says of itself.

    Where that is a :data:`BN_EPS`, it is in the variances of the file, whatever the model's batch norms are.
    """
    content = {"iteration": iteration}
    if about := getattr(model, "about", {}):
        content[ABOUT] = about
    for part in PARTS:
        module = getattr(model, part)
        state = _with_epsilon(module, module.state_dict(), added_epsilon(about))
        content[part] = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:  # a full disk is an OSError of the file's only
        torch.save(content, file)


def _plain_state(content: Mapping) -> dict | None:
    """The tensors by name that a file holds, itself or under one of :data:`WITHIN`; None where it holds others."""
    for _ in range(_LEVELS):
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return dict(content)
        content = next((content[key] for key in WITHIN if isinstance(content.get(key), Mapping)), {})
    return None


def _of_whole(model: nn.Module, state: Mapping) -> list[tuple[nn.Module, str, dict]]:
    """As `states` in :func:`load_checkpoint`, of a state of the model, or of the one module that it is; empty where no
    name is the same.
    """
    modules = [model] if model.classifier.state_dict() else [model.feature_extractor, model]
    found = [(module, "", _fitted(module, state)) for module in modules]
    shared = [len(fitted.keys() & module.state_dict().keys()) for module, _, fitted in found]
    return [found[shared.index(max(shared))]] if any(shared) else []


def _fitted(module: nn.Module, state: Mapping) -> dict:
    """A state under the module's names, where they are the same but for :data:`_PREFIXES` of all of them."""
    wanted = list(module.state_dict())
    given = {str(key): value for key, value in state.items()}
    ours, theirs = _prefix(wanted), _prefix(list(given))
    renamed = {ours + key.removeprefix(theirs): value for key, value in given.items()}
    return max(given, renamed, key=lambda names: len(names.keys() & set(wanted)))


def _prefix(names: list[str]) -> str:
    """What wrappers have put before all of these names."""
    found = ""
    while names and (more := [p for p in _PREFIXES if all(name.startswith(found + p) for name in names)]):
        found += more[0]
    return found


def _plain(state: Mapping) -> dict:
    """Without the prefix that (Distributed)DataParallel leaves."""
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def misfits(module: nn.Module, state: Mapping) -> list[str]:
    """What keeps `state` from loading into `module`, in words; empty when it fits."""
    wanted = module.state_dict()
    counters = ".num_batches_tracked"
    missing = [key for key in wanted if key not in state and not key.endswith(counters)]
    extra = [key for key in state if key not in wanted and not key.endswith(counters)]
    no_tensor = [k for k in state if k in wanted and not _is_plain(state[k])]
    shapes = [
        f"{key} is {_shape(state[key])} in the file, {_shape(wanted[key])} in the model"
        for key in wanted
        if key in state and key not in no_tensor and state[key].shape != wanted[key].shape
    ]
    found = (("missing", missing), ("unexpected", extra), ("not a tensor of numbers", no_tensor))
    return [f"{what}: {shorten(keys)}" for what, keys in found if keys] + ([shorten(shapes, 2)] if shapes else [])


def not_finite(module: nn.Module, state: Mapping, prefix: str = "") -> list[str]:
    """In words, the tensors that `module` would take from `state` with numbers that are NaN or infinite.

    But for those where the module has such numbers as it was built (a mask of -inf, say).
    """
    found = []
    for key, built in module.state_dict().items():
        if key in state and not _is_finite(value := state[key].to(built.dtype)) and _is_finite(built):
            bad = value.numel() - int(value.isfinite().sum())
            found.append(f"{prefix}{key} has {bad} of its {value.numel()} numbers NaN or infinite")
    return found


def _is_finite(value: torch.Tensor) -> bool:
    """In one pass; what is not floating point is."""
    if not value.is_floating_point() or not value.numel():
        return True
    return all(map(math.isfinite, value.aminmax()))  # a NaN is both


def first_of(found: list[str]) -> str:
    """The first of several problems, and how many others there are."""
    others = len(found) - 1
    return found[0] + (f", and so {'has 1 other' if others == 1 else f'have {others} others'}" if others else "")


def _is_plain(value: object) -> bool:
    """Whether it is a tensor whose numbers are all there: not sparse, not quantized, not `meta`, not complex."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
