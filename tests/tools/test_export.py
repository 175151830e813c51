"""tools.export for real: files read back by what users read them with, against the network written out here."""

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.configs import load_config
from core.datasets.taxonomy import CITYSCAPES_19
from core.models import build_model
from core.utils.checkpoints import load_checkpoint
from tests.helpers import contents, start
from tools import export
from tools.export import main

SHAPES = ((1, 64, 128), (2, 64, 128), (3, 51, 37))  # (B, H, W)
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture
def config(tmp_path, write_config):
    return write_config(tmp_path)


@pytest.fixture
def exported(tmp_path, config, capfd):
    """exported(*argv): tools.export into tmp_path/model, which must succeed: (path, what it printed)."""

    def run(*argv):
        code = main(["-cfg", str(config), "-o", str(tmp_path / "model"), *map(str, argv)])
        captured = capfd.readouterr()
        assert (code, captured.err) == (0, "")
        return tmp_path / "model", captured.out

    return run


def batches(draw_scene):
    """uint8 images of the shapes: parts of scenes."""
    for count, height, width in SHAPES:
        scenes = [torch.from_numpy(draw_scene(number)[0][:height, :width].copy()) for number in range(count)]
        yield torch.stack(scenes).permute(0, 3, 1, 2).contiguous()


def reference(checkpoint, config, prepared):
    """Logits at the input's size, written out."""
    model = build_model(load_config(config)).eval()
    load_checkpoint(model, checkpoint)
    with torch.no_grad():
        logits = model.classifier(model.feature_extractor(prepared))
    return F.interpolate(logits, size=prepared.shape[-2:], mode="bilinear", align_corners=True)


def assert_same(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def assert_describes(metadata, config, normalised_inside):
    assert metadata["classes"] == list(CITYSCAPES_19.names)
    assert metadata["colours"] == CITYSCAPES_19.palette()[:19].tolist()
    expected = {"dtype": "uint8" if normalised_inside else "float32", "usual_size": [128, 64]}
    expected |= {"mean": pytest.approx(MEAN.flatten().tolist()), "std": pytest.approx(STD.flatten().tolist())}
    assert {key: metadata["input"][key] for key in expected} == expected
    assert metadata["checkpoint"] == Path(load_config(config).resume).name


def test_onnx_from_8_bit_images(tmp_path, config, tiny_checkpoint, draw_scene):
    """In a process of its own, as a user does it; into OUTPUT_DIR, named after the checkpoint."""
    process = start("-m", "tools.export", "-cfg", config, "--format", "onnx", "--normalise")
    assert (process.returncode, process.stderr) == (0, "")
    path = tmp_path / "out/tiny.onnx"
    assert str(path) in process.stdout
    assert process.stdout.count("checked: ") == 2
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    assert (tensor.name, tensor.type) == ("image", "tensor(uint8)")
    assert tensor.shape == ["batch", 3, "height", "width"]
    for images in batches(draw_scene):
        (found,) = session.run(["logits"], {"image": images.numpy()})
        assert_same(torch.from_numpy(found), reference(tiny_checkpoint, config, (images / 255 - MEAN) / STD))
    metadata = session.get_modelmeta().custom_metadata_map
    assert_describes({key: json.loads(value) for key, value in metadata.items()}, config, True)
    onnx.checker.check_model(str(path), full_check=True)
    operations = {node.op_type for node in onnx.load(path).graph.node}
    assert "Conv" in operations
    assert "BatchNormalization" not in operations


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated")
@pytest.mark.parametrize(("name", "normalise"), [("torchscript", True), ("torch.export", False)])
def test_torch_formats(exported, config, tiny_checkpoint, draw_scene, name, normalise):
    path, log = exported("--format", name, *["--normalise"] * normalise)
    assert log.count("checked: ") == 2
    extra = {"metadata.json": ""}
    if name == "torchscript":
        run = torch.jit.load(path, _extra_files=extra)
    else:
        run = torch.export.load(path.open("rb"), extra_files=extra).module()
    for images in batches(draw_scene):
        prepared = (images / 255 - MEAN) / STD
        with torch.no_grad():
            found = run(images if normalise else prepared)
        assert_same(found, reference(tiny_checkpoint, config, prepared))
    assert_describes(json.loads(extra["metadata.json"]), config, normalise)


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated")
def test_batch_norm_and_caffe_style_input(exported, tmp_path, config, make_checkpoint, draw_scene):
    """FREEZE_BN False, and BGR in 0 … 255: both are inside the file."""
    checkpoint = make_checkpoint(tmp_path / "plain.pth", FREEZE_BN=False)
    options = ["MODEL.FREEZE_BN", "False", "INPUT.TO_BGR255", "True", "INPUT.PIXEL_MEAN", "(104.0, 117.0, 123.0)"]
    options += ["INPUT.PIXEL_STD", "(50.0, 60.0, 70.0)"]
    path, _ = exported("--format", "torchscript", "--normalise", "resume", checkpoint, *options)
    (images, *_) = batches(draw_scene)
    model = build_model(load_config(config, options)).eval()
    load_checkpoint(model, checkpoint)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((104.0, 117.0, 123.0), (50.0, 60.0, 70.0)))
    with torch.no_grad():
        expected = model((images.flip(1).float() - mean) / std, (64, 128))
        assert_same(torch.jit.load(path)(images), expected)


def test_help_says_what_it_does_with_an_example(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "example: python -m tools.export -cfg configs/" in text
    for word in ("onnx", "torchscript", "torch.export", "--normalise", "uint8", "1e-4"):
        assert word in text


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, config, capfd):
    """refused(*argv): the one line that the program ends with; nothing is left of it."""

    def run(*argv):
        before = contents(tmp_path)
        code = main(["-cfg", str(config), "-o", str(tmp_path / "new/model"), *map(str, argv)])
        (line,) = capfd.readouterr().err.splitlines()
        assert code == 1
        assert line.startswith("error: ")
        assert contents(tmp_path) == before
        return line

    return run


def test_a_file_that_is_not_the_model_never_appears(refused, monkeypatch):
    """The comparison is a real one: a thousandth more in one weight is found."""
    plain_copy = export.plain_copy

    def spoiled(model):
        copy = plain_copy(model)
        copy.classifier.conv2d_list[0].weight.mul_(1.001)
        return copy

    monkeypatch.setattr(export, "plain_copy", spoiled)
    line = refused("--format", "torchscript")
    assert "is not the model" in line
    assert "128×64" in line


def test_a_size_that_became_a_constant_is_found(refused, monkeypatch):
    class Fixed(export.Deployed):
        def forward(self, image):
            return self.model(image, (64, 128))

    monkeypatch.setattr(export, "Deployed", Fixed)
    assert "gives (2, 19, 64, 128) for (2, 3, 43, 65)" in refused("--format", "torchscript")


def test_an_existing_file_stays_unless_told(refused, exported, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"precious")
    line = refused("--format", "torchscript", "-o", path)
    assert str(path) in line
    assert "--overwrite" in line
    exported("--format", "torchscript", "--overwrite")
    assert path.stat().st_size > 1e5


@pytest.mark.parametrize("lacking", ["onnx", "onnxscript", "onnxruntime"])
def test_packages_that_are_missing(refused, monkeypatch, lacking):
    find_spec = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == lacking else find_spec(name))
    assert f"--format onnx needs more packages: pip install {lacking}" in refused()


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--format", "caffe"], ["--format", "'caffe'", "torchscript"]),
        (["resume", ""], ["resume FILE"]),
        (["resume", "{root}"], ["is a folder", "model_iter"]),
        (["resume", "{root}/none.pth"], ["none.pth", "does not exist"]),
        (["MODEL.NUM_CLASSES", "16"], ["does not fit"]),
        (["-o", "{root}/tiny.yaml/model.onnx"], ["tiny.yaml", "cannot be written"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(refused, tmp_path, argv, parts):
    (tmp_path / "model_iter000001.pth").touch()
    line = refused("--format", "torchscript", *(word.replace("{root}", str(tmp_path)) for word in argv))
    assert not [part for part in parts if part not in line], line


class Undecided(nn.Conv2d):
    """A network whose way depends on what it sees, which no exporter can follow."""

    def forward(self, image):
        return super().forward(image) if image.sum().item() > 0 else super().forward(-image)


def undecided(cfg):
    return Undecided(3, 4, 8, stride=8), nn.Conv2d(4, cfg.MODEL.NUM_CLASSES, 1)


@pytest.mark.parametrize("name", ["onnx", "torch.export"])
def test_a_network_of_ones_own_that_cannot_be_exported(refused, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "undecided_network", sys.modules[undecided.__module__])
    parts = undecided(load_config(tmp_path / "tiny.yaml"))
    weights = {"feature_extractor": parts[0].state_dict(), "classifier": parts[1].state_dict()}
    torch.save(weights, tmp_path / "undecided.pth")
    options = ["MODEL.NAME", "undecided_network:undecided", "resume", tmp_path / "undecided.pth"]
    line = refused("--format", name, *options)
    assert f"--format {name} cannot hold MODEL.NAME undecided_network:undecided" in line
    assert "data-dependent" in line
