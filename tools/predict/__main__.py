"""Pictures of a model's predictions, from images, folders, glob patterns, video files, a camera or a stream; no labels
are needed.

An image becomes PNG files OUT/<what>/<name>.png, a video one MP4 file for each thing to save; --as changes that, and
makes a movie of all images with gif or mp4. OUT/legend.png shows the classes' colours and names. A camera (0,
/dev/video0) or stream (rtsp://..., http://...) ends at Ctrl-C, after --frames or --seconds; what was made until then is
kept, and frames that come while one is predicted are dropped. Of the options, INPUT.INPUT_SIZE_TEST is the size that
the network sees, TEST.WINDOW what it sees at a time of images at their own size instead, TEST.BATCH_SIZE how many
images at a time, MODEL.DEVICE where it runs. A bad file is one line, and the work goes on; the exit code is 1 in the
end, unless at most DATALOADER.SKIP_BAD_IMAGES files were bad.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from torch import nn

from core.configs import load_config
from core.configs.loading import split_options
from core.datasets.catalog import find_taxonomy
from core.datasets.images import png_bytes
from core.datasets.reader import ImageSet
from core.datasets.sizes import warn_of_sizes
from core.datasets.skipping import BadImage
from core.evaluation.pictures import Painter
from core.models import log_network
from core.programs.frame import config_parser, path_argument, run_program
from core.runs.known import with_known
from core.runs.resume import find_checkpoint, new_model
from core.utils import signals
from core.utils.checkpoints import load_checkpoint
from core.utils.devices import describe_device, device_errors, prepare_device
from core.utils.errors import UserError, one_line
from core.utils.files import make_folder, refuse_existing, replacing
from core.utils.logging import LOGGER, start_logging
from tools.predict.inputs import BadFiles, as_taken, common_folder, find_inputs
from tools.predict.movies import CONTAINERS, load_ffmpeg
from tools.predict.record import Record, settings
from tools.predict.stream import Stream, open_stream, split_addresses
from tools.predict.studio import KINDS, MOVIE_DEFAULT, PNG_DEFAULT, SERIES_FPS, Series, Studio, plan_series

EXAMPLE = (
    "python -m tools.predict -cfg configs/camvid_day2dusk_dtst.yaml resume pretrain/camvid_day_r18.pth "
    "my_frames 'other/*.jpg' drive.mp4 -o pictures"
)
MAX_FPS = 1000
LEGEND, LEGEND_WIDTH = "legend.png", 640  # px


def predict(args: argparse.Namespace) -> None:
    """Everything is found and loaded before anything is written; then one series after the other."""
    start_logging()
    try:
        with ExitStack() as stack:
            _predict(args, stack)
    except signals.Stopped as stopped:
        if not stopped.final:
            word = "--go-on in place of --overwrite" if args.overwrite else "--go-on"
            rest = f"; the same command with {word} makes the rest"
            stopped.note, stopped.final = f"{stopped.note}{rest}" if stopped.note else "before any prediction", True
        raise


def _predict(args: argparse.Namespace, stack: ExitStack) -> None:
    options, words = split_options(args.words)
    if args.colour_blind:
        options += ["VIS.COLOURS", "colour_blind"]
    if not words:
        raise UserError("nothing to predict: give images, folders, patterns, videos, a camera or stream; try --help")
    config, out = load_config(args.config_file, options), Path(args.out)
    checkpoint = find_checkpoint(config)
    config = with_known(config, checkpoint)
    taxonomy = find_taxonomy(config)
    stream = _stream(words, args, stack)
    images, videos = find_inputs([] if stream else words, leave_out=[out / kind for kind in KINDS])
    bad = BadFiles()
    images = replace(as_taken(images, config, checkpoint), skipped=bad)
    planned = plan_series(images, videos, out, args.container, args.save, stream)
    if any(series.container != "png" for series in planned) or len(videos):
        load_ffmpeg("a video")
    painter = Painter.of(config.VIS, taxonomy)
    legend = png_bytes(painter.legend(LEGEND_WIDTH))
    record, skipped = None, 0
    if stream is None:
        made_with = settings(config, checkpoint, common_folder(images, videos), images.form, args)
        record = Record(out, made_with, args.overwrite)
        if args.go_on:
            planned, skipped = record.left_of(planned)
            LOGGER.info("--go-on: %d are there already and left as they are", skipped)
    if not args.overwrite:
        claimed = [path for series in planned for path in series.claimed]
        go_on = "" if stream else "--go-on (what is there stays) or "
        refuse_existing(claimed, f"choose another -o, or give {go_on}--overwrite")
        if (out / LEGEND).is_file() and (out / LEGEND).read_bytes() != legend:
            other = f"{out / LEGEND} is there with other classes or colours"
            raise UserError(f"{other}: choose another -o, or give --overwrite")
    made = "nothing new"
    if planned:
        studio = Studio(config, _load(config, checkpoint), painter, args.flip, args.multi_scale, args.fps, bad)
        warn_of_sizes(images, config)
        make_folder(out, "-o")
        with replacing(out / LEGEND) as temporary:
            temporary.write_bytes(legend)
        if record:
            record.begin()
        made = ", ".join(filter(None, (_make(studio, series, config, record) for series in planned))) or "nothing"
    there = f" ({skipped} were there already)" if skipped else ""
    LOGGER.info("made pictures of %s%s: %s", made, there, shlex.quote(str(out)))
    _tell_of_bad(bad, len(images) + len(videos), config.DATALOADER.SKIP_BAD_IMAGES)


def _tell_of_bad(bad: BadFiles, inputs: int, most: int) -> None:
    """Raise UserError where more of the inputs were bad than may be."""
    count = len(bad.lines)
    if count > most:
        words = f"1 of {inputs} inputs is bad" if count == 1 else f"{count} of {inputs} inputs are bad, each told above"
        raise UserError(
            f"{words} (DATALOADER.SKIP_BAD_IMAGES {most}); {'the first: ' if count > 1 else ''}"
            f"{next(iter(bad.lines.values()))}; the others are done, and --go-on makes what is mended"
        )


def _load(config, checkpoint: Path) -> nn.Module:
    """The model, on its device."""
    with device_errors(config, training=False):
        device, model = prepare_device(config), new_model(config).requires_grad_(False)
        load_checkpoint(model, checkpoint)
        model.to(device)
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
    LOGGER.info("checkpoint: %s", checkpoint)  # that a run's config.yaml names its source model is easily forgotten
    log_network(model)
    return model


def _stream(words: Sequence[str], args: argparse.Namespace, stack: ExitStack) -> Stream | None:
    """The camera or stream that is to be predicted, opened."""
    addresses, _ = split_addresses(words)
    if not addresses:
        if args.frames or args.seconds:
            raise UserError("--frames and --seconds end a camera or stream, and none is given")
        return None
    if len(words) > 1:
        raise UserError(f"a camera or stream goes alone, but there are {len(words)} inputs: give each its own command")
    return stack.enter_context(open_stream(addresses[0], args.frames, args.seconds))


def _make(studio: Studio, series: Series, config, record: Record | None) -> str:
    """Make a series' pictures and log it; returns what they are of, nothing of a video that cannot be read.

    What there is of a stream that ends is kept.
    """
    stream = series.source if isinstance(series.source, Stream) else None
    of = "images" if isinstance(series.source, ImageSet) else f"frames of {stream.name if stream else series.source}"
    start, places = time.monotonic(), ", ".join(map(one_line, series.places.values()))
    bad_before = len(studio.bad.lines)
    try:
        with signals.deferred() if stream else nullcontext(), device_errors(config, training=False):
            count = studio.run(series)
            what = one_line(f"{count} {of}")
            told = stream.describe() if stream else f"{what} in {time.monotonic() - start:.1f} s"
            LOGGER.info("%s; wrote %s", told, places if count else "nothing")
        if record and count:
            record.note(series, whole=len(studio.bad.lines) == bad_before)
    except BadImage as error:
        studio.bad.count([(error.path, str(error))])
        return ""
    except signals.Stopped as stopped:
        if stream:
            stopped.note = f"after {what}{f', which are in {places}' if stream.taken else ''}"
            stopped.final = True
        raise
    if stream and stream.broken:
        kept = f"; what came before is in {places}" if stream.taken else ""
        raise UserError(f"{stream.name} broke off after {stream.taken} frames ({stream.broken}){kept}")
    return what


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


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    kinds = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    kinds += f" (default: {','.join(PNG_DEFAULT)}; of a movie {','.join(MOVIE_DEFAULT)})"
    apart = "colours that everyone can tell apart, in label files, too: short for VIS.COLOURS colour_blind"
    containers = "PNG files, or movies of them (default: png of images, mp4 of videos)"
    fps = f"of movies (default: the video's own; of images {SERIES_FPS:g}; of a live stream as the frames come)"
    parser = config_parser(
        __doc__,
        EXAMPLE,
        "INPUT | KEY VALUE",
        "images, folders (searched to the bottom), glob patterns, videos, or a camera or stream; `resume FILE`, the "
        "checkpoint, and any other options of the config, as MODEL.DEVICE cuda:1",
        name="words",
        needed=False,
    )
    out = "folder for the pictures"
    parser.add_argument("-o", "--out", required=True, type=path_argument, metavar="OUT", help=out)
    parser.add_argument("--save", type=_kinds, default=(), metavar="WHAT,...", help=kinds)
    parser.add_argument("--as", dest="container", choices=("png", *CONTAINERS), help=containers)
    parser.add_argument("--fps", type=_fps, metavar="N", help=fps)
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image's prediction")
    parser.add_argument("--multi-scale", action="store_true", help="average over 0.7, 1.0 and 1.3 times the size")
    parser.add_argument("--colour-blind", action="store_true", help=apart)
    parser.add_argument("--frames", type=_count, metavar="N", help="end a camera or stream after N frames")
    parser.add_argument("--seconds", type=_seconds, metavar="S", help="end a camera or stream after S seconds")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--go-on", action="store_true", help="make only what is not in OUT, after an interruption, say")
    there.add_argument("--overwrite", action="store_true", help="replace pictures that are in OUT already")
    return run_program(predict, parser, argv, resumable=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
