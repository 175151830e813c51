"""A checkpoint that says what it holds is all that programs need beside images."""

import cv2
import numpy as np
import pytest
import torch

from core.configs import load_config
from core.runs.known import describe_model
from tests.helpers import SHORT, read_checkpoint
from tests.tools.import_model.test_transformers import NvidiaEncoder, NvidiaHead, Whole
from tools.export import main as export
from tools.import_model.__main__ import main as import_model
from tools.predict.__main__ import main as predict
from train_TCR_DTU import main as adapt

FROM = {"family": "a family", "origin": "a place", "licence": "a licence", "bn_eps": 1e-5}


@pytest.fixture
def source(tmp_path, resnet18, draw_scene, write_png):
    """A ResNet-18 of 19 classes with its own names and colours, whose logits are resized otherwise; and images."""
    for number in range(2):
        write_png(tmp_path / f"mine/{number}.png", draw_scene(number)[0])
    content = read_checkpoint(resnet18["resume"])
    names, colours = [f"class {n}" for n in range(19)], [[n, 2 * n, 255 - n] for n in range(19)]
    content["about"] = {"network": "deeplab_resnet18", "args": {}, "align_corners": False, "size": [64, 32], **FROM}
    content["about"] |= {"classes": names, "colours": colours}
    torch.save(content, tmp_path / "source.pth")
    return tmp_path / "source.pth"


def test_adaptation_and_what_follows_it_need_no_more_than_a_checkpoint_and_a_folder(tmp_path, source, capsys):
    options = SHORT | {"TCR.PASTE": False, "TCR.RESAMPLE": False, "SOLVER.BATCH_SIZE": 1, "SOLVER.STOP_ITER": 1}
    options |= {"DATASETS.TARGET_TRAIN": f"folder:{tmp_path}/mine", "OUTPUT_DIR": f"{tmp_path}/out"}
    options |= {"MODEL.FREEZE_BN": True, "MODEL.DEVICE": "cpu", "VIS.TENSORBOARD": False, "resume": source}
    (tmp_path / "empty.yaml").write_text("")

    def run(**more):
        words = [str(word) for item in (options | more).items() for word in item]
        return adapt(["-cfg", str(tmp_path / "empty.yaml"), *words])

    assert run() == 0
    source.rename(tmp_path / "gone.pth")
    assert run(resume="auto", **{"SOLVER.STOP_ITER": 2}) == 0
    said, out = read_checkpoint(tmp_path / "gone.pth")["about"], tmp_path / "out"
    written = [read_checkpoint(out / f"model_iter00000{n}.pth")["about"] for n in (1, 2)]
    config = load_config(out / "config.yaml")
    assert written == [describe_model(config) | FROM] * 2
    assert said.items() <= written[0].items()
    assert "source.pth says: MODEL.NAME deeplab_resnet18, MODEL.ALIGN_CORNERS False" in capsys.readouterr().out

    words = ["resume", str(out / "model_iter000002.pth"), "MODEL.DEVICE", "cpu", f"{tmp_path}/mine", "--save", "colour"]
    for name, given in (("alone", []), ("with", ["-cfg", str(out / "config.yaml")])):
        assert predict([*given, *words, "-o", str(tmp_path / name)]) == 0
    pictures = [cv2.imread(str(tmp_path / name / "colour/0.png")) for name in ("alone", "with")]
    assert (pictures[0] == pictures[1]).all()
    blue, green, red = np.moveaxis(pictures[0].astype(int), -1, 0)
    assert (green == 2 * red).all()
    assert (blue == 255 - red).all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated")
def test_an_export_needs_no_more_than_a_checkpoint(tmp_path, source, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export(["resume", str(source), "--format", "torchscript", "--fixed-size"]) == 0
    extra = {"metadata.json": ""}
    torch.jit.load("results/source.pt", _extra_files=extra)
    assert b'"usual_size": [64, 32]' in extra["metadata.json"]
    assert b'"class 18"' in extra["metadata.json"]
    assert export(["resume", str(source), "INPUT.TO_BGR255", "True", "MODEL.NAME", "deeplab_resnet34"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: MODEL.NAME is deeplab_resnet34, but deeplab_resnet18 in ")


def test_an_imported_segformer_is_adapted_by_its_file_alone(tmp_path, draw_scene, write_png, capsys):
    """README's commands, on a network of random weights as another program writes it."""
    theirs = Whole(NvidiaEncoder(), NvidiaHead())
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    names = ",".join(f"class {n}" for n in range(theirs.decode_head.linear_pred.out_channels))
    assert import_model([str(tmp_path / "theirs.pth"), "-o", str(tmp_path / "source.pth"), "--classes", names]) == 0
    for number in range(4):
        write_png(tmp_path / f"mine/{number}.png", draw_scene(number)[0])
    words = ["DATASETS.TARGET_TRAIN", f"folder:{tmp_path}/mine", "resume", str(tmp_path / "source.pth")]
    words += ["OUTPUT_DIR", str(tmp_path / "out"), "INPUT.INPUT_SIZE_TEST", "(64, 48)", "SOLVER.STOP_ITER", "4"]
    words += ["MODEL.DEVICE", "cpu", "VIS.TENSORBOARD", "False"]
    assert adapt(["-cfg", "configs/adapt.yaml", *words]) == 0
    said = capsys.readouterr().out
    assert "source.pth says: MODEL.NAME segformer_b0, MODEL.ARGS {" in said
    assert "model_adapted.pth" in said.partition("verdict: ")[2]
    about = read_checkpoint(tmp_path / "out/model_adapted.pth")["about"]
    assert {key: about[key] for key in ("network", "align_corners", "family")} == {
        "network": "segformer_b0", "align_corners": False, "family": "segformer",
    }  # fmt: skip
