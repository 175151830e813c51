"""OUTPUT_DIR: what lies in it, by name, and who may write there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.runs.states import StateFolder
from core.utils.errors import UserError
from core.utils.files import keep_rows, make_folder, remove_leftovers, write_text
from core.utils.locks import check_unlocked, locked

CONFIG, ENVIRONMENT, LOG = "config.yaml", "environment.json", "log.txt"
IMAGES = "images.txt"  # names of the training images
METRICS, EVALUATION = "metrics.csv", "evaluation.csv"  # every 20 iterations; of every checkpoint
SOURCE_EVALUATION = "evaluation_source.csv"  # the source model, evaluated before the first iteration
ADAPTED_EVALUATION = "evaluation_adapted.csv"  # the model that an automatic run hands over
HISTORY, CANDIDATES = "dtu_history.csv", "candidates.csv"  # of adaptation: the teacher's decisions; every pass
TABLES = (METRICS, EVALUATION, SOURCE_EVALUATION, ADAPTED_EVALUATION, HISTORY, CANDIDATES)
CONFUSION = "confusion"  # .csv and .png, of the newest checkpoint
TENSORBOARD, PANELS = "tensorboard", "panels"  # folders
SHOWN = {TENSORBOARD: "events.out.tfevents.*", PANELS: "iter*.png"}  # the files in them
CHECKPOINTS = "model_iter*.pth"
VERDICT = "verdict.json"  # what an automatic run holds of the model that it hands over
ADAPTED = "model_adapted.pth"  # the model to use, where a run or the user has chosen it


@contextmanager
def claimed_folder(path: str | Path, config_text: str, restart: bool = False) -> Iterator[Path]:
    """Make OUTPUT_DIR for a new run, locked while the block runs; its config, written there, marks it as taken.

    Args:
        restart: begin anew where an earlier run left nothing worth keeping.
    Raises:
        UserError: it cannot be written to, holds a run already, or another process is using it.
    """
    check_folder(path, restart)
    folder = make_folder(path, "OUTPUT_DIR")
    with locked(folder, "OUTPUT_DIR"):
        check_folder(path, restart, ours=True)  # another start may have come between
        remove_leftovers(folder)
        if restart:
            for name in (*TABLES, f"{CONFUSION}.csv", f"{CONFUSION}.png"):
                (folder / name).unlink(missing_ok=True)
            _remove_shown(folder)
        write_text(folder / CONFIG, config_text)
        try:
            yield folder
        except BaseException:  # whatever it was, a corrected command may use the folder again
            if not [*_worth_keeping(folder), *folder.glob(METRICS)]:
                (folder / CONFIG).unlink(missing_ok=True)
                _remove_shown(folder)
            raise


def check_folder(path: str | Path, restart: bool = False, ours: bool = False) -> None:
    """Raise UserError if OUTPUT_DIR could not be claimed; nothing is made or written.

    Args:
        restart: a run without checkpoint or state may be there.
        ours: this process holds the folder.
    """
    folder = Path(path)
    if not ours:
        check_unlocked(folder, "OUTPUT_DIR")
    held = _worth_keeping(folder)
    if not restart:
        held += [*folder.glob(METRICS), *folder.glob(CONFIG)]
    if held:
        how = "go on with it by `resume auto`, " if StateFolder(folder).paths() else ""
        raise UserError(
            f"OUTPUT_DIR {folder} holds a run already ({held[0].name}): {how}give another OUTPUT_DIR, or remove "
            "the folder"
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"OUTPUT_DIR {folder} cannot be written to ({existing}); choose another folder")


def cut_back(folder: Path, iteration: int, generation: int) -> set[int]:
    """Drop the rows of all tables that come after a state: of later iterations, and of later candidate passes.

    Args:
        generation: number of the candidates that the state goes on with, -1 for none.
    Returns:
        the iterations that were evaluated.
    """

    def kept(row: dict) -> bool:
        return int(row.get("iteration") or 0) <= iteration and int(row.get("generation") or -1) <= generation

    rows = {name: keep_rows(folder / name, kept) for name in TABLES}
    return {int(row["iteration"]) for row in rows[EVALUATION]}


def _worth_keeping(folder: Path) -> list[Path]:
    return [*folder.glob(CHECKPOINTS), *folder.glob(ADAPTED), *StateFolder(folder).paths()]


def _remove_shown(folder: Path) -> None:
    """Remove the panels and the events of an earlier run, and nothing else."""
    for name, pattern in SHOWN.items():
        for path in (folder / name).glob(pattern):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files, or does not exist
            (folder / name).rmdir()
