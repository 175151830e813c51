"""What an output folder's pictures were made with and of, so that a run that was interrupted can go on."""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from core.datasets.images import ImageForm
from core.datasets.reader import ImageSet
from core.utils.errors import UserError, shown
from core.utils.files import open_regular, write_json
from tools.predict.studio import Series

RECORD = "made_with.json"
_OPTIONS = ("MODEL.NAME", "MODEL.NUM_CLASSES", "INPUT.INPUT_SIZE_TEST", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
_OPTIONS += (
    "MODEL.ALIGN_CORNERS",
    "INPUT.TO_BGR255",
    "SOLVER.AMP",
    "VIS.COLOURS",
    "VIS.NAMES",
    "TEST.WINDOW",
    "TEST.STRIDE",
)
# what records that do not speak of an option were made with
_OLDER = {"MODEL.ALIGN_CORNERS": True, "TEST.WINDOW": [], "TEST.STRIDE": [], "bands": [], "span": []}
_REPLACES = "replaces what was there"
_LACKING = "movies without some of their input"
# arguments that do not change how a picture looks
_FREE = {"config_file", "words", "out", "save", "container", "fps", "overwrite", "go_on", "frames", "seconds"}
_FREE |= {"colour_blind"}  # which is VIS.COLOURS


def settings(config, checkpoint: Path, inputs: str, form: ImageForm, args: Namespace) -> dict:
    """All that a picture of an input depends on, plain for JSON: the checkpoint by its content, options, arguments.

    Args:
        inputs: the folder below which the inputs have their names.
        form: how images are read.
    """
    found = {"resume": f"SHA-256 {_digest(checkpoint)}", "inputs": inputs}
    found |= {name: list(value) for name, value in asdict(form).items()}
    for key in _OPTIONS:
        section, name = key.split(".")
        value = config[section][name]
        found[key] = list(value) if isinstance(value, tuple) else value
    given = {f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in _FREE}
    return found | dict(sorted(given.items()))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with suppress(OSError), open_regular(path) as file:  # who loads it says what is wrong with it
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


class Record:
    """The file RECORD of an output folder. Pictures older than it were made with other settings, and are not counted.

    Args:
        out: the folder, which need not be there.
        wanted: of :func:`settings`.
        overwrite: whether a run may replace what it finds; one that goes on with it may, too.
    """

    def __init__(self, out: Path, wanted: dict, overwrite: bool):
        self._path, self._wanted, self._overwrite = out / RECORD, wanted, overwrite
        self._since: int | None = None  # nanoseconds; None: nothing here was made with these settings
        self._found: dict = {}
        self._lacking: set[str] = set()
        with suppress(OSError, ValueError):  # not there, or no JSON
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self._found = _OLDER | found if isinstance(found, dict) else {}
            if not self._others():
                self._since = os.stat(self._path).st_mtime_ns
                self._lacking = set(map(str, self._found.get(_LACKING, ())))

    def begin(self) -> None:
        """Note the settings, unless the folder has the same: from now on what is made counts."""
        if self._since is None or self._overwrite:  # what it replaces does not count as done
            self._found = self._wanted | {_REPLACES: self._overwrite}
            write_json(self._path, self._found)
            self._since = os.stat(self._path).st_mtime_ns

    def note(self, series: Series, whole: bool) -> None:
        """Note whether a movie that was made shows all of its input: a run that goes on makes it anew if not."""
        if series.container == "png":
            return
        names = set(map(self._name, series.places.values()))
        lacking = self._lacking - names if whole else self._lacking | names
        if lacking != self._lacking:
            self._lacking = lacking
            write_json(self._path, self._found | {_LACKING: sorted(lacking)})
            os.utime(self._path, ns=(self._since, self._since))  # what was made since then counts

    def left_of(self, planned: Sequence[Series]) -> tuple[list[Series], int]:
        """What is not there yet, claiming only what an earlier run would not have replaced; and how many pictures,
        frames and movies are left out.

        Raises:
            UserError: the folder's pictures were made with other settings.
        """
        if self._found and self._since is None:
            others = "; ".join(
                f"{key} {shown(self._found.get(key), 200)}, now {shown(self._wanted[key], 200)}"
                for key in self._others()
            )
            raise UserError(
                f"--go-on: {self._path} says that what is there was made with {others}: give the same, choose another "
                "-o, or give --overwrite"
            )
        parts = [self._left_of(series) for series in planned]
        return [rest for rest, _ in parts if rest], sum(count for _, count in parts)

    def _others(self) -> list[str]:
        """The settings that are others in the file."""
        return [key for key, value in self._wanted.items() if self._found.get(key) != value]

    def _left_of(self, series: Series) -> tuple[Series | None, int]:
        if series.container != "png":
            whole = self._lacking.isdisjoint(map(self._name, series.places.values()))
            return (None, 1) if whole and self._has(series, "") else (self._claiming(series), 0)
        if isinstance(series.source, ImageSet):
            names = list(map(series.name, range(len(series.source))))
            left = [index for index, name in enumerate(names) if not self._has(series, name)]
            if not left:
                return None, len(names)
            rest = replace(
                series,
                source=series.source.restricted(left),
                name=[names[index] for index in left].__getitem__,
                claimed=[folder / names[index] for folder in series.places.values() for index in left],
            )
            return self._claiming(rest), len(names) - len(left)
        done = set()
        while self._has(series, series.name(len(done))):
            done.add(len(done))
        return self._claiming(replace(series, leave_out=done)), len(done)

    def _claiming(self, series: Series) -> Series:
        """Without what is ours; and without anything, where the run to go on with was told to overwrite."""
        if self._found.get(_REPLACES):
            return replace(series, claimed=())
        return replace(series, claimed=[path for path in series.claimed if not self._is_ours(path)])

    def _has(self, series: Series, name: str) -> bool:
        """Whether every picture of that name, or every movie, is there."""
        return all(self._is_ours(place / name) for place in series.places.values())

    def _name(self, path: Path) -> str:
        """Of a file in the folder."""
        return path.relative_to(self._path.parent).as_posix()

    def _is_ours(self, path: Path) -> bool:
        try:
            return self._since is not None and os.stat(path).st_mtime_ns >= self._since
        except OSError:
            return False
