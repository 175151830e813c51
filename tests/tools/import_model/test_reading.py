"""What is read of other programs' files: tensors, whatever else is in them, and nothing is run."""

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from core.utils.errors import UserError
from tests.helpers import PROJECT, outcome
from tools.import_model.reading import Nothing, read, views

WEIGHTS = {"conv.weight": torch.arange(6.0).view(2, 3), "norm.num_batches_tracked": torch.tensor(7)}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Config(dict):
    """A mapping of a class of another program's."""


class Odd:
    """An object with a state of its own."""

    def __init__(self, **values):
        self.__dict__.update(values)


def is_read(path):
    found = read(path).state
    assert sorted(found) == sorted(WEIGHTS)
    return all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in WEIGHTS.items()
    )


BESIDE = {
    "args": argparse.Namespace(lr=0.1, names=["a"]),
    "score": np.float64(3.5),
    "table": np.zeros(3),
    "config": Config(a=Odd(b=1)),
    "history": defaultdict(list, {1: [2]}),
    "kinds": {Odd, "x"},
    "layer": nn.Linear(2, 2),
    "function": outcome,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["state_dict", "model", None])
def test_tensors_are_read_beside_anything_else(tmp_path, zipped, place):
    state = OrderedDict(WEIGHTS)
    state._metadata = {"version": Odd(a=1)}
    content = {**BESIDE, **(WEIGHTS if place is None else {place: state})}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert is_read(tmp_path / "a.pth")


def test_a_mapping_of_another_program_is_looked_into(tmp_path):
    torch.save(Config(state_dict=Config(WEIGHTS)), tmp_path / "a.pth")
    assert is_read(tmp_path / "a.pth")


def test_states_beside_the_one_that_is_taken_are_named(tmp_path):
    beside = {"ema_state_dict": WEIGHTS, "running_conf": torch.ones(2), "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save({"epoch": 1, "scales": {"a": torch.ones(1)}, "weights": WEIGHTS}, tmp_path / "a.pth")
    assert is_read(tmp_path / "a.pth")  # the larger of those without a name that is known
    assert read(tmp_path / "a.pth").others == ("scales",)
    torch.save({"model": {"state_dict": WEIGHTS, **beside}, "best": WEIGHTS}, tmp_path / "a.pth")
    assert is_read(tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").others == ("best", "running_conf", "ema_state_dict")


def test_parameters_and_halves_are_tensors_without_gradient(tmp_path):
    torch.save({"a": nn.Parameter(torch.ones(2).half())}, tmp_path / "a.pth")
    found = read(tmp_path / "a.pth").state["a"]
    assert (type(found), found.dtype, found.requires_grad) == (torch.Tensor, torch.float16, False)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_a_pickle_would_run_is_not_run(tmp_path, zipped):
    torch.save(
        {"state_dict": WEIGHTS, "args": Touch(tmp_path / "ran")},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
    )
    assert is_read(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)  # it would be
    assert (tmp_path / "ran").exists()


def legacy(pickled):
    """A file as torch wrote it before its archives, with a pickle of one's own, and no storage."""
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*parts, pickled, pickle.dumps([], 2)])


HOSTILE = {  # in pickle's own words
    "a dotted name": b"\x80\x04\x8c\x0ctorch._utils\x8c\x15_rebuild_tensor.__dict\x93.",
    "an attribute of a function that is known": b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}U\x04evilK\x01s\x86b.",
    "an attribute of a class": b"\x80\x02ccollections\nOrderedDict\nN}U\x04evilK\x01s\x86b.",
    "a builtin": b"\x80\x02cbuiltins\neval\nU\x0bprint('ran')\x85R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a module's source": b"\x80\x02(U\x06modulecbuiltins\neval\nU\x01aU\x01btQ.",
}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_pickles_change_nothing(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(legacy(HOSTILE[words]))
    with pytest.raises(UserError, match=r"a\.pth"):
        read(tmp_path / "a.pth")
    assert capsys.readouterr().out == ""
    assert not hasattr(torch._utils._rebuild_tensor, "evil")
    assert not hasattr(Nothing, "evil")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def torchscript(path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(path)


def keras(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", b"")


def onnx_model(path):
    path.write_bytes(b"\x08\x08\x12\x07pytorch")


def huge(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/data/0", bytes(1 << 20))


def tar(path):
    subprocess.run(["tar", "--format=v7", "-cf", path, "-C", PROJECT, "LICENSE"], check=True)


def whole_module(path):
    torch.save(nn.Linear(2, 2), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # which is still met with
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (torchscript, "TorchScript file"),
        (keras, "Keras file"),
        (onnx_model, "ONNX model, it seems"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "HDF5 file, as Keras"),
        (lambda path: np.save(path.open("wb"), np.ones(2)), "array of numpy's"),
        (huge, "claims to hold"),
        (tar, "is not a checkpoint"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.mkdir(), "holds none of model.safetensors"),
        (lambda path: None, "does not exist"),
        (whole_module, "a whole object (torch.nn.modules.linear.Linear)"),
        (lambda path: torch.save({"a": 1, "b": []}, path), "no tensors by name, but a, b"),
        (lambda path: torch.save([1], path), "it holds a list"),
        (lambda path: path.write_bytes(b"\0\0\0\0\0\0\0\0{broken"), "no safetensors file that can be read"),
    ],
)
def test_other_files_are_one_line(tmp_path, write, words):
    path = tmp_path / "given.bin"
    write(path)
    with pytest.raises(UserError) as raised:
        read(path)
    assert words in str(raised.value)


def test_safetensors_and_the_folders_of_transformers(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    labels, readme = {"0": "road", "1": "sky"}, "---\nlicense: other\n---\n"
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    (tmp_path / "README.md").write_text(readme)
    shards = {name: f"part{number}.bin" for number, name in enumerate(WEIGHTS)}
    for name, part in shards.items():
        torch.save({name: WEIGHTS[name]}, tmp_path / part)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    assert is_read(tmp_path)
    assert is_read(index)
    safetensors.save_file(WEIGHTS, tmp_path / "model.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "../a.bin"}}))
    assert is_read(tmp_path)
    found = read(tmp_path / "model.safetensors")
    assert (found.names, found.licence) == (("road", "sky"), "other")
    with pytest.raises(UserError, match="not beside it"):
        read(index)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("road", "sky"), "PALETTE": [[1, 2, 3], [4, 5, 6]]},
        {"dataset_meta": {"classes": ["road", "sky"], "palette": [(1, 2, 3), (4, 5, 6)]}},
    ],
)
def test_class_names_of_openmmlab(tmp_path, meta):
    torch.save({"meta": meta, "state_dict": WEIGHTS}, tmp_path / "a.pth")
    found = read(tmp_path / "a.pth")
    assert (found.names, found.colours) == (("road", "sky"), ((1, 2, 3), (4, 5, 6)))


def test_prefixes_go_one_by_one_and_one_of_several_networks_is_taken():
    tensor = torch.ones(1)
    state = dict.fromkeys(["module.model.a.b", "module.model.a.c", "module.ema_model.a.b"], tensor)
    found = [(list(inner), list(left_out)) for inner, left_out in views(state)]
    assert found[:3] == [
        (list(state), []),
        (["model.a.b", "model.a.c", "ema_model.a.b"], []),
        (["a.b", "a.c"], ["ema_model.a.b"]),
    ]


class _Storage:
    """What torch 0.3 kept on a GPU: its number and how many values it has."""

    def __init__(self, number, count):
        self.number, self.count = number, count


class _Torch03(pickle.Pickler):
    """Of tensors, as torch 0.3 wrote them from a GPU: rebuilders without gradient and hooks, storages apart."""

    def persistent_id(self, given):
        if isinstance(given, _Storage):
            return "storage", torch.cuda.FloatStorage, str(given.number), "cuda:0", given.count, None

    def reducer_override(self, given):
        if not isinstance(given, torch.Tensor):
            return NotImplemented
        storage = _Storage(int(given.flatten()[0]), given.numel())
        return torch._utils._rebuild_tensor, (storage, 0, tuple(given.shape), given.stride())


def test_a_file_of_torch_0_3_from_a_gpu(tmp_path):
    tensors = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([6.0, 7.0])}
    with open(tmp_path / "a.pth", "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(part, file, 2)
        _Torch03(file, 2).dump({"state_dict": OrderedDict(tensors), "args": argparse.Namespace(lr=1)})
        pickle.dump(["0", "6"], file, 2)
        for tensor in tensors.values():
            file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
    found = read(tmp_path / "a.pth").state
    assert all(torch.equal(found.pop(name), tensor) for name, tensor in tensors.items())
    assert found == {}
