"""Standard streams of any encoding, whose reader may go."""

import io
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from core.utils.streams import Forgiving, take_any_character
from tests.helpers import PROJECT

LOGS = """
import sys
from core.utils.logging import LOGGER, progress, start_logging
from core.utils.streams import take_any_character
take_any_character()
start_logging(sys.argv[1] if len(sys.argv) > 1 else None)
LOGGER.info("first")
sys.stdin.read(1)
for number in range(3):
    LOGGER.info("more … %d", number)
print("said", file=sys.stderr)
LOGGER.info("last")
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_no_character_fails(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    take_any_character()
    print("day → dusk …", flush=True)
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown == {"utf-8": "day → dusk …\n", "ascii": "day \\u2192 dusk \\u2026\n"}.get(
        encoding, "day \\u2192 dusk …\n"
    )


def process_of(*words, stdout):
    """LOGS at work, its first line written or about to be."""
    command = [sys.executable, "-c", LOGS, *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=stdout, env=os.environ | {"PYTHONIOENCODING": "ascii"}, **pipes
    )


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_log_file_is_completed_where_nobody_reads_the_terminal(tmp_path, kind):
    ours, theirs = os.openpty() if kind == "terminal" else os.pipe()
    process = process_of(tmp_path / "log.txt", stdout=theirs)
    os.close(theirs)
    assert os.read(ours, 100).split()[-1] == b"first"
    os.close(ours)  # `| head -1` has ended, or the window was closed
    _, error = process.communicate("x", timeout=60)
    assert (process.returncode, error) == (0, "said\n")
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "more … 0", "more … 1", "more … 2", "last"]


def test_without_a_log_file_lines_that_nobody_reads_are_an_error():
    ours, theirs = os.pipe()
    process = process_of(stdout=theirs)
    os.close(theirs)
    assert os.read(ours, 100)
    os.close(ours)
    _, error = process.communicate("x", timeout=60)
    assert process.returncode != 0
    assert "BrokenPipeError" in error


def test_a_forgiving_stream_falls_silent_and_hides_no_other_error(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as stream:
        bar = Forgiving(stream)
        for _ in range(2):
            bar.write("50 %")
            bar.flush()
        assert bar.encoding == stream.encoding
    full = Forgiving(open("/dev/full", "w"))  # noqa: SIM115
    full.write("50 %")
    with pytest.raises(OSError, match="No space"):
        full.flush()


def test_lines_are_written_around_a_forgiving_bar(monkeypatch):
    """tqdm clears its bars before a line where it knows their stream."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    bar = tqdm(range(3), desc="bar", file=Forgiving(sys.stderr))
    items = iter(bar)
    next(items)
    tqdm.write("line", file=sys.stdout)
    assert "\r" in stream.getvalue()
    assert "\rline\n" in stream.getvalue()
