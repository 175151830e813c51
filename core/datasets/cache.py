"""Decoded images on disk, to be mapped into memory instead of decoded again (DATALOADER.CACHE).

One `.npy` file per image and purpose. Its name is a digest of all that its content depends on: the source file's path,
size in bytes and time of change, and what was made of it; a source that changes is therefore decoded anew.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from core.utils.files import make_folder, writing

GIGABYTE = 1 << 30


def open_cache(config) -> "ImageCache | None":
    """What DATALOADER.CACHE says; None: no cache."""
    options = config.DATALOADER
    return ImageCache(options.CACHE, int(options.CACHE_GB * GIGABYTE)) if options.CACHE else None


class ImageCache:
    """Arrays by source file and purpose, made when first asked for, by any process.

    Args:
        folder: holds the files; made if missing. Several runs may share it.
        limit: bytes that the folder may come to hold; what does not fit is made every time.
    Raises:
        UserError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, limit: int):
        self.folder, self._limit = make_folder(folder, "DATALOADER.CACHE"), limit
        self._full = False

    def get(self, path: Path, purpose: Hashable, make: Callable[[Path], np.ndarray]) -> np.ndarray:
        """`make(path)`, an array of uint8; from the cache it is mapped, writes to it reach nobody.

        Args:
            purpose: whatever `make` depends on, as something whose repr says it all.
        """
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return make(path)  # which knows best what to say about a file that is not there
        content = repr((os.path.abspath(path), status.st_size, status.st_mtime_ns, purpose))
        name = hashlib.blake2b(os.fsencode(content), digest_size=20).hexdigest() + ".npy"
        try:
            return np.load(self.folder / name, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            pass  # not there, or damaged: made again
        array = make(path)
        self._keep(name, array)
        return array

    def _keep(self, name: str, array: np.ndarray) -> None:
        """Write a file under a name of its own and rename it: others see it whole or not at all."""
        if self._full:
            return
        temporary = self.folder / f".{os.getpid()}.tmp"
        with writing(self.folder), open(self.folder / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used = sum(entry.stat().st_size for entry in os.scandir(self.folder) if entry.name.endswith(".npy"))
            if used + array.nbytes + 128 > self._limit:
                self._full = True
                return
            try:
                with temporary.open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                temporary.replace(self.folder / name)
            finally:
                temporary.unlink(missing_ok=True)
