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
from train_src import main as train
from train_TCR_DTU import main as adapt

PROGRAMS = {"adapt": adapt, "evaluate": evaluate, "train": train}
SOURCE = {"resume": "", "MODEL.FREEZE_BN": False, "DATASETS.TARGET_TRAIN": ""}  # of a source training
QUICK = {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 1}
AACHEN = "cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
VAL = "cityscapes/leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png"
VAL_LABEL = "cityscapes/gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds.png"
GTA5_LABEL = "gta5/labels/00001.png"


@pytest.fixture
def root(cityscapes_root, make_gta5):
    """DATASETS.ROOT and the folder that everything else lies in, too."""
    return make_gta5(cityscapes_root, 3)


@pytest.fixture
def refused(root, write_config, capfd, recwarn):
    """refused(argv, parts, program="adapt", left=(), **overrides): the one line that the program ends with has `parts`.

    `{root}` in the words of argv is the test's folder; the config goes before them unless they name one. Of what was
    written, no more than `left` may be there (names in the test's folder).
    """

    def run(argv, parts, program="adapt", left=(), **overrides):
        config = write_config(root, **(SOURCE if program == "train" else {}) | overrides)
        before = set(root.rglob("*"))
        words = [str(word).replace("{root}", str(root)) for word in argv]
        code = PROGRAMS[program](words if {"-cfg", "--config-file"} & set(words) else ["-cfg", str(config), *words])
        captured = capfd.readouterr()  # of the file descriptors, where libraries in C write
        assert code == 1
        (line,) = [line for line in captured.err.splitlines() if not line.startswith("libpng error")]
        assert line.startswith("error: ")
        assert "Traceback" not in captured.out
        assert not [str(warning.message) for warning in recwarn]  # each would be two more lines
        assert {path.relative_to(root).parts[0] for path in set(root.rglob("*")) - before} == set(left)
        assert not [part for part in parts if part not in line], line

    return run


def words_of(value):
    """An id for a case."""
    return " ".join(value) if isinstance(value, list) else str(value)


ARGUMENTS = [
    (["-cfg", "{root}/tyni.yaml"], ["tyni.yaml", "does not exist", "did you mean", "tiny.yaml"]),
    (["-cfg", "{root}/nowhere/tiny.yaml"], ["tiny.yaml", "does not exist", "nowhere"]),
    (["-cfg", "{root}/cityscapes"], ["cityscapes", "cannot be read"]),
    (["SOLVER.BASE_LR"], ["SOLVER.BASE_LR", "has no value: give one, as SOLVER.BASE_LR 0.02"]),
    (["SOLVER.BASE_LR", "1e-4", "SEED"], ["SEED has no value: give one, as SEED 1"]),
    (["SOLVER.BASE_RL", "1e-4"], ["command line", "SOLVER.BASE_RL", "did you mean SOLVER.BASE_LR?"]),
    (["--skiptest"], ["--skiptest", "--help"]),
    (["--config", "{root}/tiny.yaml"], ["--config"]),
    (["MODEL.DEVICE", "meta"], ["MODEL.DEVICE", "meta"]),
    (["MODEL.DEVICE", "gpu"], ["MODEL.DEVICE", "'gpu'", "cuda"]),
    (["TCR.MIX_CLASSES", "['rider', 'tram']"], ["TCR.MIX_CLASSES", "'tram'", "rider", "train"]),
    (["DATALOADER.NUM_WORKERS", "8"], ["DATALOADER.NUM_WORKERS 8", "16", "TCR.PASTE_LAG 16"]),
    (["DATALOADER.NUM_WORKERS", "2", "TCR.PASTE_LAG", "4"], ["NUM_WORKERS 2", "TCR.PASTE_LAG 4"]),
]
TARGETS = [
    (["DATASETS.ROOT", "{root}/none"], ["DATASETS.TARGET_TRAIN", "cityscapes_train", "none/cityscapes", "ROOT"]),
    (["DATASETS.TARGET_TRAIN", "cityscapes_test"], ["DATASETS.TARGET_TRAIN", "cityscapes_test", "no image"]),
    (["DATASETS.TARGET_TRAIN", "cityscape_train"], ["'cityscape_train'", "cityscapes", "folder:"]),
    (["DATASETS.TARGET_TRAIN", "cityscapes_trian"], ["'trian'", "cityscapes_train", "cityscapes_val"]),
    (["DATASETS.TARGET_TRAIN", ""], ["DATASETS.TARGET_TRAIN", "empty"]),
    (["DATASETS.TARGET_TRAIN", "bdd100k_train"], ["DATASETS.TARGET_TRAIN bdd100k_train", "does not exist"]),
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
    (["resume", "{root}/cityscapes"], ["cityscapes", "holds no state", "a checkpoint's file"]),
    (["resume", "auto"], ["resume auto", "holds no state", "resume FILE", "resume auto:FILE"]),
    (["resume", "auto:{root}/none.pth"], ["none.pth does not exist"]),
    (["resume", "auto", "--check"], ["holds no state"]),
    (["resume", "random", "MODEL.WEIGHTS", "{root}/net.pth"], ["MODEL.WEIGHTS", "net.pth", "does not exist"]),
]
TESTS = [
    (["resume", ""], ["resume"]),
    (["resume", "{root}/cityscapes"], ["cityscapes", "model_iter"]),
    (["DATASETS.TEST", ""], ["DATASETS.TEST"]),
    (["DATASETS.TEST", "folder:{root}/cityscapes"], ["DATASETS.TEST", "no labels", "--saveres"]),
    (["OUTPUT_DIR", "{root}/tiny.yaml/out"], ["OUTPUT_DIR", "cannot be written"]),
]
SOURCES = [
    (["MODEL.NAME", "deeplab_resnet18", "MODEL.FREEZE_BN", "True"], ["FREEZE_BN True", "MODEL.WEIGHTS", "resume"]),
    (["DATASETS.SOURCE_TRAIN", ""], ["DATASETS.SOURCE_TRAIN is empty"]),
    (["DATASETS.SOURCE_TRAIN", "gta6_train"], ["DATASETS.SOURCE_TRAIN 'gta6_train'", "gta5"]),
    (["DATASETS.SOURCE_TRAIN", "gta5_val"], ["gta5_val", "gta5_train"]),
    (["DATASETS.SOURCE_TRAIN", "synthia_train", "MODEL.NUM_CLASSES", "16"], ["synthia/RAND_CITYSCAPES"]),
    (["DATASETS.SOURCE_TRAIN", "folder:{root}/gta5/images"], ["DATASETS.SOURCE_TRAIN folder:", "has no labels"]),
    (["DATASETS.SOURCE_TRAIN", "cityscapes_train"], ["6 of 6 label files are missing", "labelIds.png"]),
    (["MODEL.WEIGHTS", "{root}/resnet18.pth"], ["MODEL.WEIGHTS", "resnet18.pth does not exist"]),
    (["resume", "{root}/model.pth"], ["model.pth does not exist"]),
    (["DATASETS.TEST", "bdd100k_val"], ["DATASETS.TEST bdd100k_val", "does not exist"]),
    (["OUTPUT_DIR", "{root}/tiny.yaml/out"], ["OUTPUT_DIR", "cannot be written to"]),
]


@pytest.mark.parametrize(
    ("program", "argv", "parts"),
    [
        *(("adapt", *case) for case in ARGUMENTS + TARGETS),
        *(("evaluate", *case) for case in TESTS),
        *(("train", *case) for case in SOURCES),
    ],
    ids=words_of,
)
def test_arguments_and_what_they_name(refused, root, program, argv, parts):
    (root / "bare").mkdir()
    (root / "blank.txt").write_text("# nothing\n\n")
    (root / "bad.txt").write_text("# two images\naachen_000000_000019_leftImg8bit.png\nzurich_000001\n")
    refused(argv, parts, program)


def test_the_config_is_required(capsys):
    assert adapt(["SOLVER.STOP_ITER", "5"]) == 1
    error = capsys.readouterr().err
    assert (error[:7], error.count("\n"), "-cfg" in error) == ("error: ", 1, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_that_is_absent(refused, program, device):
    refused(["MODEL.DEVICE", device], [f"MODEL.DEVICE {device}", "not available", "cpu"], program)


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Hostile:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def pickled_code(path):
    path.write_bytes(pickle.dumps({"feature_extractor": Hostile(path.parent / "ran")}))


def saved(make):
    """Have torch save what `make(folder)` gives."""
    return lambda path: torch.save(make(path.parent), path)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 178\n"
BAD_CHECKPOINTS = {
    "missing": (lambda path: None, ["does not exist"]),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), ["not a checkpoint"]),
    "text": (lambda path: path.write_text(LFS), ["not a checkpoint"]),
    "empty": (Path.touch, ["not a checkpoint"]),
    "a list": (saved(lambda _: [torch.zeros(2)]), ["not a checkpoint", "list"]),
    "pickled code": (pickled_code, ["not a checkpoint", "safely"]),
    "zipped code": (saved(lambda folder: {"classifier": Hostile(folder / "ran")}), ["not a checkpoint", "safely"]),
    "other keys": (
        saved(lambda _: {"state_dict": {}, "epoch": 3}),
        ["feature_extractor", "classifier", "state_dict", "epoch"],
    ),
    "weights of another kind": (
        saved(lambda _: {"iteration": 1, "feature_extractor": [1, 2], "classifier": {}}),
        ["feature_extractor"],
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_checkpoints(refused, root, program, kind):
    write, parts = BAD_CHECKPOINTS[kind]
    write(root / "bad.pth")
    refused(["resume", "{root}/bad.pth"], ["bad.pth", *parts], program)
    assert not (root / "ran").exists()


def test_the_hostile_checkpoint_is_hostile(tmp_path):
    pickled_code(tmp_path / "bad.pth")
    pickle.loads((tmp_path / "bad.pth").read_bytes())
    assert (tmp_path / "ran").exists()


def test_a_truncated_download_is_no_checkpoint(refused, root, tiny_checkpoint):
    whole = tiny_checkpoint.read_bytes()
    (root / "half.pth").write_bytes(whole[: len(whole) // 2])
    refused(["resume", "{root}/half.pth"], ["half.pth", "not a checkpoint"])


@pytest.mark.parametrize("program", ["adapt", "evaluate"])
def test_a_checkpoint_of_another_number_of_classes(refused, tiny_checkpoint, program):
    parts = [tiny_checkpoint.name, "conv2d_list.0.weight", "19×64×3×3", "16×64×3×3", "MODEL.NUM_CLASSES"]
    refused(["MODEL.NUM_CLASSES", "16"], parts, program)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_checkpoint_that_holds_nan(refused, root, tiny_checkpoint, program):
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["classifier"]["conv2d_list.2.bias"][3] = float("nan")
    torch.save(content, root / "nan.pth")
    parts = ["nan.pth is ruined", "classifier.conv2d_list.2.bias has 1 of its 19"]
    refused(["resume", "{root}/nan.pth"], parts, program)


def test_a_checkpoint_of_another_backbone(refused, resnet18):
    parts = [Path(resnet18["resume"]).name, "missing", "backbone.layer1.2.conv1.weight", "MODEL.NAME"]
    refused(["MODEL.NAME", "deeplab_resnet34"], parts, resume=resnet18["resume"])


def test_imagenet_weights_of_another_network(refused, root):
    torch.save({"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(1)}, root / "net.pth")
    argv = ["resume", "random", "MODEL.NAME", "deeplab_resnet18", "MODEL.WEIGHTS", "{root}/net.pth"]
    refused(argv, ["MODEL.WEIGHTS", "net.pth", "missing", "MODEL.NAME"])


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["adapt", "evaluate"])
def test_a_missing_label_is_found_before_anything_runs(refused, root, program):
    (root / VAL_LABEL).unlink()
    refused([], ["DATASETS.TEST", "1 of 3", Path(VAL_LABEL).name], program)


def test_an_image_that_is_gone_is_not_the_end_of_the_split(refused, root):
    shutil.rmtree(root / "cityscapes/leftImg8bit/train")
    refused([], ["DATASETS.TARGET_TRAIN", "cityscapes_train", "no image found"])


def test_a_mismatched_pair_of_another_set_is_refused(refused, root, draw_scene, write_png):
    for path in (root / "cityscapes/leftImg8bit/train").rglob("*.png"):
        label = str(path).replace("leftImg8bit", "gtFine", 1).replace("leftImg8bit", "gtFine_labelIds")
        write_png(label, draw_scene(0)[1][1 if "000000" in label else 0 :])
    parts = ["cityscapes_train: image and label differ in size for", Path(AACHEN).name]
    refused(["DATASETS.SOURCE_TRAIN", "cityscapes_train"], parts, "train", left=["label_statistics"])


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def clear(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("path", "spoil", "parts", "left"),
    [
        (GTA5_LABEL, Path.unlink, ["SOURCE_TRAIN gta5_train", "1 of 3 label files are missing", GTA5_LABEL], ()),
        (GTA5_LABEL, cut, [GTA5_LABEL, "cannot be decoded"], ()),
        (GTA5_LABEL, 77, [GTA5_LABEL, "gta5_train", "77 (3 pixels)"], ()),
        ("gta5/labels", 0, ["SOURCE_TRAIN gta5_train", "no label holds a pixel of any class"], ["label_statistics"]),
        ("gta5/images", clear, ["SOURCE_TRAIN gta5_train", "no image found"], ()),
    ],
    ids=["no label", "broken label", "unknown value", "no class", "no images"],
)
def test_data_of_a_source_training(refused, root, write_png, path, spoil, parts, left, workers):
    if isinstance(spoil, int):
        label = np.full((64, 128), 7 if spoil else 0, np.uint8)
        label[5, 9:12] = spoil
        for file in [root / path] if (root / path).is_file() else (root / path).iterdir():
            write_png(file, label)
    else:
        spoil(root / path)
    refused(["DATALOADER.NUM_WORKERS", workers], parts, "train", left)


# --- images and labels that turn out to be broken while a run goes on ------------------------------------------------


def spoil(path, how):
    whole = path.read_bytes()
    path.write_bytes({"text": b"no image", "empty": b"", "half": whole[: len(whole) // 2]}[how])


@pytest.mark.parametrize(
    ("how", "workers"), [(how, workers) for how in ("text", "empty", "half") for workers in (0, 1)]
)
def test_an_undecodable_image_in_the_candidate_pass(refused, root, how, workers):
    spoil(root / AACHEN, how)
    refused(["DATALOADER.NUM_WORKERS", workers], [AACHEN, "cannot be decoded"], left=["out"])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_in_training(refused, root, workers):
    for path in (root / "cityscapes/leftImg8bit/train").rglob("*.png"):
        spoil(path, "text")
    parts = ["cityscapes/leftImg8bit/train/", "_leftImg8bit.png cannot be decoded"]
    refused(["DATALOADER.NUM_WORKERS", workers], parts, left=["out"], **QUICK)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("path", "how", "parts"),
    [
        (VAL, "text", ["cannot be decoded"]),
        (VAL_LABEL, "half", ["cannot be decoded"]),
        (VAL_LABEL, np.full((64, 128, 3), (7, 8, 9), np.uint8), ["colour"]),
    ],
    ids=["image", "label", "coloured label"],
)
def test_a_broken_pair_in_evaluation(refused, root, write_png, workers, path, how, parts):
    spoil(root / path, how) if isinstance(how, str) else write_png(root / path, how)
    refused(["DATALOADER.NUM_WORKERS", workers], [path, *parts], "evaluate", left=["out"])


@pytest.mark.parametrize("program", ["adapt", "train", "evaluate"])
def test_a_label_of_another_size_is_found_before_anything_runs(refused, root, write_png, program):
    write_png(root / VAL_LABEL, np.full((60, 128), 7, np.uint8))
    refused([], ["DATASETS.TEST cityscapes_val", f"{VAL} (128×64)", f"{VAL_LABEL} (128×60)"], program)


@pytest.mark.parametrize("program", ["adapt", "train", "evaluate"])
def test_labels_of_another_kind_are_found_before_anything_runs(refused, root, write_png, program):
    for path in (root / "cityscapes/gtFine/val").rglob("*.png"):
        write_png(path, np.repeat(np.uint8([0, 0, 1, 2, 8, 10, 13, 255]), 16)[None].repeat(64, 0))
    refused([], ["DATASETS.TEST cityscapes_val", "those of trainIds", "labels: trainIds"], program)


def test_a_broken_label_ends_a_run_at_its_first_evaluation(refused, root, write_png):
    write_png(root / VAL_LABEL, np.full((64, 128), 99, np.uint8))
    refused([], [VAL_LABEL, "99 (8192 pixels)"], left=["out"], **QUICK)
    assert not (root / "out/metrics.csv").exists()  # that of the source model, before a step is made
    refused([], [VAL_LABEL, "99 (8192 pixels)"], left=["out"], **QUICK | {"resume": "random"})
    assert (root / "out/model_iter000001.pth").exists()  # the weights are safe


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
