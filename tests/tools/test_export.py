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
from tests.helpers import PROJECT, contents, start
from tools import export
from tools.export import FORMATS, main

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
    corners = load_config(config).MODEL.ALIGN_CORNERS
    return F.interpolate(logits, size=prepared.shape[-2:], mode="bilinear", align_corners=corners)


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
    """In a process of its own, by the tool's path; into OUTPUT_DIR, named after the checkpoint."""
    words = ("-cfg", config, "--format", "onnx", "--normalise")
    process = start(PROJECT / "tools/export.py", *words, folder=tmp_path)
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
@pytest.mark.parametrize(
    ("name", "normalise", "corners"),
    [("torchscript", True, True), ("torch.export", False, True), ("torchscript", True, False)],
)
def test_torch_formats(exported, config, tiny_checkpoint, draw_scene, name, normalise, corners):
    config.write_text(config.read_text().replace("MODEL:", f"MODEL:\n  ALIGN_CORNERS: {corners}"))
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


def read_back(path, form):
    """What a user runs a file with: a function of a tensor, and the metadata's text on the output."""
    extra = {"metadata.json": ""}
    if form == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        metadata = {key: json.loads(value) for key, value in about.items()}
        return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]), metadata
    if form == "torchscript":
        run = torch.jit.load(path, _extra_files=extra)
    else:
        run = torch.export.load(path.open("rb"), extra_files=extra).module()
    return run, json.loads(extra["metadata.json"])


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated")
@pytest.mark.parametrize(
    ("form", "output", "half"),
    [
        ("onnx", "softmax", True),
        ("torchscript", "labels", False),
        ("torchscript", "labels", True),
        ("torch.export", "softmax", False),
        ("torch.export", "logits", True),
    ],
)
def test_outputs_and_float16(exported, config, tiny_checkpoint, draw_scene, form, output, half):
    path, log = exported("--format", form, "--normalise", "--output", output, *["--half"] * half)
    assert log.count("checked: ") == 2
    assert log.splitlines()[-1].endswith(f"): {output} of 19 classes")
    assert f"wrote {path} ({form} in float{16 if half else 32}, " in log
    run, metadata = read_back(path, form)
    layout, dtype = ("N×H×W", torch.uint8) if output == "labels" else ("N×C×H×W", torch.float32)
    assert metadata["output"] == {"name": output, "layout": layout, "dtype": str(dtype).removeprefix("torch.")}
    assert metadata["computes_in"] == ("float16" if half else "float32")
    tolerance, seen = (1e-2 if half else 1e-4), set()
    for images in batches(draw_scene):
        logits = reference(tiny_checkpoint, config, (images / 255 - MEAN) / STD)
        with torch.no_grad():
            found = run(images)
        assert found.dtype == dtype
        if output == "labels":
            assert found.shape == logits[:, 0].shape
            assert (found == logits.argmax(1)).float().mean() > 0.995
            seen |= set(found.unique().tolist())
        else:
            expected = logits if output == "logits" else logits.softmax(1)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < tolerance * expected.abs().max()
            seen |= set(expected.argmax(1).unique().tolist())
            if half:
                assert (found - expected).abs().max() > 1e-5 * expected.abs().max()  # float16 it is
    assert len(seen) > 3


def test_labels_of_an_onnx_file_are_uint8_which_stands_at_its_ends_only(exported, config, tiny_checkpoint, draw_scene):
    """And is made of floats, and made floats, by a cast: TensorRT has it nowhere else."""
    path, _ = exported("--format", "onnx", "--normalise", "--output", "labels")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    assert (given.type, gives.type, gives.name) == ("tensor(uint8)", "tensor(uint8)", "labels")
    assert (given.shape, gives.shape) == (["batch", 3, "height", "width"], ["batch", "height", "width"])
    for images in batches(draw_scene):
        (found,) = session.run(["labels"], {"image": images.numpy()})
        expected = reference(tiny_checkpoint, config, (images / 255 - MEAN) / STD).argmax(1).numpy()
        assert (found == expected).mean() > 0.999
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    small = {name for name, kind in types.items() if kind == onnx.TensorProto.UINT8}
    assert small == {"image", "labels"}
    touching = [node for node in graph.node if small & {*node.input, *node.output}]
    assert [node.op_type for node in touching if {*node.input} & {"image"} and node.op_type != "Shape"] == ["Cast"]
    (last,) = [node for node in graph.node if "labels" in node.output]
    assert (last.op_type, types[last.input[0]]) == ("Cast", onnx.TensorProto.FLOAT)


def test_float16_halves_the_file_and_leaves_what_goes_in_and_out(exported, tiny_checkpoint):
    path, _ = exported("--format", "onnx", "--half")
    assert path.stat().st_size < 0.7 * tiny_checkpoint.stat().st_size
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}


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


@pytest.mark.parametrize(
    ("words", "factor"),
    [
        ((), 1.001),
        (("--output", "softmax"), 1.003),
        (("--output", "labels"), 1.1),
        (("--half",), 1.05),
        (("--half", "--output", "labels"), 1.5),
    ],
)
def test_a_file_that_is_not_the_model_never_appears(refused, monkeypatch, words, factor):
    """The comparison is a real one: a thousandth more in one weight is found, and a tenth where labels hide it."""
    plain_copy = export.plain_copy

    def spoiled(model):
        copy = plain_copy(model)
        copy.classifier.conv2d_list[0].weight.mul_(factor)
        return copy

    monkeypatch.setattr(export, "plain_copy", spoiled)
    line = refused("--format", "torchscript", *words)
    assert "is not the model" in line
    assert "128×64" in line


@pytest.mark.parametrize("output", ["logits", "softmax", "labels"])
def test_a_model_beyond_float16_is_not_written(refused, tmp_path, tiny_checkpoint, output):
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["classifier"]["conv2d_list.0.bias"] = torch.linspace(1e5, 2e5, 19)  # more than 65504
    torch.save(content, tmp_path / "large.pth")
    words = ("--format", "torchscript", "--half", "--output", output, "resume", tmp_path / "large.pth")
    assert "is not the model" in refused(*words)


def test_a_size_that_became_a_constant_is_found(refused, monkeypatch):
    class Fixed(export.Deployed):
        def forward(self, image):
            return self.model(image, (64, 128))

    monkeypatch.setattr(export, "Deployed", Fixed)
    assert "gives (2, 19, 64, 128) torch.float32 for (2, 3, 43, 65)" in refused("--format", "torchscript")


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
        (["--output", "colours"], ["--output", "'colours'", "softmax"]),
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


# --- networks of one's own, fixed sizes, opsets


class UNet(nn.Module):
    """One module whose images' sides must be multiples of 4, and a channel too many."""

    def __init__(self, classes):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(12, classes + 1, 1)

    def forward(self, image):
        high = self.first(image)
        both = torch.cat([high, F.interpolate(F.max_pool2d(high, 4), scale_factor=4.0)], 1)
        return {"out": self.last(both)[..., ::2, ::2]}


class Placed(nn.Module):
    """A network of one size, as those with a learnt place for every point."""

    def __init__(self, classes):
        super().__init__()
        self.body, self.place = nn.Conv2d(3, classes, 8, stride=8), nn.Parameter(torch.randn(1, classes, 8, 16))

    def forward(self, image):
        return self.body(image) + self.place


def unet(cfg):
    return UNet(cfg.MODEL.NUM_CLASSES)


def placed(cfg):
    return Placed(cfg.MODEL.NUM_CLASSES)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own(function, **options) → the words that name a network and its weights."""

    def words(function, **options):
        monkeypatch.setitem(sys.modules, "own_to_export", sys.modules[function.__module__])
        torch.manual_seed(0)
        state = function(load_config(tmp_path / "tiny.yaml")).state_dict()
        torch.save(state, tmp_path / "own.pth")
        found = {"MODEL.NAME": f"own_to_export:{function.__name__}", "resume": tmp_path / "own.pth"} | options
        return [word for pair in found.items() for word in pair]

    return words


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_a_padded_network_of_ones_own(exported, own, config, draw_scene, name, fixed):
    """On any size, sides that are no multiples among them, or on the only one."""
    words = own(unet, **{"MODEL.CLASSES_OUT": tuple(range(1, 20))})
    path, told = exported("--format", name, "--normalise", *words, *(["--fixed-size"] if fixed else []))
    assert told.count("checked: ") == (1 if fixed else 2)
    assert "stride 2; images are padded to multiples of 4" in told
    run = FORMATS[name].read(path)
    model = build_model(load_config(config, [str(word) for word in words])).eval()
    load_checkpoint(model, words[3])
    for images in batches(draw_scene):
        if fixed and images.shape[::2] != (1, 64):
            continue
        with torch.no_grad():
            expected = model((images / 255 - MEAN) / STD, images.shape[-2:])
            assert_same(run(images), expected)


def test_a_fixed_size_is_the_only_one(exported, refused, own):
    words = own(placed)
    for name, reason in (("torchscript", "The size of tensor a (12) must match"), ("onnx", "8) is inconsistent")):
        line = refused("--format", name, *words)
        assert f"--format {name} cannot hold MODEL.NAME own_to_export:placed: " in line
        assert reason in line
        assert line.endswith("; --fixed-size tries it for images of 128×64 alone")
    path, _ = exported("--format", "onnx", *words, "--fixed-size")
    session = onnxruntime.InferenceSession(path)
    assert [session.get_inputs()[0].shape, session.get_outputs()[0].shape] == [[1, 3, 64, 128], [1, 19, 64, 128]]
    metadata = {key: json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["input"]["shape"] == [1, 3, 64, 128]


def test_the_opset_is_the_one_asked_for(exported, own):
    """20, which is not torch's own."""
    words = own(unet, **{"MODEL.CLASSES_OUT": tuple(range(1, 20))})
    path, told = exported("--format", "onnx", *words, "--opset", 20)
    assert {entry.version for entry in onnx.load(path).opset_import if entry.domain == ""} == {20}
    assert told.count("checked: ") == 2


def test_an_opset_that_cannot_be_made(refused, own):
    words = own(placed)
    assert "--opset 7: torch" in (line := refused("--format", "onnx", *words, "--fixed-size", "--opset", 7))
    assert "makes opset 18 of this network; give that" in line
    assert "--opset is of ONNX files, not of --format torchscript" in refused("--format", "torchscript", "--opset", 18)
