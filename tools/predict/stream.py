"""Cameras and streams, which OpenCV opens: a thread reads them and keeps no frame but the newest."""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import cv2
import numpy as np

from core.utils import signals
from core.utils.errors import UserError, one_line
from core.utils.logging import LOGGER
from tools.predict.movies import DEFAULT_FPS
from tools.predict.video import Video

PATIENCE = 10.0  # seconds without a frame, after which a stream has broken off
TELL_EVERY = 60.0  # seconds
_WHOLE = 0.9  # share of the frames that a film's header tells, below which it has broken off
_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935}
_SCHEMES = (*_PORTS, "rtp", "srt", "tcp", "udp")
_NOTICE = 0.1  # seconds until a signal is noticed


def split_addresses(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that name a camera (0, /dev/video0) or a stream (a URL), and the others; a file's name is no number."""
    named = [word for word in words if _is_address(word)]
    return named, [word for word in words if word not in named]


def _is_address(word: str) -> bool:
    if os.path.lexists(word):
        return Path(word).is_char_device()
    return _is_index(word) or word.lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def _is_index(word: str) -> bool:
    return re.fullmatch("[0-9]{1,3}", word) is not None


class Stream(Video):
    """A camera or stream that is being read.

    Where it is live, whatever comes while a frame is worked on is dropped, but for the newest. What is not, a film
    behind an address whose length is known, waits.

    Args:
        name: of it, as :class:`Video` has it.
        capture: open; from here on the reader's own.
        most: frames after which it ends; None: any number.
        longest: seconds after which it ends, from the first frame on; None: any time.

    Attributes:
        fps: None where it is live: a frame comes when there is one.
        taken: frames that were handed over.
        dropped: frames that came since the first of these and were not.
        seconds: from the first of these until the last was worked on.
        broken: why it ended by itself, in words; empty where it did not, or is a film that came to its end.
    """

    def __init__(self, name: str, capture: cv2.VideoCapture, most: int | None, longest: float | None):
        fps, count = (capture.get(what) for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.live = not count > 0
        if self.live:
            super().__init__(name, None, most, self._take())
        else:
            super().__init__(name, fps if fps > 0 else DEFAULT_FPS, min(int(count), most or int(count)), self._take())
        self.taken, self.dropped, self.seconds, self.broken = 0, 0, 0.0, ""
        self._capture, self._most, self._longest = capture, most, longest
        self._first: float | None = None  # when the first frame was taken
        self._newest: np.ndarray | None = None
        self._end, self._closing = "", False  # how it ended
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def batches(
        self, sizes: list[tuple[int, int]], batch_size: int, leave_out: Set[int] = frozenset()
    ) -> Iterator[dict]:
        """As of every video; one by one where it is live."""
        return super().batches(sizes, 1 if self.live else batch_size, leave_out)

    def describe(self) -> str:
        """How many frames were handed over, how fast, and how many dropped."""
        dropped = f", {self.dropped} dropped" if self.live else ""
        pace = f", {self.taken / self.seconds:.1f} a second" if self.seconds else ""
        return f"{self.taken} frames of {self.name} in {self.seconds:.1f} s{pace}{dropped}"

    def close(self) -> None:
        """End the reader. One that waits for a frame which does not come is left to end by itself."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._reader.join(1.0)

    def _read(self) -> None:
        """What the reader does."""
        asked = time.monotonic()
        try:
            while not self._closing and (found := self._capture.read())[0]:
                with self._changed:
                    if not self.live:
                        self._changed.wait_for(lambda: self._newest is None or self._closing)
                    self.dropped += self._newest is not None and self._first is not None
                    self._newest = found[1]
                    self._changed.notify_all()
                asked = time.monotonic()
        finally:
            with self._changed:
                silent = time.monotonic() - asked > 0.9 * PATIENCE
                self._end = f"nothing came for {PATIENCE:g} s" if silent else "its sender ended it"
                self._changed.notify_all()
            self._capture.release()

    def _take(self) -> Iterator[np.ndarray]:
        """The frames, H×W×3 uint8 RGB, until a limit is reached, a signal has come or there are no more.

        Signals are only looked for: the whole work belongs into signals.deferred().
        """
        told = time.monotonic()
        while self.taken != self._most and (frame := self._next()) is not None:
            self.taken += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            now = time.monotonic()
            self.seconds = now - self._first
            if now - told > TELL_EVERY:
                told = now
                with suppress(OSError):  # nobody reads it any more: the work goes on
                    LOGGER.info("%s", self.describe())

    def _next(self) -> np.ndarray | None:
        while not (signals.received() or self._is_late()):
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._end, _NOTICE)
                if self._newest is not None:
                    frame, self._newest = self._newest, None
                    self._first = self._first or time.monotonic()
                    self._changed.notify_all()
                    return frame
                if self._end:
                    self.broken = self._end if self.live or self.taken < _WHOLE * self.count else ""
                    return None
        return None

    def _is_late(self) -> bool:
        started = self._longest is not None and self._first is not None
        return started and time.monotonic() - self._first >= self._longest


@contextmanager
def open_stream(address: str, most: int | None = None, longest: float | None = None) -> Iterator[Stream]:
    """Begin to read a camera or stream.

    Args:
        address: one of :func:`split_addresses`.
        most, longest: see :class:`Stream`.
    Raises:
        UserError: it cannot be opened.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # silence; the last word is ours
    capture = cv2.VideoCapture()
    if _is_index(address):
        name, ask = f"camera {address}", "is it plugged in, of that number (`ls /dev/video*`), and used by nobody else?"
        opened = capture.open(int(address))
    elif os.path.lexists(address):
        name, ask = address, "is it a camera, and used by nobody else?"
        opened = capture.open(address, cv2.CAP_V4L2)
    else:
        url, milliseconds = _split(address), int(1000 * PATIENCE)
        name = one_line(f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}")  # neither password nor token
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
        opened = capture.open(address, cv2.CAP_FFMPEG, limits)
        ask = "" if opened else _why_not(url)
    if not opened:
        raise UserError(f"{name} cannot be opened: {ask}")
    stream = Stream(name, capture, most, longest)
    try:
        yield stream
    finally:
        stream.close()


def file_stem(name: str) -> str:
    """What the files of a stream of that name are called."""
    return re.sub(r"[^\w.-]+", "_", name.partition("://")[2] or name).strip("_.")[:100] or "stream"


def _split(address: str) -> SplitResult:
    shown = f"{address.partition('://')[0]}://…"
    try:
        url = urlsplit(address)
        _ = url.port
    except ValueError as error:
        raise UserError(f"{shown} is no address: {error}") from None
    if not url.hostname and url.scheme != "udp":  # which listens
        raise UserError(f"{shown} is no address: it names no host")
    return url


def _why_not(url: SplitResult) -> str:
    """Why a stream cannot be opened, as far as a connection tells."""
    place = f"{url.hostname}:{url.port or _PORTS.get(url.scheme)}"
    if url.scheme in _PORTS or (url.scheme == "tcp" and url.port):
        try:
            socket.create_connection((url.hostname, url.port or _PORTS[url.scheme]), PATIENCE).close()
        except OSError as error:
            return f"{place} does not answer ({error.strerror or error}); is the address right, and the sender running?"
        return f"{place} answers, but with no video; are the path, user and password right?"
    return f"nothing came from it for {PATIENCE:g} s, or FFmpeg lacks {url.scheme}"
