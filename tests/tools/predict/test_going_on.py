"""Predictions that were interrupted go on where they stopped, with the same model only."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.helpers import PROJECT, contents
from tests.tools.predict.test_program import files_below, make_video
from tools.predict import studio
from tools.predict.record import RECORD

COUNT = 5


@pytest.fixture
def images(tmp_path, draw_scene, write_png):
    """tmp_path/frames with images 0.png … 4.png."""
    for number in range(COUNT):
        write_png(tmp_path / f"frames/{number}.png", draw_scene(number)[0])
    return tmp_path / "frames"


def pictures(folder):
    """Content and time of writing of what a run left, without its notes."""
    return {
        name: (data, (folder / name).stat().st_mtime_ns) for name, data in contents(folder).items() if name != RECORD
    }


def same_content(one, other):
    return {name: data for name, (data, _) in one.items()} == {name: data for name, (data, _) in other.items()}


def whole_run(run, tmp_path, *argv):
    """What a run without interruption leaves; it is put away."""
    assert run(*argv).code == 0
    found = pictures(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    return found


def kill(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(run, config, tmp_path, draw_scene, write_png):
    frames, out, count = tmp_path / "frames", tmp_path / "out", 40
    for number in range(count):
        write_png(frames / f"{number % 3}/{number}.png", draw_scene(number)[0])
    expected = whole_run(run, tmp_path, frames)
    command = [sys.executable, "-m", "tools.predict", "-cfg", config, "-o", out, frames]
    with subprocess.Popen(
        [*map(str, command)], cwd=PROJECT, start_new_session=True, stdout=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + 120
            while len(list(out.glob("overlay/*/*.png"))) < 5:
                assert time.monotonic() < end
                time.sleep(0.002)
        finally:
            kill(process)
    before = {name: found for name, found in pictures(out).items() if "/." not in name}  # temporary files are hidden
    assert 10 < len(before) < len(expected)
    assert all(data == expected[name][0] for name, (data, _) in before.items())  # what is there is whole
    done = run(frames, "--go-on", "DATALOADER.NUM_WORKERS", "1")
    assert (done.code, done.err) == (0, "")
    after = {name: found for name, found in pictures(out).items() if "/." not in name}
    assert same_content(after, expected)
    kept = [name for name in after if before.get(name) == after[name]]
    skipped = sum(f"colour/{name.removeprefix('overlay/')}" in kept for name in kept if name.startswith("overlay/"))
    assert f"--go-on: {skipped} are there already" in done.out
    assert f"made pictures of {count - skipped} images ({skipped} were there already): {out}" in done.out
    assert "checkpoint: " in done.out  # of a run's config.yaml, without `resume`, it is the source model
    again = run(frames, "--go-on")
    assert f"made pictures of nothing new ({count} were there already): {out}" in again.out
    assert "device:" not in again.out  # it needs no model
    assert "checkpoint:" not in again.out


def test_a_signal_says_how_far_it_came_and_how_to_go_on(run, images, tmp_path, monkeypatch):
    write = studio.Studio._write_pngs

    def stop(self, series, shot):
        write(self, series, shot)
        if shot.index == 1:
            os.kill(os.getpid(), signal.SIGINT)

    expected = whole_run(run, tmp_path, images)
    monkeypatch.setattr(studio.Studio, "_write_pngs", stop)
    done = run(images)
    assert done.code == 130
    assert done.err == "stopped by SIGINT after 1 of 5 images; the same command with --go-on makes the rest\n"
    assert files_below(tmp_path / "out/overlay") == ["0.png", "1.png"]
    monkeypatch.undo()
    assert "made pictures of 3 images (2 were there already)" in run(images, "--go-on").out
    assert same_content(pictures(tmp_path / "out"), expected)


def test_an_image_is_done_when_all_of_its_pictures_are_there(run, images, tmp_path):
    assert "5 images" in run(images, "--go-on").out  # nothing is there yet: it begins
    before = pictures(tmp_path / "out")
    (tmp_path / "out/overlay/3.png").unlink()
    (tmp_path / "out/colour/.4.png.123.tmp").write_bytes(b"half of it")
    (tmp_path / "out/colour/4.png").unlink()
    assert "made pictures of 2 images (3 were there already)" in run(images, "--go-on").out
    after = pictures(tmp_path / "out")
    del after["colour/.4.png.123.tmp"]
    assert same_content(before, after)
    assert "5 images" in run(images, "--go-on", "--save", "confidence").out  # of another kind there is none


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--flip"], "--flip False, now True"),
        (["--colour-blind"], "VIS.COLOURS 'clear', now 'colour_blind'"),
        (["INPUT.INPUT_SIZE_TEST", "(64, 32)"], "INPUT.INPUT_SIZE_TEST [128, 64], now [64, 32]"),
        (["TEST.WINDOW", "(64, 32)"], "TEST.WINDOW [], now [64, 32]"),
        (["resume", "{root}/other.pth"], "resume 'SHA-256 "),
        (["{root}/more"], "inputs '{root}/frames', now '{root}'"),
    ],
)
def test_another_model_does_not_go_on(run, images, tmp_path, make_checkpoint, write_png, draw_scene, argv, part):
    make_checkpoint(tmp_path / "other.pth", FREEZE_BN=True)
    write_png(tmp_path / "more/0.png", draw_scene(9)[0])
    assert run(images).code == 0
    before = contents(tmp_path / "out")
    done = run(images, "--go-on", *(word.replace("{root}", str(tmp_path)) for word in argv))
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert part.replace("{root}", str(tmp_path)) in line
    assert "--overwrite" in line
    assert contents(tmp_path / "out") == before


def test_the_same_model_goes_on_from_a_copy(run, images, tmp_path, tiny_checkpoint):
    assert run(images).code == 0
    (tmp_path / "moved").mkdir()
    shutil.copy(tiny_checkpoint, tmp_path / "moved/copy.pth")
    done = run(images, "--go-on", "resume", tmp_path / "moved/copy.pth", "TEST.BATCH_SIZE", "3")
    assert "nothing new (5 were there already)" in done.out


def test_pictures_made_before_there_were_windows_are_gone_on_with(run, images, tmp_path):
    assert run(images).code == 0
    record = tmp_path / "out" / RECORD
    time, found = record.stat().st_mtime_ns, json.loads(record.read_text(encoding="utf-8"))
    del found["TEST.WINDOW"], found["TEST.STRIDE"]
    record.write_text(json.dumps(found), encoding="utf-8")
    os.utime(record, ns=(time, time))
    assert "nothing new (5 were there already)" in run(images, "--go-on").out
    assert "TEST.WINDOW [], now [64, 32]" in run(images, "--go-on", "TEST.WINDOW", "(64, 32)").err


def test_what_a_run_was_to_overwrite_is_not_taken_for_its_own(run, images, tmp_path):
    expected = whole_run(run, tmp_path, images, "--multi-scale")
    assert run(images).code == 0
    (images / "2.png").rename(tmp_path / "2.png")
    (images / "2.png").write_bytes(b"no image")
    broken = run(images, "--multi-scale", "--overwrite")
    assert broken.code == 1
    assert "2.png" in broken.err
    (tmp_path / "2.png").replace(images / "2.png")
    done = run(images, "--multi-scale", "--go-on")
    assert "made pictures of 1 images (4 were there already)" in done.out
    assert same_content(pictures(tmp_path / "out"), expected)


def test_what_others_made_is_not_replaced(run, images, tmp_path):
    folder = tmp_path / "out/colour"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"precious")
    done = run(images, "--go-on")
    assert done.code == 1
    assert "colour/1.png" in done.err
    assert list(contents(tmp_path / "out")) == ["colour/1.png"]
    assert run(images / "0.png").code == 0  # which notes its settings
    assert "colour/1.png" in run(images, "--go-on").err
    assert (folder / "1.png").read_bytes() == b"precious"


def test_videos_go_on_by_whole_movies_and_by_single_pictures(run, tmp_path, draw_scene):
    (tmp_path / "videos").mkdir()
    for name, count in (("a.mp4", 3), ("b.mp4", 6)):
        make_video(tmp_path / "videos" / name, [draw_scene(number)[0] for number in range(count)])
    videos, out = tmp_path / "videos", tmp_path / "out"
    assert run(videos).code == 0
    before = pictures(out)
    (out / "side-by-side/a.mp4").unlink()
    done = run(videos, "--go-on")
    assert f"made pictures of 3 frames of {videos / 'a.mp4'} (1 were there already)" in done.out
    assert pictures(out)["side-by-side/b.mp4"] == before["side-by-side/b.mp4"]
    words = (videos / "b.mp4", "--as", "png", "--save", "colour", "-o", tmp_path / "frames")
    assert run(*words).code == 0
    whole = pictures(tmp_path / "frames")
    for number in (4, 5):
        (tmp_path / f"frames/colour/b.mp4/00000{number}.png").unlink()
    assert "made pictures of 2 frames of " in run(*words, "--go-on").out
    after = pictures(tmp_path / "frames")
    assert same_content(whole, after)
    assert [name for name in after if after[name] != whole[name]] == [f"colour/b.mp4/00000{n}.png" for n in (4, 5)] + [
        "legend.png"
    ]


def test_both_words_at_once_are_one_line(run, images):
    done = run(images, "--go-on", "--overwrite")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "not allowed with" in done.err


def test_what_was_to_be_overwritten_by_the_same_settings_does_not_count_as_done(run, images, tmp_path):
    expected = whole_run(run, tmp_path, images)
    assert run(images).code == 0
    (images / "2.png").rename(tmp_path / "2.png")
    (images / "2.png").write_bytes(b"no image")
    for path in (tmp_path / "out/colour").glob("*.png"):
        path.write_bytes(b"old")
    assert run(images, "--overwrite").code == 1
    (tmp_path / "2.png").replace(images / "2.png")
    assert run(images, "--go-on").code == 0
    assert same_content(pictures(tmp_path / "out"), expected)
