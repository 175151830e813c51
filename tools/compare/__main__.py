"""Source model beside adapted model on one's own images or videos, and what changed; no labels are needed.

`python -m tools.compare RUN INPUT` takes both models from a run's folder: the source model that it started from, and
model_adapted.pth, or else its last checkpoint. Without INPUT it takes the images that the run tests or trains on, at
most 50. OUT/comparison/<name>.png shows each image, a movie each video (--as changes that); OUT/compare.html those that
changed most and which class became which; OUT/changes.csv how much of every image.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from torch import nn

from core.configs import load_config
from core.configs.loading import split_options
from core.configs.node import Config
from core.datasets.catalog import find_taxonomy, require_files
from core.datasets.reader import ImageSet
from core.datasets.sampling import even_subsample
from core.datasets.sizes import warn_of_sizes
from core.evaluation.pictures import Painter
from core.models import log_network
from core.programs.frame import Parser, path_argument, run_program
from core.programs.ranking import find_unlabelled_images
from core.runs.folder import CONFIG
from core.runs.known import with_known
from core.runs.resume import checkpoints_in, new_model, source_checkpoint
from core.utils.checkpoints import load_checkpoint
from core.utils.devices import describe_device, device_errors, prepare_device
from core.utils.environment import started_as
from core.utils.errors import UserError, one_line
from core.utils.files import Table as Csv
from core.utils.files import make_folder, refuse_existing, write_text
from core.utils.logging import LOGGER, start_logging
from tools.compare.changes import Changes
from tools.compare.studio import KIND, ComparingStudio
from tools.pages import Table, page_environment, printable
from tools.predict.inputs import as_taken, find_inputs
from tools.predict.movies import CONTAINERS, load_ffmpeg
from tools.predict.studio import plan_series

FOLDER = "compared"  # in the run's
PAGE, TABLE = "compare.html", "changes.csv"
OWN_IMAGES = 50  # of the run's, evenly, where no input is given
SHOWN = 12  # images of the page
_PAIRS = 12  # rows of what became what
_COLUMNS = ("image", "changed_percent")


class Pair(NamedTuple):
    """What is compared on what."""

    config: Config
    source: Path
    adapted: Path
    folder: Path  # the run's
    inputs: list[str]


def compare(args: argparse.Namespace) -> None:
    """Everything is found and loaded before anything is written."""
    start_logging()
    pair = find_pair(args)
    config, taxonomy = pair.config, find_taxonomy(pair.config)
    out = Path(args.out) if args.out else pair.folder / FOLDER
    images, videos = _find_images(pair, out)
    planned = plan_series(images=images, videos=videos, out=out, container=args.container, kinds=(KIND,))
    if len(videos) or any(series.container != "png" for series in planned):
        load_ffmpeg("a video")
    page, table = out / PAGE, out / TABLE
    if not args.overwrite:
        claimed = [path for series in planned for path in series.claimed]
        refuse_existing([*claimed, page, table], "choose another -o, or give --overwrite")
    with device_errors(config, training=False):
        device = prepare_device(config)
        models = {
            title: _load(config, path, device)
            for title, path in zip(_titles(pair.source, pair.adapted), (pair.source, pair.adapted), strict=True)
        }
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
    LOGGER.info("source model %s, adapted model %s", one_line(pair.source), one_line(pair.adapted))
    warn_of_sizes(images, config)
    make_folder(out, "-o")
    painter, changes, rows = Painter.of(config.VIS, taxonomy), Changes(taxonomy.names, SHOWN), Csv(table, _COLUMNS)

    def note(title: str, share: float) -> None:
        rows.append(dict(zip(_COLUMNS, (title, f"{share:.2f}"), strict=True)))

    studio = ComparingStudio(config, models, painter, changes, note)
    with device_errors(config, training=False):
        for series in planned:
            studio.run(series)
    colours = list(zip(taxonomy.names, painter.palette.tolist(), strict=False))
    write_text(page, _page(changes, pair, colours, args.command))
    places = [str(path) for series in planned for path in series.places.values()]
    LOGGER.info("%s; wrote %s", summary(changes), ", ".join(map(one_line, [page, *places, table])))


def find_pair(args: argparse.Namespace) -> Pair:
    """What the command line names: two models of one config, and inputs.

    Raises:
        UserError: no run and no config, or a model that is not to be found.
    """
    options, words = split_options(args.words)
    file = args.config_file
    if file is None:
        if not words:
            raise UserError("nothing to compare: give a run's folder, or -cfg, --source and --adapted; try --help")
        file, words = Path(words[0]) / CONFIG, words[1:]
        if not file.is_file():
            raise UserError(
                f"{file.parent} is not a run's folder: it holds no {CONFIG}; give the OUTPUT_DIR of an adaptation "
                "before the images, or -cfg, --source and --adapted"
            )
    config = load_config(file, options)
    folder = Path(config.OUTPUT_DIR) if args.config_file else Path(file).parent
    source = Path(args.source) if args.source else source_checkpoint(config)
    if source is None:
        raise UserError(f"{file} names no source model that its run began with (resume): give --source FILE")
    found = [Path(args.adapted)] if args.adapted else checkpoints_in(folder) if folder.is_dir() else []
    if not found:
        raise UserError(f"{folder} holds no checkpoint of an adapted model: give --adapted FILE")
    for path, option in ((source, "--source"), (found[-1], "--adapted")):
        if not path.is_file():
            raise UserError(f"{option[2:]} model {path} is not there: give {option} FILE")
    if source.resolve() == found[-1].resolve():
        raise UserError(f"source and adapted model are both {source}: give another --source or --adapted")
    return Pair(with_known(config, found[-1]), source, found[-1], folder, words)


def _find_images(pair: Pair, out: Path) -> tuple[ImageSet, ImageSet]:
    """Images and videos: those given, or else some of the run's own images."""
    if pair.inputs:
        images, videos = find_inputs(pair.inputs, leave_out=[out / KIND])
        require_files([*images.paths, *videos.paths], "input", "inputs")
        return as_taken(images, pair.config, pair.adapted), videos
    images = find_unlabelled_images(pair.config)
    chosen = even_subsample(len(images), OWN_IMAGES, np.random.default_rng(pair.config.SEED))
    LOGGER.info("images: %d of the run's %d (%s)", len(chosen), len(images), images.name)
    return images.restricted(chosen), images.restricted([])


def _load(config: Config, path: Path, device: torch.device) -> nn.Module:
    model = new_model(config).requires_grad_(False)
    load_checkpoint(model, path)
    log_network(model)
    return model.to(device)


def _titles(source: Path, adapted: Path) -> tuple[str, str]:
    """The files' names, with as much of their folders as tells them apart."""
    names = [path.absolute().parts for path in (source, adapted)]
    length = next(n for n in range(1, max(map(len, names)) + 1) if names[0][-n:] != names[1][-n:])
    return tuple(str(Path(*parts[-length:])) for parts in names)


def summary(changes: Changes) -> str:
    """One line of what changed."""
    count, shares = len(changes.shares), changes.shares
    images = f"{count} image{'s' * (count != 1)}"
    if not any(shares):
        return f"compared {images}: no pixel changed its class"
    spread = f" ({min(shares):.1f} to {max(shares):.1f} %)" if count > 1 else ""
    (before, after, share, _), *_ = changes.became(1)
    most = f"most of all {before} became {after} ({share:.1f} % of all pixels)"
    return f"compared {images}: {np.mean(shares):.1f} % of the pixels changed class{spread}, {most}"


def _page(changes: Changes, pair: Pair, colours: list, command: str) -> str:
    shares = changes.shares
    cards = [(str(len(shares)), "images"), (f"{np.mean(shares):.1f} %", "of the pixels changed class, on average")]
    cards += [
        (f"{value:.1f} %", words)
        for value, words in ((np.median(shares), "in the median image"), (max(shares), "at most"))
    ]
    rows = [
        (before, after, f"{share:.2f}", f"{of_class:.1f}") for before, after, share, of_class in changes.became(_PAIRS)
    ]
    became = Table(("source model", "adapted model", "% of all pixels", "% of the class"), rows)
    lines = [
        (name, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}".replace("-", "−"))
        for name, before, after in changes.class_shares()
    ]
    text = (
        page_environment(Path(__file__).parent)
        .get_template("page.html")
        .render(
            title=f"{pair.folder.resolve().name}: source beside adapted",
            source=pair.source,
            adapted=pair.adapted,
            cards=cards,
            colours=colours,
            shown=[(f"{one.title}: {one.share:.1f} % of the pixels changed class", one.views) for one in changes.shown],
            became=became,
            shares=Table(("% of all pixels", "source", "adapted", "change"), lines),
            command=command,
        )
    )
    return printable(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(__doc__, "python -m tools.compare results/mine my_frames drive.mp4 -o comparison")
    words = "the run's OUTPUT_DIR (not with -cfg); images, folders, glob patterns, videos; and options of its config"
    parser.add_argument("words", nargs="*", metavar="RUN | INPUT | KEY VALUE", help=words)
    file = "yaml file, instead of RUN: its OUTPUT_DIR"
    parser.add_argument("-cfg", "--config-file", type=path_argument, metavar="FILE", help=file)
    source = "source model (default: the one that the run started from)"
    parser.add_argument("--source", type=path_argument, metavar="FILE", help=source)
    adapted = "adapted model (default: the run's model_adapted.pth, or else its last checkpoint)"
    parser.add_argument("--adapted", type=path_argument, metavar="FILE", help=adapted)
    out = f"folder for what is made (default: RUN/{FOLDER})"
    parser.add_argument("-o", "--out", type=path_argument, metavar="OUT", help=out)
    containers = "PNG files, or movies of them (default: png of images, mp4 of videos)"
    parser.add_argument("--as", dest="container", choices=("png", *CONTAINERS), help=containers)
    parser.add_argument("--overwrite", action="store_true", help="replace what is in OUT already")
    parser.set_defaults(command=shlex.join((*started_as("tools.compare"), *map(str, argv))))
    return run_program(compare, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
