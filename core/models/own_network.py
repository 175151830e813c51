"""A network of the user's own (MODEL.NAME module:function), or one known by name: built, tried, and made to fit."""

import copy
import importlib
import sysconfig
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import core
from core.models.deeplab import Segmentor, batch_norms
from core.models.networks import NAMED
from core.utils.errors import UserError, shorten

STRIDES = (1, 2, 4, 8, 14, 16, 32)  # that networks have: others would be mistakes in reading an output's points
MULTIPLES = (1, 2, 4, 8, 14, 16, 28, 32, 64)  # in which networks may want an image's sides, as they are tried
KEYS = ("out", "logits")  # of outputs that are mappings, torchvision's and transformers'
# (height, width) in pixels of an image to try a network on, at least: from its points, every stride can be told, and
# networks that pad within themselves but do not crop give too many of them
_SIDES = 97, 281
_FEW_SIDES = 65, 97  # of a network that says what its stride is
_LOUD = 1000  # times an image: what is no probability leaves their range
_CLOSE = 1e-3  # to 1, of a sum of probabilities
_LIBRARIES = tuple({str(Path(sysconfig.get_path(kind)).resolve()) for kind in ("stdlib", "purelib", "platlib")})
_OURS = str(Path(core.__file__).resolve().parent)


class OwnNetwork(Segmentor):
    """A segmentor of any modules, whose output may be packed, and whose images may have to be padded.

    A single module stands as the feature extractor, and the classifier is empty. A new one is to be tried
    (:meth:`fit`) before it is used.

    Args:
        feature_extractor: may have the attribute `stride_and_multiple`, two numbers: then one small image is enough.
        name: MODEL.NAME, for messages.
        classes_out: the output's channel of every class; empty: all, in their order.

    Attributes:
        stride: pixels from one point of its output to the next.
        multiple: what the sides of its images are padded to a multiple of, to the right and below; 1: they are not.
        pooled_norms: names of the batch norms that see one value of a channel in each image.
    """

    def __init__(
        self,
        feature_extractor: nn.Module,
        classifier: nn.Module | None,
        name: str,
        classes_out: Sequence[int] = (),
        still_norms: bool = False,
        still_parameters: bool = True,
    ):
        classifier = nn.Sequential() if classifier is None else classifier
        super().__init__(feature_extractor, classifier, still_norms, still_parameters)
        self.name, self.classes_out, self.stride, self.multiple = name, tuple(classes_out), 1, 1
        self.pooled_norms: tuple[str, ...] = ()
        self._tried = (1, 1)  # (height, width) of an image that it takes
        if self.classes_out:
            self.register_buffer("channels", torch.tensor(self.classes_out), persistent=False)  # in no checkpoint

    @property
    def head(self) -> nn.Module:
        if any(True for _ in self.classifier.parameters()):
            return self.classifier
        inner = getattr(self.feature_extractor, "classifier", None)
        return inner if isinstance(inner, nn.Module) else self.classifier

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        if self.multiple == 1:
            return self._chosen(unpacked(super().logits(image)))
        height, width = image.shape[-2:]
        below, right = (_up(side, self.multiple) * self.multiple - side for side in (height, width))
        # where the sizes that are to follow are not known, nothing is asked of them
        unknown = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if unknown or below or right:
            image = F.pad(image, (0, right, 0, below), mode="replicate")
        logits = self._chosen(unpacked(super().logits(image)))
        rows, columns = _up(height, self.stride), _up(width, self.stride)
        if not unknown:
            return logits[..., :rows, :columns]
        for dim, count in ((2, rows), (3, columns)):  # a slice's layout would depend on whether it is the whole
            logits = logits.index_select(dim, torch.arange(count, device=logits.device))
        return logits

    def _chosen(self, logits: torch.Tensor) -> torch.Tensor:
        """The channels of the classes."""
        return logits.index_select(1, self.channels) if self.classes_out else logits

    def fit(self, num_classes: int, usual_size: tuple[int, int]) -> None:
        """Find `stride` and `multiple` by small images on the CPU, in eval mode; nothing else of the network changes.

        Args:
            usual_size: (width, height) of an image that is tried last, for a network that takes one size only.
        Raises:
            UserError: a forward fails, or gives something other than the classes' logits.
        """
        modes = [(module, module.training) for module in self.modules()]
        pooled: set[nn.Module] = set()

        def look(norm: nn.Module, given: tuple) -> None:
            if given and given[0].numel() == given[0].shape[1]:
                pooled.add(norm)

        hooks = [norm.register_forward_pre_hook(look) for norm in batch_norms(self)]
        self.eval()
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                self._fit(num_classes, usual_size, pooled)
        finally:
            for module, mode in modes:
                module.training = mode
            for hook in hooks:
                hook.remove()
        self.pooled_norms = tuple(name for name, module in self.named_modules() if module in pooled)

    def _fit(self, num_classes: int, usual_size: tuple[int, int], pooled: set[nn.Module]) -> None:
        problem, said = "", getattr(self.feature_extractor, "stride_and_multiple", None)
        for multiple in (*MULTIPLES, None) if said is None else said[1:]:
            sides = _SIDES if said is None else _FEW_SIDES
            height, width = usual_size[::-1] if multiple is None else _tried_size(multiple, sides)
            image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
            image = image.to(memory_format=torch.channels_last)
            pooled.clear()
            try:
                output = super().logits(image)
            except Exception as error:  # whatever a network makes of a size that it is not made for
                problem = f"a forward of a 3×{height}×{width} image fails: {_told(error)}"
                continue
            self._check(unpacked(output), output, num_classes)
            if (kind := _probabilities(unpacked(output))) and _probabilities(unpacked(super().logits(_LOUD * image))):
                what = f"it gives probabilities ({kind}), not logits: leave that out of its forward"
                raise UserError(f"MODEL.NAME {self.name}: {what}")
            points = tuple(unpacked(output).shape[-2:])
            stride = _stride((height, width), points, STRIDES if said is None else said[:1])
            if stride:
                self.stride, self.multiple, self._tried = stride, multiple or 1, (height, width)
                return
            which = f"no stride of {', '.join(map(str, STRIDES))} does; its convolutions want padding"
            which = which if said is None else f"the stride that it names, {said[0]}, does not"
            problem = f"it gives {points[0]}×{points[1]} points for {height}×{width} pixels: {which}"
        raise UserError(f"MODEL.NAME {self.name}: {problem}")

    def idle_parameters(self) -> list[str]:
        """Names of the parameters that learn, but have no part in the logits in training mode, as an auxiliary head's.

        Found by a copy on the CPU, so that the network, its random numbers and its device are left alone.
        """
        twin = copy.deepcopy(self).cpu().train()
        for norm in batch_norms(twin):
            norm.eval()
        named = {name: parameter for name, parameter in twin.named_parameters() if parameter.requires_grad}
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)  # the same in every process
            logits = twin(torch.randn(1, 3, *self._tried).to(memory_format=torch.channels_last))
            gradients = torch.autograd.grad(logits.sum(), [*named.values()], allow_unused=True)
        return [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]

    def _check(self, logits: Any, output: Any, num_classes: int) -> None:
        """Raise UserError if a forward of one image gives something other than the classes' logits."""
        where = f"MODEL.NAME {self.name}"
        if not isinstance(logits, torch.Tensor):
            what = f"with {shorten(output) or 'nothing'}" if isinstance(output, Mapping) else "that holds no tensor"
            raise UserError(
                f"{where}: its output is a {type(output).__name__} {what}; a tensor, a dict with {' or '.join(KEYS)}, "
                "a list or tuple that begins with one, or an object with .logits will do"
            )
        if logits.ndim != 4 or len(logits) != 1 or not logits.is_floating_point():
            shape, dtype = "×".join(map(str, logits.shape)) or "a scalar", str(logits.dtype).removeprefix("torch.")
            raise UserError(
                f"{where}: its output for one image is {shape}, {dtype}; it must be B×C×h×w logits, floating point"
            )
        channels = logits.shape[1]
        if self.classes_out and len(self.classes_out) != num_classes:
            raise UserError(
                f"MODEL.CLASSES_OUT names {len(self.classes_out)} channels, but MODEL.NUM_CLASSES is {num_classes}: "
                "give one for every class, in their order"
            )
        if self.classes_out and max(self.classes_out) >= channels:
            raise UserError(
                f"MODEL.CLASSES_OUT names channel {max(self.classes_out)}, but {self.name} gives {channels} (0 … "
                f"{channels - 1})"
            )
        if not self.classes_out and channels != num_classes:
            wanted = ", ".join(map(str, range(channels - num_classes, channels)[:3]))
            way = (
                f"give MODEL.CLASSES_OUT, its channels in the order of the classes (as [{wanted}, …] without what "
                "comes first), or MODEL.NUM_CLASSES" if channels > num_classes else "give it a head of the classes"
            )  # fmt: skip
            raise UserError(f"{where}: it gives {channels} channels, MODEL.NUM_CLASSES is {num_classes}: {way}")


def build_own_network(cfg) -> OwnNetwork:
    """What the function that MODEL.NAME names makes of the config; to be tried by :meth:`OwnNetwork.fit`.

    Raises:
        UserError: MODEL.NAME is no such function, it fails (with the place), or gives no modules.
    """
    name = cfg.MODEL.NAME
    module, _, function = NAMED.get(name, name).partition(":")
    try:
        build = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a module does when it is imported
        told = _told(error) if _place(error) else error
        raise UserError(f"MODEL.NAME {name}: {told}; it must be module:function, importable from here") from None
    if not callable(build):
        raise UserError(f"MODEL.NAME {name}: {module} has no such function; it must be module:function")
    try:
        built = build(cfg)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code does
        raise UserError(f"MODEL.NAME {name}: {function}(cfg) fails: {_told(error)}") from error
    parts = (built, None) if isinstance(built, nn.Module) else built
    pair = isinstance(parts, tuple) and len(parts) == 2
    if not pair or not all(isinstance(part, nn.Module) for part in parts[: 1 if parts[1] is None else 2]):
        raise UserError(
            f"MODEL.NAME {name} must return an nn.Module, or two as (feature extractor, classifier), not "
            f"a {type(built).__name__}"
        )
    model = cfg.MODEL
    return OwnNetwork(*parts, name, model.CLASSES_OUT, model.FREEZE_BN, model.FREEZE_BN_PARAMETERS)


def unpacked(output: Any) -> Any:
    """The logits within a network's output; where none are found, what is there instead.

    Known are mappings with one of :data:`KEYS`, objects with `.logits`, and lists and tuples, of which it is the first.
    """
    while not isinstance(output, torch.Tensor):
        if isinstance(output, Mapping):
            key = next((key for key in KEYS if key in output), None)
            if key is None:
                return output
            output = output[key]
        elif hasattr(output, "logits"):
            output = output.logits
        elif isinstance(output, list | tuple) and output:
            output = output[0]
        else:
            return output
    return output


def _up(side: int, length: int) -> int:
    """side / length, rounded up, by numbers above 0: ONNX divides others otherwise."""
    return (side + length - 1) // length


def _tried_size(multiple: int, sides: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of at least `sides`, in odd multiples, so that they are multiples of nothing larger."""
    height, width = ((_up(side, multiple) | 1) * multiple for side in sides)
    return height, width


def _stride(size: tuple[int, int], points: tuple[int, int], strides: Sequence[int]) -> int:
    """The stride that makes so many points of an image's sides, rounded down or up; 0: none."""
    for stride in strides:
        down, up = (tuple(side // stride for side in size), tuple(_up(side, stride) for side in size))
        if points in (down, up):
            return stride
    return 0


def _probabilities(output: torch.Tensor) -> str:
    """How 1×C×h×w numbers come to be probabilities; empty: they are not."""
    output = output.float()
    low, high = map(float, output.aminmax())
    if not 0 <= low <= high <= 1 + _CLOSE:
        return ""
    if output.shape[1] > 1 and float((output.sum(1) - 1).abs().max()) < _CLOSE:
        return "a softmax: they add up to 1"
    return "a sigmoid: all lie between 0 and 1" if high > low else ""


def _told(error: Exception) -> str:
    """An error of the user's code in one line, with its place."""
    reason = next((line for line in str(error).strip().split("\n") if line.strip()), "")[:200]
    place = _place(error)
    return f"{type(error).__name__}: {reason}" + (f", at {place}" if place else "")


def _place(error: BaseException) -> str:
    """file:line of the innermost place of an error that is the user's, not a library's; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    files = [frame for frame in frames if not frame[0].startswith("<")]
    own = [frame for frame in files if not str(Path(frame[0]).resolve()).startswith((*_LIBRARIES, _OURS))]
    return "{}:{}".format(*own[-1]) if own else ""
