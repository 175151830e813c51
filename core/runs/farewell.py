"""What a program says at its end: whether its model is better than the one it began with, and what to do next."""

import shlex
from pathlib import Path

from core.configs.node import Config
from core.datasets.catalog import FOLDER_PREFIX
from core.runs.folder import ADAPTED, ADAPTED_EVALUATION, CONFIG, EVALUATION, SOURCE_EVALUATION
from core.runs.resume import source_checkpoint
from core.utils.environment import start_of
from core.utils.errors import one_line
from core.utils.logging import LOGGER
from core.utils.tables import read_table

ALIKE = 0.05  # points of mIoU: models that differ by less are called the same


def log_next(what: str, program: str, *words: str | Path) -> None:
    """One line with a command to be pasted.

    Args:
        program: as :func:`start_of` takes it.
    """
    LOGGER.info("next, %s: %s", what, one_line(shlex.join([*start_of(program), *map(str, words)])))


def log_report(folder: Path) -> None:
    """How to see a run, if that is what the folder holds."""
    if (folder / CONFIG).is_file():
        log_next("the run on one page", "tools.report", folder)


def say_adapted(config: Config) -> None:
    """The end of an adaptation, whose folder is written."""
    folder = Path(config.OUTPUT_DIR)
    automatic = config.ADAPT.AUTO
    model = folder / (ADAPTED if automatic else f"model_iter{config.SOLVER.STOP_ITER:06d}.pth")
    before, after = (_mean_iou(folder / name) for name in (SOURCE_EVALUATION, ADAPTED_EVALUATION))
    if not automatic:
        after = _mean_iou(folder / EVALUATION)
    if before is not None and after is not None:
        LOGGER.info("mIoU %s", compared(before, after, str(model)))
        if after < before - ALIKE:
            LOGGER.info(_worse(config))
    log_report(folder)
    run = ("-cfg", folder / CONFIG, "resume", model)
    if after is None and config.DATASETS.TEST:
        log_next("its scores", "test.py", *run)
    elif source_checkpoint(config) is not None:
        log_next("source beside adapted model on its images", "tools.compare", folder)


def say_trained(config: Config, config_file: str) -> None:
    """The end of a source training, whose folder is written.

    Args:
        config_file: as the user gave it.
    """
    folder = Path(config.OUTPUT_DIR)
    model = folder / f"model_iter{config.SOLVER.STOP_ITER:06d}.pth"
    if _mean_iou(folder / EVALUATION) is None and config.DATASETS.TEST:
        log_next("its scores", "test.py", "-cfg", folder / CONFIG, "resume", model)
    if config.DATASETS.CUSTOM:
        words = ["-cfg", config_file, "ADAPT.AUTO", "True"]  # the classes stand there
    else:
        words = ["-cfg", "configs/adapt.yaml", "MODEL.NAME", config.MODEL.NAME]
        words += ["MODEL.NUM_CLASSES", str(config.MODEL.NUM_CLASSES)]
        words += ["DATASETS.SOURCE_TRAIN", config.DATASETS.SOURCE_TRAIN]
    words += ["DATASETS.TARGET_TRAIN", f"{FOLDER_PREFIX}YOUR_IMAGES", "resume", model, "OUTPUT_DIR", "results/adapted"]
    log_next("adapt it to images of yours", "train_TCR_DTU.py", *words)


def compared(before: float, after: float, model: str) -> str:
    """Two mIoU in percent, of the source model and of `model`, in words."""
    change = round(after - before, 2)
    belief = "better than" if change > ALIKE else "worse than" if change < -ALIKE else "the same as"
    signed = f"{change:+.2f}".replace("-", "−")
    return f"{before:.2f} → {after:.2f} ({signed}): {model} is {belief} the source model"


def _worse(config: Config) -> str:
    source = source_checkpoint(config)
    if config.ADAPT.AUTO:
        return f"use the source model, {source}, on such images"
    return (
        f"use the source model, {source}, or an earlier checkpoint; or let a run find its settings: "
        "-cfg configs/adapt.yaml (ADAPT.AUTO True)"
    )


def _mean_iou(table: Path) -> float | None:
    """Of the last row of a table of scores, in percent; None where there is none."""
    rows = read_table(table)
    return float(rows[-1]["mIoU"]) if rows else None
