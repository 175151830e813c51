"""The tensors of a file that another program wrote, and what it says of its classes; nothing in it is ever executed."""

import json
import pickle
import re
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import _utils as rebuilding

from core.utils.checkpoints import ARCHIVE, PARTS, WITHIN, is_safetensors, read_safetensors, read_tensors
from core.utils.errors import UserError, shorten
from core.utils.files import near, open_regular

# of a folder, as transformers writes it, in the order in which they are looked for
_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SETTINGS = ("config.json", "preprocessor_config.json")  # there, of the network and of its images
# of what one file holds several networks, the one that is evaluated (DAFormer's and MIC's tests load `model.`)
_FIRST = ("model", "student", "net", "network", "module")
_LEVELS = 4  # of dicts, of which the last is the state; and of prefixes
_LIKELY = 0.5  # of a state's names, that the names below one prefix are at least, to be a network of their own
_REBUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
_ALLOWED = {("torch._utils", name): getattr(rebuilding, name) for name in _REBUILDERS} | {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
}
_OTHER_ARCHIVES = {  # by a file in them
    "constants.pkl": "a TorchScript file: import the checkpoint that it was made from",
    "archive_format": "an exported program of torch's: import the checkpoint that it was made from",
    "model.weights.h5": "a Keras file: only torch's and safetensors files are read",
}
_OTHER_FILES = {  # by how they begin
    b"\x89HDF": "an HDF5 file, as Keras and TensorFlow write them: only torch's and safetensors files are read",
    b"\x93NUMPY": "an array of numpy's: only torch's and safetensors files are read",
    b"\x08": "no file of torch's (an ONNX model, it seems): import the checkpoint that it was exported from",
}


@dataclass(frozen=True)
class Found:
    """What a file holds.

    Attributes:
        state: its tensors by name.
        names, colours: of its classes, where it says so.
        licence: in the words of its README, where there is one.
        content: all of it.
        beside: of a folder of transformers', what its :data:`_SETTINGS` hold, by their names.
        others: the keys of other states and tensors in the file.
    """

    state: dict[str, torch.Tensor]
    names: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    licence: str = ""
    content: Mapping = field(default_factory=dict)
    beside: Mapping[str, Mapping] = field(default_factory=dict)
    others: tuple[str, ...] = ()


class Nothing(dict):
    """Stands for an object of a class that is not looked for: it takes what a pickle gives it, and does nothing.

    As a dict it keeps what it would hold as one, since some programs save their states within mappings of their own.
    """

    of = ""
    dump_patches = False  # asked for by torch, of modules in files of its first years

    def __new__(cls, *_: Any, **__: Any) -> "Nothing":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def append(self, *_: Any) -> None: ...

    extend = add = append


class _TensorsOnly(pickle._Unpickler):
    """The unpickler in Python, as its steps can be changed: it makes tensors, dicts, lists, numbers and strings.

    No name in the file leads anywhere else than to what rebuilds tensors, or to :class:`Nothing`; the state of an
    object, by which attributes of whatever lies on the stack could be set, is passed over.
    """

    def find_class(self, module: str, name: str) -> Any:
        if found := _ALLOWED.get((module, name)):
            return found
        dtype = vars(torch).get(name) if module == "torch" else None
        return dtype if isinstance(dtype, torch.dtype) else type("Nothing", (Nothing,), {"of": f"{module}.{name}"})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code}")

    def _pass_over(self) -> None:
        self.stack.pop()

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: _pass_over}


_PICKLE = types.SimpleNamespace(
    __name__=__name__, Unpickler=_TensorsOnly, load=lambda file, **kwargs: _TensorsOnly(file, **kwargs).load()
)


def read(path: str | Path) -> Found:
    """What a file of torch's (any version), a safetensors file, or a folder that transformers wrote holds.

    Raises:
        UserError: missing, unreadable, or without tensors.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next((path / name for name in _IN_FOLDER if (path / name).exists()), None)
        if path is None:
            raise UserError(f"folder {folder} holds none of {', '.join(_IN_FOLDER)}: give the checkpoint's file")
    if path.name.endswith(".index.json"):
        content = {}
        shards = _json(path).get("weight_map")
        names = {*map(str, shards.values())} if isinstance(shards, dict) else set()
        for name in sorted(names):
            if Path(name).name != name:
                raise UserError(f"{path} names a file that is not beside it: {name}")
            content |= _content(path.with_name(name))
    else:
        content = _content(path)
    names, colours = _classes(content)
    beside = {name: _json(folder / name) for name in _SETTINGS} if path.name in _IN_FOLDER else {}
    labelled = beside.get("config.json", {}).get("id2label")
    if isinstance(labelled, dict) and not names:
        names = tuple(str(labelled.get(str(index), "")) for index in range(len(labelled)))
        names = names if all(names) else ()
    licence = _licence(folder) if beside else ""
    state, others = _state(content, path)
    return Found(state, names, colours, licence, content, beside, others)


def views(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, str]]]:
    """A state as it is, then without the prefixes of wrappers, one by one: with what is left out on the way, and why.

    Where all names begin alike (`module.`, `net.`, `Scale.`), that is dropped; where a network of :data:`_FIRST` stands
    beside others (`model.` beside `ema_model.`), it is taken.
    """
    state, left_out = dict(state), {}
    for _ in range(_LEVELS):
        yield state, left_out
        heads = {name.partition(".")[0] for name in state}
        head = next(iter(heads)) if len(heads) == 1 else next((name for name in _FIRST if name in heads), "")
        inner = {name.removeprefix(f"{head}."): value for name, value in state.items() if name.startswith(f"{head}.")}
        if not inner:
            return
        others = [name for name in state if not name.startswith(f"{head}.")]
        left_out = left_out | dict.fromkeys(others, f"beside {head}., the network that is taken")
        state = inner


def _content(path: Path) -> dict:
    """The dict that one file holds."""
    try:
        with open_regular(path) as file:
            beginning = file.read(16)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist{near(path, '*.pth')}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if path.suffix == ".safetensors" or is_safetensors(beginning):
        return read_safetensors(path)
    for start, what in _OTHER_FILES.items():
        if beginning.startswith(start):
            raise UserError(f"{path} is {what}")
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        names = {Path(name).name for name in archive.namelist()}
        if other := next((what for name, what in _OTHER_ARCHIVES.items() if name in names), ""):
            raise UserError(f"{path} is {other}")
    return read_tensors(path, load=_load)


def _load(path: str | Path) -> Any:
    """As `torch.load`, but for the tensors alone."""
    if tarfile.is_tarfile(path):  # which torch would unpack
        raise ValueError("it is a tar archive")
    with open(path, "rb") as file:
        archive = file.read(len(ARCHIVE)) == ARCHIVE
    if archive and "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():  # as torch sees it
        raise UserError(f"{path} is {_OTHER_ARCHIVES['constants.pkl']}")
    return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False, encoding="latin1")


def _state(content: Mapping, path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors of the network in what a file holds, by name; those of our own two parts below the parts' names.

    And the keys of the tensors and states beside it.
    """
    others = []
    for _ in range(_LEVELS):
        if all(isinstance(content.get(part), Mapping) for part in PARTS):
            return {
                f"{part}.{str(name).removeprefix('module.')}": tensor
                for part in PARTS
                for name, tensor in _tensors(content[part]).items()
            }, tuple(others)
        inner = [key for key in WITHIN if isinstance(content.get(key), Mapping)]
        if not inner and (found := _tensors(content)):
            return found, tuple(others)
        held = {key: len(_tensors(value)) for key, value in content.items() if isinstance(value, Mapping)}
        key = inner[0] if inner else max(held, key=held.get, default=None)
        if key is None or not (inner or held[key]):
            break
        others += [str(other) for other in (*_tensors(content), *filter(held.get, held)) if other != key]
        content = content[key]
    whole = next((c for c in (content, *content.values()) if isinstance(c, Nothing) and c.of), None)
    if whole is not None:
        what = f"a whole object ({whole.of}); in the program that wrote it, torch.save(model.state_dict(), FILE)"
    else:
        what = shorten(content) or "nothing"
    raise UserError(f"{path} holds no tensors by name, but {what}")


def _tensors(content: Mapping) -> dict[str, torch.Tensor]:
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}


def _classes(content: Mapping) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours of the classes, as OpenMMLab's programs write them; empty where there are none."""
    meta = content.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    newer = meta.get("dataset_meta")
    newer = newer if isinstance(newer, Mapping) else {}
    names, colours = newer.get("classes") or meta.get("CLASSES"), newer.get("palette") or meta.get("PALETTE")
    if not _all(names, lambda name: isinstance(name, str)):
        return (), ()
    whole = _all(colours, lambda one: _all(one, lambda n: isinstance(n, int) and 0 <= n <= 255) and len(one) == 3)
    return tuple(names), tuple(map(tuple, colours)) if whole and len(colours) == len(names) else ()


def _all(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, list | tuple) and bool(values) and all(map(holds, values))


def _json(path: Path) -> dict:
    """What a JSON file holds; empty where there is none, or another thing."""
    try:
        with open_regular(path) as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def _licence(folder: Path) -> str:
    """As the first lines of a model's README say it."""
    try:
        with open_regular(folder / "README.md") as file:
            text = file.read(4096).decode(errors="replace")
    except OSError:
        return ""
    found = re.search(r"\A---\n(?:.*\n)*?license: *(\S+)", text)
    return found[1] if found else ""
