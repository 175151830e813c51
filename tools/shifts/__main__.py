"""Adaptation over a list of shifts, as one table: what a config gains on each, and whether it loses anywhere.

A shift is a file of configs/shifts: a source model, a target and a test set. Everything else comes from one config, the
same for all. Toy domains are drawn and source models trained where they are missing; what the same command has finished
is used again.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core.configs.loading import split_options
from core.programs.frame import Parser, run_program
from core.utils.errors import UserError, shorten
from core.utils.files import make_folder, write_text
from tools.shifts.declared import FOLDER, choose, read_shifts
from tools.shifts.reliability import run_reliability
from tools.shifts.table import Row, csv_text, page, table_lines
from tools.shifts.workplace import Workplace

CONFIG = "configs/adapt.yaml"
WORK = "results/shifts"
TABLE = "shifts"  # .csv and .html


def run_shifts(args: argparse.Namespace) -> None:
    """Run what was asked for, and print and write the table."""
    options, words = split_options(args.words)
    more, names = split_options(args.only)  # --only takes the words that follow it
    if words:
        raise UserError(f"not an option's KEY: {shorten(words)}; name shifts by --only")
    shifts = read_shifts(FOLDER)
    chosen = choose(shifts, names, args.aside)
    if args.list:
        width = max(map(len, shifts))
        for shift in shifts.values():
            print(f"{shift.name:<{width}}  {'aside' if shift.aside else '':<5}  {shift.comment}".rstrip())
        return
    workplace = Workplace(args.folder, args.config, [*options, *more])
    for shift in chosen:
        workplace.options_of(shift)  # a mistake is found before anything is run
    try:
        workplace.draw_domains(chosen)
    except UserError as error:  # shifts of other data sets go on
        print(f"toy domains: failed: {error}", flush=True)
    if args.reliability:
        if failed := run_reliability(workplace, chosen):
            raise UserError(f"{len(failed)} of {len(chosen)} shifts failed: {shorten(failed)}")
        return
    rows = workplace.make_rows(chosen, range(1, args.seeds + 1), args.jobs)
    write_table(rows, workplace.results)
    failed = [f"{row.shift}, seed {row.seed}" for row in rows if row.error]
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} runs failed: {shorten(failed)}")


def write_table(rows: Sequence[Row], folder: Path) -> None:
    """On the terminal, and as CSV and page in a folder."""
    print("\n" + "\n".join(table_lines(rows)), flush=True)
    command = f"python -m tools.shifts {shlex.join(sys.argv[1:])}"
    make_folder(folder, "--folder")
    for ending, text in (("csv", csv_text(rows)), ("html", page(rows, f"{folder.name} over shifts", command))):
        path = folder / f"{TABLE}.{ending}"
        write_text(path, text)
        print(f"wrote {path}")


def _count(words: str) -> int:
    count = int(words)
    if not 1 <= count <= 100:
        raise ValueError
    return count


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit code."""
    parser = Parser(__doc__, "python -m tools.shifts --only dusk_1 night --seeds 3 SOLVER.BASE_LR 5e-5")
    parser.add_argument(
        "words", nargs="*", metavar="KEY VALUE", help="options that overwrite the config's, on all shifts"
    )
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="NAME", help="these shifts alone")
    parser.add_argument("--aside", action="store_true", help="the shifts that are kept aside, too")
    parser.add_argument("--config", default=CONFIG, metavar="FILE", help=f"of the adaptation (default: {CONFIG})")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="seeds 1 to N of each (default: 1)")
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--folder", type=Path, default=Path(WORK), metavar="DIR", help=f"(default: {WORK})")
    parser.add_argument(
        "--reliability",
        action="store_true",
        help="run nothing but source models; say how well the estimated precision of classes tells the true one",
    )
    parser.add_argument("--list", action="store_true", help="say which shifts there are, and stop")
    return run_program(run_shifts, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
