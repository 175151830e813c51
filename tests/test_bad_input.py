"""Every mistake that a user can mend is one line on stderr that says what and where; nothing is written before it."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core.evaluation.evaluator import Evaluator
from core.selftraining.trainer import Trainer
from test import main as evaluate
from train_TCR_DTU import main as adapt

PROGRAMS = {"adapt": adapt, "evaluate": evaluate}
QUICK = {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 1}
AACHEN = "cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
VAL = "cityscapes/leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png"
VAL_LABEL = "cityscapes/gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png"


@pytest.fixture
def refused(cityscapes_root, write_config, capfd, recwarn):
    """refused(argv, program=adapt, begun=False, **overrides): the one line that the program ends with.

    `{root}` in the words of argv is the test's folder; the config goes before them unless they name one. Unless the
    run had `begun`, nothing may be left of it.
    """

    def run(argv=(), program=adapt, begun=False, **overrides):
        config = write_config(cityscapes_root, **overrides)
        before = sorted(cityscapes_root.rglob("*"))
        words = [str(word).replace("{root}", str(cityscapes_root)) for word in argv]
        code = program(words if {"-cfg", "--config-file"} & set(words) else ["-cfg", str(config), *words])
        captured = capfd.readouterr()  # of the file descriptors, where libraries in C write
        assert code == 1
        (line,) = [line for line in captured.err.splitlines() if not line.startswith("libpng error")]
        assert line.startswith("error: ")
        assert "Traceback" not in captured.out
        assert not [str(warning.message) for warning in recwarn]  # each would be two more lines
        if not begun:
            assert sorted(cityscapes_root.rglob("*")) == before
        return line.removeprefix("error: ")

    return run


def assert_holds(message, *parts):
    """Every part stands in the message, which is shown where not."""
    lacking = [part for part in parts if part not in message]
    assert not lacking, message


# --- arguments and config --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["-cfg", "{root}/tyni.yaml"], ["tyni.yaml", "does not exist", "did you mean", "tiny.yaml"]),
        (["-cfg", "{root}/nowhere/tiny.yaml"], ["tiny.yaml", "does not exist", "nowhere"]),
        (["-cfg", "{root}/cityscapes"], ["cityscapes", "cannot be read"]),
        (["SOLVER.BASE_LR"], ["SOLVER.BASE_LR", "KEY VALUE"]),
        (["SOLVER.BASE_LR", "1e-4", "SEED"], ["'SEED'", "KEY VALUE"]),
        (["--skiptest"], ["--skiptest", "--help"]),
        (["--config", "{root}/tiny.yaml"], ["--config"]),
        (["SOLVER.BASE_RL", "1e-4"], ["command line", "SOLVER.BASE_RL", "did you mean SOLVER.BASE_LR?"]),
        (["DTU.QUERY_START", "9"], ["DTU.QUERY_START", "did you mean DTU.Query_START?"]),
        (["OUTPUT_DRI", "x"], ["OUTPUT_DRI", "did you mean OUTPUT_DIR?"]),
        (["STOP_ITER", "5"], ["STOP_ITER", "did you mean SOLVER.STOP_ITER?"]),
        (["solver.stop_iter", "5"], ["solver.stop_iter", "did you mean SOLVER.STOP_ITER?"]),
        (["SOLVER", "5"], ["SOLVER is a section", "SOLVER.BASE_LR"]),
        (["SEED.X", "5"], ["SEED.X", "did you mean SEED?"]),
        (["SOLVER.STOP_ITER", "many"], ["SOLVER.STOP_ITER", "whole number", "'many'"]),
        (["SOLVER.STOP_ITER", "1.5"], ["SOLVER.STOP_ITER", "whole number", "1.5"]),
        (["SOLVER.STOP_ITER", "0"], ["SOLVER.STOP_ITER", "at least 1", "0"]),
        (["SOLVER.STOP_ITER", "-5"], ["SOLVER.STOP_ITER", "at least 1", "-5"]),
        (["SOLVER.BASE_LR", "fast"], ["SOLVER.BASE_LR", "number", "'fast'"]),
        (["SOLVER.BASE_LR", "0"], ["SOLVER.BASE_LR", "above 0"]),
        (["SOLVER.MOMENTUM", "-0.5"], ["SOLVER.MOMENTUM", "-0.5"]),
        (["SOLVER.WEIGHT_DECAY", "-1"], ["SOLVER.WEIGHT_DECAY", "-1"]),
        (["SEED", "18446744073709551616"], ["SEED", "18446744073709551616"]),
        (["SOLVER.AMP", "fp8"], ["SOLVER.AMP", "off, bf16, fp16", "'fp8'"]),
        (["TCR.PASTE", "maybe"], ["TCR.PASTE", "True or False", "'maybe'"]),
        (["TCR.PASTE", "1"], ["TCR.PASTE", "True or False", "1"]),
        (["INPUT.INPUT_SIZE_TEST", "512"], ["INPUT.INPUT_SIZE_TEST", "512"]),
        (["INPUT.INPUT_SIZE_TEST", "(512,)"], ["INPUT.INPUT_SIZE_TEST", "(width, height)"]),
        (["INPUT.INPUT_SIZE_TEST", "(512, 256.5)"], ["INPUT.INPUT_SIZE_TEST", "(width, height)"]),
        (["INPUT.INPUT_SCALES_TRAIN", "(1.5, 0.5)"], ["INPUT.INPUT_SCALES_TRAIN", "smallest", "largest"]),
        (["INPUT.PIXEL_STD", "(0.2, 0, 0.2)"], ["INPUT.PIXEL_STD", "0"]),
        (["INPUT.PIXEL_MEAN", "(1e999, 0, 0)"], ["INPUT.PIXEL_MEAN", "inf"]),
        (["INPUT.INPUT_SIZE_TEST", "(True, 2)"], ["INPUT.INPUT_SIZE_TEST", "True"]),
        (["SOLVER.BASE_LR", "1e999"], ["SOLVER.BASE_LR", "inf"]),
        (["MODEL.DEVICE", "meta"], ["MODEL.DEVICE", "meta"]),
        (["INPUT.HUE", "0.6"], ["INPUT.HUE", "at most 0.5"]),
        (["INPUT.IGNORE_LABEL", "250"], ["INPUT.IGNORE_LABEL", "255"]),
        (["MODEL.NAME", "deeplab_resnet19"], ["MODEL.NAME", "deeplab_resnet18", "'deeplab_resnet19'"]),
        (["MODEL.DEVICE", "gpu"], ["MODEL.DEVICE", "'gpu'", "cuda"]),
        (["DTU.PROXY_METRIC", "SDN"], ["DTU.PROXY_METRIC", "SND, ENT", "'SDN'"]),
        (["TCR.MIX_CLASSES", "['rider', 'tram']"], ["TCR.MIX_CLASSES", "'tram'", "rider", "train"]),
        (["TCR.MIX_CLASSES", "rider"], ["TCR.MIX_CLASSES", "list", "'rider'"]),
        (["DATALOADER.NUM_WORKERS", "8"], ["DATALOADER.NUM_WORKERS 8", "16", "TCR.PASTE_LAG 16"]),
        (["DATALOADER.NUM_WORKERS", "2", "TCR.PASTE_LAG", "4"], ["NUM_WORKERS 2", "TCR.PASTE_LAG 4"]),
    ],
    ids=" ".join,
)
def test_arguments(refused, argv, parts):
    assert_holds(refused(argv), *parts)


def test_the_config_is_required(capsys):
    assert adapt(["SOLVER.STOP_ITER", "5"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert_holds(captured.err, "error: ", "-cfg")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"SOLVER: [unclosed\nSEED: 1\n", ["bad.yaml", "not valid yaml", "line 2"]),
        (b"SOLVER:\n\tSEED: 1\n", ["not valid yaml", "line 2"]),
        (b"- a\n- b\n", ["bad.yaml", "KEY: VALUE", "list"]),
        (b"\xff\xfe\x00\x81", ["bad.yaml", "cannot be read"]),
        (b"SOLVER:\n  BASE_RL: 1\n", ["bad.yaml", "SOLVER.BASE_RL", "did you mean SOLVER.BASE_LR?"]),
        (b"SOLVRE:\n  BASE_LR: 1\n", ["SOLVRE.BASE_LR", "did you mean SOLVER.BASE_LR?"]),
        (b"SOLVER: 3\n", ["SOLVER is a section"]),
        (b"SEED:\n  X: 3\n", ["SEED.X", "did you mean SEED?"]),
        (b"SOLVER:\n  BATCH_SIZE: four\n", ["bad.yaml", "SOLVER.BATCH_SIZE", "whole number", "'four'"]),
        (b"SOLVER:\n  BATCH_SIZE: true\n", ["SOLVER.BATCH_SIZE", "whole number", "True"]),
        (b"SOLVER:\n  BASE_LR: .nan\n", ["SOLVER.BASE_LR", "nan"]),
        (b"DATASETS:\n  TEST: [a, b]\n", ["DATASETS.TEST", "text"]),
        (b"SEED: !!python/object/apply:os.system ['echo ran']\n", ["not valid yaml", "python/object"]),
    ],
    ids=lambda value: value.decode("latin-1").replace("\n", " ") if isinstance(value, bytes) else None,
)
def test_config_files(refused, cityscapes_root, text, parts):
    (cityscapes_root / "bad.yaml").write_bytes(text)
    assert_holds(refused(["-cfg", "{root}/bad.yaml"]), *parts)


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Hostile:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def write_bad_checkpoint(path, kind):
    if kind == "random bytes":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 178\n")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "a list":
        torch.save([torch.zeros(2)], path)
    elif kind == "pickled code":
        with path.open("wb") as file:
            pickle.dump({"feature_extractor": Hostile(path.parent / "ran")}, file)
    elif kind == "zipped code":
        torch.save({"feature_extractor": Hostile(path.parent / "ran")}, path)
    elif kind == "other keys":
        torch.save({"state_dict": {}, "epoch": 3}, path)
    elif kind == "weights of another kind":
        torch.save({"iteration": 1, "feature_extractor": [1, 2], "classifier": {}}, path)


BAD_CHECKPOINTS = {
    "missing": ["does not exist"],
    "random bytes": ["not a checkpoint"],
    "text": ["not a checkpoint"],
    "empty": ["not a checkpoint"],
    "a list": ["not a checkpoint", "list"],
    "pickled code": ["not a checkpoint", "safely"],
    "zipped code": ["not a checkpoint", "safely"],
    "other keys": ["feature_extractor", "classifier", "state_dict", "epoch"],
    "weights of another kind": ["feature_extractor"],
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_checkpoints(refused, cityscapes_root, program, kind):
    write_bad_checkpoint(cityscapes_root / "bad.pth", kind)
    message = refused(["resume", "{root}/bad.pth"], PROGRAMS[program])
    assert_holds(message, "bad.pth", *BAD_CHECKPOINTS[kind])
    assert not (cityscapes_root / "ran").exists()


def test_the_hostile_checkpoint_is_hostile(tmp_path):
    write_bad_checkpoint(tmp_path / "bad.pth", "pickled code")
    with (tmp_path / "bad.pth").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "ran").exists()


def test_a_truncated_download_is_no_checkpoint(refused, cityscapes_root, tiny_checkpoint):
    whole = tiny_checkpoint.read_bytes()
    (cityscapes_root / "half.pth").write_bytes(whole[: len(whole) // 2])
    assert_holds(refused(["resume", "{root}/half.pth"]), "half.pth", "not a checkpoint")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_checkpoint_of_another_number_of_classes(refused, tiny_checkpoint, program):
    message = refused(["MODEL.NUM_CLASSES", "16"], PROGRAMS[program])
    assert_holds(message, tiny_checkpoint.name, "conv2d_list.0.weight", "19×64×3×3", "16×64×3×3", "MODEL.NUM_CLASSES")


def test_a_checkpoint_of_another_backbone(refused, resnet18):
    message = refused(["MODEL.NAME", "deeplab_resnet34"], resume=resnet18["resume"])
    assert_holds(message, Path(resnet18["resume"]).name, "missing", "backbone.layer1.2.conv1.weight", "MODEL.NAME")


def test_imagenet_weights_that_are_not_there(refused):
    message = refused(["resume", "", "MODEL.WEIGHTS", "{root}/resnet18.pth"])
    assert_holds(message, "resnet18.pth", "does not exist", "MODEL.WEIGHTS")


def test_imagenet_weights_of_another_network(refused, cityscapes_root):
    torch.save({"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(1)}, cityscapes_root / "net.pth")
    message = refused(["resume", "", "MODEL.WEIGHTS", "{root}/net.pth"])
    assert_holds(message, "MODEL.WEIGHTS", "net.pth", "missing", "MODEL.NAME")


def test_a_folder_is_no_checkpoint_to_start_from(refused):
    assert_holds(refused(["resume", "{root}/cityscapes"]), "cityscapes", "holds no state", "a checkpoint's file")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["resume", ""], ["resume"]),
        (["resume", "{root}/cityscapes"], ["cityscapes", "model_iter"]),
        (["DATASETS.TEST", ""], ["DATASETS.TEST"]),
        (["DATASETS.TEST", "folder:{root}/cityscapes"], ["DATASETS.TEST", "no labels", "--saveres"]),
    ],
    ids=" ".join,
)
def test_nothing_to_evaluate(refused, argv, parts):
    assert_holds(refused(argv, evaluate), *parts)


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["DATASETS.ROOT", "{root}/none"], ["DATASETS.TARGET_TRAIN", "cityscapes_train", "none/cityscapes", "ROOT"]),
        (["DATASETS.TARGET_TRAIN", "cityscapes_test"], ["DATASETS.TARGET_TRAIN", "cityscapes_test", "no image"]),
        (["DATASETS.TARGET_TRAIN", "cityscape_train"], ["'cityscape_train'", "cityscapes", "folder:"]),
        (["DATASETS.TARGET_TRAIN", "cityscapes_trian"], ["'trian'", "cityscapes_train", "cityscapes_val"]),
        (["DATASETS.TARGET_TRAIN", ""], ["DATASETS.TARGET_TRAIN", "empty"]),
        (["DATASETS.TARGET_TRAIN", "gta5_train"], ["DATASETS.TARGET_TRAIN gta5_train", "gta5 does not exist"]),
        (["DATASETS.TARGET_TRAIN", "folder:{root}/none"], ["DATASETS.TARGET_TRAIN", "none", "not a folder"]),
        (["DATASETS.TARGET_TRAIN", "folder:{root}/bare"], ["DATASETS.TARGET_TRAIN", "no image", "bare", ".jpg"]),
        (["DATASETS.TEST", "cityscapes_vla"], ["DATASETS.TEST", "'vla'", "cityscapes_val"]),
        (["DATASETS.TEST", "cityscapes_train"], ["DATASETS.TEST", "6 of 6", "gtFine/train", "missing"]),
        (["DATASETS.TEST", "folder:{root}/cityscapes"], ["DATASETS.TEST", "no labels", "--skip-test"]),
        (["MODEL.NUM_CLASSES", "11"], ["MODEL.NUM_CLASSES is 11", "cityscapes_train", "19 or 16"]),
        (
            ["DATASETS.TARGET_TRAIN", "folder:{root}", "DATASETS.TEST", "", "DATASETS.SOURCE_TRAIN", ""],
            ["class names", "DATASETS.SOURCE_TRAIN", "gta5"],
        ),
        (["DATASETS.TARGET_LIST", "{root}/none.txt"], ["DATASETS.TARGET_LIST", "none.txt", "cannot be read"]),
        (["DATASETS.TARGET_LIST", "{root}/bad.txt"], ["DATASETS.TARGET_LIST", "bad.txt", "line 3", "zurich_000001"]),
        (["DATASETS.TARGET_LIST", "{root}/blank.txt"], ["DATASETS.TARGET_LIST", "blank.txt", "no image"]),
        (["OUTPUT_DIR", "{root}/tiny.yaml/out"], ["OUTPUT_DIR", "tiny.yaml/out", "cannot be written"]),
        (["OUTPUT_DIR", "{root}/tiny.yaml"], ["OUTPUT_DIR", "tiny.yaml", "cannot be written"]),
    ],
    ids=" ".join,
)
def test_data_and_folders(refused, cityscapes_root, argv, parts):
    (cityscapes_root / "bare").mkdir()
    (cityscapes_root / "blank.txt").write_text("# nothing\n\n")
    (cityscapes_root / "bad.txt").write_text("# two images\naachen_000000_000019_leftImg8bit.png\nzurich_000001\n")
    assert_holds(refused(argv), *parts)


def test_a_missing_label_is_found_before_anything_runs(refused, cityscapes_root):
    (cityscapes_root / VAL_LABEL).unlink()
    assert_holds(refused(), "DATASETS.TEST", "1 of 3", Path(VAL_LABEL).name)
    assert_holds(refused(program=evaluate), "DATASETS.TEST", "1 of 3", Path(VAL_LABEL).name)


def test_an_output_folder_of_test_py_below_a_file(refused):
    assert_holds(refused(["OUTPUT_DIR", "{root}/tiny.yaml/out"], evaluate), "OUTPUT_DIR", "cannot be written")


def test_an_image_that_is_gone_is_not_the_end_of_the_split(refused, cityscapes_root):
    shutil.rmtree(cityscapes_root / "cityscapes/leftImg8bit/train")
    assert_holds(refused(), "DATASETS.TARGET_TRAIN", "cityscapes_train", "no image found")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_that_is_absent(refused, program, device):
    assert_holds(refused(["MODEL.DEVICE", device], PROGRAMS[program]), f"MODEL.DEVICE {device}", "not available", "cpu")


# --- images and labels that turn out to be broken while a run goes on ------------------------------------------------


def spoil(path, how):
    whole = path.read_bytes()
    path.write_bytes({"text": b"no image", "empty": b"", "half": whole[: len(whole) // 2]}[how])


@pytest.mark.parametrize("how", ["text", "empty", "half"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_in_the_candidate_pass(refused, cityscapes_root, how, workers):
    spoil(cityscapes_root / AACHEN, how)
    message = refused(begun=True, **{"DATALOADER.NUM_WORKERS": workers})
    assert_holds(message, AACHEN, "cannot be decoded")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_in_training(refused, cityscapes_root, workers):
    for path in (cityscapes_root / "cityscapes/leftImg8bit/train").rglob("*.png"):
        spoil(path, "text")
    message = refused(begun=True, **QUICK, **{"DATALOADER.NUM_WORKERS": workers})
    assert_holds(message, "cityscapes/leftImg8bit/train/", "_leftImg8bit.png cannot be decoded")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("path", "how", "parts"),
    [
        (VAL, "text", ["cannot be decoded"]),
        (VAL_LABEL, "half", ["cannot be decoded"]),
        (VAL_LABEL, np.full((60, 128), 7, np.uint8), ["128×60", "128×64", VAL]),
        (VAL_LABEL, np.full((64, 128, 3), 7, np.uint8), ["single-channel"]),
    ],
    ids=["image", "label", "sizes differ", "coloured label"],
)
def test_a_broken_pair_in_evaluation(refused, cityscapes_root, write_png, workers, path, how, parts):
    spoil(cityscapes_root / path, how) if isinstance(how, str) else write_png(cityscapes_root / path, how)
    options = {"DATALOADER.NUM_WORKERS": workers}
    assert_holds(refused(program=evaluate, begun=True, **options), path, *parts)


def test_a_broken_label_ends_a_run_at_its_evaluation(refused, cityscapes_root, write_png):
    write_png(cityscapes_root / VAL_LABEL, np.full((60, 128), 7, np.uint8))
    assert_holds(refused(begun=True, **QUICK), VAL_LABEL, "128×60")
    assert (cityscapes_root / "out/model_iter000001.pth").exists()  # the weights are safe


def test_other_errors_are_not_hidden(cityscapes_root, write_config, monkeypatch):
    """A defect of ours keeps its traceback."""

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Trainer, "train_step", fail)
    monkeypatch.setattr(Evaluator, "run", fail)
    config = str(write_config(cityscapes_root, **QUICK))
    for program in (adapt, evaluate):
        with pytest.raises(ZeroDivisionError):
            program(["-cfg", config])
