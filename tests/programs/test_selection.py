"""test.py --select-with: candidates judged by a few labelled images."""

import shutil

import numpy as np
import pytest
import torch

from core.evaluation.bootstrap import ImageCounts, compare
from core.models.interpolation import interpolated
from core.programs.selection import find_candidates, selection_lines
from core.runs.resume import checkpoints_in, numbered
from core.utils.checkpoints import PARTS
from test import main as evaluate
from tests.helpers import read_checkpoint, rows_of, same_weights

NAMES = ["source", "0.25 adapted", "0.5 adapted", "0.75 adapted"]
CHECKPOINTS = ["model_iter000002.pth", "model_iter000010.pth", "model_adapted.pth"]


@pytest.fixture
def run(cityscapes_root, write_config, tiny_checkpoint):
    """A run's folder beside its config: its source model knows little, its last checkpoint all, the adapted model is
    the first checkpoint, in which every second class has gone.
    """
    folder = cityscapes_root / "run"
    folder.mkdir()
    content = read_checkpoint(tiny_checkpoint)

    def write(path, iteration, classes, scale):
        kept = torch.zeros(19)
        kept[classes] = 1.0
        classifier = {
            key: value * scale * kept.view(-1, *[1] * (value.ndim - 1)) for key, value in content["classifier"].items()
        }
        torch.save(content | {"iteration": iteration, "classifier": classifier}, path)

    source = cityscapes_root / "source.pth"
    write(source, 7, [0, 2], 1.0)
    write(folder / "model_iter000002.pth", 2, [0, 2, 7, 8], 1.0)
    shutil.copy(tiny_checkpoint, folder / "model_iter000010.pth")
    shutil.copy(folder / "model_iter000002.pth", folder / "model_adapted.pth")
    shutil.copy(write_config(cityscapes_root, resume=str(source)), folder / "config.yaml")
    write_config(cityscapes_root, **{"DATASETS.TEST": ""})
    return folder


@pytest.fixture
def program(cityscapes_root, run, capsys):
    """program(*words): test.py --select-with cityscapes_val in this process: (exit code, stdout, stderr)."""

    def start(*words, data="cityscapes_val"):
        config = cityscapes_root / "tiny.yaml"
        code = evaluate(["-cfg", str(config), "--select-with", data, *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return start


def table_of(root):
    return rows_of(root / "out/selection_cityscapes_val.csv")


def test_a_run_is_judged_with_its_source_and_what_lies_between(cityscapes_root, run, program, tiny_checkpoint):
    """Of the scores, those of test.py for the same files."""
    saved = cityscapes_root / "chosen/model.pth"
    code, log, error = program("resume", run, "--save", saved)
    assert (code, error) == (0, "")
    rows = table_of(cityscapes_root)
    assert [row["candidate"] for row in rows] == NAMES + CHECKPOINTS
    assert {row["images"] for row in rows} == {"3"}
    scores = {row["candidate"]: float(row["mIoU"]) for row in rows}
    assert scores["model_iter000002.pth"] == scores["model_adapted.pth"]
    assert scores["model_iter000010.pth"] > scores["model_iter000002.pth"] > scores["source"]
    (best,) = [row for row in rows if row["selected"] == "yes"]
    assert scores[best["candidate"]] == max(scores.values())
    assert [name for name in rows[0] if name.startswith("IoU_")] == [
        f"IoU_{name}" for name in ("road", "building", "pole", "sign", "vegetation", "sky", "rider", "bicycle")
    ]
    lines = log.splitlines()
    assert any("warning: labelled images: 3; intervals of so few say little" in line for line in lines)
    interval = f"{float(best['mIoU_low']):.2f} … {float(best['mIoU_high']):.2f}"
    beside = f"90 % {interval}; source {scores['source']:.2f}"
    ending = f"selected with 3 labelled images: {best['candidate']} (mIoU {float(best['mIoU']):.2f}, {beside})"
    assert lines[-2].endswith(ending)  # before what may follow
    assert set(read_checkpoint(saved)) == {"iteration", "about", *PARTS}

    assert evaluate(["-cfg", str(run / "config.yaml"), "resume", str(run)]) == 0
    tested = rows_of(cityscapes_root / "out/test_cityscapes_val.csv")
    assert [row["checkpoint"] for row in tested] == CHECKPOINTS  # the adapted model comes last
    for row in tested:
        in_labels = [float(row[name]) for name in rows[0] if name.startswith("IoU_")]
        assert scores[row["checkpoint"]] == pytest.approx(np.mean(in_labels), abs=1e-3)


def test_the_selected_model_is_saved_once(cityscapes_root, run, program, tiny_checkpoint):
    (run / "model_iter000010.pth").unlink()  # now what lies between is of the second iteration
    shutil.copy(tiny_checkpoint, run / "model_adapted.pth")
    path = cityscapes_root / "best.pth"
    assert program("resume", run, "--save", path)[0] == 0
    (best,) = [row["candidate"] for row in table_of(cityscapes_root) if row["selected"] == "yes"]
    assert best == "model_adapted.pth"
    assert same_weights(path, tiny_checkpoint)
    assert read_checkpoint(path)["iteration"] == 20000
    before = path.read_bytes()
    path.write_text("mine")
    code, _, error = program("resume", run, "--save", path)
    assert (code, error.count("\n")) == (1, 1)
    assert "already there" in error
    assert path.read_text() == "mine"
    assert program("resume", run, "--save", path, "--overwrite")[0] == 0
    assert path.read_bytes() == before


def test_what_lies_between_is_saved_as_it_was_judged(cityscapes_root, run, program, monkeypatch):
    path, source, last = cityscapes_root / "half.pth", cityscapes_root / "source.pth", run / "model_iter000010.pth"
    monkeypatch.setattr(
        "core.programs.selection.compare", lambda counts, seed: compare([counts[2], counts[2], counts[2]], seed)
    )
    monkeypatch.setattr(
        "core.programs.selection.find_candidates", lambda *args: [find_candidates(*args)[i] for i in (2, 0, 4)]
    )
    assert program("resume", run, "--save", path)[0] == 0
    found, (a, b) = read_checkpoint(path), (read_checkpoint(file) for file in (source, last))
    for part in PARTS:
        expected = interpolated(a[part], b[part], 0.5)
        assert all(found[part][key].equal(value) for key, value in expected.items())
    assert found["iteration"] == b["iteration"]


def test_a_source_model_that_has_moved_is_left_out_unless_given(cityscapes_root, run, program):
    moved = (cityscapes_root / "source.pth").rename(cityscapes_root / "elsewhere.pth")
    code, log, _ = program("resume", run)
    assert code == 0
    assert [row["candidate"] for row in table_of(cityscapes_root)] == CHECKPOINTS
    (line,) = [line for line in log.splitlines() if "left out" in line]
    assert "source.pth" in line
    assert "--source FILE" in line
    assert log.splitlines()[-3].endswith(")")
    assert log.splitlines()[-2].endswith("as a checkpoint: the same command with --save FILE")
    assert "; source" not in log
    assert program("resume", run, "--source", moved)[0] == 0
    assert [row["candidate"] for row in table_of(cityscapes_root)] == NAMES + CHECKPOINTS
    (run / "config.yaml").unlink()
    assert "config.yaml" in program("resume", run)[1]
    assert program("resume", run / "model_iter000010.pth", "--source", moved)[0] == 0
    assert [row["candidate"] for row in table_of(cityscapes_root)] == [*NAMES, "model_iter000010.pth"]


def test_images_without_a_label_file_play_no_part(cityscapes_root, run, program):
    labels = sorted((cityscapes_root / "cityscapes/gtFine").rglob("*.png"))
    labels[0].unlink()
    labels[1].unlink()
    code, log, _ = program("resume", run)
    assert code == 0
    assert "1 of 3 images of cityscapes_val are labelled" in log
    assert "one image gives no interval" in log
    assert log.splitlines()[-3].split("selected with ")[1].startswith("1 labelled image: ")
    rows = table_of(cityscapes_root)
    assert {row["mIoU_low"] for row in rows} == {""}
    assert {row["told_apart"] for row in rows} == {"no"}
    labels[2].unlink()
    code, _, error = program("resume", run)
    assert (code, error.count("\n")) == (1, 1)
    assert "none of 3 images is labelled" in error


def test_what_cannot_be_selected_is_one_line(cityscapes_root, run, program, monkeypatch):
    folder = f"folder:{cityscapes_root / 'cityscapes'}"
    (cityscapes_root / "empty").mkdir()
    other = ["resume", cityscapes_root / "source.pth"]
    for words, data, expected in (
        (["resume", run], folder, "has no labels"),
        (["resume", run], "cityscapes_dusk", "no split 'dusk'"),
        (["resume", cityscapes_root / "empty"], "cityscapes_val", "no model_iter*.pth and no model_adapted.pth"),
        (other, "cityscapes_val", "nothing to select from"),
        (["resume", run, "--source", cityscapes_root / "none.pth"], "cityscapes_val", "does not exist"),
        (["resume", run, "--save", cityscapes_root / "empty"], "cityscapes_val", "is a folder"),
        *((["resume", run, flag], "cityscapes_val", f"leave {flag} out") for flag in ("--saveres", "--flip")),
        (["resume", run, "--rank-without-labels"], "cityscapes_val", "leave --rank-without-labels out"),
    ):
        code, _, error = program(*words, data=data)
        assert (code, error.count("\n")) == (1, 1)
        assert expected in error
    monkeypatch.setattr("core.utils.distributed.count", lambda: 2)
    assert "not by torchrun" in program("resume", run)[2]
    assert not (cityscapes_root / "out").exists()


@pytest.mark.parametrize("flag", ["--save", "--source"])
def test_its_flags_go_with_nothing_else(cityscapes_root, write_config, capsys, flag):
    config = str(write_config(cityscapes_root))
    assert evaluate(["-cfg", config, flag, str(cityscapes_root / "a.pth")]) == 1
    assert f"{flag} goes with --select-with only" in capsys.readouterr().err


def counts(wrong):
    """Of 10 images of 100 pixels, 50 of each of two classes, `wrong` of the first taken for the second."""
    matrices = np.array([[[50 - n, n], [0, 50]] for n in wrong])
    return ImageCounts.of(matrices)


def lines_of(**candidates):
    return selection_lines(list(candidates), compare([counts(wrong) for wrong in candidates.values()], seed=0))


def test_a_clear_choice_is_said_to_be_one():
    lines = lines_of(source=[20] * 10, a=[10, 11] * 5, b=[5, 6] * 5)
    assert lines[-2].startswith("b is better than the source model (by ")
    assert lines[-1].startswith("selected with 10 labelled images: b (mIoU ")
    assert not [line for line in lines if "cannot be told" in line or "warning" in line]


def test_what_the_labels_do_not_show_is_said_with_the_images_that_would():
    lines = lines_of(source=[10, 0] * 5, a=[0, 9] * 5, b=[9, 1] * 5, c=[20] * 10)
    against, unclear, last = lines[-3:]
    assert against.startswith("a is ahead, but the labels do not show that it is better than the source model (by ")
    assert " images would tell them apart" in against
    assert unclear.startswith("cannot be told from a: b (")  # c can, and of the source the line above speaks
    assert "c (" not in unclear
    assert last.startswith("selected with 10 labelled images: a (")


def test_equal_candidates_leave_the_source_model():
    lines = lines_of(a=[3, 4] * 5, source=[3, 4] * 5, b=[3, 4] * 5)
    assert lines[-1].startswith("selected with 10 labelled images: a (")  # the first
    against, unclear, last = lines_of(source=[3, 4] * 5, a=[3, 4] * 5, b=[3, 4] * 5)[-3:]
    assert against == "the labels do not show that any candidate is better than the source model"
    assert unclear == "cannot be told from source: a (the scores are equal); b (the scores are equal)"
    assert last.startswith("selected with 10 labelled images: source (")


def test_the_adapted_model_comes_last_and_has_no_number(tmp_path):
    names = ["model_adapted.pth", "model_iter000020.pth", "model_iter1000000.pth", "model_iter999999.pth"]
    for name in [*names, "model_adapted.pth.tmp"]:
        (tmp_path / name).touch()
    found = checkpoints_in(tmp_path)
    assert [path.name for path in found] == [names[1], names[3], names[2], names[0]]
    assert numbered(found) == found[:-1]


@pytest.mark.parametrize("data", ["cityscapes_tset", "citiscapes_val", "folder:nowhere"])
def test_a_data_set_that_is_not_there_is_the_options_not_the_configs(program, run, data):
    code, _, error = program("resume", run, data=data)
    assert code == 1
    assert error.startswith("error: --select-with ")
    assert data.partition(":")[2] in error
    assert "DATASETS.TEST" not in error
    assert error.count("\n") == 1
