"""The shifts that configs/shifts/*.yaml declare: a source model, a target and a test set each, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.configs import load_config
from core.configs.defaults import cfg as defaults
from core.utils.environment import PROJECT
from core.utils.errors import UserError, shorten, shown
from core.utils.yaml_text import read_yaml

FOLDER = PROJECT / "configs/shifts"
KEYS = ("SOURCE", "ASIDE", "OPTIONS")
SECTIONS = ("MODEL", "DATASETS", "INPUT")  # what a shift may set; all else is the config's, the same for all shifts
OWN_OPTIONS = ("SEED", "OUTPUT_DIR", "resume")  # this program sets them itself


@dataclass(frozen=True)
class Source:
    """A source model: a checkpoint's file, or the config and the options by which train_src.py makes one."""

    checkpoint: str = ""
    config_file: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shift:
    """One shift.

    Attributes:
        comment: the line that describes it.
        options: KEY VALUE, of the source model and the data.
        aside: not run unless asked for.
    """

    name: str
    comment: str
    source: Source
    options: tuple[str, ...]
    aside: bool = False


def read_shifts(folder: Path = FOLDER) -> dict[str, Shift]:
    """Every shift of a folder, by name. Raises UserError with file and key."""
    shifts = {path.stem: read_shift(path) for path in sorted(folder.glob("*.yaml"))}
    if not shifts:
        raise UserError(f"{folder} holds no *.yaml: start this program in the project's folder")
    return shifts


def choose(shifts: dict[str, Shift], names: Sequence[str], aside: bool) -> list[Shift]:
    """Those named; where none is, all but those kept aside, and these too with `aside`.

    Raises:
        UserError: an unknown name.
    """
    unknown = [name for name in names if name not in shifts]
    if unknown:
        raise UserError(f"--only {shorten(unknown)}: no such shift; known are {', '.join(shifts)}")
    if names:
        return [shift for name, shift in shifts.items() if name in names]
    return [shift for shift in shifts.values() if aside or not shift.aside]


def read_shift(path: Path) -> Shift:
    """One file. Raises UserError with file and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:400]}") from None
    tree = read_yaml(text, str(path))
    _check_keys(tree, KEYS, f"{path}")
    for key in ("SOURCE", "OPTIONS"):
        if key not in tree:
            raise UserError(f"{path}: {key} is missing")
    aside = tree.get("ASIDE", False)
    if not isinstance(aside, bool):
        raise UserError(f"{path}: ASIDE must be True or False, not {shown(aside)}")
    options = _read_options(tree["OPTIONS"], f"{path}: OPTIONS")
    first = text.lstrip().partition("\n")[0]
    comment = first.lstrip("# ").rstrip() if first.startswith("#") else ""
    return Shift(path.stem, comment, _read_source(tree["SOURCE"], f"{path}: SOURCE"), options, aside)


def _check_keys(tree: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(tree, dict):
        raise UserError(f"{where} must hold KEY: VALUE pairs, not {shown(tree)}")
    for key in tree:
        if key not in known:
            raise UserError(f"{where}: unknown key {shown(key)}; known are {', '.join(known)}")


def _read_source(tree: Any, where: str) -> Source:
    _check_keys(tree, ("CHECKPOINT", "CONFIG", "OPTIONS"), where)
    checkpoint, config_file, options = tree.get("CHECKPOINT"), tree.get("CONFIG"), tree.get("OPTIONS", [])
    if (checkpoint is None) == (config_file is None) or (checkpoint is not None and options):
        raise UserError(f"{where} must hold either CHECKPOINT, or CONFIG and its OPTIONS")
    for key in ("CHECKPOINT", "CONFIG"):
        if not (tree.get(key) is None or (isinstance(tree[key], str) and tree[key])):
            raise UserError(f"{where}: {key} must be the name of a file, not {shown(tree[key])}")
    if checkpoint is not None:
        return Source(checkpoint)
    if not isinstance(options, list):
        raise UserError(f"{where}: OPTIONS must be a list [KEY, VALUE, …], not {shown(options)}")
    words = tuple(map(str, options))
    for key in words[::2]:
        if key in ("OUTPUT_DIR", "resume", "DATASETS.ROOT"):
            raise UserError(f"{where}: OPTIONS: {key} is set by this program")
    try:
        load_config(config_file, words)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('command line: ')}") from None
    return Source("", config_file, words)


def _read_options(tree: Any, where: str) -> tuple[str, ...]:
    """KEY VALUE words of a flat mapping."""
    if not isinstance(tree, dict):
        raise UserError(f"{where} must hold KEY: VALUE pairs, not {shown(tree)}")
    config, words = defaults.clone(), []
    for key, value in tree.items():
        pair = [str(key), str(value)]
        if pair[0].partition(".")[0] not in SECTIONS:
            raise UserError(
                f"{where}: {pair[0]} is the config's, not a shift's; a shift sets options of {', '.join(SECTIONS)}"
            )
        try:
            config.merge_from_list(pair)
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix('command line: ')}") from None
        words += pair
    return tuple(words)
