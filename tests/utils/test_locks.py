"""One process at a time in a folder: named while it lives, out of the way when it is gone."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from core.utils import locks
from core.utils.errors import UserError
from core.utils.locks import LOCK, check_unlocked, locked

HOLDER = """
import sys
from core.utils.errors import UserError
from core.utils.locks import locked
try:
    with locked(sys.argv[1], "OUTPUT_DIR"):
        print("held", flush=True)
        sys.stdin.readline()
except UserError:
    print("refused", flush=True)
"""


def start(folder, script=HOLDER):
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path."""
    process = start(tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_by_the_name_of_its_holder(tmp_path, holder):
    for attempt in (lambda: check_unlocked(tmp_path, "OUTPUT_DIR"), lambda: locked(tmp_path, "OUTPUT_DIR").__enter__()):
        with pytest.raises(UserError) as raised:
            attempt()
        message = str(raised.value)
        assert f"OUTPUT_DIR {tmp_path} is in use by process {holder.pid} on {os.uname().nodename}" in message
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", message)


def test_a_lock_whose_holder_was_killed_is_not_in_the_way(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK).exists()
    check_unlocked(tmp_path, "OUTPUT_DIR")
    with locked(tmp_path, "OUTPUT_DIR"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_program_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    """As git, ffmpeg or the process that starts a loader's workers could, for some seconds."""
    sleep = 'import subprocess; print(subprocess.Popen(["sleep", "60"], close_fds=False).pid); print("held"'
    process = start(tmp_path, HOLDER.replace('print("held"', sleep))
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with locked(tmp_path, "OUTPUT_DIR"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_second_lock_in_one_process_is_refused_and_the_first_stays(tmp_path):
    with locked(tmp_path, "OUTPUT_DIR"):
        for _ in range(2):
            with pytest.raises(UserError, match="in use"):
                locked(tmp_path, "OUTPUT_DIR").__enter__()
    with locked(tmp_path, "OUTPUT_DIR"):
        pass


def test_a_file_that_its_last_holder_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Opened before it was removed, locked after: a third process would not see it."""
    lock, files = locks._lock, []

    def removed_first(handle, kind):
        if not files:
            (tmp_path / LOCK).unlink()
        files.append(handle)
        return lock(handle, kind)

    monkeypatch.setattr(locks, "_lock", removed_first)
    with locked(tmp_path, "OUTPUT_DIR"):
        assert len(files) == 2
        with pytest.raises(UserError, match="in use"):
            check_unlocked(tmp_path, "OUTPUT_DIR")


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path):
    """It holds it until all have tried."""
    processes = [start(tmp_path) for _ in range(4)]
    answers = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("done\n")
    assert sorted(answers) == ["held", "refused", "refused", "refused"]
