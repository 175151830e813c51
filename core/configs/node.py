"""A yacs node whose errors name the file, the key and what to do, and that accepts what users naturally write."""

import difflib
from ast import literal_eval
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from core.utils.errors import UserError

# keys of the DT-ST release that nothing reads: an old yaml may set them
OBSOLETE_KEYS = frozenset(
    {
        "SOLVER.BASE_LR_D",
        "SOLVER.BATCH_SIZE_VAL",
        "SOLVER.GAMMA",
        "SOLVER.WEIGHT_DECAY_BIAS",
        "TCR.SAMPLE_LIST",
        "DATASETS.VALIDATION",
    }
)
_SPELLED_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


class Config(CfgNode):
    """Tree of options. Values keep the type of their default; unknown keys are errors that name the nearest one."""

    def merge_from_file(self, cfg_filename: str) -> None:
        """Overwrite options by those of a yaml file. Raises UserError with file and key."""
        path = Path(cfg_filename)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"config {path} does not exist{_near(path)}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"config {path} cannot be read: {error}") from None
        try:
            tree = yaml.safe_load(text)
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"config {path} is not valid yaml: {reason}") from None
        if tree is None:
            tree = {}
        if not isinstance(tree, dict):
            raise UserError(f"config {path} must hold KEY: VALUE pairs, not a {type(tree).__name__}")
        self._merge_tree(tree, str(path), ())

    def merge_from_list(self, cfg_list: list[str]) -> None:
        """Overwrite options by KEY VALUE pairs of the command line. Raises UserError with the key."""
        if len(cfg_list) % 2:
            raise UserError(f"options come as KEY VALUE pairs, but {cfg_list[-1]!r} stands alone at the end")
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            self._set(key, value, "command line")

    def dump(self, **kwargs) -> str:
        """As yaml, which :meth:`merge_from_file` reads back; arguments are those of yaml.safe_dump."""
        return yaml.safe_dump(_plain(self), **kwargs)

    def flat_keys(self, prefix: str = "") -> list[str]:
        """Every option's full name, as `SOLVER.BASE_LR`."""
        keys = []
        for name, value in self.items():
            is_section = isinstance(value, Config) and not isinstance(value, OpenConfig)
            keys += value.flat_keys(f"{prefix}{name}.") if is_section else [prefix + name]
        return keys

    def _merge_tree(self, tree: dict, where: str, parents: tuple[str, ...]) -> None:
        for name, value in tree.items():
            path = (*parents, str(name))
            key = ".".join(path)
            node = self._find(key)
            if value is None and isinstance(node, Config):
                continue  # a section whose options are all commented out
            if isinstance(node, OpenConfig):
                node.merge(value, f"{where}: {key}")
            elif isinstance(value, dict):
                self._merge_tree(value, where, path)
            else:
                self._set(key, value, where)

    def _find(self, key: str) -> Any:
        node = self
        for name in key.split("."):
            if not isinstance(node, Config) or name not in node:
                return None
            node = node[name]
        return node

    def _set(self, key: str, value: Any, where: str) -> None:
        if key in OBSOLETE_KEYS:
            return
        names = key.split(".")
        for section in (".".join(names[:end]) for end in range(1, len(names) + 1)):
            if isinstance(self._find(section), OpenConfig):
                raise UserError(f"{where}: {key} cannot be set alone; give {section} in a yaml file")
        default = self._find(key)
        if default is None:
            keys = {name.lower(): name for name in self.flat_keys()}
            near = [keys[name] for name in difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.0)]
            raise UserError(f"{where}: unknown option {key}; did you mean {near[0]}?")
        if isinstance(default, Config):
            inner = ", ".join(f"{key}.{name}" for name in default)
            raise UserError(f"{where}: {key} is a section, not an option; it holds {inner}")
        *parents, last = key.split(".")
        node = self._find(".".join(parents)) if parents else self
        node[last] = _convert(value, default, f"{where}: {key}")


class OpenConfig(Config):
    """A section whose content is the user's own; it comes from yaml files only.

    Args:
        check: check(content, where) raises UserError for content that makes no sense.
    """

    def __init__(self, check: Callable[[Mapping, str], None]):
        super().__init__()
        self.__dict__["check"] = check  # beside the options, as yacs keeps its own state

    def merge(self, tree: Any, where: str) -> None:
        """Add what a yaml file holds for this section (`where`: file and key). Raises UserError."""
        if not isinstance(tree, dict):
            raise UserError(f"{where} must hold NAME: VALUE pairs, not {tree!r}")
        self.__dict__["check"](tree, where)
        self.update(_as_options(tree))


def _as_options(value: Any) -> Any:
    """What yaml reads, with sections that can be frozen and lists that cannot change."""
    if isinstance(value, dict):
        node = Config()
        node.update({name: _as_options(inner) for name, inner in value.items()})
        return node
    return tuple(map(_as_options, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Options as yaml writes them."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _convert(value: Any, default: Any, where: str) -> Any:
    """`value` in the type of `default`, or a UserError."""
    wanted = type(default)
    if wanted is str:
        if isinstance(value, bool):  # yaml reads a bare `off` as False
            return "on" if value else "off"
        if isinstance(value, list | tuple | dict) or value is None:
            raise UserError(f"{where} must be text, not {value!r}")
        return str(value)
    if isinstance(value, str):
        try:
            value = literal_eval(value.strip())
        except (ValueError, SyntaxError):
            value = _read_loosely(value, wanted)
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if wanted is tuple and isinstance(value, list | tuple):
        return tuple(value)
    kind = {bool: "True or False", int: "a whole number", float: "a number", tuple: "a list"}[wanted]
    example = f", as {default!r}" if default != () else ""
    raise UserError(f"{where} must be {kind}{example}, not {value!r}")


def _read_loosely(text: str, wanted: type) -> Any:
    """What is no Python literal but plain to a reader: `true`, or `[pole, sign]` without quotes."""
    if wanted is bool:
        return _SPELLED_BOOLEANS.get(text.strip().lower(), text)
    if wanted is tuple:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    return text


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does its folder {path.parent})"
    found = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
    return f"; did you mean {path.parent / found[0]}?" if found else ""
