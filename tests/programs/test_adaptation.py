"""The programs for real: tiny adaptation runs with everything that they write, and the evaluation of checkpoints."""

import importlib
import json
import math
import re
import shlex
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from core.configs import load_config
from core.datasets.images import read_image
from core.datasets.taxonomy import CITYSCAPES_19
from core.selftraining import samples as samples_module
from test import main as evaluate
from tests.helpers import PROJECT, OpenWatch, events_of, read_checkpoint, rows_of, same_weights, start, without_details
from tools.compare.__main__ import main as compare
from tools.predict.__main__ import main as predict
from tools.report.__main__ import main as report
from train_TCR_DTU import main as adapt

MAIN = re.compile("^def main", re.MULTILINE)
FILES = sorted([*(PROJECT / "tools").glob("*.py"), *(PROJECT / "tools").glob("*/__main__.py")])
TOOLS = [
    f"tools.{p.parent.name if p.stem == '__main__' else p.stem}" for p in FILES if MAIN.search(p.read_text("utf-8"))
]
QUICK = {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 1, "SOLVER.BATCH_SIZE": 1}
LONG = {"SOLVER.STOP_ITER": 8}  # passes before training and after 2 and 5 iterations; checkpoints after 4 and 8


def held(folder):
    """Every file below a folder with its bytes and its time."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_cityscapes, write_config, resnet18):
    """A ResNet-18's whole run in a process of its own, with a worker: 8 iterations, 2 later passes, 2 checkpoints."""
    folder = make_cityscapes(tmp_path_factory.mktemp("run"))
    config = write_config(folder, **LONG, **resnet18, **{"DATALOADER.NUM_WORKERS": 1, "VIS.PERIOD": 3})
    process = start("train_TCR_DTU.py", "-cfg", config)
    assert process.returncode == 0, process.stderr
    return SimpleNamespace(folder=folder, config=config, out=folder / "out", process=process)


@pytest.fixture
def adapted(cityscapes_root, write_config, capsys):
    """adapted(argv=(), **overrides): a tiny run in this process, which must succeed: (OUTPUT_DIR, its log lines)."""

    def run(*argv, **overrides):
        config = write_config(cityscapes_root, **overrides)
        code = adapt(["-cfg", str(config), *argv])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        out = Path(load_config(config).OUTPUT_DIR)
        return out, captured.out.splitlines()

    return run


# --- one whole run ---------------------------------------------------------------------------------------------------


def test_a_run_writes_these_files_and_no_others(run):
    assert not (run.folder / "cityscapes/gtFine/train").exists()  # it needed no label of the target
    assert run.process.stderr == ""
    found = {path.relative_to(run.out).as_posix() for path in run.out.rglob("*") if path.is_file()}
    generations = ("g0001", "g0002")  # the state after iteration 4 needs the former, the last one the latter
    labels = {f"candidates/{name}/labels/{number:06d}.png" for name in generations for number in range(6)}
    events = {name for name in found if name.startswith("tensorboard/events.out.tfevents.")}
    assert len(events) == 1
    assert found == labels | events | {
        "candidates.csv",
        "candidates/g0001/index.json",
        "candidates/g0002/index.json",
        "config.yaml",
        "confusion.csv",
        "confusion.png",
        "environment.json",
        "images.txt",
        "dtu_history.csv",
        "evaluation.csv",
        "evaluation_source.csv",
        "log.txt",
        "metrics.csv",
        "model_iter000004.pth",
        "model_iter000008.pth",
        "panels/iter000003.png",
        "panels/iter000006.png",
        "state/iter000004.pth",
        "state/iter000008.pth",
    }


@pytest.mark.parametrize("iteration", [4, 8])
def test_checkpoints_of_a_run_have_the_published_format(run, resnet18, iteration):
    saved, source = read_checkpoint(run.out / f"model_iter{iteration:06d}.pth"), read_checkpoint(resnet18["resume"])
    assert {"iteration", "feature_extractor", "classifier"} <= saved.keys()
    assert saved["iteration"] == iteration
    for part in ("feature_extractor", "classifier"):
        assert saved[part].keys() == source[part].keys()
        assert all(value.isfinite().all() and value.dtype == torch.float32 for value in saved[part].values())


def test_checkpoints_hold_the_teacher_which_moves_only_when_the_history_says_so(run, resnet18):
    middle, last = (run.out / f"model_iter{iteration:06d}.pth" for iteration in (4, 8))
    moves = [int(row["iteration"]) for row in rows_of(run.out / "dtu_history.csv") if row["decision"] != "refused"]
    assert same_weights(resnet18["resume"], middle) == (not any(move <= 4 for move in moves))
    assert same_weights(middle, last) == (not any(4 < move <= 8 for move in moves))
    assert moves  # at the latest a forced update at the query with 5 batches
    before, after = (read_checkpoint(path)["classifier"] for path in (resnet18["resume"], last))
    step = [(after[key] - before[key]).abs().max().item() for key in before]
    assert 0 < max(step) < 0.01 * len(moves)  # a share of 0.01 of what the student learnt, at each move


def test_the_history_of_the_dynamic_teacher_follows_the_queries(run):
    history = rows_of(run.out / "dtu_history.csv")
    buffered, position = 0, iter(history)
    for iteration in range(1, 9):
        buffered += 1
        if buffered < 2:  # Query_START 2, Query_STEP 1
            continue
        row = next(position)
        assert (int(row["iteration"]), int(row["batches"])) == (iteration, buffered)
        if buffered > 4:  # META_MAX_UPDATE
            assert row["decision"] == "forced"
        else:
            improved, scored = int(row["improved"]), int(row["scored"])
            assert (row["decision"] == "improved") == (2 * improved > buffered)
            assert float(row["fraction_improved"]) == pytest.approx(improved / scored)
        buffered = buffered if row["decision"] == "refused" else 0
    assert next(position, None) is None


def test_metrics_are_a_table_of_what_a_rerun_would_repeat(run):
    (row,) = rows_of(run.out / "metrics.csv")  # a row every 20 iterations, and at the last one
    assert list(row) == ["iteration", "lr", "loss", "positive", "negative", "labelled"]
    assert row["iteration"] == "8"
    assert float(row["lr"]) == pytest.approx(1e-4 * (1 - 7 / 100) ** 0.9, rel=1e-6)
    loss, positive, negative = (float(row[name]) for name in ("loss", "positive", "negative"))
    assert loss == pytest.approx(positive + negative, rel=1e-5)
    assert min(positive, negative) > 0
    assert 0.1 < float(row["labelled"]) < 1


def test_checkpoints_are_evaluated_as_test_py_does_it(run, tmp_path, capsys):
    recorded = rows_of(run.out / "evaluation.csv")
    assert [row["iteration"] for row in recorded] == ["4", "8"]
    assert float(recorded[0]["mIoU_occurring"]) > 50  # the tiny model knows the scenes
    argv = ["-cfg", run.config, "resume", run.out / "model_iter000008.pth", "OUTPUT_DIR", tmp_path / "test"]
    assert evaluate([str(word) for word in argv]) == 0
    (row,) = rows_of(tmp_path / "test/test_cityscapes_val.csv")
    assert row.pop("checkpoint") == "model_iter000008.pth"
    del recorded[1]["iteration"]
    assert row == recorded[1]
    (newest,) = run.out.glob("confusion*.csv")
    assert (tmp_path / "test/confusion_cityscapes_val.csv").read_text() == newest.read_text()
    log = capsys.readouterr().out
    assert f"mIoU {float(row['mIoU']):.2f}" in log
    assert "over the 8 classes that occur in the labels (mIoU_labelled)" in log
    assert "in the labels of cityscapes_val: mIoU counts" in (run.out / "log.txt").read_text()


def test_tensorboard_shows_what_the_tables_hold(run):
    events = events_of(run.out / "tensorboard")
    (metrics,) = rows_of(run.out / "metrics.csv")
    for name in ("loss", "positive", "negative", "labelled", "lr"):
        ((step, value),) = events.pop(f"train/{name}")
        assert (step, value) == (8, pytest.approx(float(metrics[name]), rel=1e-6)), name
    assert events.pop("train/seconds_per_iteration")[0][1] > 0
    assert 0.1 < events.pop("train/memory_GB")[0][1] < 20
    history = rows_of(run.out / "dtu_history.csv")
    decisions = ["refused", "improved", "forced"]
    expected = [(int(row["iteration"]), decisions.index(row["decision"])) for row in history]
    assert events.pop("teacher/decision") == expected
    assert events.pop("teacher/interval") == [(int(row["iteration"]), int(row["batches"])) for row in history]
    scored = [row for row in history if row["mean_after"]]
    changes = events.pop("teacher/score_change", [])
    assert [step for step, _ in changes] == [int(row["iteration"]) for row in scored]
    for (_, change), row in zip(changes, scored, strict=True):
        assert change == pytest.approx(float(row["mean_after"]) - float(row["mean_before"]), abs=1e-6)
    state = torch.load(run.out / "state/iter000008.pth", weights_only=True)
    for index, name in enumerate(CITYSCAPES_19.names):
        confidence = float(state["running_conf"][index])
        assert events.pop(f"running_confidence/{name}") == [(8, confidence)]
        scale = max(0.8 * (1 - math.exp(-confidence / 1e-3)), 0.2)
        assert events.pop(f"threshold_scale/{name}") == [(8, pytest.approx(scale, rel=1e-5))]
    evaluated = rows_of(run.out / "evaluation_source.csv") + rows_of(run.out / "evaluation.csv")
    for column in list(evaluated[1])[1:]:
        kind, _, name = column.partition("_")
        tag = f"{kind}/{name}" if name in CITYSCAPES_19.names else f"evaluation/{column}"
        assert events.pop(tag) == [
            (n, pytest.approx(float(row[column]))) for n, row in zip((0, 4, 8), evaluated, strict=True)
        ]
    assert [step for step, _ in events.pop("panel")] == [3, 6]
    height = read_image(run.out / "confusion.png").shape[0]
    assert events.pop("confusion") == [(4, height), (8, height)]
    assert not events


def test_the_saved_config_is_the_one_of_the_run(run):
    saved, given = load_config(run.out / "config.yaml"), load_config(run.config)
    assert saved == given
    assert str(run.out) == saved.OUTPUT_DIR


def test_the_log_tells_the_run_in_order_on_the_terminal_and_in_the_file(run):
    log = (run.out / "log.txt").read_text(encoding="utf-8")
    assert run.process.stdout == without_details(log)
    assert "option SOLVER.BASE_LR: 0.0001\n" in log
    assert f"class names: {', '.join(CITYSCAPES_19.names)}\n" in log
    events = (
        "device: cpu (1 threads), float32",
        "target images: 6 of cityscapes_train",
        "classes: 19 (road, sidewalk, building, wall, fence, …)\n",
        "model: deeplab_resnet18, 11.5 M parameters, from ",
        "evaluation: 3 images of cityscapes_val",
        "8 iterations of 2 images; checkpoint and state every 4, the newest 2 states are kept",
        "TensorBoard: below tensorboard/; panels: 2 below panels/, every 3",
        "evaluating ",
        "mIoU",
        "candidate pass g0000: 6 images",
        "candidate pass g0001",
        "model_iter000004.pth",
        "candidate pass g0002",
        "iteration 8/8",
        "model_iter000008.pth",
        "next, the run on one page",
    )
    positions = [log.index(event) for event in events]
    assert positions == sorted(positions)


def test_later_passes_follow_update_frequency(run):
    index = json.loads((run.out / "candidates/g0002/index.json").read_text(encoding="utf-8"))
    assert index["iteration"] == 5  # (N + 1) mod 3 = 0 for N = 2 and 5
    assert [image["size"] for image in index["images"]] == [[64, 128]] * 6
    label = cv2.imread(str(run.out / "candidates/g0002/labels/000000.png"), cv2.IMREAD_UNCHANGED)
    assert (label.shape, label.dtype) == ((32, 64), np.uint8)  # half the image's size


def test_a_second_run_does_not_touch_the_folder_of_the_first(run, capsys):
    before = held(run.out)
    assert adapt(["-cfg", str(run.config)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert str(run.out) in captured.err
    assert held(run.out) == before


def test_the_same_seed_gives_the_same_run_whatever_the_number_of_workers_and_whoever_watches(run, tmp_path):
    again = tmp_path / "again"
    options = ["DATALOADER.NUM_WORKERS", "0", "VIS.PERIOD", "0", "VIS.TENSORBOARD", "False"]
    assert adapt(["-cfg", str(run.config), "OUTPUT_DIR", str(again), *options]) == 0
    assert not [name for name in ("panels", "tensorboard") if (again / name).exists()]
    for name in ("metrics.csv", "evaluation.csv", "dtu_history.csv"):
        assert (again / name).read_bytes() == (run.out / name).read_bytes(), name
    last = "model_iter000008.pth"
    assert same_weights(again / last, run.out / last)


def test_another_seed_gives_another_run(adapted, cityscapes_root):
    metrics = []
    for seed in (3, 4):
        out, _ = adapted("--skip-test", **QUICK, OUTPUT_DIR=str(cityscapes_root / str(seed)), SEED=seed)
        metrics.append((out / "metrics.csv").read_text())
    assert metrics[0] != metrics[1]


# --- short runs ------------------------------------------------------------------------------------------------------


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


def test_the_source_model_is_evaluated_too_and_the_end_compares(run, tmp_path, resnet18):
    assert evaluate(["-cfg", str(run.config), "resume", resnet18["resume"], "OUTPUT_DIR", str(tmp_path)]) == 0
    (expected,) = rows_of(tmp_path / "test_cityscapes_val.csv")
    (row,) = rows_of(run.out / "evaluation_source.csv")
    assert (row.pop("iteration"), row.pop("checkpoint")) == ("0", resnet18["resume"])
    del expected["checkpoint"]
    assert row == expected
    before, after = float(row["mIoU"]), float(rows_of(run.out / "evaluation.csv")[-1]["mIoU"])
    lines = run.process.stdout.splitlines()
    assert any(f" mIoU {before:.2f} → {after:.2f} (" in line and "the source model" in line for line in lines[-5:])
    assert events_of(run.out / "tensorboard")["evaluation/mIoU"][0] == (0, pytest.approx(before, abs=0.01))


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
    seen, read_image = [], samples_module.read_image

    def reading(path):
        seen.append(Path(path))
        return read_image(path)

    monkeypatch.setattr(samples_module, "read_image", reading)
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
