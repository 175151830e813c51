"""Movies hold the frames that were given, or do not appear."""

import resource
import time

import numpy as np
import pytest

from core.utils.errors import UserError
from tools.predict.movies import load_ffmpeg, movie
from tools.predict.video import open_video


def frames(count, height, width):
    """Smooth colours that change from frame to frame."""
    rows, columns = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    for number in range(count):
        picture = np.stack([rows, columns, np.full_like(rows, number / count)], axis=-1)
        yield (255 * picture).astype(np.uint8)


@pytest.mark.parametrize(("ending", "mean", "count"), [("mp4", 4, 5), ("gif", 8, 5), ("mp4", 4, 1)])
@pytest.mark.parametrize("size", [(48, 64), (47, 61)])
def test_there_and_back(tmp_path, ending, mean, count, size):
    path = tmp_path / f"movie.{ending}"
    with movie(path, 10) as append:
        for frame in frames(count, *size):
            append(frame)
        assert not path.exists()
    assert [inner.name for inner in tmp_path.iterdir()] == [path.name]
    with open_video(path) as opened:
        (batch,) = opened.batches([(8, 8)], count)
        assert opened.fps == 10
    for frame, shown in zip(frames(count, *size), batch["image"], strict=True):
        assert shown.shape == (48, size[1] + size[1] % 2, 3)
        assert np.abs(shown[: size[0], : size[1]].astype(int) - frame).mean() < mean


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_without_a_pace_frames_stay_as_long_as_it_took_to_make_the_next(tmp_path, ending):
    path = tmp_path / f"movie.{ending}"
    with movie(path, None) as append:
        for number, frame in enumerate(frames(5, 48, 64)):
            append(frame)
            time.sleep(1.0 if number == 2 else 0.1)
    count, seconds = load_ffmpeg("test").count_frames_and_secs(str(path))
    assert count == 5
    assert 1.1 < seconds < 4
    with open_video(path) as opened:  # at an even pace again: the third fills most of it
        shown = [frame[0, 0, 2] for frame in opened.frames]
    third = next(frame for number, frame in enumerate(frames(5, 48, 64)) if number == 2)[0, 0, 2]
    assert np.isclose(shown, third, atol=20).mean() > 0.3


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, ending):
    path = tmp_path / f"movie.{ending}"
    path.write_bytes(b"the old one")
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 96, 3), np.uint8)

    def write():
        with movie(path, 10) as append:
            for frame in noise:
                append(frame)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes of a file, for ffmpeg, too
    try:
        with pytest.raises(UserError, match=r"movie.* cannot be written.*disk full"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [inner.name for inner in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"the old one"


def test_an_error_in_between_leaves_nothing(tmp_path):
    def draw():
        with movie(tmp_path / "movie.mp4", 10) as append:
            append(next(frames(1, 16, 16)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        draw()
    assert not list(tmp_path.iterdir())
