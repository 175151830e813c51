"""A yacs node whose errors name the file, the key and what to do, and that accepts what users naturally write."""

import difflib
import warnings
from ast import literal_eval
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from core.utils.errors import UserError, shown
from core.utils.files import near
from core.utils.yaml_text import read_yaml

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
MAX_CHARACTERS = 2**18  # of a yaml file
MAX_NUMBER = 2**63 - 1
MAX_DEPTH = 20  # of sections and lists in an open section
_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {  # in words, and what is taken for it
    bool: ("True or False", (bool,)),
    int: ("a whole number", (int, float)),
    float: ("a number", (int, float)),
    tuple: ("a list", (list, tuple)),
}
_SPELLED_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


class Config(CfgNode):
    """Tree of options. Values keep the type of their default; unknown keys are errors that name the nearest one."""

    def merge_from_file(self, cfg_filename: str) -> None:
        """Overwrite options by those of a yaml file. Raises UserError with file and key."""
        path = Path(cfg_filename)
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(MAX_CHARACTERS + 1)
        except FileNotFoundError:
            raise UserError(f"config {path} does not exist{near(path, '*.yaml')}") from None
        except (OSError, ValueError) as error:  # the latter: no UTF-8, or a name that no file can have
            raise UserError(f"config {path} cannot be read: {error}") from None
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"config {path} is no config: it has more than {MAX_CHARACTERS} characters")
        tree = read_yaml(text, f"config {path}")
        tree = {} if tree is None else tree
        if not isinstance(tree, dict):
            raise UserError(f"config {path} must hold KEY: VALUE pairs, not a {type(tree).__name__}")
        for key in tree:
            section, _, name = str(key).rpartition(".")
            if section and isinstance(tree.get(section), dict) and name in tree[section]:
                raise UserError(f"config {path}: {key} is given twice, so and as {name} of {section}: join them")
        self._merge_tree(tree, str(path), ())

    def merge_from_list(self, cfg_list: list[str]) -> None:
        """Overwrite options by KEY VALUE pairs of the command line. Raises UserError with the key."""
        if len(cfg_list) % 2:
            raise UserError(f"options come as KEY VALUE pairs, but {shown(cfg_list[-1])} stands alone at the end")
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            self._set(key, value, "command line")

    def dump(self, **kwargs) -> str:
        """As yaml, which :meth:`merge_from_file` reads back; arguments are those of yaml.safe_dump."""
        return yaml.safe_dump(plain(self), **kwargs)

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
            node = self.find(key)
            if value is None and isinstance(node, Config):
                continue  # a section whose options are all commented out
            if isinstance(node, OpenConfig):
                node.merge(value, f"{where}: {key}")
                self._note_given(key)
            elif isinstance(value, dict):
                self._merge_tree(value, where, path)
            else:
                self._set(key, value, where)

    def changed(self, options: Mapping[str, Any]) -> "Config":
        """A copy with other values of some options, by full name; nothing is checked."""
        config = self.clone()
        for key, value in options.items():
            section, _, name = key.rpartition(".")
            config.find(section)[name] = value
        return config

    def find(self, key: str) -> Any:
        """The option (or section) of that full name, all of the tree for an empty one; None if there is none."""
        node = self
        for name in key.split(".") if key else ():
            if not isinstance(node, Config) or name not in node:
                return None
            node = node[name]
        return node

    def _set(self, key: str, value: Any, where: str) -> None:
        if key in OBSOLETE_KEYS:
            return
        names = key.split(".")
        for section in (".".join(names[:end]) for end in range(1, len(names) + 1)):
            if isinstance(self.find(section), OpenConfig):
                raise UserError(f"{where}: {key} cannot be set alone; give {section} in a yaml file")
        default = self.find(key)
        if default is None:
            keys = {name.lower(): name for name in self.flat_keys()}
            near = [keys[name] for name in difflib.get_close_matches(key.lower(), keys, n=1, cutoff=0.0)]
            raise UserError(f"{where}: unknown option {key[:100]}; did you mean {near[0]}?")
        if isinstance(default, Config):
            inner = ", ".join(f"{key}.{name}" for name in default)
            raise UserError(f"{where}: {key} is a section, not an option; it holds {inner}")
        self.find(".".join(names[:-1]))[names[-1]] = convert(value, default, f"{where}: {key}")
        self._note_given(key)

    def _note_given(self, key: str) -> None:
        self.__dict__.setdefault("given", set()).add(key)  # beside the options, as yacs keeps its own state

    def gives(self, key: str) -> bool:
        """Whether a yaml file or the command line has set the option, be it to its default."""
        return key in self.__dict__.get("given", ())


class OpenConfig(Config):
    """A section whose content is the user's own; it comes from yaml files only, and is checked by whoever reads it."""

    def __init__(self):
        super().__init__()
        self.__dict__["origins"] = {}  # beside the options, as yacs keeps its own state

    @classmethod
    def of(cls, tree: Any, where: str) -> "OpenConfig":
        """A section that holds what :meth:`merge` makes of a tree."""
        node = cls()
        node.merge(tree, where)
        return node

    def merge(self, tree: Any, where: str) -> None:
        """Add what a yaml file holds for this section (`where`: file and key). Raises UserError."""
        if not isinstance(tree, dict):
            raise UserError(f"{where} must hold NAME: VALUE pairs, not {shown(tree)}")
        self.update(_as_options(tree, where))
        self.__dict__["origins"].update(dict.fromkeys(tree, where))

    def written(self, key: str) -> Iterator[tuple[Any, Any, str]]:
        """(name, what yaml gave for it, where this section stands: file and `key`) of every entry."""
        for name, value in self.items():
            yield name, plain(value), self.__dict__["origins"].get(name, key)


def _as_options(value: Any, where: str, depth: int = 0) -> Any:
    """What yaml reads, with sections that can be frozen and lists that cannot change."""
    if depth > MAX_DEPTH or not isinstance(value, dict | list | str | int | float | None):
        raise UserError(f"{where} may hold text, numbers, lists and NAME: VALUE pairs, not {shown(value)}")
    if isinstance(value, dict):
        node = Config()
        node.update({name: _as_options(inner, where, depth + 1) for name, inner in value.items()})
        return node
    return tuple(_as_options(inner, where, depth + 1) for inner in value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Options as yaml writes them."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return list(map(plain, value)) if isinstance(value, list | tuple) else value


def convert(value: Any, default: Any, where: str) -> Any:
    """`value` in the type of `default`; `where` names it in the UserError that it may be."""
    wanted = type(default)
    if wanted is str:
        if isinstance(value, bool):  # yaml reads a bare `off` as False
            return "on" if value else "off"
        if isinstance(value, list | tuple | dict | set) or value is None or not _is_moderate(value):
            raise UserError(f"{where} must be text, not {shown(value)}")
        return str(value)
    given = value
    if isinstance(value, str):
        value = _read_literal(value.strip(), wanted)
    kind, types = _KINDS[wanted]
    if type(value) in types and _is_moderate(value) and (wanted is not int or value == value // 1):
        return wanted(value)
    example = f", as {default!r}" if default != () else ""
    raise UserError(f"{where} must be {kind}{example}, not {shown(value if _is_moderate(value) else given)}")


def _is_moderate(value: Any) -> bool:
    """Whether every number of a value is one that programs can compute with."""
    if isinstance(value, list | tuple):
        return all(map(_is_moderate, value))
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return not whole or abs(value) <= MAX_NUMBER


def _read_literal(text: str, wanted: type) -> Any:
    """What a Python literal says; else what is plain to a reader: `true`, or `[pole, sign]` without quotes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escape sequences, on stderr
            return literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # {[]: 1} is a TypeError, ((((… the last
        pass
    if wanted is bool:
        return _SPELLED_BOOLEANS.get(text.lower(), text)
    if wanted is tuple:
        try:
            return read_yaml(text, "it")
        except UserError:
            return text
    return text
