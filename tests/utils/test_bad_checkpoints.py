"""Files that are no checkpoints, or not of this model, or hostile: refused in one line, and nothing of them runs."""

import gzip
import io
import os
import pickle
import re
import resource
import zipfile

import pytest
import torch
from torch import nn

from core.utils.checkpoints import load_checkpoint, read_tensors, save_checkpoint
from core.utils.errors import UserError
from tests.utils.weights import logits, make_tiny, published

# --- misfits


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("feature_extractor", {"backbone.conv1.weight": None}, ["backbone.conv1.weight", "missing"]),
        (
            "feature_extractor",
            {"backbone.layer9.conv1.weight": torch.zeros(1)},
            ["backbone.layer9.conv1.weight", "unexpected"],
        ),
        (
            "classifier",
            {"conv2d_list.1.weight": torch.zeros(16, 8, 3, 3)},
            ["conv2d_list.1.weight", "16×8×3×3", "19×8×3×3"],
        ),
        ("classifier", {"conv2d_list.0.bias": "text"}, ["conv2d_list.0.bias"]),
        ("classifier", None, ["classifier"]),
        # another network
        ("feature_extractor", {f"layer{n}": torch.zeros(1) for n in range(99)}, ["layer0", "unexpected", "MODEL.NAME"]),
    ],
)
def test_misfits_are_named_and_nothing_is_loaded(tmp_path, part, changes, words):
    content = published(make_tiny(seed=1))
    state = content.pop(part) | (changes or {})
    if changes is not None:
        content[part] = {key: value for key, value in state.items() if value is not None}
    torch.save(content, tmp_path / "spoilt.pth")
    model = make_tiny(seed=2)
    before = logits(model)
    with pytest.raises(UserError, match=r"spoilt\.pth") as error:
        load_checkpoint(model, tmp_path / "spoilt.pth")
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    assert all(word in message for word in words)
    assert torch.equal(logits(model), before)


class Call:
    """Unpickled, it would call something with arguments."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


HARM = {
    "system": Call(os.system, "touch executed"),
    "eval": Call(eval, "open('executed', 'w')"),
    "import": Call(__import__, "tests"),
    "load": Call(torch.load, "executed"),
    "attribute": Call(getattr, "text", "format"),
    "class": nn.Linear(1, 1),
    "tensor's reduction": Call(
        torch._utils._rebuild_device_tensor_from_numpy, Call(os.system, "touch executed"), None, "cpu", False
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_code_anywhere_in_a_file_is_refused_and_never_runs(tmp_path, monkeypatch, harm, legacy):
    monkeypatch.chdir(tmp_path)
    contents = [published(make_tiny()) for _ in range(3)]
    contents[0]["classifier"]["conv2d_list.0.bias"] = harm
    contents[1]["optimizer"] = {"state": [0, [1, (2, {"x": harm})]]}
    contents[2] = {"harm": harm} | contents[2]
    for content in contents:
        torch.save(content, "a.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match=r"^a\.pth is not a checkpoint that can be loaded safely \(") as caught:
            read_tensors("a.pth")
        assert str(caught.value).isprintable()
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_is_no_checkpoint_is_an_error_with_its_name(tmp_path):
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("weights", encoding="utf-8")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"feature_extractor": HARM["system"]}))
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    for name, reason in (
        ("absent", "does not exist"),
        ("empty", "is not a checkpoint: it is empty"),
        ("text", "is not a checkpoint: it is a text, 'weights' "),
        ("pickle", "loaded safely"),
        ("folder", "not a regular file|Is a directory"),
        ("pipe", "cannot be read: it is not a regular file"),
        ("list", "holds a list, not a dict"),
    ):
        with pytest.raises(UserError, match=rf"{name}\.pth .*({reason})"):
            read_tensors(tmp_path / f"{name}.pth")


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "it is a web page (the download met"),
        (b"\xef\xbb\xbf<HTML>404", "it is a web page (the download met"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 178412\n",
            "it is a Git LFS pointer in the place of the file of 178412 bytes: fetch that by `git lfs pull`",
        ),
        (gzip.compress(b"weights"), "it is a compressed file or an archive: unpack it"),
        (b"Entry not found", "it is a text, 'Entry not found' (the download met an error)"),
        (b'{"message": "Not Found",\r\n\t"status": "404"}', 'it is a text, \'{"message": "Not Found"'),
        (zipped({"a/model.pth": "weights"}), "it is a zip archive that holds a/model.pth: unpack it"),
        ((16).to_bytes(8, "little") + b'{"a": {}}', "it is a safetensors file"),
    ],
    ids=["page", "error", "lfs", "gzip", "plain", "json", "zip", "safetensors"],
)
def test_another_file_in_a_checkpoints_place_is_told(tmp_path, content, words):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"a.pth is not a checkpoint: {words}")):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["model_iter00200", "model_iter002000", "modle_iter002000.pth"])
def test_a_misspelt_checkpoint_is_found_again(tmp_path, name):
    (tmp_path / "model_iter002000.pth").touch()
    with pytest.raises(
        UserError, match=re.escape(f"{name} does not exist; did you mean {tmp_path}/model_iter002000.pth?")
    ):
        read_tensors(tmp_path / name)
    with pytest.raises(UserError, match=r"does not exist \(nor does its folder .*nowhere\)"):
        read_tensors(tmp_path / "nowhere" / name)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_told(tmp_path, legacy, share):
    torch.save({"a": torch.zeros(5000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"a\.pth is not a checkpoint"):
        read_tensors(tmp_path / "a.pth")
    if not legacy or share == 0.99:
        with pytest.raises(UserError, match=f"it is cut off after {int(share * len(whole))} bytes; copy or download"):
            read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"format": 1, "program": "train_TCR_DTU.py", "generation": None},
            "is a run's state, not a checkpoint: `resume",
        ),
        (
            {"state_dict": {}, "meta": {}},
            "is a checkpoint of OpenMMLab, not a checkpoint of these",
        ),
        ({"state_dict": {}, "pytorch-lightning_version": "2"}, "is a checkpoint of PyTorch Lightning, not"),
        ({"model": {}, "optimizer": {}}, "is another program's training state, not a"),
    ],
    ids=["own", "mmseg", "lightning", "optimizer"],
)
def test_a_state_in_a_checkpoints_place_is_told(tmp_path, content, words):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=re.escape(words)):
        load_checkpoint(torch.nn.Module(), tmp_path / "a.pth")


# what torch's weights_only does not catch


def rewrite(source, target, change, compression=zipfile.ZIP_STORED):
    """Copy an archive; change(name, content) gives each entry's new content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_an_archive_that_unpacks_to_more_than_its_file_is_refused_unread(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(4)}, tmp_path / "small.pth")
    zeros = bytes(50_000_000)
    rewrite(
        tmp_path / "small.pth",
        tmp_path / "bomb.pth",
        lambda name, content: zeros if name.endswith("data/0") else content,
        zipfile.ZIP_DEFLATED,
    )
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(UserError, match=r"bomb\.pth is not a checkpoint .*claims to hold 5\d{7}\)"):
        read_tensors(tmp_path / "bomb.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_storage_that_claims_to_be_huge_takes_no_memory(tmp_path, legacy):
    """Numbers in the pickle are made larger than what the file holds."""
    torch.save({"a": torch.zeros(77)}, tmp_path / "small.pth", _use_new_zipfile_serialization=not legacy)
    huge = b"\x8a\x05" + (10**11).to_bytes(5, "little")

    def claim(name, content):
        return content.replace(b"K\x4d", huge) if name.endswith("pkl") else content

    if legacy:
        (tmp_path / "huge.pth").write_bytes(claim("pkl", (tmp_path / "small.pth").read_bytes()))
    else:
        rewrite(tmp_path / "small.pth", tmp_path / "huge.pth", claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"huge\.pth is not a checkpoint that can be loaded safely"):
        read_tensors(tmp_path / "huge.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("kind", ["sparse", "meta", "complex", "quantized", "expanded giant", "sparse giant"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_hold_no_numbers_of_their_own_are_named_and_never_filled_in(tmp_path, kind):
    """A sparse or expanded tensor of any size takes no room in a file."""
    content = published(make_tiny())
    shape = content["classifier"]["conv2d_list.0.bias"].shape
    content["classifier"]["conv2d_list.0.bias"] = {
        "sparse": lambda: torch.sparse_coo_tensor([[0]], [1.0], shape),
        "meta": lambda: torch.zeros(shape, device="meta"),
        "complex": lambda: torch.zeros(shape, dtype=torch.complex64),
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(shape), 1.0, 0, torch.qint8),
        "expanded giant": lambda: torch.zeros(1).expand(10**10),
        "sparse giant": lambda: torch.sparse_coo_tensor([[0]], [1.0], (10**10,)),
    }[kind]()
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"odd\.pth .*(does not fit .*: conv2d_list\.0\.bias|loaded safely)"):
        load_checkpoint(make_tiny(seed=2), tmp_path / "odd.pth")


# --- weights that are no numbers


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_with_file_and_first_tensor(tmp_path, value, half):
    content = published(make_tiny(seed=1), half=half, tracked=True)
    content["classifier"]["conv2d_list.1.bias"][4:6] = value
    content["classifier"]["conv2d_list.3.weight"][0, 1, 2, 2] = value
    torch.save(content, tmp_path / "bad.pth")
    target = make_tiny(seed=2)
    before = logits(target)
    with pytest.raises(UserError) as caught:
        load_checkpoint(target, tmp_path / "bad.pth")
    found = "classifier.conv2d_list.1.bias has 2 of its 19 numbers NaN or infinite, and so has 1 other"
    assert f"{tmp_path / 'bad.pth'} is ruined: {found}; " in str(caught.value)
    assert torch.equal(logits(target), before)  # nothing of it was taken
    content["feature_extractor"]["backbone.bn1.running_var"][0] = value  # which stands first in the model
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"feature_extractor\.backbone\.bn1\.running_var has 1 .* have 2 others"):
        load_checkpoint(target, tmp_path / "bad.pth")


def test_a_number_that_only_a_wider_format_holds_is_refused(tmp_path):
    content = published(make_tiny(seed=1))
    content["classifier"]["conv2d_list.0.bias"] = content["classifier"]["conv2d_list.0.bias"].double()
    torch.save(content, tmp_path / "wide.pth")
    load_checkpoint(make_tiny(seed=2), tmp_path / "wide.pth")
    content["classifier"]["conv2d_list.0.bias"][7] = 1e300
    torch.save(content, tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"wide\.pth is ruined: .*conv2d_list\.0\.bias has 1 of its 19"):
        load_checkpoint(make_tiny(seed=2), tmp_path / "wide.pth")


def test_the_largest_numbers_and_what_no_network_takes_are_no_matter(tmp_path):
    model = make_tiny(seed=1)
    model.classifier.conv2d_list[0].bias.data[:2] = torch.tensor([torch.finfo().max, torch.finfo().min])
    torch.save(published(model) | {"running_conf": torch.full((19,), float("nan"))}, tmp_path / "a.pth")
    load_checkpoint(target := make_tiny(seed=2), tmp_path / "a.pth")
    assert torch.equal(target.classifier.conv2d_list[0].bias, model.classifier.conv2d_list[0].bias)


def test_a_mask_of_infinities_that_a_network_is_built_with_is_no_fault(tmp_path):
    first, second = (make_tiny(seed) for seed in (1, 2))
    for model in (first, second):
        model.feature_extractor.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    save_checkpoint(first, tmp_path / "a.pth", 3)
    assert load_checkpoint(second, tmp_path / "a.pth") == 3
    with torch.no_grad():
        first.classifier.conv2d_list[0].bias[0] = float("nan")
    save_checkpoint(first, tmp_path / "a.pth", 3)
    with pytest.raises(UserError, match=r"conv2d_list\.0\.bias has 1 of its 19"):
        load_checkpoint(second, tmp_path / "a.pth")
