"""A folder that only one process at a time writes to."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.utils.errors import UserError

LOCK = "run.lock"


@contextmanager
def locked(folder: str | Path, key: str) -> Iterator[None]:
    """Hold a folder's lock; the kernel lets it go when the process ends, however that happens.

    The lock is the kernel's (flock) on a file that says who holds it, not the file's being there: what a dead process
    left is in nobody's way, and programs that this one starts do not inherit it. flock reaches across machines on NFS
    since Linux 2.6.12 and on Lustre when it is mounted with `-o flock`; elsewhere it keeps apart the processes of one
    machine only.

    Args:
        folder: exists.
        key: the option that the folder comes from.
    Raises:
        UserError: another process holds it (which, since when), or the file cannot be made.
    """
    path = Path(folder) / LOCK
    handle = _acquire(path, key)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock is let go: who waits for this very file looks again
        os.close(handle)


def check_unlocked(folder: str | Path, key: str) -> None:
    """Raise UserError if another process holds the folder; nothing is made or written."""
    path = Path(folder) / LOCK
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        if not _lock(handle, fcntl.LOCK_SH):
            raise _in_use(path, key)
    finally:
        os.close(handle)


def _acquire(path: Path, key: str) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"{key} {path.parent} cannot be written to ({error.strerror})") from None
        if not _lock(handle, fcntl.LOCK_EX):
            os.close(handle)
            raise _in_use(path, key)
        if _is_open_file(handle, path):
            break
        os.close(handle)  # its last holder has removed it since
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
    with suppress(OSError):  # a full disk: the lock is held all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)
    return handle


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: better a run without one than none
        return True
    return True


def _is_open_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _in_use(path: Path, key: str) -> UserError:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return UserError(f"{key} {path.parent} is in use by {who}: wait for it to end, or give another {key}")
