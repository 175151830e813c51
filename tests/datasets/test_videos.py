"""Videos as images: which frames are taken, once, and what is no video."""

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from core.configs import cfg
from core.datasets import videos
from core.datasets.catalog import find_images, find_source_images, find_target_images, find_test_images
from core.datasets.images import read_image
from core.utils.errors import UserError
from tests.helpers import Killed, contents

SIZE = (64, 32)


def write_video(path, levels, size=SIZE):
    """A Motion JPEG of evenly grey frames with a white square in the upper left corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, size)
    for level in levels:
        frame = np.full((size[1], size[0], 3), level, np.uint8)
        frame[:8, :8] = 255
        writer.write(frame)
    writer.release()
    return path


def ffmpeg(*words):
    """Run the ffmpeg that comes with imageio-ffmpeg."""
    program = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    subprocess.run([program, "-loglevel", "error", *map(str, words)], check=True, stdin=subprocess.DEVNULL)
    return Path(words[-1])


@pytest.fixture
def found(tmp_path):
    """found(path, key="TARGET_TRAIN", **options of VIDEO): the images of video:path, kept below tmp_path/frames."""

    def find(path, key="TARGET_TRAIN", **options):
        config = cfg.clone()
        config.DATASETS.ROOT, config.DATASETS[key] = str(tmp_path), f"video:{path}"
        config.VIDEO.update(options)
        find = {"TARGET_TRAIN": find_target_images, "TEST": find_test_images, "SOURCE_TRAIN": find_source_images}
        return find[key](config)

    return find


@pytest.fixture
def ramp(tmp_path):
    """A video of 21 frames that get lighter by ten levels each."""
    return write_video(tmp_path / "videos/ramp.avi", range(0, 210, 10))


def test_every_nth_frame_is_an_image_without_loss(ramp, found, log_lines, tmp_path):
    images = found(ramp, EVERY=4)
    assert images.names == tuple(f"{number:06d}.png" for number in range(0, 21, 4))
    capture = cv2.VideoCapture(str(ramp))
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(21)]
    for number, path in zip(range(0, 21, 4), images.paths, strict=True):
        assert np.array_equal(read_image(path), frames[number])
    (line,) = log_lines
    folder = images.paths[0].parent
    assert folder.parent == tmp_path / "frames"
    assert f"every 4th frame of about 21 (VIDEO.EVERY) is taken to {folder}, at most 6 images and 0 MB" in line
    assert images.note.startswith("every 4th frame of 21, 0 near-duplicates")


def test_a_long_video_gives_some_hundreds_of_frames(tmp_path, found):
    levels = np.random.default_rng(0).integers(0, 200, 1102)
    images = found(write_video(tmp_path / "long.avi", levels, (32, 16)), MIN_CHANGE=0.0)
    assert images.names[:3] == ("000000.png", "000003.png", "000006.png")
    assert len(images) == 368  # of 1102 every third; every second would be more than 500


def test_near_duplicates_are_left_out_and_counted(tmp_path, found):
    """A standstill, in which noise goes on; then steps, each too small but not their sum."""
    levels = [50, *[50] * 9, 120, 120, 120, 200]
    still = found(write_video(tmp_path / "still.avi", levels))
    assert still.names == ("000000.png", "000010.png", "000013.png")
    assert "11 near-duplicates (change below VIDEO.MIN_CHANGE 1)" in still.note
    assert len(found(tmp_path / "still.avi", MIN_CHANGE=0.0)) == 14
    slow = found(write_video(tmp_path / "slow.avi", range(50, 70)), MIN_CHANGE=3.5)
    assert 3 <= len(slow) <= 6


def test_noise_is_no_change_but_a_moving_camera_is(draw_scene, tmp_path, found):
    scene = cv2.resize(draw_scene(0)[0], (384, 192))
    rng = np.random.default_rng(0)
    for name, step, kept in (("noise.avi", 0, 1), ("pan.avi", 8, 8)):
        writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*"MJPG"), 25, (256, 192))
        for number in range(8):
            frame = scene[:, number * step : number * step + 256] + rng.normal(0, 3, (192, 256, 3))
            writer.write(np.ascontiguousarray(frame.clip(0, 255).astype(np.uint8)))
        writer.release()
        assert len(found(tmp_path / name)) == kept


def test_a_folder_of_videos_is_searched_and_names_tell_them_apart(tmp_path, found):
    write_video(tmp_path / "drives/b/two.avi", [0, 50, 100])
    write_video(tmp_path / "drives/one.AVI", [0, 50, 100, 150])
    write_video(tmp_path / "drives/.trash/three.avi", [0, 50])
    (tmp_path / "drives/readme.txt").touch()
    images = found(tmp_path / "drives", EVERY=2)
    assert images.names == tuple(f"{video}/{number:06d}.png" for video in ("b/two.avi", "one.AVI") for number in (0, 2))
    assert all(str(path).endswith(name) for path, name in zip(images.paths, images.names, strict=True))


def test_frames_are_taken_once_for_the_same_file_and_settings(ramp, found, log_lines, monkeypatch):
    first = found(ramp)
    before = contents(first.paths[0].parent)
    with monkeypatch.context() as patch:
        patch.setattr(videos, "_take", None)  # nothing is opened
        assert (found(ramp).paths, found(ramp, key="TEST").paths) == (first.paths, first.paths)
    assert len(log_lines) == 1
    assert found(ramp, EVERY=2).paths[0].parent != first.paths[0].parent
    first.paths[3].unlink()
    assert found(ramp).paths == first.paths  # taken again
    assert contents(first.paths[0].parent) == before
    os.utime(ramp, (1, 1))
    assert found(ramp).paths[0].parent != first.paths[0].parent


def test_what_is_interrupted_leaves_nothing_behind(ramp, found, tmp_path, monkeypatch):
    written = []

    def killed(frame):
        written.append(frame)
        if len(written) > 3:
            raise Killed
        return b"half"

    with monkeypatch.context() as patch:
        patch.setattr(videos, "png_bytes", killed)
        with pytest.raises(Killed):
            found(ramp)
    assert [path.name for path in (tmp_path / "frames").iterdir()] == [".lock"]
    (tmp_path / "frames/other-12345678.partial").mkdir()  # of a process that could not clean up
    assert len(found(ramp)) == 21
    assert not list((tmp_path / "frames").glob("*.partial"))


def test_of_several_runs_at_once_one_takes_the_frames(ramp, found, monkeypatch, tmp_path):
    take, fork = videos._take, multiprocessing.get_context("fork")

    def noted(*args):
        with (tmp_path / "taken.txt").open("a") as file:
            file.write("once\n")
        time.sleep(0.5)  # in which the others come
        return take(*args)

    monkeypatch.setattr(videos, "_take", noted)
    processes = [fork.Process(target=found, args=(ramp,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "taken.txt").read_text() == "once\n"
    assert len(found(ramp)) == 21


def test_a_turned_phone_video_is_upright(tmp_path, found):
    video = write_video(tmp_path / "flat.avi", [50, 100])
    flat = ffmpeg("-i", video, "-c:v", "mpeg4", tmp_path / "flat.mp4")
    turned = ffmpeg("-display_rotation", "90", "-i", flat, "-c", "copy", tmp_path / "turned.mp4")
    first = read_image(found(turned).paths[0])
    assert first.shape == (SIZE[0], SIZE[1], 3)
    assert first[-4, 3].min() > 200  # the white corner
    assert first[3, 3].max() < 100


def test_frames_at_an_uneven_pace_come_each_once(tmp_path, found):
    video = write_video(tmp_path / "even.avi", range(0, 200, 10))
    kept = "select='lt(n,10)+not(mod(n,5))'"  # the later ones are five times as far apart
    uneven = ffmpeg("-i", video, "-vf", kept, "-fps_mode", "vfr", "-c:v", "mpeg4", tmp_path / "uneven.mp4")
    levels = [int(read_image(path)[20, 40].mean()) for path in found(uneven).paths]
    assert levels == pytest.approx([*range(0, 100, 10), 100, 150], abs=4)


def test_a_video_without_a_length_is_counted(ramp, tmp_path, found):
    live = ffmpeg("-i", ramp, "-f", "matroska", "-live", "1", "-c:v", "mpeg4", tmp_path / "live.mkv")
    assert len(found(live, EVERY=5)) == 5


def test_a_video_that_is_cut_off_says_so(ramp, tmp_path, found, log_lines):
    (tmp_path / "cut.avi").write_bytes(ramp.read_bytes()[: ramp.stat().st_size * 2 // 3])
    images = found(tmp_path / "cut.avi")
    assert 5 < len(images) < 20
    assert f"it says that it has 21 frames, but only {len(images)} can be read" in log_lines[-1]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.mp4", r"^DATASETS.TARGET_TRAIN video:.*: there is no file and no folder .*nowhere\.mp4$"),
        ("empty.mp4", r"empty\.mp4 is no video that can be read, or holds no frame"),
        ("text.mp4", r"text\.mp4 is no video that can be read"),
        ("frame.png", r"frame\.png is an image, not a video: give folder:"),
        ("bare", r"no video \(\.mp4, .*\) below .*bare"),
        ("mixed", r"text\.avi is no video that can be read"),
    ],
)
def test_what_is_no_video_is_one_line(path, message, tmp_path, found, write_png, capfd):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("#EXTM3U\n" * 100)
    write_png(tmp_path / "frame.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "bare").mkdir()
    write_video(tmp_path / "mixed/good.avi", [0, 50])
    (tmp_path / "mixed/text.avi").write_text("no video")
    with pytest.raises(UserError, match=message):
        found(tmp_path / path)
    assert capfd.readouterr().err == ""  # FFmpeg and OpenCV say nothing
    assert not [p for p in (tmp_path / "frames").glob("*") if p.name != ".lock"]


def test_a_video_has_no_labels_to_train_on(ramp, found, tmp_path):
    with pytest.raises(UserError, match="has no labels"):
        found(ramp, key="SOURCE_TRAIN")
    assert not (tmp_path / "frames").exists()


def test_more_than_the_disk_holds_is_refused_before(ramp, found, monkeypatch, tmp_path):
    monkeypatch.setattr(videos.shutil, "disk_usage", lambda path: videos.shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(UserError, match=r"every frame makes up to 21 images .*larger VIDEO.EVERY than 1, or another"):
        found(ramp)


def test_frames_go_where_they_are_told_to(ramp, tmp_path):
    config = cfg.clone()
    config.DATASETS.TARGET_TRAIN, config.VIDEO.FOLDER = f"video:{ramp}", str(tmp_path / "elsewhere")
    assert find_images(config, "TARGET_TRAIN").paths[0].parents[1] == tmp_path / "elsewhere"
    (tmp_path / "file").touch()
    config.VIDEO.FOLDER = str(tmp_path / "file")
    with pytest.raises(UserError, match=r"^VIDEO\.FOLDER .*file cannot be written to"):
        find_images(config, "TARGET_TRAIN")


def test_a_name_that_no_log_could_hold_is_one_line(ramp, found, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    os.link(ramp, os.fsencode(folder) + b"/caf\xe9.avi")
    with pytest.raises(UserError, match=r"the name of .* is not UTF-8; rename it"):
        found(folder)
