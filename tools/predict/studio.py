"""From images and videos to pictures of predictions: which files they become, and how they are drawn and written."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.datasets.catalog import find_label_values, output_names
from core.datasets.images import write_palette_png, write_png
from core.datasets.loading import full_view_loader
from core.datasets.reader import ImageSet
from core.evaluation.pictures import Painter, fitted, grey
from core.evaluation.predictor import Predictor, evaluating, view_sizes
from core.utils.errors import UserError, one_line
from core.utils.logging import progress
from core.utils.signals import Stopped
from tools.predict.inputs import BadFiles
from tools.predict.movies import movie
from tools.predict.stream import Stream, file_stem
from tools.predict.video import open_video

KINDS = {
    "colour": "the classes' colours (a palette PNG, whose values are class indices, in the data set's own)",
    "overlay": "these, half transparent, upon the image, whole along the borders, with names on large regions",
    "label-ids": "the label values of the data set that the classes come from (Cityscapes' labelIds, say), grey PNG",
    "confidence": "the winning class's probability, grey: 255 is 1",
    "side-by-side": "image, overlay, colours and confidence in one, with a legend",
}
NUMBERS = "label-ids"  # which no movie can hold
PNG_DEFAULT, MOVIE_DEFAULT = ("colour", "overlay"), ("side-by-side",)
SERIES_FPS = 5.0  # of a movie made of images
_WHOLE = 0.9  # share of the frames that a header tells, from which on a video counts as whole


@dataclass(frozen=True)
class Shot:
    """One prediction: H×W×3 uint8 image, H×W uint8 class indices, H×W uint8 confidence (None: not asked for)."""

    index: int
    image: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray | None


@dataclass(frozen=True)
class Series:
    """Images that belong together, and where their pictures go.

    Attributes:
        source: images, the path of a video, or a stream.
        container: png, gif or mp4.
        places: for each of KINDS that is wanted a movie's file, or the folder of PNG files.
        claimed: files and folders that must not be there yet.
        name: from an image's index to its PNG file in that folder.
        leave_out: indices of a video's frames whose PNG files are there.
    """

    source: ImageSet | Path | Stream
    container: str
    places: dict[str, Path]
    claimed: Sequence[Path]
    name: Callable[[int], str] | None = None
    leave_out: Set[int] = frozenset()


def plan_series(
    images: ImageSet,
    videos: ImageSet,
    out: Path,
    container: str | None,
    kinds: Sequence[str],
    stream: Stream | None = None,
) -> list[Series]:
    """All images as one series, and each video, or the stream, as one.

    Args:
        container: png, gif or mp4; None: PNG files of images, MP4 of videos.
        kinds: what to save; empty: PNG_DEFAULT or MOVIE_DEFAULT.
    Raises:
        UserError: label ids as a movie.
    """
    planned, as_png, as_movie = [], kinds or PNG_DEFAULT, kinds or MOVIE_DEFAULT
    if len(images) and container in ("png", None):
        names, places = output_names(images), {kind: out / kind for kind in as_png}
        claimed = [folder / name for folder in places.values() for name in names]
        planned.append(Series(images, "png", places, claimed, names.__getitem__))
    elif len(images):
        places = {kind: out / f"{kind}.{container}" for kind in as_movie}
        planned.append(Series(images, container, places, [*places.values()]))
    ending = f".{container or 'mp4'}"
    moving = [*zip(videos.paths, videos.names, output_names(videos, ending), strict=True)]
    if stream is not None:
        moving.append((stream, file_stem(stream.name), file_stem(stream.name) + ending))
    for source, name, movie_name in moving:
        if container == "png":  # a folder that is named as the video cannot be in the way of an image's pictures
            places = {kind: out / kind / name for kind in as_png}
            planned.append(Series(source, "png", places, [*places.values()], "{:06d}.png".format))
        else:
            places = {kind: out / kind / movie_name for kind in as_movie}
            planned.append(Series(source, container or "mp4", places, [*places.values()]))
    for series in planned:
        if NUMBERS in series.places and series.container != "png":
            raise UserError(f"--save {NUMBERS}: {series.container} would change the numbers; give --as png")
    return planned


class Studio:
    """Predicts and draws.

    Args:
        config: a whole config.
        model: on its device.
        painter: draws pictures.
        flip, multi_scale: average over views, as test.py does.
        fps: of movies; None: the video's own, of images SERIES_FPS, of a live stream as its frames come.
        bad: is told of videos that end before their end.
    """

    def __init__(
        self,
        config,
        model: nn.Module,
        painter: Painter,
        flip: bool,
        multi_scale: bool,
        fps: float | None = None,
        bad: BadFiles | None = None,
    ):
        self._config, self._model, self._painter, self._fps = config, model, painter, fps
        self.bad = bad or BadFiles()
        self._predictor = Predictor(config, next(model.parameters()).device)
        self._label_values = find_label_values(config)
        self._flip, self._sizes = flip, view_sizes(config, multi_scale)

    def run(self, series: Series) -> int:
        """Make the pictures of a series; returns how many they are. One batch of images at a time is in memory.

        Raises:
            BadImage: a video that cannot be read, or an image that its set does not allow for.
            UserError: a file that cannot be written.
            Stopped: with a note of how far it came.
        """
        count, batch_size = 0, self._config.TEST.BATCH_SIZE
        with ExitStack() as stack:
            if isinstance(series.source, ImageSet):
                workers = self._config.DATALOADER.NUM_WORKERS if len(series.source) > batch_size else 0
                batches = full_view_loader(series.source, self._sizes, batch_size, workers, keep=True)
                title, total, fps = "images", len(series.source), SERIES_FPS
            else:
                opened = isinstance(series.source, Stream)
                video = series.source if opened else stack.enter_context(open_video(series.source))
                batches = video.batches(self._sizes, batch_size, series.leave_out)
                title, total, fps = f"frames of {one_line(video.name)}", video.count, video.fps
            save = self._saver(series, self._fps or fps, stack)
            confidence = not {"confidence", "side-by-side"}.isdisjoint(series.places)
            try:
                for shot in progress(self._shots(batches, confidence), title, total):
                    save(shot)
                    count += 1
            except Stopped as stopped:
                stopped.note = f"after {count}{f' of {total}' if total else ''} {title}"
                raise
        seen = count + len(series.leave_out)
        if isinstance(series.source, Path) and total and seen < _WHOLE * total:
            line = f"video {series.source} says that it has {total} frames, but only {seen} can be read: is it cut off?"
            self.bad.count([(str(series.source), line)])
        return count

    def _shots(self, batches: Iterable[dict], confidence: bool) -> Iterator[Shot]:
        with torch.inference_mode(), evaluating(self._model):
            for batch in batches:
                predicted = self._predictor.predict(self._model, batch, self._flip, confidence)
                for index, image, reading in zip(batch["index"], batch["image"], predicted, strict=True):
                    if image is None:  # it is bad, and counted
                        continue
                    labels, probability = reading()
                    yield Shot(index, image, labels, None if probability is None else grey(probability))

    def _saver(self, series: Series, fps: float, stack: ExitStack) -> Callable[[Shot], None]:
        """What takes every shot of a series; movies begin with the first, and are complete once `stack` is closed."""
        if series.container == "png":
            return partial(self._write_pngs, series)
        writers, sizes = {}, {}

        def append(shot: Shot) -> None:
            for kind, path in series.places.items():
                if kind not in writers:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writers[kind] = stack.enter_context(movie(path, fps))
                picture = self._draw(kind, shot)
                writers[kind](fitted(picture, sizes.setdefault(kind, picture.shape[:2])))

        return append

    def _write_pngs(self, series: Series, shot: Shot) -> None:
        for kind, folder in series.places.items():
            path = folder / series.name(shot.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "colour":
                write_palette_png(path, shot.classes, self._painter.label_palette)
            elif kind == NUMBERS:
                write_png(path, self._label_values[shot.classes])
            elif kind == "confidence":
                write_png(path, shot.confidence)
            else:
                write_png(path, self._draw(kind, shot))

    def _draw(self, kind: str, shot: Shot) -> np.ndarray:
        """H×W×3 uint8."""
        if kind == "colour":
            return self._painter.colour(shot.classes)
        if kind == "overlay":
            return self._painter.overlay(shot.image, shot.classes)
        if kind == "confidence":
            return np.stack([shot.confidence] * 3, axis=-1)
        return self._painter.side_by_side(shot.image, shot.classes, shot.confidence)
