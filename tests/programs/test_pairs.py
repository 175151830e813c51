"""The programs with a test set of other classes than the model's: training, evaluation, selection, report."""

import re

import numpy as np
import pytest
import yaml

from core.programs.evaluate import main as evaluate
from tests.helpers import SHORT, call, rows_of
from tools.report.__main__ import main as report

OPTIONS = SHORT | {"DATASETS.TEST": "town_val"}
CLASSES = ["nature", "street", "two-wheeler", "dog"]
COLUMNS = ["IoU_nature", "IoU_street", "IoU_two-wheeler"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_config, draw_scene, write_png, make_cityscapes):
    """(config, folder) of a run of 19 classes that is evaluated by three, which several count as."""
    folder = tmp_path_factory.mktemp("pairs")
    make_cityscapes(folder)
    config = write_config(folder, **OPTIONS)
    tree = yaml.safe_load(config.read_text())
    splits = {"val": {"images": str(folder / "town/images"), "labels": str(folder / "town/masks")}}
    merge = {"nature": ["vegetation", "sky"], "street": ["road", "sidewalk"], "two-wheeler": ["rider", "bicycle"]}
    tree["DATASETS"]["CUSTOM"] = {"town": {"classes": CLASSES, "merge": merge, "splits": splits, "ignore": [9]}}
    config.write_text(yaml.safe_dump(tree))
    values = np.full(256, 9, np.uint8)
    values[[21, 23, 7, 25, 33, 11]] = 0, 0, 1, 2, 2, 3  # buildings are dogs, which the model does not know
    for seed in range(3):
        image, label_ids = draw_scene(seed)
        write_png(folder / f"town/images/{seed}.png", image)
        write_png(folder / f"town/masks/{seed}.png", values[label_ids])
    done = call("train_TCR_DTU.py", "-cfg", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert "evaluation: 3 images of town_val at every checkpoint: 3 classes are scored (nature, street" in done.stdout
    return config, folder


def test_a_run_is_evaluated_by_the_scored_classes(run):
    _, folder = run
    for table in ("evaluation.csv", "evaluation_source.csv"):
        rows = rows_of(folder / "out" / table)
        assert [column for column in rows[-1] if column.startswith("IoU_")] == COLUMNS
        assert float(rows[-1]["mIoU"]) == pytest.approx(np.mean([float(rows[-1][c]) for c in COLUMNS]), abs=1e-3)
        assert float(rows[-1]["mIoU"]) > 50  # the source model knows the scenes
    names = (folder / "out/confusion.csv").read_text().splitlines()[0]
    assert names == "truth,nature,street,two-wheeler,others"


def test_so_are_its_checkpoints(run, capfd):
    config, folder = run
    words = ["resume", str(folder / "out/model_iter000002.pth"), "OUTPUT_DIR", str(folder / "tested")]
    assert evaluate(["-cfg", str(config), *words, "--save-label-ids", str(folder / "ids")]) == 0
    said = capfd.readouterr().out
    assert "images: 3 of town_val: 3 classes are scored" in said
    assert "the model does not have dog: pixels of these have no label" in said
    (row,) = rows_of(folder / "tested/test_town_val.csv")
    assert float(row["mIoU"]) == float(rows_of(folder / "out/evaluation.csv")[-1]["mIoU"])
    assert len(list((folder / "ids").glob("*.png"))) == 3


def test_candidates_are_selected_by_them(run, capfd):
    config, folder = run
    words = ["resume", str(folder / "out"), "OUTPUT_DIR", str(folder / "selected"), "--select-with", "town_val"]
    assert evaluate(["-cfg", str(config), *words]) == 0, capfd.readouterr().err
    rows = rows_of(folder / "selected/selection_town_val.csv")
    assert [column for column in rows[0] if column.startswith("IoU_")] == COLUMNS


def test_the_report_shows_them(run):
    _, folder = run
    assert report([str(folder / "out"), "-o", str(folder / "report.html")]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    cells = re.findall(r"<t[dh][^>]*>([^<]*)<", page)
    assert {"nature", "street", "two-wheeler"} <= set(cells)
    assert "dog" not in cells
