"""The programs with a video as the target: checked, adapted to, gone on with, evaluated, ordered, reported."""

import cv2
import numpy as np
import pytest

from core.programs.adapt import main as adapt
from core.programs.evaluate import main as evaluate
from tests.helpers import SHORT, call, rows_of
from tools.report.__main__ import main as report

OPTIONS = SHORT | {"DATALOADER.NUM_WORKERS": 1, "VIDEO.EVERY": 2}
NAMES = ["000000.png", "000004.png", "000008.png", "000010.png"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, draw_scene, write_config):
    """A folder with drive.mp4, of 12 frames the scenes of a drive that stands still now and then, and a config."""
    folder = tmp_path_factory.mktemp("video")
    writer = cv2.VideoWriter(str(folder / "drive.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 64))
    for seed in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3):
        writer.write(np.ascontiguousarray(draw_scene(seed)[0][..., ::-1]))
    writer.release()
    config = write_config(folder, **OPTIONS, **{"DATASETS.TARGET_TRAIN": f"video:{folder / 'drive.mp4'}"})
    return folder, config


@pytest.fixture(scope="module")
def adapted(place):
    """What a run that adapts to it says; after --check, for which the frames are taken."""
    folder, config = place
    assert adapt(["-cfg", str(config), "--check"]) == 0
    assert not (folder / "out").exists()
    run = call("train_TCR_DTU.py", "-cfg", config)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_a_run_adapts_to_the_frames_and_goes_on(place, adapted):
    folder, config = place
    (frames,) = (path for path in (folder / "frames").iterdir() if path.is_dir())
    assert sorted(path.name for path in frames.glob("*.png")) == NAMES
    assert "is taken to" not in adapted  # which --check has done
    log = (folder / "out/log.txt").read_text(encoding="utf-8")
    expected = (
        f"every 2nd frame of 11, 2 near-duplicates (change below VIDEO.MIN_CHANGE 1) left out, as PNG in {frames}"
    )
    assert f"target images: 4 of video:{folder / 'drive.mp4'}: {expected}\n" in log
    assert (folder / "out/images.txt").read_text().split() == NAMES
    (folder / "moved").mkdir()
    moved = (folder / "drive.mp4").rename(folder / "moved/drive.mp4")
    try:
        words = ["resume", "auto", "SOLVER.STOP_ITER", "3", "DATASETS.TARGET_TRAIN", f"video:{moved}"]
        assert adapt(["-cfg", str(config), *words]) == 0
        assert (folder / "out/model_iter000003.pth").is_file()
        assert adapt(["-cfg", str(config), *words, "VIDEO.EVERY", "3"]) == 1  # other images: another run
    finally:
        moved.rename(folder / "drive.mp4")


@pytest.mark.usefixtures("adapted")
def test_checkpoints_are_ordered_and_predictions_saved_and_a_report_made(place, tmp_path, capsys):
    folder, config = place
    words = ["-cfg", str(config), "resume", str(folder / "out"), "OUTPUT_DIR", str(tmp_path)]
    assert evaluate([*words, "--rank-without-labels"]) == 0
    (ranking,) = tmp_path.glob("ranking_*.csv")
    assert len(rows_of(ranking)) >= 2
    words[3] = str(folder / "out/model_iter000001.pth")
    assert evaluate([*words, "--saveres", "DATASETS.TEST", f"video:{folder / 'drive.mp4'}"]) == 0
    saved = tmp_path / "inference/drive.mp4"
    assert sorted(path.relative_to(saved).name for path in saved.rglob("*.png")) == NAMES
    assert report([str(folder / "out"), "-o", str(tmp_path / "report.html")]) == 0
    assert "drive.mp4" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "is taken to" not in capsys.readouterr().out
