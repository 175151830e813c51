"""From a yaml file and command-line options to a checked config."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from core.configs.defaults import cfg as defaults
from core.configs.node import OBSOLETE_KEYS, Config
from core.utils.errors import UserError

MODEL_NAMES = ("deeplab_resnet18", "deeplab_resnet34", "deeplab_resnet50", "deeplab_resnet101")


def load_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Defaults, overwritten by a yaml file, overwritten by KEY VALUE options; checked, and frozen.

    Raises:
        UserError: unreadable file, unknown key, value of the wrong type or outside its range.
    """
    config = defaults.clone()
    config.merge_from_file(str(path))
    config.merge_from_list(list(options))
    if not config.OUTPUT_DIR:
        config.OUTPUT_DIR = default_output_dir(path)
    check_config(config)
    config.freeze()
    return config


def split_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The KEY VALUE pairs among the words of a command line, for :func:`load_config`, and the other words.

    A key is the name of an option; also, so that it is found to be misspelt, what is written as one (SECTION.NAME) and
    names no file.
    """
    options, others, words = [], [], list(words)
    while words:
        if _is_key(words[0]):
            options += words[:2]
            del words[:2]
        else:
            others.append(words.pop(0))
    return options, others


def _is_key(word: str) -> bool:
    if word in defaults.flat_keys() or word in OBSOLETE_KEYS:
        return True
    written_as_key = re.fullmatch(r"[A-Z]+\.[A-Z]\w*", word)
    return bool(written_as_key) and not os.path.lexists(word)


def default_output_dir(path: str | Path) -> str:
    """OUTPUT_DIR of a config that names none."""
    return str(Path("results") / Path(path).stem)


def check_config(config: Config) -> None:
    """Raise UserError for the first option outside its range."""
    if ":" not in config.MODEL.NAME:  # else module:function, which makes the user's own network
        _one_of(config, "MODEL.NAME", MODEL_NAMES)
    _one_of(config, "DTU.PROXY_METRIC", ("SND", "ENT"))
    _one_of(config, "TCR.MIX_SAMPLING", ("confidence", "uniform"))
    _one_of(config, "SOLVER.LR_METHOD", ("poly",))
    _one_of(config, "SOLVER.AMP", ("off", "bf16", "fp16"))
    _one_of(config, "DATASETS.SOURCE_SAMPLING", ("auto", "balanced", "uniform"))
    positions = config.MODEL.POS
    if not all(type(n) is int and 0 <= n <= 5 for n in positions) or len(set(positions)) < len(positions):
        raise UserError(f"MODEL.POS must be a list of different numbers from 0 to 5, not {positions}")
    for key in ("SOURCE_INPUT_SIZE_TRAIN", "TARGET_INPUT_SIZE_TRAIN", "INPUT_SIZE_TEST"):
        size = config.INPUT[key]
        if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise UserError(f"INPUT.{key} must be (width, height) in pixels, not {size}")
    scales = config.INPUT.INPUT_SCALES_TRAIN
    if len(scales) != 2 or not all(map(_is_finite_number, scales)) or not 0 < scales[0] <= scales[1]:
        raise UserError(f"INPUT.INPUT_SCALES_TRAIN must be (smallest, largest) above 0, not {scales}")
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(config.INPUT[key]) != 3 or not all(map(_is_finite_number, config.INPUT[key])):
            raise UserError(f"INPUT.{key} must be three numbers, not {config.INPUT[key]}")
    if config.INPUT.IGNORE_LABEL != 255:
        raise UserError("INPUT.IGNORE_LABEL must be 255: stored labels are 8-bit and use it throughout")
    _within(config, "INPUT.HORIZONTAL_FLIP_PROB_TRAIN", 0, 1)
    _within(config, "INPUT.GRAYSCALE_PROB", 0, 1)
    for key in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        _within(config, f"INPUT.{key}", 0, None)
    _within(config, "INPUT.HUE", 0, 0.5)
    _within(config, "MODEL.NUM_CLASSES", 2, 254)
    _within(config, "MODEL.UNCERTAINTY", 0, 1)
    _within(config, "DTU.EMA_WEIGHT", 0, 1)
    _within(config, "TCR.TOPK_CANDIDATE", 0, 1)
    _within(config, "TCR.PASTE_MAX_RATIO", 0, None, exclusive=True)
    _within(config, "TCR.MAX_PASS_IMAGES", 0, None)
    _within(config, "TCR.PASTE_LAG", 1, None)
    for key in ("DTU.FIX_ITERATION", "DTU.Query_START", "DTU.Query_STEP", "DTU.META_MAX_UPDATE"):
        _within(config, key, 1, None)
    for key in ("MAX_ITER", "STOP_ITER", "BATCH_SIZE", "ACCUMULATE", "CHECKPOINT_PERIOD"):
        _within(config, f"SOLVER.{key}", 1, None)
    _within(config, "SOLVER.KEEP_STATES", 1, None)
    _within(config, "SOLVER.MAX_BAD_STEPS", 0, None)
    _within(config, "SOLVER.CLIP_GRAD", 0, None)
    _within(config, "TCR.UPDATE_FREQUENCY", 2, None)
    _within(config, "SOLVER.BASE_LR", 0, None, exclusive=True)
    _within(config, "VIS.PERIOD", 0, None)
    _within(config, "TEST.BATCH_SIZE", 1, None)
    _within(config, "DATALOADER.NUM_WORKERS", 0, None)
    _within(config, "DATALOADER.CACHE_GB", 0, None)
    _within(config, "DATALOADER.SKIP_BAD_IMAGES", 0, None)
    _within(config, "SEED", 0, 2**63 - 1)
    for key in ("MOMENTUM", "WEIGHT_DECAY", "LR_POWER"):
        _within(config, f"SOLVER.{key}", 0, None)
    if 0 in config.INPUT.PIXEL_STD:
        raise UserError(f"INPUT.PIXEL_STD must not hold 0: {config.INPUT.PIXEL_STD}")


def _get(config: Config, key: str):
    section, _, name = key.rpartition(".")
    return config[section][name] if section else config[name]


def _is_finite_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(config: Config, key: str, known: Sequence[str]) -> None:
    if _get(config, key) not in known:
        raise UserError(f"{key} must be one of {', '.join(known)}, not {_get(config, key)!r}")


def _within(config: Config, key: str, low: float, high: float | None, exclusive: bool = False) -> None:
    value = _get(config, key)
    too_low = value <= low if exclusive else value < low
    if not math.isfinite(value) or too_low or (high is not None and value > high):
        bound = f"above {low}" if exclusive else f"at least {low}"
        raise UserError(f"{key} must be {bound}{f' and at most {high}' if high is not None else ''}, not {value}")
