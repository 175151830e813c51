"""TensorBoard's event files, written without a thread: a record is on disk, whole, once it is appended.

TensorBoard's own writer hands records to a thread: an error of the disk then ends in that thread, and a loader's
workers are forked beside it. Here its messages are appended as rows of a table are.
"""

import importlib.util
import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from core.utils.errors import UserError, one_line
from core.utils.files import append_bytes, writing

PATTERN = "events.out.tfevents.*"


def available() -> bool:
    """Whether the package is there; it is imported with the first record."""
    return importlib.util.find_spec("tensorboard") is not None


class EventFile:
    """One file of a folder that TensorBoard shows.

    Args:
        folder: made with the first record.
    """

    def __init__(self, folder: Path):
        self._folder, self._path = folder, None
        self._first = 0  # step from which earlier files no longer count

    def go_on(self, step: int) -> None:
        """What earlier files hold of this step and later ones is of a course of the run that was given up."""
        self._first = step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by their tags.

        Raises:
            UserError: the file cannot be written, or the package tensorboard not be imported.
        """
        self._append(step, [{"tag": one_line(tag), "simple_value": value} for tag, value in values.items()])

    def image(self, step: int, tag: str, encoded: bytes, size: tuple[int, int]) -> None:
        """An RGB picture of (h, w) pixels, encoded as PNG or JPEG; errors as of :meth:`scalars`."""
        height, width = size
        image = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": encoded}
        self._append(step, [{"tag": tag, "image": image}])

    def _append(self, step: int, values: list[dict]) -> None:
        if self._path is None:
            self._begin()
        self._write({"step": step, "summary": {"value": values}})

    def _begin(self) -> None:
        """A file of its own for every start, after those that are there in the order of their names."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        stamps = [name.split(".")[3] for name in (path.name for path in self._folder.glob(PATTERN))]
        now = max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if stamp.isdigit())])
        path = self._folder / f"events.out.tfevents.{now:010d}.{socket.gethostname()}.{os.getpid()}"
        with writing(path):
            path.touch()
        self._path = path
        self._write({"file_version": "brain.Event:2"})
        if self._first:
            self._write({"step": self._first, "session_log": {"status": 1}})  # START: drops what follows in older ones

    def _write(self, event: dict) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter
        except Exception as error:  # protobuf of another version, say, which raises what it likes
            raise UserError(f"the package tensorboard cannot be imported ({error}); install it anew") from error
        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **event).SerializeToString())
        with writing(self._path):
            append_bytes(self._path, record.getvalue())
