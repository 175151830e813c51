"""Frames of video files, one after the other, through ffmpeg (imageio-ffmpeg, which only those who use videos need)."""

import os
from collections.abc import Iterator, Sequence, Set
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np

from core.datasets.images import MAX_PIXELS
from core.datasets.loading import ViewSize, collate_full_views, full_view
from core.datasets.skipping import BadImage
from tools.predict.movies import DEFAULT_FPS, load_ffmpeg

_LOCAL = ["-protocol_whitelist", "file,pipe"]  # a playlist that calls itself .mp4 must not reach into the network


@dataclass
class Video:
    """A video that is being read.

    Attributes:
        name: for messages.
        fps: frames per second; None: at no pace of its own.
        count: frames, as far as the file's header tells; None where it does not.
        frames: H×W×3 uint8 each, once.
    """

    name: str
    fps: float | None
    count: int | None
    frames: Iterator[np.ndarray]

    def batches(self, sizes: Sequence[ViewSize], batch_size: int, leave_out: Set[int] = frozenset()) -> Iterator[dict]:
        """The frames in batches such as :func:`core.datasets.loading.full_view_loader` makes with `keep`.

        Args:
            sizes: of the views.
            leave_out: indices of frames to pass over.
        """
        frames = ((index, frame) for index, frame in enumerate(self.frames) if index not in leave_out)
        samples = (full_view(index, frame, sizes) | {"image": frame} for index, frame in frames)
        while batch := list(islice(samples, batch_size)):
            yield collate_full_views(batch)


@contextmanager
def open_video(path: str | Path) -> Iterator[Video]:
    """Start to read a video; one frame at a time is in memory.

    Raises:
        BadImage: it cannot be read, now or later, or holds no frame.
    """
    ffmpeg, path = load_ffmpeg(f"video {path}"), Path(path)
    if not os.path.isfile(path):  # ffmpeg would wait for a pipe
        raise BadImage(f"video {path} cannot be read: it is no file (a link to nothing, a folder, a pipe, …)", path)
    with closing(_read(ffmpeg, path)) as stream:
        header = next(stream)
    width, height = header["size"]
    if width * height > MAX_PIXELS:
        raise BadImage(f"video {path} is {width}×{height}: frames of more than {MAX_PIXELS} pixels are refused", path)
    fps = header["fps"] or DEFAULT_FPS
    # frames at an even pace, which is their mean one: of a GIF ffmpeg would make a hundred a second
    with closing(_read(ffmpeg, path, ["-r", str(fps)])) as stream:
        yield Video(path.name, fps, round(header["duration"] * fps) or None, _frames(stream, path))


def _read(ffmpeg: ModuleType, path: Path, output_params: Sequence[str] = ()) -> Iterator[dict | bytes]:
    """A video's header, then its frames."""
    number = 0
    stream = ffmpeg.read_frames(os.path.abspath(path), input_params=_LOCAL, output_params=list(output_params))
    try:
        with closing(stream):
            for item in stream:
                number += 1
                yield item
    except Exception as error:  # whatever a broken file makes the library raise; the last line is ffmpeg's reason
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1].replace(os.path.abspath(path), "").strip(" :")[:200] if lines else type(error).__name__
        where = f" after {number - 1} frames" if number else ""
        raise BadImage(f"video {path} cannot be read{where} ({reason})", path) from None


def _frames(stream: Iterator, path: Path) -> Iterator[np.ndarray]:
    width, height = next(stream)["size"]
    number = 0
    for data in stream:
        number += 1
        yield np.frombuffer(bytearray(data), np.uint8).reshape(height, width, 3)
    if not number:
        raise BadImage(f"video {path} holds no frame that can be read", path)
