"""Pictures of a model's predictions, from images, folders, glob patterns and video files; no labels are needed.

An image becomes PNG files OUT/<what>/<name>.png, a video one MP4 file for each thing to save; --as changes that, and
makes a movie of all images with gif or mp4. OUT/legend.png shows the classes' colours and names. Of the options,
INPUT.INPUT_SIZE_TEST is the size that the network sees, TEST.BATCH_SIZE how many images at a time, MODEL.DEVICE where
it runs.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.configs import load_config
from core.configs.loading import split_options
from core.datasets.catalog import find_label_values, find_taxonomy, output_names
from core.datasets.images import png_bytes, write_palette_png, write_png
from core.datasets.inputs import find_inputs
from core.datasets.loading import full_view_loader
from core.datasets.palettes import colour_blind_palette
from core.datasets.reader import ImageSet
from core.datasets.video import open_video
from core.evaluation.pictures import Painter, fitted, grey
from core.evaluation.predictor import Predictor, evaluating, view_sizes
from core.models import build_model, log_dead_channels
from core.programs.frame import config_parser, run_program
from core.programs.testing import find_checkpoint
from core.selftraining.adaptation import warn_of_aspect
from core.utils.checkpoints import load_checkpoint
from core.utils.devices import describe_device, device_errors, prepare_device
from core.utils.errors import UserError, one_line
from core.utils.files import make_folder, refuse_existing, replacing
from core.utils.logging import LOGGER, progress, start_logging
from core.utils.movies import CONTAINERS, load_ffmpeg, movie

EXAMPLE = (
    "python -m tools.predict -cfg configs/camvid_day2dusk_dtst.yaml resume pretrain/camvid_day_r18.pth "
    "my_frames 'other/*.jpg' drive.mp4 -o pictures"
)
KINDS = {
    "colour": "the classes' colours (a palette PNG, whose values are class indices)",
    "overlay": "these, half transparent, upon the image",
    "label-ids": "the label values of the data set that the classes come from (Cityscapes' labelIds, say), grey PNG",
    "confidence": "the winning class's probability, grey: 255 is 1",
    "side-by-side": "image, overlay, colours and confidence in one, with a legend",
}
NUMBERS = "label-ids"  # which no movie can hold
PNG_DEFAULT, MOVIE_DEFAULT = ("colour", "overlay"), ("side-by-side",)
SERIES_FPS = 5.0  # of a movie made of images
MAX_FPS = 1000
LEGEND, LEGEND_WIDTH = "legend.png", 640  # px


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
        source: images, or the path of a video.
        container: png, gif or mp4.
        kinds: names of KINDS.
        path: path(kind, index) of the file for picture number `index`; of a movie it is the same for all.
        claimed: files and folders that must not be there yet.
        places: where the pictures are, for people.
    """

    source: ImageSet | Path
    container: str
    kinds: tuple[str, ...]
    path: Callable[[str, int], Path]
    claimed: tuple[Path, ...]
    places: tuple[Path, ...]


def plan_series(
    images: ImageSet, videos: ImageSet, out: Path, container: str | None, kinds: Sequence[str]
) -> list[Series]:
    """All images as one series, and each video as one.

    Args:
        container: png, gif or mp4; None: PNG files of images, MP4 of videos.
        kinds: what to save; empty: PNG_DEFAULT or MOVIE_DEFAULT.
    Raises:
        UserError: label ids as a movie.
    """
    planned = []
    if len(images):
        planned.append(_plan_images(images, out, container or "png", kinds))
    movies = output_names(videos, f".{container or 'mp4'}")
    for path, name, movie_name in zip(videos.paths, videos.names, movies, strict=True):
        planned.append(_plan_video(path, name, movie_name, out, container or "mp4", kinds))
    for series in planned:
        if NUMBERS in series.kinds and series.container != "png":
            raise UserError(f"--save {NUMBERS}: {series.container} would change the numbers; give --as png")
    return planned


def _plan_images(images: ImageSet, out: Path, container: str, kinds: Sequence[str]) -> Series:
    if container == "png":
        kinds, names = tuple(kinds or PNG_DEFAULT), output_names(images)
        claimed = tuple(out / kind / name for kind in kinds for name in names)
        places = tuple(out / kind for kind in kinds)
        return Series(images, container, kinds, lambda kind, index: out / kind / names[index], claimed, places)
    kinds = tuple(kinds or MOVIE_DEFAULT)
    files = tuple(out / f"{kind}.{container}" for kind in kinds)
    return Series(images, container, kinds, lambda kind, index: out / f"{kind}.{container}", files, files)


def _plan_video(path: Path, name: str, movie_name: str, out: Path, container: str, kinds: Sequence[str]) -> Series:
    if container == "png":  # a folder that is named as the video cannot be in the way of an image's pictures
        kinds = tuple(kinds or PNG_DEFAULT)
        folders = tuple(out / kind / name for kind in kinds)
        return Series(
            path, container, kinds, lambda kind, index: out / kind / name / f"{index:06d}.png", folders, folders
        )
    kinds = tuple(kinds or MOVIE_DEFAULT)
    files = tuple(out / kind / movie_name for kind in kinds)
    return Series(path, container, kinds, lambda kind, index: out / kind / movie_name, files, files)


class Studio:
    """Predicts and draws.

    Args:
        config: a whole config.
        model: on `device`.
        painter: draws pictures.
        label_values: 256 uint8, from class index to label value.
        flip, multi_scale: average over views, as test.py does.
        fps: of movies; None: the video's own, of images SERIES_FPS.
    """

    def __init__(
        self,
        config,
        model: nn.Module,
        device: torch.device,
        painter: Painter,
        label_values: np.ndarray,
        flip: bool = False,
        multi_scale: bool = False,
        fps: float | None = None,
    ):
        self._config, self._model, self._predictor = config, model, Predictor(config, device)
        self._painter, self._label_values, self._fps = painter, label_values, fps
        self._flip, self._sizes = flip, view_sizes(config, multi_scale)

    def run(self, series: Series) -> int:
        """Make the pictures of a series; returns how many images it has. One batch of them at a time is in memory.

        Raises:
            UserError: an image or video that cannot be read, a file that cannot be written.
        """
        count, batch_size = 0, self._config.TEST.BATCH_SIZE
        with ExitStack() as stack:
            if isinstance(series.source, ImageSet):
                workers = self._config.DATALOADER.NUM_WORKERS if len(series.source) > batch_size else 0
                batches = full_view_loader(series.source, self._sizes, batch_size, workers, keep=True)
                title, total, fps = "images", len(series.source), SERIES_FPS
            else:
                video = stack.enter_context(open_video(series.source))
                batches = video.batches(self._sizes, batch_size)
                title, total, fps = video.path.name, video.count, video.fps
            save = stack.enter_context(self._saver(series, self._fps or fps))
            confidence = not {"confidence", "side-by-side"}.isdisjoint(series.kinds)
            for shot in progress(self._shots(batches, confidence), title, total):
                save(shot)
                count += 1
        return count

    def _shots(self, batches: Iterable[dict], confidence: bool) -> Iterator[Shot]:
        with torch.inference_mode(), evaluating(self._model):
            for batch in batches:
                predicted = self._predictor.predict(self._model, batch, self._flip, confidence)
                for index, image, reading in zip(batch["index"], batch["image"], predicted, strict=True):
                    labels, probability = reading()
                    yield Shot(index, image, labels, None if probability is None else grey(probability))

    @contextmanager
    def _saver(self, series: Series, fps: float) -> Iterator[Callable[[Shot], None]]:
        if series.container == "png":
            yield lambda shot: self._write_pngs(series, shot)
            return
        with ExitStack() as stack:
            streams, sizes = {}, {}
            for kind in series.kinds:
                path = series.path(kind, 0)
                path.parent.mkdir(parents=True, exist_ok=True)
                streams[kind] = stack.enter_context(movie(path, fps))

            def append(shot: Shot) -> None:
                for kind, stream in streams.items():
                    picture = self._draw(kind, shot)
                    stream(fitted(picture, sizes.setdefault(kind, picture.shape[:2])))

            yield append

    def _write_pngs(self, series: Series, shot: Shot) -> None:
        for kind in series.kinds:
            path = series.path(kind, shot.index)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "colour":
                write_palette_png(path, shot.classes, self._painter.palette)
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


def predict(args: argparse.Namespace) -> None:
    """Everything is found and loaded before anything is written; then one series after the other."""
    start_logging()
    options, words = split_options(args.words)
    if not words:
        raise UserError("nothing to predict: give images, folders, glob patterns or videos; try --help")
    config, out = load_config(args.config_file, options), Path(args.out)
    checkpoint, taxonomy = find_checkpoint(config.resume), find_taxonomy(config)
    images, videos = find_inputs(words, leave_out=[out / kind for kind in KINDS])
    planned = plan_series(images, videos, out, args.container, args.save)
    if len(videos) or any(series.container != "png" for series in planned):
        load_ffmpeg("a video")
    painter = Painter(taxonomy, colour_blind_palette(taxonomy) if args.colour_blind else taxonomy.palette())
    legend = png_bytes(painter.legend(LEGEND_WIDTH))
    claimed = [path for series in planned for path in series.claimed]
    if not args.overwrite:
        refuse_existing(claimed, "choose another -o, or give --overwrite")
        refuse_other_legend(out / LEGEND, legend)
    with device_errors(config, training=False):
        device, model = prepare_device(config), build_model(config).requires_grad_(False)
        load_checkpoint(model, checkpoint)
        model.to(device)
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
    log_dead_channels(model)
    warn_of_aspect(images, config)
    make_folder(out, "-o")
    with replacing(out / LEGEND) as temporary:
        temporary.write_bytes(legend)
    values = find_label_values(config)
    studio = Studio(config, model, device, painter, values, args.flip, args.multi_scale, args.fps)
    for series in planned:
        start = time.monotonic()
        with device_errors(config, training=False):
            count = studio.run(series)
        seconds = time.monotonic() - start
        source = "images" if isinstance(series.source, ImageSet) else f"frames of {one_line(series.source)}"
        LOGGER.info("%d %s in %.1f s; wrote %s", count, source, seconds, ", ".join(map(one_line, series.places)))


def refuse_other_legend(legend: Path, content: bytes) -> None:
    """Raise UserError if there is a legend of another content."""
    if legend.is_file() and legend.read_bytes() != content:
        raise UserError(f"{legend} is there with other classes or colours: choose another -o, or give --overwrite")


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))
    for kind in kinds:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is not one of {', '.join(KINDS)}")
    return kinds


def _fps(text: str) -> float:
    fps = float(text)
    if not 0 < fps <= MAX_FPS:
        raise ValueError
    return fps


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit code."""
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    parser = config_parser(
        __doc__,
        EXAMPLE,
        "INPUT | KEY VALUE",
        "images, folders (searched to the bottom), glob patterns, videos; `resume FILE`, the checkpoint, and any other "
        "options of the config, as MODEL.DEVICE cuda:1",
        name="words",
    )
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="folder for the pictures")
    parser.add_argument(
        "--save",
        type=_kinds,
        default=(),
        metavar="WHAT,…",
        help=f"{kinds} (default: {','.join(PNG_DEFAULT)}; of a movie {','.join(MOVIE_DEFAULT)})",
    )
    parser.add_argument(
        "--as",
        dest="container",
        choices=("png", *CONTAINERS),
        help="PNG files, or movies of them (default: png of images, mp4 of videos)",
    )
    parser.add_argument(
        "--fps", type=_fps, metavar="N", help=f"of movies (default: the video's own; of images {SERIES_FPS:g})"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image's prediction")
    parser.add_argument("--multi-scale", action="store_true", help="average over 0.7, 1.0 and 1.3 times the size")
    parser.add_argument(
        "--colour-blind",
        action="store_true",
        help="colours that everyone can tell apart, not the data set's",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are in OUT already")
    return run_program(predict, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
