"""Frames of video files, one after the other, through ffmpeg (imageio-ffmpeg, which only those who use videos need)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from core.datasets.headers import MAX_PIXELS
from core.datasets.loading import collate_full_views, full_view
from core.utils.errors import UserError
from core.utils.movies import load_ffmpeg

VIDEO_EXTENSIONS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".gif")
DEFAULT_FPS = 25.0  # where the header does not tell
_LOCAL = ["-protocol_whitelist", "file,pipe"]  # a playlist that calls itself .mp4 must not reach into the network


class Video:
    """A video file that is being read.

    Attributes:
        fps: frames per second.
        count: frames, as far as the file's header tells; None where it does not.
    """

    def __init__(self, path: Path, fps: float, count: int | None, frames: Iterator[np.ndarray]):
        self.path, self.fps, self.count, self._frames = path, fps, count, frames

    def batches(self, sizes: list[tuple[int, int]], batch_size: int) -> Iterator[dict]:
        """The frames in batches such as :func:`core.datasets.loading.full_view_loader` makes with `keep`."""
        samples = []
        for index, frame in enumerate(self._frames):
            samples.append(full_view(index, frame, sizes) | {"image": frame})
            if len(samples) == batch_size:
                yield collate_full_views(samples)
                samples = []
        if samples:
            yield collate_full_views(samples)


@contextmanager
def open_video(path: str | Path) -> Iterator[Video]:
    """Start to read a video; one frame at a time is in memory.

    Raises:
        UserError: it cannot be read, now or later, or holds no frame.
    """
    ffmpeg, path = load_ffmpeg(f"video {path}"), Path(path)
    header = _read_header(ffmpeg, path)
    width, height = header["size"]
    if width * height > MAX_PIXELS:
        raise UserError(f"video {path} is {width}×{height}: frames of more than {MAX_PIXELS} pixels are refused")
    fps = header["fps"] or DEFAULT_FPS
    # frames at an even pace, which is their mean one: of a GIF ffmpeg would make a hundred a second
    stream = ffmpeg.read_frames(os.path.abspath(path), input_params=_LOCAL, output_params=["-r", str(fps)])
    try:
        yield Video(path, fps, round(header["duration"] * fps) or None, _frames(stream, path))
    finally:
        stream.close()


def _read_header(ffmpeg: ModuleType, path: Path) -> dict:
    stream = ffmpeg.read_frames(os.path.abspath(path), input_params=_LOCAL)
    try:
        return next(stream)
    except Exception as error:  # whatever a broken file makes the library raise
        raise _unreadable(path, error) from None
    finally:
        stream.close()


def _frames(stream: Iterator, path: Path) -> Iterator[np.ndarray]:
    """The frames, H×W×3 uint8, of what read_frames yields: a header first."""
    number, size = 0, None
    while True:
        try:
            data = next(stream, None)
        except Exception as error:
            raise _unreadable(path, error, f" after {max(number - 1, 0)} frames") from None
        if data is None:
            break
        if size is None:
            size = data["size"][::-1]
        else:
            yield np.frombuffer(bytearray(data), np.uint8).reshape(*size, 3)
        number += 1
    if number < 2:
        raise UserError(f"video {path} holds no frame that can be read")


def _unreadable(path: Path, error: Exception, where: str = "") -> UserError:
    """The last line of what ffmpeg says, which is its reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].replace(os.path.abspath(path), "").strip(" :")[:200] if lines else type(error).__name__
    return UserError(f"video {path} cannot be read{where} ({reason})")
