"""What a program says at its end: whether its model is better than the one it began with, and what to do next."""

from pathlib import Path

from core.adaptation.choices import CHOSEN
from core.configs import load_config
from core.configs.node import Config
from core.datasets.folders import FOLDER_PREFIX, folders_of
from core.datasets.videos import VIDEO_PREFIX
from core.runs.folder import ADAPTED, ADAPTED_EVALUATION, CONFIG, EVALUATION, SOURCE_EVALUATION
from core.runs.known import FOUND, NAME_KEY
from core.runs.resume import source_checkpoint
from core.utils.environment import start_of
from core.utils.errors import UserError, as_shell, shorten
from core.utils.logging import LOGGER
from core.utils.tables import row_of

ALIKE = 0.05  # points of mIoU: models that differ by less are called the same
ROOT = "DATASETS.ROOT"
AUTOMATIC = "configs/adapt.yaml"
BETTER, SAME, WORSE = "better than", "the same as", "worse than"


def log_next(what: str, program: str, *words: str | Path) -> None:
    """One line with a command to be pasted.

    Args:
        program: as :func:`start_of` takes it.
    """
    LOGGER.info("next, %s: %s", what, as_shell([*start_of(program), *words]))


def log_report(folder: Path) -> None:
    """How to see a run, if that is what the folder holds."""
    if (folder / CONFIG).is_file():
        log_next("the run on one page", "tools.report", folder)


def say_adapted(config: Config, iteration: int) -> None:
    """The end of an adaptation, whose folder is written.

    Args:
        iteration: the last one.
    """
    folder, automatic, source = Path(config.OUTPUT_DIR), config.ADAPT.AUTO, source_checkpoint(config)
    model = folder / (ADAPTED if automatic else f"model_iter{iteration:06d}.pth")
    before = _mean_iou(folder / SOURCE_EVALUATION, 0)
    after = _mean_iou(folder / (ADAPTED_EVALUATION if automatic else EVALUATION), iteration)
    if before is not None and after is not None:
        change, words = compared(before, after)
        LOGGER.info("mIoU %s: %s is %s the source model", words, model, change)
        if change == WORSE:
            other = "on such images" if automatic else f"or let a run find its settings: -cfg {AUTOMATIC}"
            LOGGER.info("use the source model, %s, %s", source, other)
    log_report(folder)
    run = ("-cfg", folder / CONFIG, "resume", model)
    if after is None and config.DATASETS.TEST:
        log_next("its scores", "test.py", *run)
    if source is not None:
        log_next("source beside adapted model on its images", "tools.compare", folder)
    target = config.DATASETS.TARGET_TRAIN
    images = folders_of(target) if target.startswith(FOLDER_PREFIX) else ["YOUR_IMAGES"]
    if target.startswith(VIDEO_PREFIX):
        images = [target.removeprefix(VIDEO_PREFIX)]
    log_next("what it sees", "tools.predict", *run, *images, "-o", folder / "pictures")


def say_trained(config: Config, iteration: int, config_file: str) -> None:
    """The end of a source training, whose folder is written.

    Args:
        iteration: the last one.
        config_file: as the user gave it.
    """
    folder, target = Path(config.OUTPUT_DIR), config.DATASETS.TARGET_TRAIN or f"{FOLDER_PREFIX}YOUR_IMAGES"
    model = folder / f"model_iter{iteration:06d}.pth"
    log_report(folder)
    if config.DATASETS.TEST and _mean_iou(folder / EVALUATION, iteration) is None:
        log_next("its scores", "test.py", "-cfg", folder / CONFIG, "resume", model)
    file = config_file if config.DATASETS.CUSTOM else AUTOMATIC  # which stand in the former alone
    try:
        named = load_config(file)
    except UserError:  # it has changed, or gone, since the run began
        return
    words = [] if named.ADAPT.AUTO else ["ADAPT.AUTO", "True"]
    needed = {
        key for key in (*FOUND, ROOT, "DATASETS.SOURCE_TRAIN") if named.gives(key)
    }  # the rest, the model's file says
    needed |= {NAME_KEY} if ":" in config.MODEL.NAME else set()
    needed |= set() if target.startswith((FOLDER_PREFIX, VIDEO_PREFIX)) else {ROOT}
    for key in sorted(needed):
        if config.find(key) != named.find(key):
            words += [key, config.find(key)]
    if target != named.DATASETS.TARGET_TRAIN:
        words += ["DATASETS.TARGET_TRAIN", target]
    words += ["resume", model, "OUTPUT_DIR", folder.parent / f"{folder.name}_adapted"]
    log_next("adapt it to other images", "train_TCR_DTU.py", "-cfg", file, *words)
    if given := [key for key in CHOSEN if named.gives(key)]:
        LOGGER.info("take %s out of %s before, or an adaptation has them, too", shorten(given, len(given)), file)


def compared(before: float, after: float) -> tuple[str, str]:
    """Two mIoU in percent in words: what the second is, and both with their difference."""
    change = round(after - before, 2)
    signed = f"{change:+.2f}".replace("-", "−")
    words = BETTER if change > ALIKE else WORSE if change < -ALIKE else SAME
    return words, f"{before:.2f} → {after:.2f} ({signed})"


def _mean_iou(table: Path, iteration: int) -> float | None:
    """Of a table of scores, in percent, after that iteration; None where it has no row of it."""
    row = row_of(table, iteration)
    return None if row is None else float(row["mIoU"])
