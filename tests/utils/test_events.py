"""TensorBoard reads what is written, and forgets what a continued run has given up."""

import os
import socket
import sys
import time

import pytest

from core.utils.errors import UserError
from core.utils.events import EventFile, available
from tests.helpers import events_of


def test_nothing_is_written_before_the_first_record(tmp_path):
    assert available()
    EventFile(tmp_path / "board").go_on(3)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_read(tmp_path):
    file = EventFile(tmp_path / "board")
    file.scalars(20, {"train/loss": 0.5, "IoU/zebra crossing ü": 12.25, "IoU/a\n\ud800": 1.5})
    file.scalars(40, {"train/loss": float("nan")})
    file.image(40, "panel", b"\x89PNG", (3, 5))
    found = events_of(tmp_path / "board")
    assert found.pop("IoU/zebra crossing ü") == [(20, 12.25)]
    assert found.pop(r"IoU/a\n\ud800") == [(20, 1.5)]
    assert found.pop("panel") == [(40, 3)]
    (first, second) = found.pop("train/loss")
    assert first == (20, 0.5)
    assert (second[0], second[1] != second[1]) == (40, True)
    assert not found


@pytest.mark.parametrize("torn", [0, 7])  # bytes that a crash left of a last record
def test_a_continued_run_replaces_what_came_after_its_state(tmp_path, monkeypatch, torn):
    """Though its clock is behind that of the machine that ran before."""
    first = EventFile(tmp_path)
    for step in (1, 2, 3, 4):
        first.scalars(step, {"a": step, "late" if step > 2 else "early": step})
    (path,) = tmp_path.iterdir()
    if torn:
        path.write_bytes(path.read_bytes()[:-torn])
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(socket, "gethostname", lambda: "a")
    second = EventFile(tmp_path)
    second.go_on(3)
    second.scalars(3, {"a": 30})
    assert events_of(tmp_path) == {"a": [(1, 1), (2, 2), (3, 30)], "early": [(1, 1), (2, 2)], "late": []}
    third = EventFile(tmp_path)
    third.go_on(4)
    third.scalars(4, {"a": 40})
    assert events_of(tmp_path)["a"] == [(1, 1), (2, 2), (3, 30), (4, 40)]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_record_that_finds_no_room_leaves_no_part_of_it(tmp_path, monkeypatch):
    file, write = EventFile(tmp_path), os.write
    file.scalars(1, {"a": 1})
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: write(handle, data[:10]))
        with pytest.raises(UserError, match=r"tfevents.* cannot be written \(No space left on device\)"):
            file.scalars(2, {"a": 2})
    assert path.read_bytes() == before
    file.scalars(3, {"a": 3})
    assert events_of(tmp_path) == {"a": [(1, 1), (3, 3)]}


def test_a_package_that_does_not_load_is_a_users_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(UserError, match="tensorboard cannot be imported"):
        EventFile(tmp_path).scalars(1, {"a": 1})
