"""One page about a training run: how it went, what it made of the model, and with what.

Writes one HTML file that holds all it shows: an automatic run's verdict, curves, IoU per class, source and adapted,
which classes are taken for which, the dynamic teacher's decisions, candidates, an order of the checkpoints without
labels, the worst and best images, config, environment and command. No network and no script is needed to read it. Of a
run without labels it shows the label-free signals instead of IoU, and the images that adaptation changed most. The run
may still be going on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core.configs.loading import split_options
from core.programs.frame import Parser, path_argument, run_program
from core.runs.folder import CANDIDATES
from core.utils.devices import device_errors
from core.utils.errors import UserError, shorten
from core.utils.files import make_folder, write_text
from core.utils.logging import LOGGER, start_logging
from tools.pages import page_environment, printable
from tools.report.contents import Report, spread
from tools.report.run import Run

FILE = "report.html"
IMAGES = 3  # worst ones, and as many best ones
MARK = "<!-- made by tools.report -->"  # by which an earlier report is known


def write_report(args: argparse.Namespace) -> None:
    """Everything is read and drawn before the file is written."""
    start_logging()
    options, words = split_options(args.words)
    if len(words) != 1:
        raise UserError(f"give one run's folder, not {shorten(words) or 'none'}; try --help")
    run = Run.read(Path(words[0]), options)
    out = Path(args.out) if args.out else run.folder / FILE
    refuse_other_file(out)
    with device_errors(run.config, training=False):
        content = page(Report(run, None if args.no_images else args.images))
    make_folder(out.absolute().parent, "-o")
    write_text(out, content)
    LOGGER.info("wrote %s (%.1f MB)", out, len(content.encode()) / 1e6)


def page(report: Report) -> str:
    """The HTML file."""
    environment = page_environment(Path(__file__).parent)
    environment.filters["spread"] = spread
    run, title = report.run, report.run.folder.resolve().name
    template = environment.get_template("page.html")
    text = template.render(
        report=report, run=run, data=run.config.DATASETS, title=title, mark=MARK, candidates_table=CANDIDATES
    )
    return printable(text)


def refuse_other_file(path: Path) -> None:
    """Raise UserError if `path` is there and no earlier report."""
    if path.is_dir():
        raise UserError(f"-o {path} is a folder: give the name of a file")
    if not path.exists():
        return
    with path.open("rb") as file:
        if MARK.encode() not in file.read(200):
            raise UserError(f"-o {path} is there and is no report: choose another name")


def _count(words: str) -> int:
    count = int(words)
    if not 0 <= count <= 50:
        raise ValueError
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = Parser(__doc__, "python -m tools.report results/camvid_day2dusk_dtst -o report.html")
    words = "the run's OUTPUT_DIR; and options of its config that have changed since, as DATASETS.ROOT"
    images = f"show the N worst and N best images (default {IMAGES})"
    parser.add_argument("words", nargs="*", metavar="RUN | KEY VALUE", help=words)
    parser.add_argument("-o", "--out", type=path_argument, metavar="FILE", help=f"(default: RUN/{FILE})")
    parser.add_argument("--images", type=_count, default=IMAGES, metavar="N", help=images)
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="only what the run recorded: no model is run: no source beside adapted, no new order of checkpoints",
    )
    return run_program(write_report, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
