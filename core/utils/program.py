"""The frame of every program: arguments, logging, and errors as one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from core.utils.errors import UserError
from core.utils.logging import stop_logging


class Parser(argparse.ArgumentParser):
    """Ends with a UserError, and so with one line, where the arguments are wrong."""

    def error(self, message: str):
        raise UserError(f"{message}; try --help")


def config_parser(description: str, example: str) -> argparse.ArgumentParser:
    """A parser with `-cfg FILE` (or --config-file) and trailing KEY VALUE pairs, which land in `options`."""
    parser = Parser(
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-cfg", "--config-file", required=True, metavar="FILE", help="yaml file of the experiment")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="KEY VALUE",
        help="options that overwrite the file's, as SOLVER.BASE_LR 1e-4",
    )
    return parser


def run_program(
    body: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str]
) -> int:
    """Parse, run `body`, and return the exit code: 0, 1 after a user's error (one line on stderr), 130 on Ctrl-C."""
    try:
        body(parser.parse_intermixed_args(list(argv)))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SystemExit as done:  # --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        stop_logging()
