"""What test.py --save-label-ids writes, held against cityscapesScripts' own pixel-level evaluation."""

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from core.datasets.cityscapes import LABEL_IDS
from test import main as evaluate
from tests.helpers import contents, read_checkpoint, rows_of

OFFICIAL_NAMES = {"light": "traffic light", "sign": "traffic sign"}
LEFT_OUT = ("terrain", "truck", "train")
# the program as it stands, but for nIoU: that needs instance labels, and a function that numpy no longer has
OFFICIAL = """
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
official.args.evalInstLevelScore = False
official.main()
"""


@pytest.fixture
def labelled_root(cityscapes_root, write_png):
    """A tree whose ground truth also holds the classes that 16 classes lack, and ids that are none of 19."""
    for number, path in enumerate(sorted(cityscapes_root.glob("cityscapes/gtFine/val/*/*_labelIds.png"))):
        label = np.array(Image.open(path))
        label[20:40, number : number + 60] = np.repeat([22, 27, 31, 16, 29, 9], 10)  # the first three: LEFT_OUT
        write_png(path, label)
    return cityscapes_root


def run_official(root, predictions):
    """What the official program says: its result file."""
    where = {
        "CITYSCAPES_DATASET": root / "cityscapes",
        "CITYSCAPES_RESULTS": predictions,
        "CITYSCAPES_EXPORT_DIR": root,
    }
    environment = os.environ | {key: str(path) for key, path in where.items()}
    process = subprocess.run([sys.executable, "-c", OFFICIAL], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads((root / "resultPixelLevelSemanticLabeling.json").read_text())


def unlabel(root, names):
    for path in root.glob("cityscapes/gtFine/val/*/*_labelIds.png"):
        label = np.array(Image.open(path))
        label[np.isin(label, [LABEL_IDS[name] for name in names])] = 0
        cv2.imwrite(str(path), label)


def without_classes(checkpoint, path, names):
    """The same checkpoint with some of the 19 classes cut out of its classifier."""
    content = read_checkpoint(checkpoint)
    kept = [index for index, name in enumerate(LABEL_IDS) if name not in names]
    content["classifier"] = {key: value[kept] for key, value in content["classifier"].items()}
    torch.save(content, path)
    return path


@pytest.mark.parametrize("classes", [19, 16])
def test_the_official_program_finds_the_same_scores(labelled_root, write_config, tiny_checkpoint, classes):
    options, checkpoint = {}, tiny_checkpoint
    if classes == 16:
        options = {"MODEL.NUM_CLASSES": 16, "DATASETS.SOURCE_TRAIN": "synthia_train"}
        checkpoint = without_classes(tiny_checkpoint, labelled_root / "s2c.pth", LEFT_OUT)
    config, predictions = write_config(labelled_root, **options), labelled_root / "predictions"
    assert evaluate(["-cfg", str(config), "resume", str(checkpoint), "--save-label-ids", str(predictions)]) == 0
    if classes == 16:
        unlabel(labelled_root, LEFT_OUT)
    official = run_official(labelled_root, predictions)
    (ours,) = rows_of(labelled_root / "out/test_cityscapes_val.csv")
    names = [name for name in LABEL_IDS if classes == 19 or name not in LEFT_OUT]
    found = {name: official["classScores"][OFFICIAL_NAMES.get(name, name)] for name in names}
    occurring = [name for name in names if not np.isnan(found[name])]
    assert len(occurring) > 7
    assert len({round(found[name], 3) for name in occurring}) > 5  # figures, not zeros
    for name in names:
        expected = found[name] if name in occurring else 0
        assert float(ours[f"IoU_{name}"]) / 100 == pytest.approx(expected, abs=1e-6), name
    assert float(ours["mIoU_occurring"]) / 100 == pytest.approx(official["averageScoreClasses"], abs=1e-6)


def test_predictions_of_a_split_without_labels_are_what_its_server_wants(
    cityscapes_root, write_config, tiny_checkpoint, write_png, draw_scene
):
    """ACDC's: trainIds under the images' own names, in one folder; a run of Cityscapes' classes."""
    for number, condition in enumerate(("fog", "snow")):
        stem = f"acdc/rgb_anon/{condition}/test/GP0{number}/GP0{number}_frame_000001_rgb_anon.png"
        write_png(cityscapes_root / stem, draw_scene(1000 + number)[0])
    config, saved = write_config(cityscapes_root, **{"DATASETS.TEST": "acdc_test"}), cityscapes_root / "ids"
    assert evaluate(["-cfg", str(config), "resume", str(tiny_checkpoint), "--save-label-ids", str(saved)]) == 0
    assert sorted(contents(saved)) == [f"GP0{number}_frame_000001_rgb_anon.png" for number in (0, 1)]
    label = draw_scene(1000)[1]
    found = np.array(Image.open(saved / "GP00_frame_000001_rgb_anon.png"))
    assert (found.dtype, found.shape) == (np.uint8, label.shape)
    train_ids = np.full(256, 255)
    train_ids[list(LABEL_IDS.values())] = range(19)
    assert (found == train_ids[label])[label > 0].mean() > 0.8


def test_label_ids_of_a_folder_of_checkpoints_lie_apart_and_are_not_replaced_unasked(
    cityscapes_root, write_config, tiny_checkpoint, capsys
):
    models, target = cityscapes_root / "models", cityscapes_root / "ids"
    models.mkdir()
    for number in (1, 2):
        shutil.copy(tiny_checkpoint, models / f"model_iter{number:06d}.pth")
    command = ["-cfg", str(write_config(cityscapes_root)), "resume", str(models), "--save-label-ids", str(target)]
    assert evaluate(command) == 0
    files = sorted(target.rglob("*.png"))
    assert [file.relative_to(target).parts[0] for file in files] == ["model_iter000001"] * 3 + ["model_iter000002"] * 3
    assert set(np.unique([np.array(Image.open(file)) for file in files])) <= set(LABEL_IDS.values())
    for file in files[1:]:
        file.unlink()
    files[0].write_bytes(b"mine")
    capsys.readouterr()
    assert evaluate(command) == 1
    error = capsys.readouterr().err
    assert (error.count("\n"), "--overwrite" in error, files[0].name in error) == (1, True, True)
    assert contents(target) == {files[0].relative_to(target).as_posix(): b"mine"}
    assert evaluate([*command, "--overwrite"]) == 0
    assert sorted(target.rglob("*.png")) == files
    assert files[0].read_bytes() != b"mine"
