"""What an option's value must be: in words, for messages, and as a test of values that have the option's type."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A value must be `words`, which it is where `holds(value)`; `known` are those that it may be meant for."""

    words: str
    holds: Callable[[Any], bool]
    known: tuple[str, ...] = ()


def at_least(low: float) -> Rule:
    return Rule(f"at least {low}", lambda value: math.isfinite(value) and value >= low)


def above(low: float) -> Rule:
    return Rule(f"above {low}", lambda value: math.isfinite(value) and value > low)


def within(low: float, high: float) -> Rule:
    return Rule(f"at least {low} and at most {high}", lambda value: low <= value <= high)


SHARE = Rule("above 0 and at most 1", lambda value: 0 < value <= 1)


def one_of(*values: str) -> Rule:
    return Rule(f"one of {', '.join(values)}", lambda value: value in values, values)


def _are_numbers(values: tuple, count: int) -> bool:
    return len(values) == count and all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _are_whole(values: tuple, low: int, high: float = math.inf) -> bool:
    return all(type(value) is int and low <= value <= high for value in values)


_RESNETS = *(f"resnet{layers}" for layers in (18, 34, 50, 101)), "caffe_resnet101", "v1c_resnet101"
_NETWORKS = one_of(
    *(f"deeplab_{name}" for name in _RESNETS),
    # those of core.models.networks
    *(f"segformer_b{size}" for size in range(6)),
    "daformer_b5",
    *(f"{kind}_resnet{layers}" for kind in ("deeplabv3", "fcn") for layers in (50, 101)),
    *(f"{kind}_vit{size}" for kind in ("dinov2", "dinov3") for size in "sbl"),
)
NETWORK = Rule(
    f"{_NETWORKS.words}, or module:function", lambda name: ":" in name or _NETWORKS.holds(name), _NETWORKS.known
)
POSITIONS = Rule(
    "a list of different numbers from 0 to 5",
    lambda values: _are_whole(values, 0, 5) and len(set(values)) == len(values),
)
CHANNELS = Rule(
    "empty, or a list of different channels, counted from 0",
    lambda values: _are_whole(values, 0) and len(set(values)) == len(values),
)
NAMES = Rule(
    "a list of different names",
    lambda names: (
        len(set(map(str, names))) == len(names)
        and all(isinstance(one, str) and one.isprintable() and one for one in names)
    ),
)
COLOURS = Rule(
    "a list of [red, green, blue], each 0 to 255",
    lambda values: all(
        isinstance(one, list | tuple) and len(one) == 3 and _are_whole(tuple(one), 0, 255) for one in values
    ),
)
SIZE = Rule("(width, height) in pixels", lambda size: len(size) == 2 and _are_whole(size, 1))
WINDOW = Rule(
    "empty, or (width, height) in pixels, multiples of 8 from 32 on",
    lambda size: not size or (len(size) == 2 and _are_whole(size, 32) and not any(length % 8 for length in size)),
)
STEP = Rule(
    "empty, or (width, height) of at least 8 pixels", lambda size: not size or (len(size) == 2 and _are_whole(size, 8))
)
SCALES = Rule("(smallest, largest) above 0", lambda scales: _are_numbers(scales, 2) and 0 < scales[0] <= scales[1])
SPAN = Rule(
    "(lowest, highest) value, from 0 to 65535, or empty",
    lambda span: not span or (len(span) == 2 and _are_whole(span, 0, 65535) and span[0] < span[1]),
)
BANDS = Rule("three bands, or one, counted from 1", lambda bands: len(bands) in (1, 3) and _are_whole(bands, 1))
MARGINS = Rule(
    "(left, top, right, bottom) in pixels, or empty", lambda sides: len(sides) in (0, 4) and _are_whole(sides, 0)
)
COLOUR = Rule("three numbers", lambda values: _are_numbers(values, 3))
DIVISORS = Rule("three numbers other than 0", lambda values: _are_numbers(values, 3) and 0 not in values)
IGNORE_LABEL = Rule("255, which stored labels, of 8 bits, use throughout", lambda value: value == 255)
_LOOKS = ("mirrored", "larger", "larger_mirrored")
LOOKS = Rule(f"a list of {', '.join(_LOOKS)}", lambda looks: set(looks) <= set(_LOOKS))
SHARES = Rule("numbers from 0 to 1", lambda values: all(type(v) in (int, float) and 0 <= v <= 1 for v in values))
WEIGHTS = Rule(
    "numbers of at least 0", lambda values: _are_numbers(values, len(values)) and min(values, default=0) >= 0
)
