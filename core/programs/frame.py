"""The frame of every program: arguments, logging, and errors as one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout

from core.runs.resume import going_on
from core.utils import distributed, signals
from core.utils.environment import started_as
from core.utils.errors import Correctable, UserError, as_shell, one_line
from core.utils.files import expanded
from core.utils.logging import LOGGER, stop_logging
from core.utils.streams import Forgiving, fall_silent, take_any_character

_PATH_WORDS = 20  # at most, that a path without its quotes is taken to consist of
_LOST = "another process of the job has gone (killed, out of memory) or does not answer; see the log, start again"


class Parser(argparse.ArgumentParser):
    """Ends with a UserError, and so with one line, where the arguments are wrong.

    Args:
        description: what the program does.
        example: a whole command, `python FILE …` or `python -m MODULE …`, which `--help` shows as the program was
            started.

    Attributes:
        program: FILE or MODULE.
    """

    def __init__(self, description: str, example: str):
        _, *words = example.split(" ")
        self.program, *others = words[1:] if words[0] == "-m" else words
        started = " ".join(started_as(self.program))
        super().__init__(
            prog=started,
            description=description,
            epilog=f"example: {started} {' '.join(others)}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        raise UserError(f"{message}; try --help")


def path_argument(text: str) -> str:
    """The type of an argument that is a path: `~` and variables, which a shell leaves in `--out=~/x`, are replaced."""
    try:
        return expanded(text, "")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None


def config_parser(
    description: str,
    example: str,
    words: str = "KEY VALUE",
    words_help: str = "options that overwrite the file's, as SOLVER.BASE_LR 1e-4",
    name: str = "options",
    needed: bool = True,
) -> Parser:
    """A parser with `-cfg FILE` (or --config-file) and trailing words, KEY VALUE pairs in most programs.

    Args:
        words: what the trailing words are, for the usage line.
        words_help: the same at length.
        name: the attribute that they land in.
        needed: False: the file may be left out, where the checkpoint that `resume` names says enough.
    """
    parser = Parser(description, example)
    experiment = "yaml file of the experiment" + ("" if needed else " (default: what the checkpoint says of its model)")
    parser.add_argument("-cfg", "--config-file", required=needed, type=path_argument, metavar="FILE", help=experiment)
    parser.add_argument(name, nargs="*", metavar=words, help=words_help)
    return parser


def run_program(
    body: Callable[[argparse.Namespace], None],
    parser: Parser,
    argv: Sequence[str] | None,
    resumable: bool = False,
    parallel: bool = False,
) -> int:
    """Parse, run `body`, and return the exit code.

    That is 0, 1 after a user's error (one line on stderr), 130 on Ctrl-C; of a `resumable` program also 128 + n where
    signal n (one of signals.SIGNALS) stopped it, with one line that says how to go on.

    Args:
        argv: None: what follows the program's name in the process's own command.
        parallel: torchrun may start several processes of it. Of an error that ends them all, the line is written once.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path:
        sys.path.append("")  # the current folder, where a network of the user's own may lie (MODEL.NAME mine:build)
    take_any_character()
    try:
        with signals.listening() if resumable else nullcontext():
            try:
                if parallel:
                    distributed.join()
                elif distributed.planned_count() > 1:
                    raise UserError(f"{parser.prog} is one process: start it by python, not by torchrun")
                with nullcontext() if distributed.is_main() else redirect_stdout(None):  # --help, once
                    args = parser.parse_intermixed_args(argv)
                body(args)
                distributed.leave()
            except signals.Stopped as stopped:
                signals.acknowledge()
                if _tells(stopped):
                    _say(_last_line(stopped, started_as(parser.program), argv))
                return 128 + stopped.number
            except RuntimeError as error:
                if not distributed.lost_contact(error):
                    raise
                signals.acknowledge()  # torchrun now ends what is left of the job
                if distributed.claim_lost_contact():
                    _say(f"error: {_LOST}{_which_process()}")
                return 1
        return 0
    except UserError as error:
        if distributed.claim_error():
            _say(f"error: {error}{_which_process()}{_corrected(error, started_as(parser.program), argv)}")
        return 1
    except SystemExit as done:  # --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        if distributed.claim_error():
            _say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, and no log file has it
        fall_silent(sys.stdout)
        return 1
    finally:
        stop_logging()


def _say(line: str) -> None:
    """On standard error, if anyone reads it, and in the log file of a run that has one."""
    LOGGER.debug("%s", line)
    print(line, file=Forgiving(sys.stderr), flush=True)


def _tells(stopped: signals.Stopped) -> bool:
    """Whether this process says why all end: the main one where they stop together, the first one while they start."""
    if stopped.note:
        return distributed.is_main() and not distributed.error_claimed()
    return distributed.claim_error()


def _which_process() -> str:
    count = distributed.count()
    return f" [process {distributed.rank()} of {count}]" if count > 1 else ""


def _last_line(stopped: signals.Stopped, program: Sequence[str], argv: list[str]) -> str:
    """What became of the run, and the command that goes on with it."""
    if stopped.final:
        return f"stopped by {stopped} {one_line(stopped.note)}"
    if not stopped.note:
        return f"stopped by {stopped}: nothing was trained yet; start again with the same command"
    return f"stopped by {stopped} {one_line(stopped.note)}; go on with: {as_shell([*program, *going_on(argv)])}"


def _corrected(error: UserError, program: Sequence[str], argv: list[str]) -> str:
    """The command with its words put right, where that is what an error asks for."""
    if isinstance(error, Correctable):
        what, meant = "the whole command", error.correct(argv)
    else:
        what, meant = "a path with spaces wants quotes", _joined_path(argv)
    return "" if meant is None else f"; {what}: {as_shell([*program, *meant])}"


def _joined_path(argv: list[str]) -> list[str] | None:
    """Arguments with those joined that, by spaces, name a file or folder that the first alone does not; else None."""
    for start, word in enumerate(argv):
        if os.path.lexists(word):
            continue
        for end in range(min(start + _PATH_WORDS, len(argv)), start + 1, -1):
            if os.path.lexists(path := " ".join(argv[start:end])):
                return [*argv[:start], path, *argv[end:]]
    return None
