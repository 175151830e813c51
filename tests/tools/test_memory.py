"""The watch on memory: its arithmetic on made-up samples, its sums over a real process tree, and (long) a real run."""

import subprocess
import sys

import pytest

from tools import memory
from tools.memory import Sample, growth, main, table, tree_memory, watch


def made_up(level):
    """One sample per iteration; `level(iteration)` megabytes."""
    return [Sample(n, 3, round(level(n) * 1e6)) for n in range(0, 301, 10)]


def test_flat_memory_does_not_grow():
    assert growth(made_up(lambda n: 900 if n >= 50 else 300), 300) == pytest.approx(0)


def test_a_leak_shows_in_per_cent():
    assert growth(made_up(lambda n: 1000 + n), 300) == pytest.approx(100 * (1275 / 1070 - 1))


def test_a_peak_in_between_or_of_a_moment_is_no_growth():
    samples = made_up(lambda n: 5000 if n == 200 else 1000)
    assert growth([*samples, Sample(300, 9, 10**10)], 300) == pytest.approx(0)


def test_a_run_that_is_too_short_says_nothing():
    with pytest.raises(ValueError, match="longer"):
        growth(made_up(lambda n: 1000)[:6], 50)


def test_the_table_has_a_row_per_iteration():
    lines = table([Sample(0, 1, 10**8), Sample(20, 3, 2 * 10**8), Sample(20, 2, 4 * 10**8)])
    assert len(lines) == 3
    assert lines[2].split() == ["20", "2", "3", "300.0", "400.0"]


def test_sums_are_over_a_process_its_children_and_theirs(tmp_path):
    for process, parent, held in ((10, 1, 500), (11, 10, 30), (12, 11, 4), (13, 1, 7000), (14, 99, 1)):
        (tmp_path / str(process)).mkdir()
        text = f"Name:\tpython: {process}\nPPid:\t{parent}\nRssAnon:\t     {held} kB\n"
        (tmp_path / str(process) / "status").write_text(text)
    (tmp_path / "15").mkdir()
    (tmp_path / "15/status").write_text("Name:\tkernel\nPPid:\t10\n")  # without memory of its own
    assert tree_memory(10, tmp_path) == {10: 512_000, 11: 30_720, 12: 4096}


def test_memory_of_a_child_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PERIOD", 0.05)
    code = "import sys, time; held = bytearray(64 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep(1)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    (tmp_path / "metrics.csv").write_text("iteration,loss\n20,1.5\n40,1.4\n")
    with subprocess.Popen([sys.executable, "-c", outer]) as run:
        samples = list(watch(run, tmp_path / "metrics.csv"))
    assert {sample.iteration for sample in samples} == {40}  # what the run has told
    assert max(sample.processes for sample in samples) == 2
    assert max(sample.memory for sample in samples) > 64 << 20
    assert tree_memory(run.pid) == {}


def test_the_exit_code_tells(monkeypatch, capsys):
    monkeypatch.setattr(memory, "watch_run", lambda *_: made_up(lambda n: 1000))
    assert main([]) == 0
    assert "+0.00 % (limit 3 %): flat" in capsys.readouterr().out
    monkeypatch.setattr(memory, "watch_run", lambda *_: made_up(lambda n: 1000 + n))
    assert main([]) == 1
    assert "NOT flat" in capsys.readouterr().out


@pytest.mark.long
def test_a_real_run_is_flat(capfd):
    assert main([]) == 0
    assert "growth after" in capfd.readouterr().out
