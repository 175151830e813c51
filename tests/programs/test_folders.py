"""Several folders as one target: the whole way, with the folders named in another order and moved when going on."""

import pytest

from test import main as evaluate
from tests.helpers import same_weights
from tools.predict.__main__ import main as predict
from train_TCR_DTU import main as adapt

QUICK = {"SOLVER.BATCH_SIZE": 1, "SOLVER.STOP_ITER": 1, "SOLVER.CHECKPOINT_PERIOD": 1}
TRAIN = "cityscapes/leftImg8bit/train"
NAMES = [f"aachen/aachen_{n:06d}_000019_leftImg8bit.png" for n in (0, 2, 4)]
NAMES += [f"bochum/bochum_{n:06d}_000019_leftImg8bit.png" for n in (1, 3, 5)]


def test_a_run_on_two_folders_goes_on_is_evaluated_and_predicted(cityscapes_root, write_config, capsys):
    root, towns = cityscapes_root, [cityscapes_root / TRAIN / town for town in ("aachen", "bochum")]
    target = ",".join(f"folder:{town}" for town in towns)
    config = write_config(root, **QUICK, **{"DATASETS.TARGET_TRAIN": target, "DATASETS.TEST": ""})
    assert adapt(["-cfg", str(config), "SOLVER.STOP_ITER", "2", "OUTPUT_DIR", str(root / "whole")]) == 0
    assert adapt(["-cfg", str(config)]) == 0
    assert (root / "out/images.txt").read_text().split() == NAMES
    assert f"tools.predict -cfg {root}/out/config.yaml" in (log := capsys.readouterr().out)
    assert f"{towns[0]} {towns[1]} -o" in log
    (root / "elsewhere").mkdir()
    moved = [town.rename(root / "elsewhere" / town.name) for town in towns]
    again = [str(config), "resume", "auto", "SOLVER.STOP_ITER", "2", "DATASETS.TARGET_TRAIN"]
    assert adapt(["-cfg", *again, f"folder:{moved[1]}; folder:{moved[0]}"]) == 0
    assert same_weights(*(root / folder / "model_iter000002.pth" for folder in ("whole", "out")))
    capsys.readouterr()
    assert adapt(["-cfg", *again, f"folder:{moved[1]}"]) == 1  # one folder less
    assert "does not hold the images of the run to go on with: 6 missing" in capsys.readouterr().err
    words = ["-cfg", str(root / "out/config.yaml"), "resume", str(root / "out/model_iter000002.pth")]
    test = ["DATASETS.TEST", f"folder:{moved[0]},folder:{moved[1]}", "OUTPUT_DIR", str(root / "out")]
    assert evaluate([*words, *test, "--saveres"]) == 0
    saved = root / "out/inference/aachen+bochum"
    assert sorted(path.relative_to(saved).as_posix() for path in saved.rglob("*.png")) == NAMES
    assert predict([*words, *map(str, moved), "-o", str(root / "pictures")]) == 0


@pytest.mark.parametrize("between", [",", ";"])
def test_a_folder_that_is_missing_is_one_line(cityscapes_root, write_config, capsys, between):
    target = between.join(f"folder:{cityscapes_root / TRAIN / town}" for town in ("aachen", "berlin"))
    assert adapt(["-cfg", str(write_config(cityscapes_root, **{"DATASETS.TARGET_TRAIN": target}))]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: DATASETS.TARGET_TRAIN folder:")
    assert line.endswith("/train/berlin is not a folder")
    assert not (cityscapes_root / "out").exists()
