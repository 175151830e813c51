"""The networks that MODEL.NAME knows by name, beside our own ResNets: where each is built, and its MODEL.ARGS.

A new one is a file with a function like a user's own (docs/networks.md), and a line here.
"""

import importlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import Any, NamedTuple

from core.utils.errors import UserError, shorten, shown

_SEGFORMER, _TORCHVISION, _DINO = (f"core.models.{name}" for name in ("segformer", "torchvision_networks", "dino"))
NAMED: Mapping[str, str] = {  # MODEL.NAME → module:function
    **{f"segformer_b{size}": f"{_SEGFORMER}:build" for size in range(6)},
    "daformer_b5": f"{_SEGFORMER}:build_daformer",
    **{f"deeplabv3_resnet{layers}": f"{_TORCHVISION}:build_deeplabv3" for layers in (50, 101)},
    **{f"fcn_resnet{layers}": f"{_TORCHVISION}:build_fcn" for layers in (50, 101)},
    **{f"{kind}_vit{size}": f"{_DINO}:build" for kind in ("dinov2", "dinov3") for size in "sbl"},
}
TIMM = "1.0.20"  # the first that holds all of them
CHANNELS = "channels"  # of every named network's output, where MODEL.CLASSES_OUT chooses some


class Argument(NamedTuple):
    """An entry of MODEL.ARGS: its value where none is given, what else it may be in words, and whether a value is."""

    default: Any
    words: str
    holds: Callable[[Any], bool]


def one_of(*values: str) -> Argument:
    """One of some words, of which the first is the default."""
    return Argument(values[0], " or ".join(values), lambda value: value in values)


def flag() -> Argument:
    return Argument(False, "true or false", lambda value: isinstance(value, bool))


def number(default: int | None, words: str, least: int = 1, count: int = 0) -> Argument:
    """A whole number, of at least so much; or a list of so many."""

    def holds(value: Any) -> bool:
        return type(value) is int and value >= least

    if not count:
        return Argument(default, words, holds)
    return Argument(default, words, lambda value: isinstance(value, tuple) and [*map(holds, value)] == [True] * count)


def share(default: float, words: str) -> Argument:
    """A number from 0 to below 1."""
    return Argument(default, f"{words}, from 0 to below 1", lambda v: type(v) in (int, float) and 0 <= v < 1)


def arguments(cfg, **known: Argument) -> dict[str, Any]:
    """MODEL.ARGS of a network by name, with what they leave out.

    Raises:
        UserError: a key that is not known, or a value that will not do.
    """
    given, where = cfg.MODEL.ARGS, f"MODEL.ARGS of {cfg.MODEL.NAME}"
    known = {**known, CHANNELS: number(cfg.MODEL.NUM_CLASSES, "the channels of its output")}
    for key, value in given.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{where}: unknown key {shown(key)}; known are {shorten(sorted(known), len(known))}{meant}")
        if not known[key].holds(value):
            raise UserError(f"{where}: {key} must be {known[key].words}, not {shown(value)}")
    return {key: given.get(key, argument.default) for key, argument in known.items()}


def timm_for(cfg, model: str = "") -> ModuleType:
    """The package timm, which a network by name is made of.

    Args:
        model: one of timm's, which it is to know.
    Raises:
        UserError: it is missing, or too old to know the model.
    """
    install = f"pip install 'timm>={TIMM}'"
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise UserError(f"MODEL.NAME {cfg.MODEL.NAME} needs timm: {install}") from None
    if model and not timm.is_model(model):
        raise UserError(f"MODEL.NAME {cfg.MODEL.NAME} needs a newer timm than {timm.__version__}: {install}")
    return timm
