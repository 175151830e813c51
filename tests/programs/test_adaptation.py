"""The programs for real: tiny adaptation runs with everything that they write, and the evaluation of checkpoints."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from core.configs import load_config
from core.datasets.images import read_image
from core.datasets.taxonomy import CITYSCAPES_19
from test import main as evaluate
from tests.helpers import events_of, read_checkpoint, rows_of, same_weights, start, without_details
from train_TCR_DTU import main as adapt

QUICK = {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 1, "SOLVER.BATCH_SIZE": 1}
LONG = {"SOLVER.STOP_ITER": 8}  # passes before training and after 2 and 5 iterations; checkpoints after 4 and 8


def held(folder):
    """Every file below a folder with its bytes and its time."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_cityscapes, write_config):
    """A whole run in a process of its own: 8 iterations, 2 later passes, 2 checkpoints."""
    folder = make_cityscapes(tmp_path_factory.mktemp("run"))
    config = write_config(folder, **LONG, **{"VIS.PERIOD": 3})
    process = start("train_TCR_DTU.py", "-cfg", config)
    assert process.returncode == 0, process.stderr
    return SimpleNamespace(folder=folder, config=config, out=folder / "out", process=process)


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
def test_checkpoints_of_a_run_have_the_published_format(run, tiny_checkpoint, iteration):
    saved, source = read_checkpoint(run.out / f"model_iter{iteration:06d}.pth"), read_checkpoint(tiny_checkpoint)
    assert {"iteration", "feature_extractor", "classifier"} <= saved.keys()
    assert saved["iteration"] == iteration
    for part in ("feature_extractor", "classifier"):
        assert saved[part].keys() == source[part].keys()
        assert all(value.isfinite().all() and value.dtype == torch.float32 for value in saved[part].values())


def test_checkpoints_hold_the_teacher_which_moves_only_when_the_history_says_so(run, tiny_checkpoint):
    middle, last = (run.out / f"model_iter{iteration:06d}.pth" for iteration in (4, 8))
    moves = [int(row["iteration"]) for row in rows_of(run.out / "dtu_history.csv") if row["decision"] != "refused"]
    assert same_weights(tiny_checkpoint, middle) == (not any(move <= 4 for move in moves))
    assert same_weights(middle, last) == (not any(4 < move <= 8 for move in moves))
    assert moves  # at the latest a forced update at the query with 5 batches
    before, after = (read_checkpoint(path)["classifier"] for path in (tiny_checkpoint, last))
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
        "model: tests.networks:tiny, 0.1 M parameters, from ",
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
    options = ["DATALOADER.NUM_WORKERS", "1", "VIS.PERIOD", "0", "VIS.TENSORBOARD", "False"]
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


def test_the_source_model_is_evaluated_too_and_the_end_compares(run, tmp_path, tiny_checkpoint):
    assert evaluate(["-cfg", str(run.config), "resume", str(tiny_checkpoint), "OUTPUT_DIR", str(tmp_path)]) == 0
    (expected,) = rows_of(tmp_path / "test_cityscapes_val.csv")
    (row,) = rows_of(run.out / "evaluation_source.csv")
    assert (row.pop("iteration"), row.pop("checkpoint")) == ("0", str(tiny_checkpoint))
    del expected["checkpoint"]
    assert row == expected
    before, after = float(row["mIoU"]), float(rows_of(run.out / "evaluation.csv")[-1]["mIoU"])
    lines = run.process.stdout.splitlines()
    assert any(f" mIoU {before:.2f} → {after:.2f} (" in line and "the source model" in line for line in lines[-5:])
    assert events_of(run.out / "tensorboard")["evaluation/mIoU"][0] == (0, pytest.approx(before, abs=0.01))
