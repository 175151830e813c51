"""From a yaml file and command-line options to a checked config."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from core.configs.defaults import OPTIONS
from core.configs.defaults import cfg as defaults
from core.configs.node import OBSOLETE_KEYS, Config, OpenConfig, convert
from core.utils.environment import PROJECT
from core.utils.errors import Correctable, UserError, one_line, replaced, shown
from core.utils.files import expanded
from core.utils.logging import LOGGER

# before a path: folder:, video:, auto:; and between one folder and another
_PREFIX = re.compile(r"(^[a-z]+:|\s*[,;]\s*folder:)")
_CUSTOM = "DATASETS.CUSTOM"
_CUSTOM_PATHS = ("images", "labels", "list", "palette")  # wherever they stand in it


def load_config(path: str | Path | None, options: Sequence[str] = ()) -> Config:
    """Defaults, overwritten by a yaml file (None: none), overwritten by KEY VALUE options; checked, and frozen.

    A file below `configs/` that this folder does not have is the project's own. Paths have no `~` and no `$NAME` any
    more: what a run writes of its config, and compares it with, does not depend on who reads it where.

    Raises:
        UserError: unreadable file, unknown key, value of the wrong type or outside its range, unknown variable.
    """
    config = defaults.clone()
    if path is not None:
        config.merge_from_file(str(_find_file(Path(path))))
    _check_pairs(options)
    config.merge_from_list(list(options))
    if "INPUT.DEPTH" in options[::2] and "INPUT.DEPTH_RANGE" not in options[::2]:
        config.INPUT.DEPTH_RANGE = ()  # that a run has found by another
    if not config.OUTPUT_DIR:
        config.OUTPUT_DIR = default_output_dir(path)
    for key, facts in OPTIONS.items():
        value = config.find(key)
        if facts.rule is not None and not facts.rule.holds(value):
            near = get_close_matches(str(value).lower(), facts.rule.known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{key} must be {facts.rule.words}, not {value!r}{meant}")
    _check_windows(config.TEST)
    if config.SOLVER.OPTIMIZER == "AdamW" and config.SOLVER.MOMENTUM >= 1:
        raise UserError(
            f"SOLVER.MOMENTUM must be below 1 with AdamW, whose first beta it is, not {config.SOLVER.MOMENTUM}"
        )
    paths = {key: _expanded(config.find(key), key) for key, facts in OPTIONS.items() if facts.path}
    config = config.changed(paths)
    for name, fields in config.find(_CUSTOM).items():
        _expand_custom(fields, f"{_CUSTOM}.{name}", used=name in _named_sets(config))
    config.freeze()
    return config


def _check_windows(test: Config) -> None:
    """Raise UserError if windows would leave pixels out between them, or there is a stride of none."""
    if test.STRIDE and not test.WINDOW:
        raise UserError(f"TEST.STRIDE is {test.STRIDE}, but there are no windows: give TEST.WINDOW, too, or no stride")
    if any(step > length for step, length in zip(test.STRIDE, test.WINDOW, strict=False)):
        raise UserError(
            f"TEST.STRIDE {test.STRIDE} is larger than TEST.WINDOW {test.WINDOW}: what lies between two windows would "
            "not be seen; give at most the window"
        )


def _expanded(value: Any, key: str) -> Any:
    """A path, or several, with `~` and variables replaced; what may stand before one, and what is none, stays."""
    if isinstance(value, tuple):
        return tuple(_expanded(one, key) for one in value)
    if not isinstance(value, str):
        return value
    parts = _PREFIX.split(value)  # paths at even places
    return "".join(expanded(part, key) if place % 2 == 0 and part else part for place, part in enumerate(parts))


def _named_sets(config: Config) -> set[str]:
    """The names of the data sets that a config uses."""
    options = (config.DATASETS.SOURCE_TRAIN, config.DATASETS.TARGET_TRAIN, config.DATASETS.TEST)
    return {option.partition("_")[0] for option in options}


def _expand_custom(section: Any, key: str, used: bool) -> None:
    """The same of all paths in an own data set, in place; one that is not used may have variables that are not set."""
    for name, value in section.items() if isinstance(section, Mapping) else ():
        if isinstance(value, Mapping):
            _expand_custom(value, f"{key}.{name}", used)
        elif name in _CUSTOM_PATHS:
            with nullcontext() if used else suppress(UserError):
                section[name] = _expanded(value, f"{key}.{name}")


def _find_file(path: Path) -> Path:
    own = PROJECT / path
    if path.parts[:1] != ("configs",) or os.path.lexists(path) or (os.path.isdir("configs") and not own.is_file()):
        return path
    if own.is_file():
        LOGGER.info("config %s: not in this folder, taken from %s", path, own)
    return own


def _check_pairs(words: Sequence[str]) -> None:
    """Raise Correctable where words are no KEY VALUE pairs: a value is missing, or has spaces and lacks its quotes."""
    place = 0
    while place < len(words):
        key = words[place]
        text = place and isinstance(defaults.find(words[place - 2]), str | tuple)  # in which there may be spaces
        if text and not _is_key(key) and not get_close_matches(key.lower(), map(str.lower, OPTIONS), cutoff=0.74):
            end = next((n for n in range(place, len(words)) if _is_key(words[n])), len(words))
            option, value = words[place - 2], " ".join(words[place - 1 : end])
            quoted = one_line(shlex.quote(value))
            raise Correctable(
                f"{shown(key)} is no option: a value with spaces wants quotes, as {option} {quoted}",
                partial(replaced, wrong=list(words[place - 2 : end]), right=[option, value]),
            )
        if key in OPTIONS and (place + 1 == len(words) or words[place + 1] in OPTIONS):
            example = defaults.find(key)
            example = str(example) if example not in ("", ()) else "VALUE"
            raise Correctable(
                f"{key} has no value: give one, as {key} {shlex.quote(example)}",
                partial(_given_a_value, wrong=list(words[place : place + 2]), example=example),
            )
        place += 2


def _given_a_value(argv: list[str], wrong: list[str], example: str) -> list[str] | None:
    """Arguments with an example after a key whose value is missing; a flag may stand between the two `wrong` words."""
    key, *following = wrong
    return replaced(argv, wrong, [key, example, *following]) or replaced(argv, [key], [key, example])


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
    if word in OPTIONS or word in OBSOLETE_KEYS:
        return True
    return re.fullmatch(r"[A-Z]+\.[A-Z]\w*", word) is not None and not os.path.lexists(word)


def as_option(key: str, value: Any, where: str) -> Any:
    """What is found elsewhere than in a config, at `where`, as an option's value. Raises UserError if it cannot be."""
    default, rule = defaults.find(key), OPTIONS[key].rule
    if isinstance(default, OpenConfig):
        return OpenConfig.of(value, where)
    value = convert(value, default, where)
    if rule is not None and not rule.holds(value):
        raise UserError(f"{where} must be {rule.words}, not {shown(value)}")
    return value


def default_output_dir(path: str | Path | None) -> str:
    """OUTPUT_DIR of a config that names none, or of no config."""
    return str(Path("results") / ("" if path is None else Path(path).stem))
