"""tools.compare for real: both models' pictures, what changed by hand, the page, movies, and what is refused."""

import re
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.configs import cfg, load_config
from core.datasets.taxonomy import CITYSCAPES_19
from core.evaluation.pictures import Painter
from tests.helpers import contents, rows_of, start
from tools.compare.__main__ import _titles
from tools.compare.__main__ import main as compare
from tools.compare.changes import NEAR, Changes
from tools.predict.__main__ import main as predict
from tools.predict.movies import movie
from tools.predict.video import open_video

SIZES = {"a.png": (64, 128), "day/b.png": (50, 128), "day/c.png": (64, 100)}  # (h, w)
PAINTER = Painter.of(cfg.VIS, CITYSCAPES_19)


@pytest.fixture
def frames(tmp_path, draw_scene, write_png):
    """tmp_path/frames: a.png, day/b.png, day/c.png, scenes of different sizes."""
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        write_png(tmp_path / "frames" / name, draw_scene(number)[0][:height, :width])
    return tmp_path / "frames"


@pytest.fixture
def run(tmp_path, write_config, make_checkpoint):
    """The folder of a run that made random weights of the tiny source model."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(load_config(write_config(tmp_path)).dump(), encoding="utf-8")
    make_checkpoint(folder / "model_iter000004.pth")
    return folder


@pytest.fixture
def done(run, capfd):
    """done(*argv): tools.compare of the run, which must succeed; its last line."""

    def make(*argv):
        code = compare([str(word) for word in argv])
        captured = capfd.readouterr()
        assert (code, captured.err) == (0, "")
        return captured.out.splitlines()[-1]

    return make


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def classes_of(tmp_path, frames, run, checkpoint):
    """Of every frame the classes, as tools.predict writes them into label files."""
    out = tmp_path / f"predicted_{checkpoint.stem}"
    argv = ["-cfg", run / "config.yaml", frames, "--save", "colour", "-o", out, "resume", checkpoint]
    assert predict([str(word) for word in argv]) == 0
    return {name: read(out / "colour" / name) for name in SIZES}


def test_pictures_shares_page_and_table_are_those_of_both_predictions(tmp_path, frames, run, tiny_checkpoint, capfd):
    """In a process of its own, as a user does it."""
    out = run / "compared"
    process = start("-m", "tools.compare", run, frames)
    assert (process.returncode, process.stderr) == (0, "")
    assert list(contents(out)) == sorted(["changes.csv", "compare.html", *(f"comparison/{name}" for name in SIZES)])
    before = classes_of(tmp_path, frames, run, tiny_checkpoint)
    after = classes_of(tmp_path, frames, run, run / "model_iter000004.pth")
    capfd.readouterr()
    shares = {name: 100 * (before[name] != after[name]).mean() for name in SIZES}
    assert min(shares.values()) > 1
    assert {row["image"]: float(row["changed_percent"]) for row in rows_of(out / "changes.csv")} == {
        name: pytest.approx(share, abs=0.006) for name, share in shares.items()
    }
    for name in SIZES:
        image = read(frames / name)
        tiles = [
            (f"source: {tiny_checkpoint.name}", PAINTER.overlay(image, before[name])),
            ("adapted: model_iter000004.pth", PAINTER.overlay(image, after[name])),
            ("image", image),
            (
                f"changed: {shares[name]:.1f} % of the pixels, in their new colour",
                PAINTER.changed(image, before[name], after[name]),
            ),
        ]
        assert (read(out / "comparison" / name) == PAINTER.panel(name, tiles, columns=2)).all()
    page = (out / "compare.html").read_text(encoding="utf-8")
    order = sorted(SIZES, key=lambda name: -shares[name])
    found = re.findall(r">(\S+): (\d+\.\d) % of the pixels changed class</p>", page)
    assert found == [(name, f"{shares[name]:.1f}") for name in order]
    assert page.count("data:image/jpeg") == 4 * len(SIZES)
    ElementTree.fromstring(page.partition("\n")[2])  # it is well formed
    assert not re.search(r"url\(|@import|https?:", page)
    last = process.stdout.splitlines()[-1]
    assert f"compared 3 images: {np.mean([*shares.values()]):.1f} % of the pixels changed class" in last
    assert str(out / "compare.html") in last


def test_without_input_it_takes_the_runs_own_images_and_the_model_to_use(done, run, cityscapes_root, tiny_checkpoint):
    (run / "model_adapted.pth").write_bytes(tiny_checkpoint.read_bytes())
    last = done(run)  # model_adapted.pth, which is as the source model
    assert "compared 3 images: no pixel changed its class" in last
    names = [row["image"] for row in rows_of(run / "compared/changes.csv")]
    assert len(names) == 3
    assert all("/val/" in name for name in names)
    assert "No pixel changed" in (run / "compared/compare.html").read_text(encoding="utf-8")


def test_models_by_name_and_a_config(done, tmp_path, run, frames, tiny_checkpoint):
    for name in ("one/x", "two/x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.pth").write_bytes(tiny_checkpoint.read_bytes())
    words = ("-cfg", tmp_path / "tiny.yaml", "--source", tmp_path / "one/x/model.pth")
    last = done(*words, "--adapted", tmp_path / "two/x/model.pth", frames / "a.png", "-o", tmp_path / "made")
    assert "compared 1 image: no pixel" in last
    done(*words, "--adapted", run / "model_iter000004.pth", frames / "a.png", "-o", tmp_path / "made", "--overwrite")
    assert len(rows_of(tmp_path / "made/changes.csv")) == 1


def test_a_config_whose_run_has_no_folder_yet_is_one_line(run, tmp_path, frames, tiny_checkpoint, capsys):
    words = ["-cfg", tmp_path / "tiny.yaml", "OUTPUT_DIR", tmp_path / "nothing", "--source", tiny_checkpoint, frames]
    assert compare(list(map(str, words))) == 1
    assert "holds no checkpoint of an adapted model: give --adapted FILE" in capsys.readouterr().err


def test_a_video_becomes_a_video_with_both(done, tmp_path, run, draw_scene):
    with movie(tmp_path / "drive.mp4", 10) as append:
        for number in range(5):
            append(draw_scene(number)[0])
    assert "compared 5 images" in done(run, tmp_path / "drive.mp4", "TEST.BATCH_SIZE", 2, "-o", tmp_path / "made")
    with open_video(tmp_path / "made/comparison/drive.mp4") as made:
        assert (made.fps, len(list(made.frames))) == (10, 5)
    rows = rows_of(tmp_path / "made/changes.csv")
    assert [row["image"] for row in rows] == [f"drive.mp4, frame {number}" for number in range(5)]
    page = (tmp_path / "made/compare.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 4  # of frames so near to each other one
    assert f"{max(float(row['changed_percent']) for row in rows):.1f} % of the pixels changed class</p>" in page


def test_images_become_one_movie_on_demand_and_a_colour_blind_reader_is_served(done, tmp_path, run, frames):
    done(run, frames, "--as", "gif", "-o", tmp_path / "made", "VIS.COLOURS", "colour_blind")
    assert list(contents(tmp_path / "made")) == ["changes.csv", "compare.html", "comparison.gif"]
    blind = Painter.of(cfg.changed({"VIS.COLOURS": "colour_blind"}).VIS, CITYSCAPES_19).palette[0]
    page = (tmp_path / "made/compare.html").read_text(encoding="utf-8")
    assert f"rgb({','.join(map(str, blind.tolist()))})" in page


def test_nothing_is_overwritten_without_being_told(done, run, frames, capfd):
    done(run, frames)
    before = contents(run)
    assert compare([str(run), str(frames)]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "--overwrite" in error
    assert contents(run) == before
    done(run, run.parent, "--overwrite")  # what it made is no input
    assert len(rows_of(run / "compared/changes.csv")) == 3


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["nothing to compare", "--adapted"]),
        (["{root}/frames"], ["not a run's folder", "config.yaml"]),
        (["{root}/run", "{root}/nowhere"], ["nowhere", "no such file"]),
        (["{root}/run", "resume", ""], ["no source model", "--source FILE"]),
        (["{root}/run", "--source", "{root}/lost.pth"], ["source model", "lost.pth", "--source"]),
        (["{root}/run", "--adapted", "{root}/lost.pth"], ["adapted model", "lost.pth", "--adapted"]),
        (["-cfg", "{root}/tiny.yaml", "{root}/frames"], ["no checkpoint", "--adapted FILE"]),
        (["{root}/run", "--source", "{root}/run/model_iter000004.pth"], ["source and adapted", "both"]),
        (["{root}/run", "{root}/frames", "--adapted", "{root}/frames/a.png"], ["a.png", "not a checkpoint"]),
        (["{root}/run", "{root}/frames", "MODEL.DEVCE", "cpu"], ["did you mean MODEL.DEVICE?"]),
        (["{root}/run", "{root}/frames", "--as", "avi"], ["--as", "gif"]),
        (["{root}/run"], ["cityscapes", "val"]),  # whose images are not there
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, run, frames, capfd, argv, parts):
    before = sorted(tmp_path.rglob("*"))
    assert compare([word.replace("{root}", str(tmp_path)) for word in argv]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not [part for part in parts if part not in line], line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_image_is_named_and_what_was_done_stays(tmp_path, run, frames, capfd):
    (frames / "day/b.png").write_bytes(b"no image")
    assert compare([str(run), str(frames)]) == 1
    assert "b.png" in capfd.readouterr().err
    assert list(contents(run / "compared")) == ["changes.csv", "comparison/a.png"]


@pytest.mark.parametrize(
    ("first", "second", "titles"),
    [
        ("a/one.pth", "a/two.pth", ("one.pth", "two.pth")),
        ("a/m.pth", "b/m.pth", ("a/m.pth", "b/m.pth")),
        ("a/x/m.pth", "b/x/m.pth", ("a/x/m.pth", "b/x/m.pth")),
        ("a/m.pth", "a/a/m.pth", None),
    ],
)
def test_checkpoints_are_told_apart_by_as_much_of_their_paths_as_it_takes(first, second, titles):
    found = _titles(Path(first), Path(second))
    assert found[0] != found[1]
    assert titles is None or found == titles


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 4))
def test_the_changes_add_up(seed, count, keep):
    rng, names = np.random.default_rng(seed), ("road", "sky", "car")
    pairs = rng.integers(0, 3, (count, 2, 6, 8)).astype(np.uint8)
    if seed % 3 == 0:
        pairs[:, 1] = pairs[:, 0]
    changes = Changes(names, keep)
    drawn = []
    for index, (before, after) in enumerate(pairs):
        changes.add(0, index, str(index), before, after, lambda index=index: drawn.append(index) or [])
    shares = [100 * (before != after).mean() for before, after in pairs]
    assert changes.shares == pytest.approx(shares)
    order = sorted((index for index in range(count) if shares[index]), key=lambda index: -shares[index])
    assert sorted(one.share for one in changes.shown) == pytest.approx(sorted(shares[i] for i in order[:keep]))
    assert {one.index for one in changes.shown} <= set(drawn)
    before, after = pairs[:, 0], pairs[:, 1]
    became = changes.became(9)
    assert sum(share for *_, share, _ in became) == pytest.approx(np.mean(shares))
    for first, second, share, of_class in became:
        both = (before == names.index(first)) & (after == names.index(second))
        assert share == pytest.approx(100 * both.mean())
        assert of_class == pytest.approx(100 * both.sum() / (before == names.index(first)).sum())
    for name, was, became in changes.class_shares():
        assert was == pytest.approx(100 * (before == names.index(name)).mean())
        assert became == pytest.approx(100 * (after == names.index(name)).mean())


def test_of_a_videos_frames_those_shown_are_apart():
    changes, before = Changes(("road", "sky"), 3), np.zeros((10, 10), np.uint8)
    shares = [30, 50, 40, 10, 20, 60]
    for series in (1, 2):
        for number, share in enumerate(shares):
            after = before.copy()
            after.flat[: share + series] = 1
            changes.add(series, number * NEAR // 2, "", before, after, list)
    found = [(one.series, one.index * 2 // NEAR, one.share) for one in changes.shown]
    assert found == [(2, 5, 62), (1, 5, 61), (2, 1, 52)]


def test_large_images_are_drawn_smaller(done, tmp_path, run, draw_scene, write_png):
    write_png(tmp_path / "large/a.png", cv2.resize(draw_scene(0)[0], (1600, 800)))
    write_png(tmp_path / "large/tall.png", cv2.resize(draw_scene(0)[0], (300, 1500)))
    done(run, tmp_path / "large", "-o", tmp_path / "made")
    assert read(tmp_path / "made/comparison/a.png").shape[1] == 2 * 720 + 4
    assert 4 * 144 < read(tmp_path / "made/comparison/tall.png").shape[1] < 3000
