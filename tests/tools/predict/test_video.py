"""Frames of real video files, and files that are none."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from core.utils.errors import UserError
from tools.predict.movies import movie
from tools.predict.video import open_video


def scene(number, height=48, width=64):
    """Grey, brighter from frame to frame, with a red left half."""
    frame = np.full((height, width, 3), 20 * number + 20, np.uint8)
    frame[:, : width // 2] = (200, 30, 30)
    return frame


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "drive.mp4"
    with movie(path, 12.5) as append:
        for number in range(8):
            append(scene(number))
    return path


def test_batches_hold_every_frame_in_order(video):
    with open_video(video) as opened:
        assert (opened.fps, opened.count) == (12.5, 8)
        batches = list(opened.batches([(32, 24), (16, 12)], 3))
    assert [batch["index"] for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    for batch in batches:
        assert [tuple(views.shape) for views in batch["views"]] == [
            (len(batch["index"]), 3, 24, 32),
            (len(batch["index"]), 3, 12, 16),
        ]
        assert batch["size"] == [(48, 64)] * len(batch["index"])
        for index, image in zip(batch["index"], batch["image"], strict=True):
            assert np.abs(image.astype(int) - scene(index))[:, :28].max() < 12  # colours survive there and back
            assert np.abs(image.astype(int) - scene(index))[:, 36:].max() < 12


def run_ffmpeg(*words):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *map(str, words)], check=True)


def test_a_turned_video_is_upright(video, tmp_path, capfd):
    run_ffmpeg("-display_rotation", "90", "-i", video, "-c", "copy", tmp_path / "turned.mp4")
    with open_video(tmp_path / "turned.mp4") as opened:
        (batch,) = opened.batches([(24, 32)], 8)
    assert batch["size"] == [(64, 48)] * 8
    assert (batch["image"][0][40:, :, 0] > 150).all()  # the left half is now below
    assert capfd.readouterr().err == ""


def test_frames_of_uneven_pace_keep_their_mean_pace(video, tmp_path):
    run_ffmpeg("-i", video, "-vf", "setpts=N*N/25/TB,fps=100,mpdecimate", "-fps_mode", "vfr", tmp_path / "uneven.gif")
    with open_video(tmp_path / "uneven.gif") as opened:
        frames = sum(len(batch["index"]) for batch in opened.batches([(8, 8)], 4))
        assert frames == pytest.approx(opened.count, abs=1)
    assert frames < 16  # not 100 a second


@pytest.mark.parametrize("how", ["text", "empty", "half", "playlist", "missing"])
def test_what_is_no_video_is_one_line(video, how):
    whole = video.read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{video}\n"
    content = {"text": b"no video", "empty": b"", "half": whole[: len(whole) // 2], "playlist": playlist.encode()}
    bad = video.with_name("bad.mp4")
    if how != "missing":
        bad.write_bytes(content[how])
    with pytest.raises(UserError, match=r"video .*bad\.mp4") as caught, open_video(bad) as opened:
        list(opened.batches([(8, 8)], 1))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(bad))
