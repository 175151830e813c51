"""Files that cannot be read among the inputs of tools.predict: a line each, and everything else is made."""

import os
import runpy
import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import pytest

from tests.helpers import contents
from tests.tools.predict.test_program import files_below, make_video
from tools.predict.record import RECORD
from tools.predict.video import open_video

CASES = Path(__file__).resolve().parents[3].parent / "shared" / "cases" / "make.py"
COUNT = 5
BAD = {
    "half": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "empty": lambda path, whole: path.write_bytes(b""),
    "text": lambda path, whole: path.write_bytes(b"no image"),
    "a link to nothing": lambda path, whole: path.symlink_to("nowhere.png"),
    "a pipe": lambda path, whole: os.mkfifo(path),
}


@pytest.fixture
def images(tmp_path, draw_scene, write_png):
    """tmp_path/frames with images 0.png … 4.png."""
    for number in range(COUNT):
        write_png(tmp_path / f"frames/{number}.png", draw_scene(number)[0])
    return tmp_path / "frames"


def spoil(path, how="half"):
    """Put what cannot be read in the place of a file; returns what was there."""
    whole = path.read_bytes()
    path.unlink()
    BAD[how](path, whole)
    return whole


def mend(path, whole):
    path.unlink()
    path.write_bytes(whole)


def bad_lines(text):
    return [line.partition("bad file: ")[2] for line in text.splitlines() if "bad file: " in line]


@pytest.mark.parametrize("how", BAD)
def test_a_bad_image_is_one_line_and_the_others_are_made(run, images, tmp_path, how):
    spoil(images / "2.png", how)
    done = run(images)
    assert done.code == 1
    (line,) = bad_lines(done.out)
    assert line.startswith(f"image {images / '2.png'} cannot be ")
    assert f"made pictures of 4 images: {tmp_path / 'out'}" in done.out
    last = f"error: 1 of 5 inputs is bad (DATALOADER.SKIP_BAD_IMAGES 0); {line}; the others are done, and --go-on "
    assert done.err.startswith(last)
    assert done.err.count("\n") == 1
    expected = [f"{kind}/{number}.png" for kind in ("colour", "overlay") for number in (0, 1, 3, 4)]
    assert files_below(tmp_path / "out") == sorted([*expected, "legend.png"])


@pytest.mark.parametrize(("allowed", "code", "workers"), [(1, 1, 0), (2, 0, 1), (5, 0, 0)])
def test_up_to_skip_bad_images_may_be_bad(run, images, tmp_path, allowed, code, workers):
    """Also in one batch with sound ones, which are what they would be without."""
    assert run(images).code == 0
    whole = contents(tmp_path / "out")
    for number in (0, 3):
        spoil(images / f"{number}.png")
    options = ("TEST.BATCH_SIZE", "2", "DATALOADER.NUM_WORKERS", workers, "DATALOADER.SKIP_BAD_IMAGES", allowed)
    done = run(images, "-o", tmp_path / "again", *options)
    assert done.code == code
    assert [Path(line.split()[1]).name for line in bad_lines(done.out)] == ["0.png", "3.png"]
    assert "made pictures of 3 images" in done.out
    if code:
        assert done.err.startswith("error: 2 of 5 inputs are bad, each told above (DATALOADER.SKIP_BAD_IMAGES 1); the ")
        assert str(images / "0.png") in done.err
    else:
        assert done.err == ""
    made = contents(tmp_path / "again")
    expected = {name: data for name, data in whole.items() if not name.endswith(("/0.png", "/3.png"))}
    assert made == expected


def test_nothing_but_bad_files(run, images, tmp_path):
    for path in images.iterdir():
        spoil(path, "text")
    done = run(images)
    assert (done.code, len(bad_lines(done.out))) == (1, COUNT)
    assert "0 images in" in done.out
    assert "wrote nothing" in done.out
    assert files_below(tmp_path / "out") == ["legend.png"]


def test_going_on_makes_what_was_mended_and_tells_of_the_rest_again(run, images, tmp_path):
    assert run(images).code == 0
    expected = contents(tmp_path / "out")
    sound = {number: spoil(images / f"{number}.png") for number in (1, 3)}
    argv = (images, "-o", tmp_path / "again")
    assert run(*argv).code == 1
    mend(images / "1.png", sound[1])
    done = run(*argv, "--go-on")
    assert done.code == 1
    assert "made pictures of 1 images (3 were there already)" in done.out
    assert len(bad_lines(done.out)) == 1
    assert str(images / "3.png") in done.err
    mend(images / "3.png", sound[3])
    done = run(*argv, "--go-on")
    assert (done.code, done.err) == (0, "")
    assert "made pictures of 1 images (4 were there already)" in done.out
    assert contents(tmp_path / "again") == expected


def test_a_movie_that_lacks_an_image_is_made_anew_once_it_is_mended(run, images, tmp_path, draw_scene):
    video = make_video(tmp_path / "drive.mp4", [draw_scene(number)[0] for number in range(3)])
    sound = spoil(images / "2.png")
    words = (images, video, "--as", "gif", "--save", "overlay")
    done = run(*words)
    assert done.code == 1
    movies = [tmp_path / "out/overlay.gif", tmp_path / "out/overlay/drive.gif"]
    with open_video(movies[0]) as made:
        assert sum(1 for _ in made.frames) == 4
    other, since = movies[1].stat().st_mtime_ns, (tmp_path / "out" / RECORD).stat().st_mtime_ns
    assert run(*words, "--go-on").code == 1  # it is still bad, and still told
    mend(images / "2.png", sound)
    done = run(*words, "--go-on")
    assert (done.code, done.err) == (0, "")
    assert "made pictures of 5 images (1 were there already)" in done.out
    with open_video(movies[0]) as made:
        assert sum(1 for _ in made.frames) == 5
    assert (movies[1].stat().st_mtime_ns, (tmp_path / "out" / RECORD).stat().st_mtime_ns) == (other, since)
    assert "made pictures of nothing new (2 were there already)" in run(*words, "--go-on").out


@pytest.mark.parametrize("how", ["half", "text", "a link to nothing", "a pipe"])
def test_a_video_that_cannot_be_read_is_one_line_and_the_next_is_made(run, tmp_path, draw_scene, how):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_video(tmp_path / "videos" / name, [draw_scene(number)[0] for number in range(3)])
    if how == "half":
        path = tmp_path / "videos/b.mp4"
        path.write_bytes(path.read_bytes()[:100])
    else:
        spoil(tmp_path / "videos/b.mp4", how)
    done = run(tmp_path / "videos")
    assert done.code == 1
    (line,) = bad_lines(done.out)
    assert line.startswith(f"video {tmp_path / 'videos/b.mp4'} ")
    assert line in done.err
    assert "1 of 3 inputs is bad" in done.err
    assert files_below(tmp_path / "out") == ["legend.png", "side-by-side/a.mp4", "side-by-side/c.mp4"]


def test_a_video_that_was_cut_off_keeps_its_frames_and_is_told(run, tmp_path, draw_scene):
    """FFmpeg itself says nothing of it."""
    whole = make_video(tmp_path / "whole.mp4", [draw_scene(number)[0] for number in range(40)])
    film = tmp_path / "film.mkv"
    copy = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", whole, "-c", "copy", film]
    subprocess.run(list(map(str, copy)), check=True)
    data = film.read_bytes()
    film.write_bytes(data[: len(data) // 2])
    for words, made in (((film,), "side-by-side/film.mp4"), ((film, "--as", "png"), "colour/film.mkv/000000.png")):
        done = run(*words)
        assert done.code == 1
        (line,) = bad_lines(done.out)
        assert line.startswith(f"video {film} says that it has 40 frames, but only ")
        assert line in done.err
        assert (tmp_path / "out" / made).is_file()
        again = run(*words, "--go-on")  # not silent then, either
        assert (again.code, bad_lines(again.out)) == (1, [line])
    assert run(film, "--overwrite", "DATALOADER.SKIP_BAD_IMAGES", "1").code == 0


def test_a_file_that_is_named_and_is_none_is_refused_before_anything_is_made(run, images, tmp_path):
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    done = run(images, tmp_path / "lost.png")
    assert done.code == 1
    assert "links to nothing" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not CASES.is_file(), reason="the cases lie outside of this repository")
def test_the_case_of_a_cut_jpeg(run, tmp_path):
    cases = runpy.run_path(str(CASES))
    cases["CASES"]["cut_jpeg"](tmp_path / "case")
    done = run(tmp_path / "case/images")
    assert done.code == 1
    assert [line.split()[1] for line in bad_lines(done.out)] == [str(tmp_path / "case/images/2.jpg")]
    assert len(files_below(tmp_path / "out/colour")) == 5
    assert cv2.imread(str(tmp_path / "out/colour/5.png")).shape == (64, 96, 3)
