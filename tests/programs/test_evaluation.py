"""test.py for real: one checkpoint or a folder of them, saved predictions, flipped and scaled views."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.configs import load_config
from core.models import build_model
from core.utils.checkpoints import load_checkpoint
from test import main as evaluate
from tests.conftest import CLASSES
from tests.helpers import contents, rows_of, start

# cityscapesScripts' colours, in the order of the 19 classes
PALETTE = (
    *(128, 64, 128, 244, 35, 232, 70, 70, 70, 102, 102, 156, 190, 153, 153, 153, 153, 153, 250, 170, 30, 220, 220, 0),
    *(107, 142, 35, 152, 251, 152, 70, 130, 180, 220, 20, 60, 255, 0, 0, 0, 0, 142, 0, 0, 70, 0, 60, 100, 0, 80, 100),
    *(0, 0, 230, 119, 11, 32),
)
SAVED = [
    f"leftImg8bit/val/{city}/{city}_{number:06d}_000019_leftImg8bit.png"
    for city, number in (("aachen", 0), ("aachen", 2), ("bochum", 1))
]


@pytest.fixture
def evaluated(cityscapes_root, write_config, capsys):
    """evaluated(argv=(), **overrides): test.py in this process, which must succeed: (OUTPUT_DIR, what it printed)."""

    def run(*argv, **overrides):
        code = evaluate(["-cfg", str(write_config(cityscapes_root, **overrides)), *map(str, argv)])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return cityscapes_root / "out", captured.out

    return run


def probabilities(checkpoint, config, images):
    """N×3×H×W in 0 … 1 → N×19×64×128 softmax, written out."""
    model = build_model(load_config(config)).eval()
    load_checkpoint(model, checkpoint)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = model((images - mean) / std)
    return F.interpolate(logits, size=(64, 128), mode="bilinear", align_corners=True).softmax(1)


def as_batch(images):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


def test_predictions_are_saved_as_palette_images(cityscapes_root, write_config, resnet18):
    """Of a ResNet-18, in a process of its own, as a user does it."""
    checkpoint = Path(resnet18["resume"])
    config = write_config(cityscapes_root, **resnet18, **{"DATALOADER.NUM_WORKERS": 1, "TEST.BATCH_SIZE": 2})
    process = start("test.py", "--saveres", "-cfg", config)
    assert (process.returncode, process.stderr) == (0, "")
    out = cityscapes_root / "out"
    folder = out / "inference/cityscapes_val"
    files = sorted(path for path in out.rglob("*") if path.is_file())
    written = [out / f"{name}_cityscapes_val.{end}" for name, end in (("confusion", "csv"), ("confusion", "png"))]
    assert files == [*written, *(folder / name for name in SAVED), out / "test_cityscapes_val.csv"]
    images = [Image.open(cityscapes_root / "cityscapes" / name) for name in SAVED]
    expected = probabilities(checkpoint, config, as_batch(images)).argmax(1).numpy()
    for name, prediction in zip(SAVED, expected, strict=True):
        with Image.open(folder / name) as saved:
            assert (saved.mode, saved.size) == ("P", (128, 64))
            assert tuple(saved.getpalette()[: 3 * 19]) == PALETTE
            assert (np.array(saved) == prediction).mean() > 0.999
            colours = np.array(saved.convert("RGB"))
        assert (colours == np.reshape(PALETTE, (19, 3))[prediction]).all(axis=-1).mean() > 0.999
    (row,) = rows_of(out / "test_cityscapes_val.csv")
    assert row["checkpoint"] == checkpoint.name
    assert f"mIoU {float(row['mIoU']):.2f}" in process.stdout
    counts = confusion_of(out / "confusion_cityscapes_val.csv")
    for label_id, number, name in ((labels, index, name) for name, (index, labels, _) in CLASSES.items()):
        truth = [truth_of(cityscapes_root, saved) == label_id for saved in SAVED]
        found = [np.array(Image.open(folder / saved)) for saved in SAVED]
        pixels = np.concatenate([one[where] for one, where in zip(found, truth, strict=True)])
        assert list(counts[name].values()) == np.bincount(pixels, minlength=19).tolist()
        assert len(pixels) > 0
        assert list(counts)[number] == list(counts[name])[number] == name
    assert sum(sum(row.values()) for row in counts.values()) == sum(
        (truth_of(cityscapes_root, saved) != 0).sum() for saved in SAVED
    )


def confusion_of(path):
    """{class of the truth: {class of the prediction: pixels}} of a confusion matrix's CSV file."""
    rows = rows_of(path)
    return {row.pop("truth"): {name: int(count) for name, count in row.items()} for row in rows}


def truth_of(root, name):
    """H×W labelIds of an image of cityscapes_val."""
    path = name.replace("leftImg8bit/", "gtFine/", 1).replace("_leftImg8bit.png", "_gtFine_labelIds.png")
    return np.array(Image.open(root / "cityscapes" / path))


def test_a_folder_of_checkpoints_is_evaluated_in_order_and_the_best_named(
    evaluated, cityscapes_root, tiny_checkpoint, make_checkpoint
):
    folder = cityscapes_root / "checkpoints"
    folder.mkdir()
    make_checkpoint(folder / "model_iter000020.pth")
    make_checkpoint(folder / "model_iter1000000.pth")  # last by iteration, not by name
    shutil.copy(tiny_checkpoint, folder / "model_iter999999.pth")
    (folder / "metrics.csv").write_text("not a checkpoint")
    (folder / "model_iter000007.pth.tmp").write_text("not a checkpoint")
    out, log = evaluated("resume", folder)
    rows = rows_of(out / "test_cityscapes_val.csv")
    names = [f"model_iter{number}.pth" for number in ("000020", "999999", "1000000")]
    assert [row["checkpoint"] for row in rows] == names
    assert float(rows[1]["mIoU"]) > 25 > float(rows[0]["mIoU"]) == float(rows[2]["mIoU"])
    (best,) = [line for line in log.splitlines() if "best" in line]
    assert f"model_iter999999.pth with mIoU {float(rows[1]['mIoU']):.2f}" in best
    assert list(rows[0])[:6] == ["checkpoint", "mIoU", "mIoU_occurring", "mAcc", "allAcc", "IoU_road"]
    assert len(rows[0]) == 5 + 19 + 19 + 1  # IoU and accuracy of each class
    assert list(rows[0])[-1] == "mIoU_labelled"
    truth = {value for name in SAVED for value in np.unique(truth_of(cityscapes_root, name)).tolist()}
    held = [name for name, (_, value, _) in CLASSES.items() if value in truth]
    assert len(held) == 8
    for row in rows:
        ious = [float(row[f"IoU_{name}"]) for name in held]
        assert float(row["mIoU_labelled"]) == pytest.approx(np.mean(ious), abs=1e-3)
    missing = ["sidewalk", "wall", "fence", "light", "terrain", "person", "car", "truck", "bus", "train", "motorcycle"]
    said = f"no pixel of {', '.join(missing)} in the labels of cityscapes_val: mIoU counts what is missing as 0"
    assert log.count(said) == len(rows)
    matrices = {path.name for path in (out / "confusion_cityscapes_val").iterdir()}
    assert matrices == {Path(name).with_suffix(end).name for name in names for end in (".csv", ".png")}
    assert len(list(out.iterdir())) == 2  # they lie in a folder of their own
    for row in rows:
        counts = confusion_of(out / "confusion_cityscapes_val" / Path(row["checkpoint"]).with_suffix(".csv"))
        right, labelled = counts["road"]["road"], sum(counts["road"].values())
        assert 100 * right / labelled == pytest.approx(float(row["accuracy_road"]), abs=1e-4)


def test_every_checkpoint_of_a_folder_keeps_its_own_predictions(evaluated, cityscapes_root, tiny_checkpoint):
    folder = cityscapes_root / "checkpoints"
    folder.mkdir()
    for number in (1, 2):
        shutil.copy(tiny_checkpoint, folder / f"model_iter{number:06d}.pth")
    out, _ = evaluated("resume", folder, "--saveres")
    folder = out / "inference/cityscapes_val"
    saved = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert saved == {f"model_iter{number:06d}/{name}" for number in (1, 2) for name in SAVED}


@pytest.mark.parametrize(
    ("flags", "sizes", "flips"),
    [(["--flip"], [(128, 64)], 2), (["--multi-scale"], [(90, 45), (128, 64), (166, 83)], 1)],  # 0.7, 1.0 and 1.3 times
    ids=["flip", "multi-scale"],
)
def test_probabilities_are_averaged_over_views(evaluated, cityscapes_root, tiny_checkpoint, flags, sizes, flips):
    out, _ = evaluated("--saveres", *flags)
    images = [Image.open(cityscapes_root / "cityscapes" / name) for name in SAVED]

    def predicted(size, flipped=False):
        batch = as_batch([image.resize(size, Image.Resampling.BICUBIC) for image in images])
        found = probabilities(tiny_checkpoint, cityscapes_root / "tiny.yaml", batch.flip(-1) if flipped else batch)
        return found.flip(-1) if flipped else found

    expected = sum(predicted(size, flipped) for size in sizes for flipped in (False, True)[:flips]).argmax(1).numpy()
    found = np.stack([np.array(Image.open(out / "inference/cityscapes_val" / name)) for name in SAVED])
    assert (found == expected).mean() > (0.999 if flips == 2 else 0.995)  # antialiased within one grey level of PIL
    assert (found == predicted((128, 64)).argmax(1).numpy()).mean() < 0.99  # the average is not the plain prediction


def test_images_are_seen_in_windows_at_their_own_size(evaluated, cityscapes_root, tiny_checkpoint):
    """The windows and their mean by plain loops."""
    windows = {"TEST.WINDOW": (64, 48), "TEST.STRIDE": (40, 16), "INPUT.INPUT_SIZE_TEST": (64, 32)}
    _, log = evaluated("--saveres", **windows, **{"TEST.BATCH_SIZE": 2, "DATALOADER.NUM_WORKERS": 1})
    assert log.count("windows: ") == 1
    assert "windows: 64×48 every 40×16; 6 of a 128×64 image" in log
    model = build_model(load_config(cityscapes_root / "tiny.yaml")).eval()
    load_checkpoint(model, tiny_checkpoint)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = (as_batch([Image.open(cityscapes_root / "cityscapes" / name) for name in SAVED]) - mean) / std
    sums, counts = np.zeros((3, 19, 8, 16)), np.zeros((8, 16))
    with torch.no_grad():
        for y in (0, 16):
            for x in (0, 40, 64):
                sums[:, :, y // 8 : y // 8 + 6, x // 8 : x // 8 + 8] += model(
                    images[..., y : y + 48, x : x + 64]
                ).numpy()
                counts[y // 8 : y // 8 + 6, x // 8 : x // 8 + 8] += 1
        whole = model(images)
    own = [
        F.interpolate(torch.as_tensor(logits), (64, 128), mode="bilinear", align_corners=True).argmax(1).numpy()
        for logits in (sums / counts, whole)
    ]
    found = np.stack([np.array(Image.open(cityscapes_root / "out/inference/cityscapes_val" / name)) for name in SAVED])
    assert (found == own[0]).mean() > 0.999
    assert (found == own[1]).mean() < 0.995  # at the seams the network sees other things


def test_16_classes_are_also_reported_without_wall_fence_and_pole(evaluated, cityscapes_root, make_checkpoint):
    checkpoint = make_checkpoint(cityscapes_root / "s2c.pth", NUM_CLASSES=16)
    out, log = evaluated("resume", checkpoint, **{"MODEL.NUM_CLASSES": 16, "DATASETS.SOURCE_TRAIN": "synthia_train"})
    (row,) = rows_of(out / "test_cityscapes_val.csv")
    ious = {name.removeprefix("IoU_"): float(value) for name, value in row.items() if name.startswith("IoU_")}
    assert len(ious) == 16
    kept = [iou for name, iou in ious.items() if name not in ("wall", "fence", "pole")]
    assert float(row["mIoU"]) == pytest.approx(sum(ious.values()) / 16, abs=1e-3)
    assert float(row["mIoU_13"]) == pytest.approx(sum(kept) / 13, abs=1e-3)
    assert f"mIoU {float(row['mIoU_13']):.2f} over 13 classes" in log


def test_images_without_labels_get_predictions_only(evaluated, cityscapes_root, draw_scene, write_png):
    write_png(cityscapes_root / "frames/day/one.png", draw_scene(1)[0][:50])
    out, log = evaluated("--saveres", "DATASETS.TEST", f"folder:{cityscapes_root / 'frames'}")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert files == [out / "inference/frames/day/one.png"]
    with Image.open(files[0]) as saved:
        assert saved.size == (128, 50)
    assert "mIoU" not in log


def test_both_spellings_of_the_config_and_flags_behind_options(cityscapes_root, write_config, capsys):
    config = str(write_config(cityscapes_root))
    scores = []
    for number, argv in enumerate(
        (["TEST.BATCH_SIZE", "2", "-cfg", config, "--flip"], ["--flip", "--config-file", config])
    ):
        out = cityscapes_root / f"test{number}"
        assert evaluate([*argv, "OUTPUT_DIR", str(out)]) == 0
        scores.append(rows_of(out / "test_cityscapes_val_flip.csv"))
        assert confusion_of(out / "confusion_cityscapes_val_flip.csv").keys() > {"road", "car"}
    assert scores[0] == scores[1]
    assert capsys.readouterr().err == ""


def test_old_results_stay_when_the_new_ones_cannot_be_made(evaluated, cityscapes_root, capsys):
    out, _ = evaluated()
    before = contents(out)
    assert evaluate(["-cfg", str(cityscapes_root / "tiny.yaml"), "MODEL.NUM_CLASSES", "16"]) == 1
    assert contents(out) == before
    assert len(before) == 3
    assert capsys.readouterr().err.startswith("error: ")
