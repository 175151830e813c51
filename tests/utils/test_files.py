"""Files that are complete or not there: what a full disk and a crash leave behind at every write."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest
import torch

from core.models.deeplab import Segmentor
from core.runs.states import StateFolder
from core.utils.checkpoints import save_checkpoint
from core.utils.errors import UserError
from core.utils.files import Table, keep_rows, remove_leftovers, replacing_folder, write_json, write_text
from tests.helpers import contents


def small_model(value):
    model = Segmentor(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 2, 1))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


def write_checkpoint(folder, value):
    save_checkpoint(small_model(value), folder / "model_iter000004.pth", 4)


def write_state(folder, value):
    StateFolder(folder, keep=1).write({"iteration": 4 * value, "weights": torch.full((1000,), float(value))})


def append_row(folder, value):
    if value == 1:
        Table(folder / "metrics.csv", ("iteration", "loss"))
    Table(folder / "metrics.csv", ("iteration", "loss"), keep=True).append({"iteration": value, "loss": 0.5})


def drop_rows(folder, value):
    if value == 1:
        write_text(folder / "metrics.csv", "iteration,loss\r\n1,0.5\r\n2,0.25\r\n")
    else:
        keep_rows(folder / "metrics.csv", lambda row: int(row["iteration"]) < 2)


def write_config(folder, value):
    write_text(folder / "config.yaml", f"SEED: {value}\n")


def write_statistics(folder, value):
    write_json(folder / "statistics.json", {"pixels": [value]})


def write_generation(folder, value):
    """The same name again, as where a run that goes on repeats a pass."""
    with replacing_folder(folder / "g0001") as partial:
        (partial / "labels").mkdir()
        (partial / "labels/000000.png").write_bytes(bytes([value]) * 100)
        write_json(partial / "index.json", {"value": value})


WRITES = [write_checkpoint, write_state, append_row, drop_rows, write_config, write_statistics, write_generation]


class Faults:
    """Counts the calls of the system that a write makes, and has one of them fail."""

    def __init__(self, monkeypatch, failing, fault):
        self.calls, self.failing, self.fault = 0, failing, fault
        for name in ("fsync", "replace", "rename", "open", "write"):
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, function):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == self.failing:
                self.fault()
            return function(*args, **kwargs)

        return call


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def crash():
    os._exit(9)


def message_of(action):
    """Of the UserError that an action raises; empty if it succeeds."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def each_failure(tmp_path, write, attempt):
    """Of each call of the system that a second write makes: (what is left where it fails, what was there before,
    what the write would have left).

    Args:
        attempt: called with a folder and n, writes there and has the n-th call fail; returns whether there was one.
    """
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", 1)
    first = contents(tmp_path / "out")
    write(tmp_path / "out", 2)
    second = contents(tmp_path / "out")
    assert first != second
    for failing in range(1, 50):
        folder = tmp_path / str(failing)
        folder.mkdir()
        write(folder, 1)
        if not attempt(folder, failing):
            break
        remove_leftovers(folder)
        remove_leftovers(folder / "state")
        left = contents(folder)
        if write is write_state:  # both, for a moment: the old one goes when the new one is there
            left = {name: data for name, data in left.items() if name in second} or left
        yield left, first, second
    assert failing > 2  # at least the file's sync and its renaming
    assert contents(folder) == second


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_full_disk_leaves_what_was_there_and_is_one_line_with_the_path(tmp_path, monkeypatch, write):
    def attempt(folder, failing):
        with monkeypatch.context() as patch:
            faults = Faults(patch, failing, full_disk)
            message = message_of(lambda: write(folder, 2))
        if message:
            assert str(folder) in message
            assert "No space left on device" in message
            assert "\n" not in message
        return faults.calls >= failing

    for left, first, second in each_failure(tmp_path, write, attempt):
        assert left in (first, second)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_crash_leaves_what_was_there(tmp_path, monkeypatch, write):
    def attempt(folder, failing):
        child = os.fork()
        if not child:
            Faults(monkeypatch, failing, crash)
            try:
                write(folder, 2)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0

    for left, first, second in each_failure(tmp_path, write, attempt):
        if write is write_generation and not left:
            continue  # nothing named the old one any more, or its pass would not have been made again
        assert left in (first, second)


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_is_written_is_on_disk_before_it_takes_its_place_and_its_place_after(tmp_path, monkeypatch, write):
    write(tmp_path, 1)
    events, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        events.append(("synced", os.fstat(handle).st_ino))
        fsync(handle)

    def renamed(source, target):
        events.append(("renamed", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write(tmp_path, 2)
    (top,) = tmp_path.iterdir()
    if write is append_row:  # so that a row costs the same however many there are
        assert events == [("synced", top.stat().st_ino)]
        return
    place = next(tmp_path.rglob("iter*.pth")) if write is write_state else top
    moment = events.index(("renamed", place.stat().st_ino))
    assert all(("synced", path.stat().st_ino) in events[:moment] for path in (place, *place.rglob("*")))
    assert ("synced", place.parent.stat().st_ino) in events[moment:]


@contextmanager
def room_for(count):
    """No file may become larger than so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_there_is_no_room_for(tmp_path):
    """The room ends while the weights are written, not after."""
    path = tmp_path / "model.pth"
    save_checkpoint(small_model(1), path, 1)
    before = path.read_bytes()
    with room_for(2000), pytest.raises(UserError, match=r"model\.pth cannot be written \(File too large\)"):
        save_checkpoint(small_model(2), path, 2)
    assert contents(tmp_path) == {"model.pth": before}


@pytest.mark.parametrize("room", [1000, 100_000, 500_000])
def test_a_large_state_that_there_is_no_room_for(tmp_path, room):
    """Torch makes an error of its own of what the disk refuses in the middle of a tensor."""
    states = StateFolder(tmp_path)
    weights = {name: torch.zeros(100_000) for name in "ab"}
    old = states.write({"iteration": 1, "weights": {}})
    with room_for(room), pytest.raises(UserError, match=r"iter000002\.pth cannot be written \(File too large\)"):
        states.write({"iteration": 2, "weights": weights})
    assert list(old.parent.iterdir()) == [old]


def test_rows_that_are_kept_are_left_as_they_were(tmp_path):
    path = tmp_path / "metrics.csv"
    text = "iteration,loss\r\n20,0.123456789\r\n40,\r\n60,0.5\r\n"
    path.write_text(text, newline="")
    assert [row["iteration"] for row in keep_rows(path, lambda row: int(row["iteration"]) <= 40)] == ["20", "40"]
    assert path.read_bytes() == text.replace("60,0.5\r\n", "").encode()
    before = path.stat().st_mtime_ns
    keep_rows(path, lambda row: True)
    assert path.stat().st_mtime_ns == before
    assert keep_rows(tmp_path / "none.csv", lambda row: True) == []


ROWS = "iteration,loss\r\n20,0.5\r\n140,0.25\r\n"


@pytest.mark.parametrize("torn", [*(ROWS[:-cut] for cut in range(1, len("140,0.25\r\n"))), ROWS[:-10] + "\0" * 9])
def test_a_row_that_a_crash_tore_or_filled_with_zeros_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.csv"
    path.write_text(torn, newline="")
    assert keep_rows(path, lambda row: True) == [{"iteration": "20", "loss": "0.5"}]
    Table(path, ("iteration", "loss"), keep=True).append({"iteration": 140, "loss": 0.25})
    assert path.read_bytes() == ROWS.encode()


def test_a_disk_with_room_for_half_a_row_leaves_none_of_it(tmp_path, monkeypatch):
    table = Table(tmp_path / "metrics.csv", ("iteration", "loss"))
    table.append({"iteration": 20, "loss": 0.5})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
        with pytest.raises(UserError, match=r"metrics\.csv cannot be written \(No space left on device\)"):
            table.append({"iteration": 140, "loss": 0.25})
    table.append({"iteration": 140, "loss": 0.25})
    assert (tmp_path / "metrics.csv").read_bytes() == ROWS.encode()


def test_the_table_of_an_earlier_version_takes_the_columns_that_came_later(tmp_path):
    path = tmp_path / "evaluation.csv"
    path.write_text(ROWS, newline="")
    columns = ("iteration", "loss", "new")
    Table(path, columns, keep=True).append({"iteration": 160, "loss": 1, "new": 2})
    assert path.read_text() == "iteration,loss,new\n20,0.5,\n140,0.25,\n160,1,2\n"
    assert keep_rows(path, lambda row: row["new"] == "") == [
        {"iteration": "20", "loss": "0.5", "new": ""},
        {"iteration": "140", "loss": "0.25", "new": ""},
    ]


def test_an_unknown_column_is_refused(tmp_path):
    table = Table(tmp_path / "t.csv", ("a", "b"))
    table.append({"a": 1})
    with pytest.raises(ValueError, match="no column c"):
        table.append({"a": 1, "c": 2})
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\r\n1,\r\n"


def test_leftovers_of_a_crash_are_removed(tmp_path):
    (tmp_path / "g0001.partial/labels").mkdir(parents=True)
    (tmp_path / ".metrics.csv.123.tmp").write_text("half")
    (tmp_path / "metrics.csv").write_text("whole")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
