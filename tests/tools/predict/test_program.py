"""tools.predict for real: what is written of images, folders, patterns and videos, and what is refused."""

import sys
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from core.configs import cfg, load_config
from core.datasets.cityscapes import LABEL_IDS
from core.datasets.taxonomy import CITYSCAPES_19
from core.evaluation.palettes import colour_blind_palette
from core.evaluation.pictures import Painter
from core.models import build_model
from core.utils.checkpoints import load_checkpoint
from test import main as evaluate
from tests.helpers import PROJECT, contents, start
from tools.predict.__main__ import main as predict
from tools.predict.movies import movie
from tools.predict.record import RECORD
from tools.predict.video import open_video

ALL = "colour,overlay,label-ids,confidence,side-by-side"
IMAGE = "{root}/frames/a.png"
SIZES = {"a.png": (64, 128), "day/b.png": (50, 128), "day/c.png": (64, 100)}  # (h, w)


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def files_below(folder):
    """What a run left there, without its notes of how it was made."""
    return [name for name in contents(folder) if name != RECORD]


@pytest.fixture
def frames(tmp_path, draw_scene, write_png):
    """tmp_path/frames: a.png, day/b.png, day/c.png, scenes of different sizes."""
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        write_png(tmp_path / "frames" / name, draw_scene(number)[0][:height, :width])
    return tmp_path / "frames"


@pytest.fixture
def done(tmp_path, config, capfd):
    """done(*argv): tools.predict into tmp_path/out, which must succeed; what it printed."""

    def run(*argv):
        code = predict(["-cfg", str(config), "-o", str(tmp_path / "out"), *map(str, argv)])
        captured = capfd.readouterr()
        assert (code, captured.err) == (0, "")
        return captured.out

    return run


def probabilities(checkpoint, config, image):
    """H×W×3 uint8 → 19×H×W softmax: resized with PIL, and the rest written out."""
    model = build_model(load_config(config)).eval()
    load_checkpoint(model, checkpoint)
    resized = np.array(Image.fromarray(image).resize((128, 64), Image.Resampling.BICUBIC))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        logits = model(((torch.from_numpy(resized).permute(2, 0, 1) / 255 - mean) / std)[None])
    return F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=True).softmax(1)[0].numpy()


def test_every_kind_of_picture_shows_the_networks_prediction(tmp_path, frames, config, tiny_checkpoint):
    """In a process of its own, with a worker, by its path: a pattern and a folder, an image met twice."""
    out, options = tmp_path / "out", ("TEST.BATCH_SIZE", 2, "DATALOADER.NUM_WORKERS", 1)
    words = ("-cfg", config, frames / "*.png", frames, "--save", ALL, "-o", out, *options)
    process = start(PROJECT / "tools/predict", *words, folder=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert "3 images" in process.stdout
    painter = Painter.of(cfg.VIS, CITYSCAPES_19)
    assert files_below(out) == sorted([*(f"{kind}/{name}" for kind in ALL.split(",") for name in SIZES), "legend.png"])
    for name, size in SIZES.items():
        image = read(frames / name)
        probs = probabilities(tiny_checkpoint, config, image)
        with Image.open(out / "colour" / name) as picture:
            assert picture.mode == "P"
            classes, colours = np.array(picture), np.array(picture.convert("RGB"))
        assert classes.shape == size
        assert (classes == probs.argmax(0)).mean() > 0.995  # antialiased within one grey level of PIL
        assert len(np.unique(classes)) > 3
        assert (colours == np.array([CITYSCAPES_19.colours[CITYSCAPES_19.names[c]] for c in range(19)])[classes]).all()
        ids = np.array([LABEL_IDS[name] for name in CITYSCAPES_19.names])
        assert (read(out / "label-ids" / name) == ids[classes]).all()
        overlay = read(out / "overlay" / name)
        assert (overlay == painter.overlay(image, classes)).all()
        plain = image / 2 + painter.palette[classes] / 2
        assert (np.abs(overlay - plain).max(-1) <= 0.5).mean() > 0.3  # the rest are borders and names
        confidence = read(out / "confidence" / name)
        assert np.abs(confidence / 255 - probs.max(0)).mean() < 0.003
        assert confidence.std() > 10
        together, (height, width) = read(out / "side-by-side" / name), size
        assert (together == painter.side_by_side(image, classes, confidence)).all()
        caption = 25  # px: a line of text, and space around it
        for panel, (top, left) in zip(
            (image, overlay, painter.colour(classes), np.stack([confidence] * 3, -1)),
            ((caption, 0), (caption, -width), (2 * caption + height + 4, 0), (2 * caption + height + 4, -width)),
            strict=True,
        ):
            shown = np.roll(together, (-top, -left), (0, 1))[:height, :width]
            assert (shown == panel).all()
        legend = together[2 * (height + caption) + 4 :]
        for colour in painter.palette[:19]:
            assert (legend == colour).all(-1).sum() >= 100


def test_the_classes_are_those_of_the_evaluation_program(done, tmp_path, frames, config, capfd):
    flags = ("--flip", "--multi-scale")
    done(frames, *flags, "--save", "colour,confidence")
    argv = ["-cfg", str(config), "--saveres", *flags, "DATASETS.TEST", f"folder:{frames}"]
    assert evaluate([*argv, "OUTPUT_DIR", str(tmp_path / "test")]) == 0
    capfd.readouterr()
    confidences = []
    for name in SIZES:
        assert (tmp_path / "out/colour" / name).read_bytes() == (tmp_path / "test/inference/frames" / name).read_bytes()
        confidences.append(read(tmp_path / "out/confidence" / name).mean() / 255)
    assert 1 / 19 < np.mean(confidences) < 1


def test_windows_are_those_of_the_evaluation_program(done, tmp_path, frames, config, capfd):
    """Images of a size each, larger and smaller than the window; the network sees other things than without."""
    windows = ("TEST.WINDOW", "(64, 56)", "TEST.BATCH_SIZE", "2")
    printed = done(frames, "--flip", "--save", "colour", *windows)
    assert printed.count("windows: 64×56 every 40×32; ") == 1
    argv = ["-cfg", str(config), "--saveres", "--flip", "DATASETS.TEST", f"folder:{frames}", *windows]
    assert evaluate([*argv, "OUTPUT_DIR", str(tmp_path / "test")]) == 0
    assert predict(["-cfg", str(config), str(frames), "--flip", "--save", "colour", "-o", str(tmp_path / "plain")]) == 0
    capfd.readouterr()
    for name, size in SIZES.items():
        picture = tmp_path / "out/colour" / name
        assert read(picture).shape == size
        assert picture.read_bytes() == (tmp_path / "test/inference/frames" / name).read_bytes()
        assert picture.read_bytes() != (tmp_path / "plain/colour" / name).read_bytes()


def test_nothing_is_overwritten_without_being_told(done, tmp_path, frames, config, capfd):
    done(frames / "a.png")
    before = contents(tmp_path / "out")
    argv = ["-cfg", str(config), "-o", str(tmp_path / "out")]
    for words, part in (([frames / "a.png"], "colour/a.png"), ([frames / "day", "--colour-blind"], "legend.png")):
        assert predict([*argv, *map(str, words)]) == 1
        error = capfd.readouterr().err
        assert error.count("\n") == 1
        assert part in error
        assert "--overwrite" in error
    assert contents(tmp_path / "out") == before
    done(frames / "day")  # others are welcome beside them
    assert files_below(tmp_path / "out/colour") == ["a.png", "b.png", "c.png"]
    done(frames / "a.png", "--overwrite", "--colour-blind")
    assert (tmp_path / "out/overlay/a.png").read_bytes() != before["overlay/a.png"]
    with Image.open(tmp_path / "out/colour/a.png") as picture:
        assert (np.reshape(picture.getpalette()[: 3 * 19], (19, 3)) == colour_blind_palette(CITYSCAPES_19)[:19]).all()


def test_an_output_folder_among_the_inputs_is_not_an_input(done, tmp_path, frames):
    done(tmp_path)
    assert len(files_below(tmp_path / "out/colour")) == 3
    assert "4 images" in done(tmp_path, "--overwrite")  # the legend is an image as any other
    assert files_below(tmp_path / "out/colour/frames") == list(SIZES)


def make_video(path, scenes, fps=10.0):
    with movie(path, fps) as append:
        for scene in scenes:
            append(scene)
    return path


def test_a_video_becomes_a_video_and_pictures_on_demand(done, tmp_path, draw_scene):
    scenes = [draw_scene(number // 3)[0] for number in range(7)]
    video = make_video(tmp_path / "drive.mp4", scenes)
    assert "7 frames" in done(video, "TEST.BATCH_SIZE", "3")
    assert files_below(tmp_path / "out") == ["legend.png", "side-by-side/drive.mp4"]
    with open_video(tmp_path / "out/side-by-side/drive.mp4") as made:
        shown = list(made.frames)
        assert (made.fps, made.count, len(shown)) == (10, 7, 7)
    for scene, frame in zip(scenes, shown, strict=True):
        assert np.abs(frame[25:89, :128].astype(int) - scene).mean() < 12  # below its caption
    done(video, "--as", "png", "--save", "colour,label-ids")
    names = [f"drive.mp4/{number:06d}.png" for number in range(7)]
    assert files_below(tmp_path / "out/colour") == files_below(tmp_path / "out/label-ids") == names
    road = read(tmp_path / "out/colour/drive.mp4/000000.png")[-8:]
    assert (road == 0).mean() > 0.5


@pytest.mark.parametrize("container", ["gif", "mp4"])
def test_images_become_one_movie(done, tmp_path, frames, container):
    done(frames, "--as", container, "--save", "overlay,confidence", "--fps", "4")
    assert files_below(tmp_path / "out") == [f"confidence.{container}", "legend.png", f"overlay.{container}"]
    with open_video(tmp_path / f"out/overlay.{container}") as made:
        first, second, third = made.frames
        assert made.fps == 4
    done(frames)
    assert np.abs(first.astype(int) - read(tmp_path / "out/overlay/a.png")).mean() < 12
    assert second.shape == third.shape == first.shape  # smaller ones are framed in black
    assert second[:6].max() < 40
    assert np.abs(second[7:57].astype(int) - read(tmp_path / "out/overlay/day/b.png")).mean() < 12


def test_memory_does_not_grow_with_the_number_of_frames(done, tmp_path, draw_scene, write_png):
    scene = cv2.resize(draw_scene(0)[0], (640, 320))  # 0.6 MB
    video = make_video(tmp_path / "long.mp4", [scene] * 24)
    images = [write_png(tmp_path / f"many/{number}.png", scene) for number in range(24)]
    options = ("--save", "overlay", "INPUT.INPUT_SIZE_TEST", "(32, 16)")
    done(images[0], *options)  # imports what a run needs
    tracemalloc.start()  # which sees what NumPy and Python allocate
    try:
        done(images[0].parent, video, *options, "--overwrite")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.6e6 < peak < 9e6  # all frames of one are 15 MB, and their pictures as much


def test_help_says_what_it_does_with_an_example(capsys):
    assert predict(["--help"]) == 0
    text = capsys.readouterr().out
    assert "example: python -m tools.predict -cfg configs/" in text
    for word in (*ALL.split(","), "--flip", "--multi-scale", "--as", "TEST.BATCH_SIZE", "MODEL.DEVICE"):
        assert word in text


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, config, capfd, recwarn):
    """refused(*argv, begun=False): the one line that the program ends with; unless it had begun, nothing is left."""

    def run(*argv, begun=False):
        words = [str(word).replace("{root}", str(tmp_path)) for word in argv]
        before = sorted(tmp_path.rglob("*"))
        code = predict(["-cfg", str(config), "-o", str(tmp_path / "out"), *words])
        captured = capfd.readouterr()
        assert code == 1
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        # imageio-ffmpeg leaves the pipes of a process that failed to the garbage collector
        assert not [str(warning.message) for warning in recwarn if warning.category is not ResourceWarning]
        if not begun:
            assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["nothing to predict", "--help"]),
        (["{root}/nowhere"], ["nowhere", "no such file"]),
        (["{root}/frmes"], ["no such file or folder; did you mean {root}/frames?"]),
        (["{root}/frames/*.jpg"], ["*.jpg", "no file matches"]),
        (["{root}/empty"], ["empty", "no image or video", ".png", ".mp4"]),
        (["{root}/frames/note.txt"], ["note.txt", "not an image or video"]),
        (["{root}/frames/lost.png"], ["lost.png", "links to nothing"]),
        # beside an image that could be predicted: the config's options, …
        ([IMAGE, "MODEL.DEVCE", "cpu"], ["MODEL.DEVCE", "did you mean MODEL.DEVICE?"]),
        ([IMAGE, "TEST.BATCH_SIZE"], ["TEST.BATCH_SIZE", "has no value"]),
        ([IMAGE, "TEST.BATCH_SIZE", "0"], ["TEST.BATCH_SIZE", "at least 1"]),
        ([IMAGE, "MODEL.DEVICE", "gpu"], ["MODEL.DEVICE", "'gpu'"]),
        # … the checkpoint, …
        ([IMAGE, "resume", "{root}/none.pth"], ["none.pth", "does not exist"]),
        ([IMAGE, "resume", "{root}/nann.pth"], ["does not exist; did you mean {root}/nan.pth?"]),
        ([IMAGE, "resume", ""], ["no checkpoint", "resume FILE"]),
        ([IMAGE, "resume", "{root}/empty"], ["empty", "model_iter"]),
        ([IMAGE, "resume", "{root}/run"], ["one checkpoint", "run/model_iter000010.pth"]),
        ([IMAGE, "resume", IMAGE], ["a.png", "not a checkpoint"]),
        ([IMAGE, "resume", "{root}/nan.pth"], ["nan.pth is ruined", "classifier.conv2d_list.0.bias has 1 of its 19"]),
        # … and what is to be written
        ([IMAGE, "--save", "colour,depth"], ["'depth'", "overlay", "--help"]),
        ([IMAGE, "--save", ""], ["--save", "overlay"]),
        ([IMAGE, "--as", "avi"], ["--as", "gif", "--help"]),
        ([IMAGE, "--fps", "0"], ["--fps", "0"]),
        ([IMAGE, "--fps", "nan"], ["--fps", "nan"]),
        ([IMAGE, "--as", "mp4", "--save", "label-ids"], ["label-ids", "--as png"]),
        (["{root}/frames/text.mp4", "--save", "label-ids"], ["label-ids", "--as png"]),
        ([IMAGE, "-o", "{root}/tiny.yaml"], ["tiny.yaml", "cannot be written"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes(refused, tmp_path, frames, tiny_checkpoint, argv, parts):
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["classifier"]["conv2d_list.0.bias"][0] = float("nan")
    torch.save(content, tmp_path / "nan.pth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    for number in (7, 10):
        (tmp_path / f"run/model_iter{number:06d}.pth").touch()
    (frames / "note.txt").write_text("no image")
    (frames / "text.mp4").write_text("no video")
    (frames / "lost.png").symlink_to("nowhere.png")
    line = refused(*argv)
    assert not [part for part in parts if part.replace("{root}", str(tmp_path)) not in line], line


def test_without_imageio_ffmpeg_pictures_are_made_and_videos_are_one_line(refused, done, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for words in ([frames / "a.png", "--as", "gif"], [frames, "{root}/drive.mp4"]):
        (frames.parent / "drive.mp4").touch()
        assert "pip install imageio-ffmpeg" in refused(*words)
    done(frames)
