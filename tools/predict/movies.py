"""GIF and MP4 files written frame by frame, through ffmpeg (imageio-ffmpeg)."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from core.utils.errors import UserError
from core.utils.files import replacing

# colours as players expect them of a file that says so
_MP4 = ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-movflags", "+faststart"]
_MP4 += [word for what in ("colorspace", "color_primaries", "color_trc") for word in (f"-{what}", "bt709")]
# every frame at the time at which it comes
_BY_THE_CLOCK = "settb=1/90000,setpts=(RTCTIME-RTCSTART)/(TB*1000000)"
# a palette for each frame: one for all would need all frames in memory
_GIF = ["-vf", "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"]
DEFAULT_FPS = 25.0  # where nothing tells
CONTAINERS = {
    "mp4": {"pix_fmt_out": "yuv420p", "quality": 7, "output_params": [*_MP4, "-f", "mp4"]},
    "gif": {"pix_fmt_out": "pal8", "quality": None, "codec": "gif", "output_params": [*_GIF, "-f", "gif"]},
}


def load_ffmpeg(purpose: object) -> ModuleType:
    """The module imageio_ffmpeg. Raises UserError, which begins with `purpose`, where it is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise UserError(f"{purpose} needs ffmpeg: pip install imageio-ffmpeg") from None
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)  # a turned video would be a warning
    return imageio_ffmpeg


@contextmanager
def movie(path: str | Path, fps: float | None) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends an H×W×3 uint8 frame, all of one size; the file appears, whole, in the end.

    Args:
        path: ends in .mp4 or .gif.
        fps: frames per second; None: every frame is shown when it came, and until the next one did.
    Raises:
        UserError: imageio-ffmpeg is not installed, or the file cannot be written: a full disk, say.
    """
    ffmpeg = load_ffmpeg(path)
    options = dict(CONTAINERS[Path(path).suffix.removeprefix(".")])
    if fps is None:
        fps, (_, filters, *others) = DEFAULT_FPS, options["output_params"]
        options["output_params"] = ["-vf", f"{_BY_THE_CLOCK},{filters}", "-fps_mode", "passthrough", *others]
    with replacing(path) as temporary:
        stream, count = None, 0

        def append(frame: np.ndarray) -> None:
            nonlocal stream, count
            odd = ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0))  # H.264 takes even sizes only
            frame = np.ascontiguousarray(np.pad(frame, odd, mode="edge"))
            if stream is None:
                size = (frame.shape[1], frame.shape[0])
                stream = ffmpeg.write_frames(
                    os.path.abspath(temporary), size, fps=fps, macro_block_size=1, ffmpeg_log_level="quiet", **options
                )
                stream.send(None)
            try:
                stream.send(frame)
            except OSError:
                raise _unwritten(path, count) from None
            count += 1

        try:
            yield append
        finally:
            if stream is not None:
                stream.close()  # which waits for ffmpeg, but says nothing of how it ended
        try:
            found, _ = ffmpeg.count_frames_and_secs(os.path.abspath(temporary))
        except RuntimeError:
            found = None
        if found != count:
            raise _unwritten(path, count)


def _unwritten(path: str | Path, count: int) -> UserError:
    return UserError(f"{path} cannot be written: ffmpeg failed after about {count} frames; is the disk full?")
