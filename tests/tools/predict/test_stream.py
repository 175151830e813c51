"""Cameras and streams: read by HTTP from a server on this machine; cameras themselves are not there."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from core.utils.errors import UserError
from tests.helpers import PROJECT, contents
from tests.tools.predict.conftest import number_of, numbered
from tools.predict import stream as streams
from tools.predict.movies import load_ffmpeg, movie
from tools.predict.stream import file_stem, open_stream, split_addresses
from tools.predict.video import open_video


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("0", True),
        ("17", True),
        ("7", False),  # a folder of that name is there
        ("/dev/null", True),  # as /dev/video0: a device
        ("rtsp://10.0.0.5/a", True),
        ("HTTP://host:8080/video?x=1", True),
        ("a.png", False),
        ("http.png", False),
        ("*/*.png", False),
        ("12345", False),
    ],
)
def test_what_names_a_camera_or_stream(tmp_path, monkeypatch, word, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    assert split_addresses(["x", word]) == (([word], ["x"]) if named else ([], ["x", word]))


def test_a_live_stream_is_never_behind_and_every_frame_is_accounted_for(camera):
    numbers, behind = [], []
    with open_stream(camera.url("endless"), 8) as stream:
        for frame in stream.frames:
            time.sleep(0.2)  # six frames long
            numbers.append(number_of(frame))
            behind.append(camera.sent - numbers[-1])
    assert len(numbers) == stream.taken == 8
    gaps = np.diff(numbers)
    assert (gaps >= 1).all()
    assert gaps.sum() > 20
    assert sum(gaps - 1) <= stream.dropped <= sum(gaps - 1) + behind[-1]
    assert behind[-1] < 20  # all that came would be 34 behind by now
    assert stream.broken == ""
    assert 1.6 <= stream.seconds < 8


def test_all_frames_of_a_film_behind_an_address(camera, tmp_path, draw_scene):
    with movie(tmp_path / "film.mp4", 20) as append:
        for number in range(9):
            append(numbered(draw_scene(0)[0], number))
    with open_stream(camera.url("film.mp4")) as stream:
        assert (stream.fps, stream.count, stream.live) == (20, 9, False)
        numbers = []
        for batch in stream.batches([(16, 8)], 4):
            time.sleep(0.1)
            numbers += map(number_of, batch["image"])
    assert numbers == list(range(9))
    assert (stream.dropped, stream.broken) == (0, "")


@pytest.mark.parametrize(("what", "why"), [("short", "its sender ended it"), ("stalling", "nothing came for 2 s")])
def test_a_stream_that_breaks_off_says_why_and_gives_what_it_had(camera, monkeypatch, what, why):
    monkeypatch.setattr(streams, "PATIENCE", 2.0)
    with open_stream(camera.url(what)) as stream:
        last = [number_of(frame) for frame in stream.frames][-1]
    assert last == 5
    assert stream.broken == why


def test_it_ends_after_some_seconds_and_tells_of_itself_meanwhile(camera, monkeypatch, log_lines):
    monkeypatch.setattr(streams, "TELL_EVERY", 0.1)
    with open_stream(camera.url("endless"), longest=0.5) as stream:
        start = time.monotonic()
        count = sum(1 for _ in stream.frames)
    assert count == stream.taken > 1
    assert 0.5 <= time.monotonic() - start < 5
    assert 1 <= len(log_lines) <= 5
    assert f"frames of {stream.name} in 0." in log_lines[0]


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("99", ["camera 99", "/dev/video"]),
        ("/dev/null", ["/dev/null", "is it a camera"]),
        ("http://me:secret@127.0.0.1:9/cam?token=secret", ["http://127.0.0.1:9/cam ", "Connection refused"]),
        ("rtsp://me:secret@127.0.0.1:9/cam", ["127.0.0.1:9 ", "Connection refused"]),
        ("http://me:secret@no.such.host.invalid/cam", ["no.such.host.invalid:80 does not answer"]),
        ("{page}", ["answers, but with no video"]),
        ("{missing}", ["answers, but with no video"]),
        ("{nothing}", ["answers, but with no video"]),
        ("http://127.0.0.1:port/", ["no address"]),
        ("http://me:secret@/", ["http://…", "names no host"]),
    ],
)
def test_what_cannot_be_opened_is_one_line_without_its_password(camera, monkeypatch, capfd, address, parts):
    monkeypatch.setattr(streams, "PATIENCE", 2.0)
    address = camera.url(address.strip("{}")) if address.startswith("{") else address
    with pytest.raises(UserError) as caught, open_stream(address):
        pass
    line = str(caught.value)
    assert not [part for part in parts if part not in line], line
    assert "secret" not in line
    assert capfd.readouterr().err == ""


def test_names_of_files():
    assert file_stem("camera 0") == "camera_0"
    assert file_stem("rtsp://10.0.0.5:554/stream/1") == "10.0.0.5_554_stream_1"
    assert file_stem("http://[::1]/") == "1"
    assert file_stem("udp://:") == "stream"


# --- the program -----------------------------------------------------------------------------------------------------


def seconds_of(path):
    """How many frames a whole video has, and how long they last."""
    return load_ffmpeg("test").count_frames_and_secs(str(path))


def test_a_recording_lasts_as_long_as_what_it_shows(run, camera, tmp_path):
    done = run(camera.url("endless"), "--seconds", "2", "TEST.BATCH_SIZE", "4")
    assert (done.code, done.err) == (0, "")
    (name,) = contents(tmp_path / "out").keys() - {"legend.png"}
    assert name.startswith("side-by-side/127.0.0.1_")
    count, seconds = seconds_of(tmp_path / "out" / name)
    assert 1 < seconds < 3.5
    line, last = done.out.splitlines()[-2:]
    assert f"{count} frames of http://127.0.0.1:" in line
    assert "a second, " in line
    assert " dropped; wrote " in line
    assert last.endswith(f": {tmp_path / 'out'}")


def test_frames_as_pictures_and_a_movie_of_even_pace(run, camera, tmp_path):
    assert run(camera.url("endless"), "--frames", "3", "--as", "png", "--save", "colour").code == 0
    *pictures, _ = contents(tmp_path / "out")
    assert [name.rpartition("_endless/")[2] for name in pictures] == ["000000.png", "000001.png", "000002.png"]
    again = run(camera.url("endless"), "--frames", "3", "--as", "png", "--save", "colour", "--go-on")
    assert again.code == 1
    assert "already there" in again.err  # a camera does not go on
    assert run(camera.url("endless"), "--frames", "3", "--fps", "2", "--as", "gif").code == 0
    (name,) = [name for name in contents(tmp_path / "out") if name.endswith(".gif")]
    with open_video(tmp_path / "out" / name) as opened:
        assert (opened.fps, len(list(opened.frames))) == (2, 3)


def test_a_stream_that_breaks_off_is_one_line_and_its_movie_is_whole(run, camera, tmp_path):
    done = run(camera.url("short"))
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert "broke off after" in line
    if "frames" in done.out:  # it may have ended while the program loaded its model
        (path,) = (tmp_path / "out/side-by-side").iterdir()
        assert str(path) in line
        assert seconds_of(path)[0] >= 1


def test_ctrl_c_ends_a_recording_which_is_whole(camera, config, tmp_path):
    """As a terminal sends it: to the whole group of processes."""
    command = [sys.executable, "-m", "tools.predict", "-cfg", config, "-o", tmp_path / "out", camera.url("endless")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*map(str, command)], cwd=PROJECT, start_new_session=True, **pipes) as process:
        try:
            wait_for(lambda: is_being_written(tmp_path / "out/side-by-side") or process.poll() is not None)
            os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert_recorded(tmp_path / "out/side-by-side", "SIGINT", out, err)


def assert_recorded(folder, name, out, err):
    """One movie is there, whole, and the last line says so."""
    (path,) = folder.iterdir()
    count, _ = seconds_of(path)
    (line,) = err.splitlines()
    assert line.startswith(f"stopped by {name} after {count} frames of http://127.0.0.1:")
    assert line.endswith(f"which are in {path}")
    assert f"wrote {path}" in out


def is_being_written(folder):
    return folder.is_dir() and any(path.stat().st_size for path in folder.iterdir())


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sigterm_ends_a_recording_which_is_whole(run, camera, tmp_path):
    folder = tmp_path / "out/side-by-side"

    def stop():
        wait_for(lambda: is_being_written(folder))
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    done = run(camera.url("endless"), "--seconds", "100")
    stopper.join()
    assert done.code == 143
    assert_recorded(folder, "SIGTERM", done.out, done.err)


def test_a_signal_before_the_first_frame_leaves_no_movie(run, camera, tmp_path, monkeypatch):
    monkeypatch.setattr(streams.Stream, "_next", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    done = run(camera.url("endless"))
    assert done.code == 143
    assert "after 0 frames" in done.err
    assert list(contents(tmp_path / "out")) == ["legend.png"]


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["99"], ["camera 99 cannot be opened"]),
        (["0", "1"], ["goes alone", "2 inputs"]),
        (["tiny.yaml", "rtsp://me:secret@host/"], ["goes alone"]),
        (["{root}/a.png", "--frames", "3"], ["--frames", "none is given"]),
        (["0", "--frames", "0"], ["--frames"]),
        (["0", "--seconds", "nan"], ["--seconds"]),
    ],
)
def test_mistakes(run, tmp_path, write_png, draw_scene, argv, parts):
    write_png(tmp_path / "a.png", draw_scene(0)[0])
    before = sorted(tmp_path.rglob("*"))
    done = run(*(word.replace("{root}", str(tmp_path)) for word in argv))
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert not [part for part in parts if part not in line], line
    assert "secret" not in line
    assert sorted(tmp_path.rglob("*")) == before


def test_readers_leave_no_thread(camera):
    before = threading.active_count()
    with open_stream(camera.url("endless"), 1) as stream:
        assert sum(1 for _ in stream.frames) == 1
    assert [thread for thread in threading.enumerate() if thread is stream._reader] == []
    assert threading.active_count() <= before + 1  # the server's own
