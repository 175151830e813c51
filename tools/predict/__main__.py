"""Pictures of a model's predictions, from images, folders, glob patterns and video files; no labels are needed.

An image becomes PNG files OUT/<what>/<name>.png, a video one MP4 file for each thing to save; --as changes that, and
makes a movie of all images with gif or mp4. OUT/legend.png shows the classes' colours and names. Of the options,
INPUT.INPUT_SIZE_TEST is the size that the network sees, TEST.BATCH_SIZE how many images at a time, MODEL.DEVICE where
it runs.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.configs import load_config
from core.configs.loading import split_options
from core.datasets.catalog import find_taxonomy
from core.datasets.images import png_bytes
from core.datasets.reader import ImageSet
from core.datasets.sizes import warn_of_sizes
from core.evaluation.pictures import Painter
from core.models import log_dead_channels
from core.programs.frame import config_parser, run_program
from core.runs.resume import find_checkpoint, new_model
from core.utils.checkpoints import load_checkpoint
from core.utils.devices import describe_device, device_errors, prepare_device
from core.utils.errors import UserError, one_line
from core.utils.files import make_folder, refuse_existing, replacing
from core.utils.logging import LOGGER, start_logging
from tools.predict.inputs import find_inputs
from tools.predict.movies import CONTAINERS, load_ffmpeg
from tools.predict.studio import KINDS, MOVIE_DEFAULT, PNG_DEFAULT, SERIES_FPS, Studio, plan_series

EXAMPLE = (
    "python -m tools.predict -cfg configs/camvid_day2dusk_dtst.yaml resume pretrain/camvid_day_r18.pth "
    "my_frames 'other/*.jpg' drive.mp4 -o pictures"
)
MAX_FPS = 1000
LEGEND, LEGEND_WIDTH = "legend.png", 640  # px


def predict(args: argparse.Namespace) -> None:
    """Everything is found and loaded before anything is written; then one series after the other."""
    start_logging()
    options, words = split_options(args.words)
    if args.colour_blind:
        options += ["VIS.COLOURS", "colour_blind"]
    if not words:
        raise UserError("nothing to predict: give images, folders, glob patterns or videos; try --help")
    config, out = load_config(args.config_file, options), Path(args.out)
    checkpoint, taxonomy = find_checkpoint(config), find_taxonomy(config)
    images, videos = find_inputs(words, leave_out=[out / kind for kind in KINDS])
    planned = plan_series(images, videos, out, args.container, args.save)
    if len(videos) or any(series.container != "png" for series in planned):
        load_ffmpeg("a video")
    painter = Painter.of(config.VIS, taxonomy)
    legend = png_bytes(painter.legend(LEGEND_WIDTH))
    claimed = [path for series in planned for path in series.claimed]
    if not args.overwrite:
        refuse_existing(claimed, "choose another -o, or give --overwrite")
        if (out / LEGEND).is_file() and (out / LEGEND).read_bytes() != legend:
            other = f"{out / LEGEND} is there with other classes or colours"
            raise UserError(f"{other}: choose another -o, or give --overwrite")
    with device_errors(config, training=False):
        device, model = prepare_device(config), new_model(config).requires_grad_(False)
        load_checkpoint(model, checkpoint)
        model.to(device)
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
    log_dead_channels(model)
    warn_of_sizes(images, config.INPUT)
    make_folder(out, "-o")
    with replacing(out / LEGEND) as temporary:
        temporary.write_bytes(legend)
    studio = Studio(config, model, painter, args.flip, args.multi_scale, args.fps)
    for series in planned:
        start = time.monotonic()
        with device_errors(config, training=False):
            count = studio.run(series)
        seconds = time.monotonic() - start
        source = "images" if isinstance(series.source, ImageSet) else f"frames of {one_line(series.source)}"
        places = ", ".join(map(one_line, series.places.values()))
        LOGGER.info("%d %s in %.1f s; wrote %s", count, source, seconds, places)


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
    kinds += f" (default: {','.join(PNG_DEFAULT)}; of a movie {','.join(MOVIE_DEFAULT)})"
    apart = "colours that everyone can tell apart, in label files, too: short for VIS.COLOURS colour_blind"
    containers = "PNG files, or movies of them (default: png of images, mp4 of videos)"
    fps = f"of movies (default: the video's own; of images {SERIES_FPS:g})"
    parser = config_parser(
        __doc__,
        EXAMPLE,
        "INPUT | KEY VALUE",
        "images, folders (searched to the bottom), glob patterns, videos; `resume FILE`, the checkpoint, and any other "
        "options of the config, as MODEL.DEVICE cuda:1",
        name="words",
    )
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="folder for the pictures")
    parser.add_argument("--save", type=_kinds, default=(), metavar="WHAT,…", help=kinds)
    parser.add_argument("--as", dest="container", choices=("png", *CONTAINERS), help=containers)
    parser.add_argument("--fps", type=_fps, metavar="N", help=fps)
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image's prediction")
    parser.add_argument("--multi-scale", action="store_true", help="average over 0.7, 1.0 and 1.3 times the size")
    parser.add_argument("--colour-blind", action="store_true", help=apart)
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are in OUT already")
    return run_program(predict, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
