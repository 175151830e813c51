"""The demo: its table against scores given by hand, and the whole of it for real, small."""

import importlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

from core.datasets.reader import ImageSet
from core.datasets.taxonomy import Taxonomy
from tests.networks import TINY
from tools import demo

PAIR = Taxonomy(("road", "sky"))


def score(road, sky):
    return {"IoU_road": road, "IoU_sky": sky, "mIoU": (road + sky) / 2}


def test_the_table_holds_every_score_under_its_title_and_says_what_came_back():
    scores = [score(90, 70), score(50, 10), score(60, 10), score(62, 18)]
    *rows, gap = demo.table_lines(PAIR, ("home", "source", "full", "automatic"), scores)
    assert [" ".join(row.split()) for row in rows] == [
        "home source full automatic",
        "road 90.00 50.00 60.00 62.00",
        "sky 70.00 10.00 10.00 18.00",
        "mIoU 80.00 30.00 35.00 40.00",
    ]
    assert len({len(row) for row in rows}) == 1  # columns end under their titles
    assert "costs 50.00" in gap
    assert gap.endswith("automatic adaptation brings back 10.00 (20 %), the published method 5.00 (10 %)")
    same = demo.table_lines(PAIR, ("home", "source", "full", "automatic"), [score(50, 50)] * 4)
    assert same[-1].endswith("brings back 0.00, the published method 0.00")  # no shift, no share


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The demo of a few images and iterations and a small network, in tmp_path/demo."""
    for name in ("SOURCE_CONFIG", "ADAPTATION_CONFIG", "AUTOMATIC_CONFIG"):
        path = getattr(demo, name)
        with open(path, encoding="utf-8") as file:
            options = yaml.safe_load(file)
        options["MODEL"] = options.get("MODEL", {}) | {"NAME": TINY}
        options["SOLVER"] = options.get("SOLVER", {}) | {"STOP_ITER": 2, "CHECKPOINT_PERIOD": 2, "BATCH_SIZE": 2}
        options.setdefault("INPUT", {})
        options["INPUT"] |= {"INPUT_SIZE_TEST": [64, 32], "SOURCE_INPUT_SIZE_TRAIN": [64, 32]}
        options["INPUT"] |= {"TARGET_INPUT_SIZE_TRAIN": [48, 24]}
        small = tmp_path / path.rpartition("/")[2]
        small.write_text(yaml.safe_dump(options), encoding="utf-8")
        monkeypatch.setattr(demo, name, str(small))
    monkeypatch.setattr(demo, "SOURCE_OPTIONS", ())
    monkeypatch.setattr(demo, "DRAWING_OPTIONS", ("--images-per-split", "4", "--size", "128x64"))
    return tmp_path / "demo"


@pytest.fixture
def in_process(monkeypatch):
    """The demo's commands run in this process, which has imported torch already."""

    def run(command):
        _, *words = command
        name = words.pop(0).removesuffix(".py")
        name = f"{words.pop(0)}.__main__" if name == "-m" else name
        return SimpleNamespace(returncode=importlib.import_module(name).main(words))

    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(run=run))


@pytest.mark.usefixtures("in_process")
def test_the_demo_makes_everything_once_then_reuses_it_and_makes_anew_what_is_missing(small, capfd):
    runs = small / "seed_1"
    assert demo.main(["--folder", str(small)]) == 0
    first = capfd.readouterr().out
    for command in ("-m tools.toy_domains", "train_src.py -cfg", "train_TCR_DTU.py -cfg", "test.py -cfg"):
        assert f"$ python {command}" in first
    assert "reused" not in first
    table = first[first.index("source model at home") :]
    assert "\nroad " in table
    assert "\nmIoU " in table
    assert "automatic on the target" in table
    assert f"picture: {runs / 'before_and_after.png'}" in table
    picture = cv2.imread(str(runs / "before_and_after.png"))
    assert picture.shape[1] > 800

    assert demo.main(["--folder", str(small)]) == 0
    second = capfd.readouterr().out
    assert "$ python" not in second
    for part in (small / "domains", runs / "source", runs / "fixed_ema", runs / "full_method", runs / "automatic"):
        assert f"reused: {part}\n" in second
    assert second[second.index("source model at home") :] == table

    (runs / "automatic/verdict.json").unlink()  # it was interrupted
    assert demo.main(["--folder", str(small)]) == 0
    third = capfd.readouterr().out
    assert [line.split()[2] for line in third.splitlines() if line.startswith("$")] == ["train_TCR_DTU.py", "test.py"]
    assert f"removed: {runs / 'automatic'} (incomplete" in third
    assert third[third.index("source model at home") :] == table  # the same seed


def test_what_was_made_from_something_goes_before_that_is_made_anew(small, monkeypatch):
    """However the demo is interrupted, nothing of an earlier source model is left to be reused."""

    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_command", interrupted)
    story = demo.Demo(small, 1)
    for run in (story.source, story.fixed, story.full, story.automatic):
        (run.folder / "evaluation").mkdir(parents=True)
    for name in ("toy_source", "toy_target"):
        (small / "domains" / name).mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        story.run()  # the source is incomplete
    assert [path.name for path in (small / "seed_1").iterdir()] == []
    assert (small / "domains/toy_target").is_dir()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys, kind):
    folder = tmp_path / "results"
    if kind == "folder":
        (folder / "source").mkdir(parents=True)
        (folder / "source/mine.txt").write_text("precious")
    else:
        folder.write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    assert demo.main(["--folder", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert sorted(tmp_path.rglob("*")) == before


def test_scores_are_read_only_from_a_whole_table(tmp_path):
    table = tmp_path / "test_x.csv"
    assert demo.read_scores(table) is None
    for text, expected in (
        ("checkpoint,mIoU\n", None),
        ("checkpoint,mIoU\na.pth\n", None),
        ("checkpoint,mIoU\na.pth,1.5\nb.pth,2.5\n", None),
        ("checkpoint,mIoU\na.pth,1.5\n", {"mIoU": 1.5}),
    ):
        table.write_text(text)
        assert demo.read_scores(table) == expected


@pytest.mark.usefixtures("in_process")
def test_a_failed_command_ends_the_demo_in_one_line(small, monkeypatch, capfd):
    monkeypatch.setattr(demo, "DRAWING_OPTIONS", ("--images-per-split", "0"))
    assert demo.main(["--folder", str(small)]) == 1
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 2  # the command's own, and the demo's
    assert errors[0].startswith("error: 0 images for toy_source train")
    assert "exit code 1" in errors[1]


def test_the_images_shown_are_the_quartiles_of_the_improvement():
    before = np.array([50.0, 50, float("nan"), 50, 50, 50])
    chosen = demo.at_quartiles(before, before + np.array([8, -2, 0, 30, 1, 4]))
    assert chosen == {"25th percentile": 4, "median image": 5, "75th percentile": 0}


def test_gains_and_losses_are_marked_and_counted():
    label, before, after = np.array([[[0, 0, 0, 0, 1, 255]], [[0, 1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1, 1]]], np.uint8)
    picture = demo.change_map(np.full((1, 6, 3), 100, np.uint8), label, before, after)
    right, gained, wrong, lost, other, unlabelled = picture[0].tolist()
    assert len(set(right)) == 1
    assert 0 < right[0] < 255
    assert [tuple(one) for one in (gained, wrong, lost, other)] == [
        demo.MARKS[name] for name in ("gained", "wrong", "lost", "gained")
    ]
    assert unlabelled == [0, 0, 0]
    assert demo.shares(label, before, after) == {"gained": 40, "lost": 20, "wrong": 40}
    # road: 2 of 5 before, 2 of 4 after; sky: 0 of 3, 1 of 3
    assert demo.class_changes(PAIR, label, before, after) == "sky +33, road +10"
    assert demo.class_changes(PAIR, label, after, before) == "sky −33, road −10"
    assert demo.class_changes(PAIR, label, after, after) == "no class gained or lost"


@pytest.fixture
def predicted(tmp_path):
    """(5 labelled images all road, folders of predictions: "before" all sky, "after" all road)."""
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{i}.png" for i in range(5))
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (20, 40, 3)).astype(np.uint8))
        for folder, value in (("label", 0), ("before", 1), ("after", 0)):
            (tmp_path / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / folder / path.name), np.full((20, 40), value, np.uint8))
    table = np.arange(256, dtype=np.uint8)
    images = ImageSet("x_val", paths, tuple(p.name for p in paths), lambda p: p.parent / "label" / p.name, table)
    return images, {name: tmp_path / name for name in ("before", "after")}


def test_mean_ious_are_those_of_the_saved_predictions(predicted):
    images, folders = predicted
    assert [demo.mean_ious(images, PAIR, folder).tolist() for folder in folders.values()] == [[0.0] * 5, [100.0] * 5]


def test_the_picture_shows_image_truth_predictions_and_errors(predicted, tmp_path):
    demo.draw_picture(tmp_path / "out.png", predicted[0], PAIR, PAIR.palette(), predicted[1])
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out.png")), cv2.COLOR_BGR2RGB)
    road, sky = PAIR.palette()[:2]
    first, before, after = (
        picture[:, column * picture.shape[1] // 3 :][:, : picture.shape[1] // 3] for column in range(3)
    )
    for part, colour, shown in (
        (first, road, True),
        (before, sky, True),
        (before, demo.MARKS["wrong"], True),
        (after, road, True),
        (after, demo.MARKS["gained"], True),
        (after, demo.MARKS["lost"], False),
    ):
        share = (part == colour).all(axis=2).mean()
        assert share > 0.25 if shown else share < 0.01  # half of the column, apart from margins and the legend
