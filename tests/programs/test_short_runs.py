"""Tiny adaptation runs, each for one thing that a user may ask of the program."""

import importlib
import json
import re
import shlex
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from core.configs import load_config
from core.selftraining.samples import TargetSamples
from test import main as evaluate
from tests.helpers import PROJECT, TOOLS, OpenWatch, read_checkpoint, rows_of
from tools.compare.__main__ import main as compare
from tools.predict.__main__ import main as predict
from tools.report.__main__ import main as report
from train_TCR_DTU import main as adapt

QUICK = {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 1, "SOLVER.BATCH_SIZE": 1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")
@pytest.mark.parametrize("workers", [0, 1])
def test_labels_of_the_target_training_split_are_never_opened(adapted, cityscapes_root, write_png, workers):
    labels = cityscapes_root / "cityscapes/gtFine/train"
    for path in (cityscapes_root / "cityscapes/leftImg8bit/train").rglob("*.png"):
        name = path.name.replace("leftImg8bit", "gtFine_labelIds")
        write_png(labels / path.parent.name / name, np.full((64, 128), 7, np.uint8))
    watch = OpenWatch([labels, *labels.iterdir()])
    adapted(**{"TCR.UPDATE_FREQUENCY": 2, "SOLVER.BATCH_SIZE": 1, "DATALOADER.NUM_WORKERS": workers})
    assert watch.opened() == []
    cv2.imread(str(labels / "aachen" / "aachen_000000_000019_gtFine_labelIds.png"))
    assert watch.opened() == ["aachen_000000_000019_gtFine_labelIds.png"]  # what goes past Python is seen, too


@pytest.mark.parametrize(
    ("argv", "overrides", "reason"),
    [(["--skip-test"], {}, "--skip-test"), ([], {"DATASETS.TEST": ""}, "DATASETS.TEST is empty")],
)
def test_without_evaluation_one_line_says_why(adapted, argv, overrides, reason):
    out, log = adapted(*argv, **QUICK, **overrides)
    (line,) = [line for line in log if "no evaluation" in line]
    assert line.endswith(f": {reason}")
    assert (out / "model_iter000001.pth").exists()
    assert not (out / "evaluation.csv").exists()
    assert not any("mIoU" in line for line in log)


def test_the_last_lines_of_a_run_are_commands_that_work(adapted, write_png, draw_scene, capsys):
    folder = Path(adapted(**QUICK)[0]).parent
    for number in range(2):
        write_png(folder / f"my frames/{number}.png", draw_scene(number)[0])
    overrides = {"DATASETS.TARGET_TRAIN": f"folder:{folder}/my frames", "OUTPUT_DIR": f"{folder}/second run"}
    out, log = adapted("--skip-test", "DATASETS.TEST", "", **QUICK, **overrides)
    commands = [shlex.split(line.partition(": ")[2]) for line in log if " next, " in line]
    tools = ("tools.report", "tools.compare", "tools.predict")
    assert [words[:3] for words in commands] == [["python", "-m", name] for name in tools]
    assert report(commands[0][3:]) == 0
    assert (out / "report.html").is_file()
    assert compare(commands[1][3:]) == 0
    assert len(list((out / "compared/comparison").glob("*.png"))) == 2
    assert predict(commands[2][3:]) == 0
    assert len(list((out / "pictures/overlay").glob("*.png"))) == 2
    (evaluation,) = [line for line in adapted("--skip-test", "OUTPUT_DIR", f"{folder}/third")[1] if "test.py" in line]
    assert evaluate(shlex.split(evaluation.partition(": ")[2])[2:]) == 0
    assert f"python -m tools.report {folder}/third" in capsys.readouterr().out


def test_a_run_with_windows_and_the_programs_that_follow_it(adapted, tmp_path, capsys):
    """Passes, evaluation, test.py, report and comparison see the same; training's own views stay as they are."""
    out, log = adapted(**{"TEST.WINDOW": (64, 48), "TEST.STRIDE": (40, 16)})
    said = "windows: 64×48 every 40×16; 6 of a 128×64 image"
    assert sum(line.endswith(said) for line in log) == 2  # the evaluator, and the pass
    plain, other = adapted(OUTPUT_DIR=str(tmp_path / "plain"))
    assert not any("windows: " in line for line in other)
    found, without = (json.loads((folder / "candidates/g0000/index.json").read_text()) for folder in (out, plain))
    assert found["pixels"] != without["pixels"]
    config, checkpoint = str(out / "config.yaml"), "model_iter000002.pth"
    (row,) = rows_of(out / "evaluation.csv")
    assert row["mIoU"] != rows_of(plain / "evaluation.csv")[0]["mIoU"]
    assert evaluate(["-cfg", config, "resume", str(out / checkpoint), "OUTPUT_DIR", str(tmp_path / "test")]) == 0
    (again,) = rows_of(tmp_path / "test/test_cityscapes_val.csv")
    assert again["mIoU"] == row["mIoU"]
    capsys.readouterr()
    assert report([str(out)]) == 0
    assert compare([str(out)]) == 0
    assert capsys.readouterr().out.count(said) == 2


def test_check_tries_everything_and_leaves_nothing_behind(adapted, tmp_path, resnet18, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    out, log = adapted("--check", **resnet18)
    assert not out.exists()
    assert not list((tmp_path / "scratch").iterdir())
    text = "\n".join(log)
    for found in (
        "device: cpu",
        "target images: 6 of cityscapes_train",
        "evaluation: 3 images of cityscapes_val",
        "model: deeplab_resnet18",
        "one paste: ",
        "one training step: loss ",
        "time: ",
        "disk: 1 checkpoints of 46 MB",  # 11.5 M parameters
    ):
        assert found in text, found


def test_check_works_without_pasting_on_fewer_images_than_a_batch(adapted, cityscapes_root):
    (cityscapes_root / "one.txt").write_text("aachen_000000_000019_leftImg8bit\n")
    overrides = {"TCR.PASTE": False, "DATASETS.TARGET_LIST": str(cityscapes_root / "one.txt")}
    _, log = adapted("--check", **overrides)
    assert any("one training step" in line for line in log)


@pytest.mark.parametrize(
    "order",
    ["CONFIG OPTIONS --skip-test", "--skip-test CONFIG OPTIONS", "OPTIONS --skip-test CONFIG", "OPTIONS CONFIG SEED 5"],
)
@pytest.mark.parametrize("spelling", ["-cfg", "--config-file"])
def test_flags_and_options_come_in_any_order(cityscapes_root, write_config, capsys, order, spelling):
    words = {
        "CONFIG": [spelling, str(write_config(cityscapes_root, **QUICK))],
        "OPTIONS": ["SOLVER.BASE_LR", "2e-4", "TEST.BATCH_SIZE", "3"],
    }
    assert adapt([part for word in order.split() for part in words.get(word, [word])]) == 0
    saved = load_config(cityscapes_root / "out/config.yaml")
    seed = 5 if "SEED" in order else 1
    assert saved.SOLVER.BASE_LR == 2e-4
    assert saved.TEST.BATCH_SIZE == 3
    assert saved["SEED"] == seed
    assert ("no evaluation: --skip-test" in capsys.readouterr().out) == ("--skip-test" in order)


def test_any_folder_of_images_will_do(adapted, tmp_path, draw_scene, write_png):
    frames = tmp_path / "my frames"
    write_png(frames / "a.png", draw_scene(1)[0])
    write_png(frames / "über/b.png", draw_scene(2)[0][:, :100])
    Image.fromarray(draw_scene(3)[0]).resize((301, 222)).save(frames / "C.JPG", quality=90)
    (frames / "notes.txt").write_text("no image")
    shutil.rmtree(tmp_path / "cityscapes")
    out, log = adapted(**{"DATASETS.TARGET_TRAIN": f"folder:{frames}", "DATASETS.TEST": "", "SOLVER.STOP_ITER": 4})
    text = "\n".join(log)
    assert "target images: 3 of folder:" in text
    assert "candidate pass g0001: 3 images" in text
    assert len([line for line in log if "another aspect than" in line]) == 1
    assert read_checkpoint(out / "model_iter000004.pth")["iteration"] == 4
    index = json.loads((out / "candidates/g0001/index.json").read_text(encoding="utf-8"))
    assert [image["name"] for image in index["images"]] == ["C.JPG", "a.png", "über/b.png"]


def test_camvid_needs_no_labels_of_its_target_either(camvid_root, make_checkpoint, write_config, capsys):
    make_checkpoint(camvid_root / "source.pth", NUM_CLASSES=11)
    for path in (camvid_root / "camvid/trainannot").iterdir():
        path.unlink()
    overrides = {
        "MODEL.NUM_CLASSES": 11,
        "DATASETS.SOURCE_TRAIN": "camvid_day_train",
        "DATASETS.TARGET_TRAIN": "camvid_dusk_train",
        "DATASETS.TEST": "camvid_dusk_val",
        "INPUT.INPUT_SIZE_TEST": (48, 48),
        "INPUT.TARGET_INPUT_SIZE_TRAIN": (40, 40),
        "TCR.MIX_CLASSES": ["pole", "sign", "person"],
        "resume": str(camvid_root / "source.pth"),
    }
    assert adapt(["-cfg", str(write_config(camvid_root, **overrides))]) == 0
    log = capsys.readouterr().out
    assert "target images: 2 of camvid_dusk_train" in log
    assert "evaluation: 2 images of camvid_dusk_val" in log
    assert "images to paste from: pole " in log
    (row,) = rows_of(camvid_root / "out/evaluation.csv")
    assert [name for name in row if name.startswith("IoU_")][-1] == "IoU_rider"


@pytest.fixture
def images_read(monkeypatch):
    """Paths of the images that training samples read, in order: the image itself, and what is pasted from."""
    seen, cached = [], TargetSamples.cached

    def reading(samples, path, *others):
        seen.append(Path(path))
        return cached(samples, path, *others)

    monkeypatch.setattr(TargetSamples, "cached", reading)
    return seen


@pytest.mark.parametrize("resample", [True, False])
@pytest.mark.parametrize("paste", [True, False])
def test_resampling_and_pasting_can_be_turned_off(adapted, images_read, resample, paste):
    parts = {"TCR.RESAMPLE": resample, "TCR.PASTE": paste}
    out, log = adapted("--skip-test", **parts, **{"SOLVER.STOP_ITER": 3, "TCR.UPDATE_FREQUENCY": 9})
    passes = [line for line in log if "candidate pass" in line]
    assert len(passes) == (resample or paste)
    assert (out / "candidates").exists() == (resample or paste)
    assert all(line.endswith("images to paste from: not asked for") != paste for line in passes)
    samples = 3 * 2
    assert (len(images_read) > samples) == paste  # a paste reads a second image
    if not paste and not resample:
        assert len(set(images_read)) == samples  # uniform: every one of the 6 images once


def test_a_fixed_schedule_moves_the_teacher_without_asking(adapted):
    options = {"DTU.DYNAMIC": False, "DTU.FIX_ITERATION": 2, "SOLVER.STOP_ITER": 4}
    out, _ = adapted("--skip-test", **QUICK | options)
    history = rows_of(out / "dtu_history.csv")
    assert [(row["iteration"], row["decision"]) for row in history] == [("1", "fixed"), ("3", "fixed")]


def test_the_proxy_metric_can_be_the_entropy(adapted, cityscapes_root):
    scores = {}
    for metric in ("ENT", "SND"):
        options = {"OUTPUT_DIR": str(cityscapes_root / metric), "DTU.PROXY_METRIC": metric, "SOLVER.STOP_ITER": 2}
        out, _ = adapted("--skip-test", **QUICK | options)
        scores[metric] = float(rows_of(out / "dtu_history.csv")[0]["mean_before"])
    assert -0.1 < scores["ENT"] <= 1  # 1 + 2·p·log2(p)
    assert 1 < scores["SND"] < np.log(100)  # an entropy over 100 points


def test_bf16_trains_and_saves_full_precision(adapted):
    out, _ = adapted("--skip-test", **{"SOLVER.AMP": "bf16", "SOLVER.STOP_ITER": 2})
    (row,) = rows_of(out / "metrics.csv")
    assert 0 < float(row["loss"]) < 10
    saved = read_checkpoint(out / "model_iter000002.pth")
    assert {value.dtype for value in saved["classifier"].values()} == {torch.float32}


def test_a_run_without_any_candidate_to_paste_says_so_once_and_trains(adapted, images_read):
    out, log = adapted(**{"TCR.MIX_CLASSES": ["train", "bus"], "SOLVER.STOP_ITER": 3, "DATASETS.TEST": ""})
    assert len([line for line in log if "candidate pass" in line]) == 2
    assert len([line for line in log if "training goes on without pasting" in line]) == 1
    assert len(images_read) == 3 * 2
    assert (out / "model_iter000003.pth").exists()


SCRIPTS = {"test": "evaluate", "train_TCR_DTU": "adapt", "train_src": "train_source"}  # and what of core/programs


@pytest.mark.parametrize("name", [*SCRIPTS, *TOOLS])
def test_help_says_what_a_program_does_with_an_example(name, capsys):
    package = (PROJECT / name.replace(".", "/")).is_dir()
    module = f"core.programs.{SCRIPTS[name]}" if name in SCRIPTS else name
    program = importlib.import_module(f"{name}.__main__" if package else module)
    with suppress(SystemExit):
        program.main(["--help"])
    usage, description, *_, example = capsys.readouterr().out.strip().split("\n\n")
    command = f"python -m {name}" if name.startswith("tools.") else f"python {name}.py"
    assert usage.startswith(("usage: " + command, "usage: " + command.removeprefix("python ")))
    assert " ".join(description.split()) in " ".join(program.__doc__.split())
    assert example.startswith(f"example: {command} ")
    assert "\n" not in example
    options = {word for word in shlex.split(example) if re.fullmatch("--?[a-z-]+", word)} - {"-m"}
    assert not {word for word in options if word not in usage}
