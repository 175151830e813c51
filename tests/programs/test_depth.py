"""The programs on a thermal camera's 16-bit frames: the range is found once, kept, and used by whatever comes later."""

import cv2
import numpy as np
import pytest
import torch

from core.configs.loading import load_config
from core.programs.adapt import main as adapt
from core.programs.evaluate import main as evaluate
from tests.helpers import SHORT, call, read_checkpoint
from tools.predict.__main__ import main as predict

LINE = "16 bits, of which 7400 to 7910 become 0 to 255 (INPUT.DEPTH auto, by all 4 images)"


def frame(scene):
    """Its grey levels as 14-bit values, every second one from 7400 on."""
    grey = cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY).astype(np.uint16)
    grey[0, :2] = 0, 255
    return 7400 + 2 * grey


@pytest.fixture(scope="module")
def place(tmp_path_factory, draw_scene, write_config):
    """A folder with four frames of 16 bits and of 8, and a config."""
    folder = tmp_path_factory.mktemp("thermal")
    for kind in ("deep", "plain"):
        (folder / kind).mkdir()
        for seed in range(4):
            deep = frame(draw_scene(seed)[0])
            picture = deep if kind == "deep" else ((deep - 7400) // 2).astype(np.uint8)
            assert cv2.imwrite(str(folder / kind / f"{seed}.png"), picture)
    config = write_config(folder, **SHORT, **{"DATASETS.TARGET_TRAIN": f"folder:{folder / 'deep'}"})
    done = call("train_TCR_DTU.py", "-cfg", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert f": {LINE}" in done.stdout
    return folder, config


def test_the_run_keeps_the_range_and_goes_on_with_it(place):
    folder, config = place
    assert load_config(folder / "out/config.yaml").INPUT.DEPTH_RANGE == (7400, 7910)
    checkpoint = read_checkpoint(folder / "out/model_iter000002.pth")
    assert checkpoint["about"]["depth"] == [7400, 7910]
    words = ["resume", "auto", "SOLVER.STOP_ITER", "3"]
    assert adapt(["-cfg", str(config), *words, "INPUT.DEPTH_RANGE", "[0, 100]"]) == 1
    assert adapt(["-cfg", str(config), *words]) == 0
    assert load_config(folder / "out/config.yaml").INPUT.DEPTH_RANGE == (7400, 7910)


def test_what_is_learned_is_what_the_same_frames_of_8_bits_teach(place):
    folder, config = place
    words = ["DATASETS.TARGET_TRAIN", f"folder:{folder / 'plain'}", "OUTPUT_DIR", str(folder / "plain_out")]
    assert adapt(["-cfg", str(config), *words]) == 0
    plain, deep = (read_checkpoint(folder / f"{out}/model_iter000002.pth") for out in ("plain_out", "out"))
    assert "depth" not in plain["about"]
    for part in ("feature_extractor", "classifier"):
        assert all((plain[part][key] == value).all() for key, value in deep[part].items())


def test_predictions_take_the_checkpoints_range_not_that_of_the_frame(place, capfd):
    folder, config = place
    (folder / "one").mkdir()
    dim = (frame(cv2.imread(str(folder / "plain/0.png"))) - 7400) // 4 + 7400
    assert cv2.imwrite(str(folder / "one/0.png"), dim)
    checkpoint = ["resume", str(folder / "out/model_iter000002.pth")]
    command = ["-cfg", str(config), str(folder / "one"), "-o", str(folder / "pictures"), "--save", "side-by-side"]
    assert predict([*command, *checkpoint]) == 0
    assert "16 bits, of which 7400 to 7910 become 0 to 255 (given by INPUT.DEPTH_RANGE)" in capfd.readouterr().out
    shown = cv2.imread(str(folder / "pictures/side-by-side/0.png"))
    assert shown[30:60, 2:120].max() < 140  # half as bright as the range allows
    assert predict([*command, *checkpoint, "INPUT.DEPTH", "auto", "--overwrite"]) == 0
    assert "of which 7400 to 7527 become 0 to 255 (INPUT.DEPTH auto, by the only image)" in capfd.readouterr().out
    mixed = [str(folder / "deep"), str(folder / "plain"), "-o", str(folder / "none")]
    assert predict(["-cfg", str(config), *mixed, *checkpoint]) == 1
    assert "images of one set must have one depth" in capfd.readouterr().err
    assert not (folder / "none").exists()


def test_a_source_model_of_another_range_is_scored_by_the_targets_and_predicts_by_its_own(place, capfd):
    folder, config = place
    checkpoint = read_checkpoint(folder / "out/model_iter000002.pth")
    assert checkpoint["about"]["domain"] == "target"
    checkpoint["about"] |= {"depth": [0, 30000], "domain": "source"}
    torch.save(checkpoint, folder / "source.pth")
    model = ["resume", str(folder / "source.pth")]
    words = ["DATASETS.TEST", f"folder:{folder / 'deep'}", "OUTPUT_DIR", str(folder / "scored"), "--saveres"]
    assert evaluate(["-cfg", str(config), *words, *model]) == 0
    said = capfd.readouterr().out
    assert "INPUT.DEPTH_RANGE is not given: (7400, 7910), as that of DATASETS.TARGET_TRAIN" in said
    assert "16 bits, of which 7400 to 7910 become 0 to 255" in said
    assert predict(["-cfg", str(config), str(folder / "deep"), "-o", str(folder / "by_source"), *model]) == 0
    assert "16 bits, of which 0 to 30000 become 0 to 255" in capfd.readouterr().out


def test_predictions_by_another_range_are_not_gone_on_with(place, capfd):
    folder, config = place
    command = ["-cfg", str(config), str(folder / "deep"), "-o", str(folder / "more"), "resume"]
    command.append(str(folder / "out/model_iter000002.pth"))
    assert predict(command) == 0
    (folder / "more/colour/1.png").unlink()
    assert predict([*command, "--go-on", "INPUT.DEPTH", "16"]) == 1
    assert "span" in capfd.readouterr().err
    assert predict([*command, "--go-on"]) == 0


def test_an_evaluation_of_a_source_model_shares_the_targets_range(place, capfd):
    folder, config = place
    words = ["DATASETS.TEST", f"folder:{folder / 'deep'}", "OUTPUT_DIR", str(folder / "tested"), "--saveres"]
    assert evaluate(["-cfg", str(config), *words]) == 0
    assert "7400 to 7910 become 0 to 255 (as those of DATASETS.TARGET_TRAIN)" in capfd.readouterr().out
