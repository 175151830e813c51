"""Videos as images: some of their frames, taken once, as PNG files that all else finds as it finds a folder's."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from core.datasets.images import EXTENSIONS, MAX_PIXELS, png_bytes
from core.datasets.reader import ImageSet, require_utf_8, walk_files
from core.utils import distributed
from core.utils.errors import UserError, one_line
from core.utils.files import make_folder, replacing_folder, write_json, writing
from core.utils.logging import LOGGER, progress

VIDEO_PREFIX = "video:"
VIDEO_EXTENSIONS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")
FRAMES = 500  # at most of all videos, where VIDEO.EVERY leaves the choice
# (width, height) at which frames are compared: there a standing camera's noise and compression change a frame by up to
# 0.5 grey levels, a step of one pixel in 480 by more than 1, and so does what covers 2 % of it and moves by its size
_SMALL = (64, 36)
_ABOUT = "video.json"  # beside the frames: what they were made from, and how
_LEFT = re.compile(r".*-[0-9a-f]{8}(\.old)?\.partial")  # folders of frames that are not whole
_LOST = 0.9  # share of the frames that a header tells; where fewer can be read, the log says so

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own lines; what cannot be read is told here


class _Header(NamedTuple):
    """What is known of a video before it is read; `count` frames."""

    count: int
    width: int
    height: int


def find_frames(config, name: str, where: str) -> ImageSet:
    """The frames of `video:PATH`, a video or a folder of them; the main process takes them where that was not done yet.

    Every N-th frame (VIDEO.EVERY), without those that differ from the last one kept by less than VIDEO.MIN_CHANGE grey
    levels, goes to a folder of its own below VIDEO.FOLDER, whole or not at all.

    Args:
        where: begins every message.
    Raises:
        UserError: no such file, no video, no frame in it, no room for the frames.
    """
    folder, about = distributed.from_main(lambda: _taken(config, name, where))
    names = tuple(about["frames"])
    return ImageSet(name, tuple(folder / frame for frame in names), names, note=_described(about, folder))


def _taken(config, name: str, where: str) -> tuple[Path, dict]:
    """The folder of the frames, and what it is said to hold."""
    given = Path(name.removeprefix(VIDEO_PREFIX))
    videos, options = _find_videos(given, where), config.VIDEO
    require_utf_8(videos.values(), where)  # of others, OpenCV ends the process
    top = Path(options.FOLDER or os.path.join(config.DATASETS.ROOT, "frames"))
    status = {video: path.stat() for video, path in videos.items()}
    files = [[video, status[video].st_size, status[video].st_mtime_ns] for video in videos]
    key = {"videos": files, "EVERY": options.EVERY, "MIN_CHANGE": options.MIN_CHANGE}
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=4).hexdigest()
    folder = top / f"{given.resolve().stem[:40]}-{digest}"
    about = _read(folder, key)
    if about is None:
        with _alone(make_folder(top, "VIDEO.FOLDER")):
            about = _read(folder, key)  # another run may have been faster
            if about is None:
                for left in top.iterdir():  # by a process that was killed
                    if _LEFT.fullmatch(left.name):
                        shutil.rmtree(left, ignore_errors=True)
                with replacing_folder(folder) as partial:
                    about = key | _take(videos, folder, partial, options, where)
                    write_json(partial / _ABOUT, about)
    return folder, about


def _find_videos(given: Path, where: str) -> dict[str, Path]:
    """The videos by the names of their frames' folders: of a single file an empty one."""
    if os.path.isfile(given):
        if given.name.lower().endswith(EXTENSIONS):
            raise UserError(f"{where}: {given} is an image, not a video: give folder:{given.parent} for images")
        return {"": given}
    if not os.path.isdir(given):
        raise UserError(f"{where}: there is no file and no folder {given}")
    found = sorted(path for path in walk_files(given) if path.name.lower().endswith(VIDEO_EXTENSIONS))
    if not found:
        raise UserError(f"{where}: no video ({', '.join(VIDEO_EXTENSIONS)}) below {given}")
    return {path.relative_to(given).as_posix(): path for path in found}


def _read(folder: Path, key: Mapping[str, Any]) -> dict | None:
    """What a folder of frames is said to hold; None unless it was made from `key` and all of it is there."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = about.items() >= key.items() and all(os.path.isfile(folder / frame) for frame in about["frames"])
    return about if whole else None


@contextmanager
def _alone(top: Path) -> Iterator[None]:
    """While no other process takes frames into a folder below `top`."""
    with writing(top):
        lock = open(top / ".lock", "wb")  # noqa: SIM115
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOGGER.info("waiting for another process that takes frames to %s", top)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: two would do the same work
            pass
        yield


def _take(videos: Mapping[str, Path], folder: Path, partial: Path, options, where: str) -> dict[str, Any]:
    """Write the frames of all videos below `partial`; what is to be known of them."""
    headers = {video: _header(path, where) for video, path in videos.items()}
    every = options.EVERY or max(1, -(-sum(header.count for header in headers.values()) // FRAMES))
    _check_room(headers, every, folder, where)
    read, left_out, frames = 0, 0, []
    for video, path in videos.items():
        with writing(folder):
            (partial / video).mkdir(parents=True, exist_ok=True)
        last, own_read, own_frames = None, 0, []
        for number, frame in progress(_frames(path, every), path.name, -(-headers[video].count // every)):
            own_read = number + 1
            small = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), _SMALL, interpolation=cv2.INTER_AREA)
            if last is not None and cv2.norm(small, last, cv2.NORM_L1) / small.size < options.MIN_CHANGE:
                left_out += 1
                continue
            last = small
            own_frames.append((Path(video) / f"{number:06d}.png").as_posix())
            with writing(folder):
                (partial / own_frames[-1]).write_bytes(png_bytes(frame))
        if not own_frames:
            raise _unreadable(path, where)
        if own_read + every <= _LOST * headers[video].count:
            told = headers[video].count
            LOGGER.info("video %s: it says that it has %d frames, but only %d can be read", path, told, own_read)
        read += own_read
        frames += own_frames
    return {"every": every, "read": read, "left_out": left_out, "frames": frames}


def _check_room(headers: Mapping[str, _Header], every: int, folder: Path, where: str) -> None:
    """Say what the frames will take, uncompressed, and raise UserError where the disk has less."""
    counts = {video: -(-header.count // every) for video, header in headers.items()}
    # PNG files of frames take less, by how much is seen only when they are written
    needed = sum(3 * header.width * header.height * counts[video] for video, header in headers.items())
    free, count = shutil.disk_usage(folder.parent).free, sum(counts.values())
    if needed > free:
        raise UserError(
            f"{where}: {_every(every)} makes up to {count} images and {needed / 1e9:.1f} GB, but {folder.parent} has "
            f"room for {free / 1e9:.1f}: give a larger VIDEO.EVERY than {every}, or another VIDEO.FOLDER"
        )
    total = sum(header.count for header in headers.values())
    text = "%s: %s of about %d (VIDEO.EVERY) is taken to %s, at most %d images and %.0f MB"
    LOGGER.info(text, where, _every(every), total, folder, count, needed / 1e6)


@contextmanager
def _opened(path: Path, where: str) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise _unreadable(path, where)
        yield capture
    finally:
        capture.release()


def _unreadable(path: Path, where: str) -> UserError:
    return UserError(f"{where}: {path} is no video that can be read, or holds no frame")


def _header(path: Path, where: str) -> _Header:
    with _opened(path, where) as capture:
        read = (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        count, width, height = (int(capture.get(which)) for which in read)
        if width * height > MAX_PIXELS:
            raise UserError(f"{where}: {path} is {width}×{height}: more than {MAX_PIXELS} pixels are refused")
        if count <= 0:  # a stream that was recorded as it came: its header was written before its end was known
            count = 0
            while capture.grab():
                count += 1
        return _Header(count, width, height)


def _frames(path: Path, every: int) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and frames, H×W×3 uint8 RGB, upright as the file says; the frames between are decoded and dropped."""
    with _opened(path, str(path)) as capture:
        number = 0
        while capture.grab():
            if number % every == 0:
                whole, frame = capture.retrieve()
                if whole:
                    yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            number += 1


def _described(about: Mapping[str, Any], folder: Path) -> str:
    """For the log: which frames these are."""
    alike = f"{about['left_out']} near-duplicates (change below VIDEO.MIN_CHANGE {about['MIN_CHANGE']:g})"
    return f"{_every(about['every'])} of {about['read']}, {alike} left out, as PNG in {one_line(folder)}"


def _every(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return "every frame" if number == 1 else f"every {number}{ending} frame"
