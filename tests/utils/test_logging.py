"""A record is one line, whatever the names in it hold."""

import signal
import subprocess

import pytest

from core.programs.frame import config_parser, run_program
from core.utils.errors import one_line
from core.utils.logging import LOGGER, start_logging, stop_logging
from core.utils.signals import Stopped

NAME = "frames/a\nb\r\x1b[31m\u2028ü × 7.png"


def test_a_record_is_one_line_on_the_terminal_and_in_the_file(tmp_path, capsys):
    start_logging(tmp_path / "log.txt")
    LOGGER.info("aspect: %s is %d×%d", NAME, 4, 3)
    LOGGER.info("next")
    stop_logging()
    told = capsys.readouterr().out
    assert told == (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert [line.split(" ", 2)[2] for line in told.splitlines()] == [f"aspect: {one_line(NAME)} is 4×3", "next"]
    assert r"a\nb\r\x1b[31m\u2028ü × 7.png" in told


def test_a_file_has_what_was_said_before_it(tmp_path, capsys):
    (tmp_path / "log.txt").write_text("an earlier run\n")
    start_logging()
    LOGGER.info("at the start")
    LOGGER.debug("for the file")
    start_logging(tmp_path / "log.txt")
    LOGGER.info("then")
    stop_logging()
    start_logging()
    start_logging(tmp_path / "other.txt")
    LOGGER.info("another run")
    stop_logging()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0] == "an earlier run"
    assert [line.split(" ", 2)[2] for line in lines[1:]] == ["at the start", "for the file", "then"]
    assert len((tmp_path / "other.txt").read_text().splitlines()) == 1
    assert capsys.readouterr().out.count("at the start") == 1


@pytest.mark.parametrize("note", ["", f"after iteration 2, state saved as {NAME}"])
def test_the_last_line_is_one_line_and_a_command_that_a_shell_takes(capsys, note):
    argv = ["-cfg", "a.yaml", "OUTPUT_DIR", "it's\na \\ folder"]

    def body(_):
        stopped = Stopped(signal.SIGTERM)
        stopped.note = note
        raise stopped

    assert run_program(body, config_parser("", "python train.py -cfg a.yaml"), argv, resumable=True) == 143
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    if note:
        command = line.partition("go on with: python train.py ")[2]
        print_words = ["bash", "-c", f"printf '%s\\0' {command}"]
        words = subprocess.run(print_words, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
        assert words == [*argv, "resume", "auto"]
