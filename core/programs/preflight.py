"""`--check`: everything that a run needs, tried once, and what the run will cost."""

import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from core.configs import load_config
from core.configs.loading import default_output_dir
from core.configs.node import Config
from core.datasets.sampling import even_subsample
from core.datasets.sizes import mean_pixels
from core.datasets.taxonomy import IGNORE
from core.evaluation.evaluator import Evaluator
from core.runs.folder import check_folder
from core.runs.loop import Training
from core.runs.output import duration
from core.runs.resume import find_start
from core.runs.start import log_run
from core.selftraining.candidate_pass import FIRST_PASS_SIDE
from core.selftraining.samples import Batch, PasteRequest
from core.selftraining.trainer import Trainer
from core.sourcetraining.trainer import SourceTrainer
from core.utils import distributed
from core.utils.devices import device_errors, to_device
from core.utils.errors import UserError
from core.utils.logging import LOGGER, start_logging

CHECKED_IMAGES = 8  # of the small candidate pass
PASTE_TRIES = 20
STEP_TRIES = 20


def check(
    find_kind: Callable[[Config], type[Training]], config_file: str, options: Sequence[str], skip_test: bool = False
) -> None:
    """Load config, data and weights, do one training step (and one paste), and log what a run costs.

    OUTPUT_DIR is neither made nor written to.

    Args:
        find_kind: config → the kind of run that it asks for.
    """
    start_logging()
    if distributed.count() > 1:
        raise UserError("--check is for one process: start it by python, not by torchrun")
    config = load_config(config_file, options)
    config, continued, _ = find_start(config, default_output_dir(config_file))
    if continued:
        raise UserError("--check tries a run from its start: give `resume FILE`, and an OUTPUT_DIR without a run")
    with device_errors(config, training=True):
        run = find_kind(config).load(config, skip_test)
        check_folder(config.OUTPUT_DIR)
        log_run(run, skip_test)
        if isinstance(run, SourceTrainer):
            _try_source(run)
        else:
            _try_adaptation(run)


def _try_source(run: SourceTrainer) -> None:
    config, stop = run.config, run.config.SOLVER.STOP_ITER
    with tempfile.TemporaryDirectory(prefix="dtst-check-") as folder:
        config = config.changed({"OUTPUT_DIR": folder})
        trainer = SourceTrainer(config, run.model, run.images, run.taxonomy, statistics=run.statistics)
        batch_seconds, batch = _timed(lambda: next(trainer.batches(range(1), range(stop))))
        first_seconds, scalars = _timed(lambda: _step(trainer, batch))
        LOGGER.info("one training step: loss %.4f", scalars["loss"])
        step_seconds, _ = _timed(lambda: _step(trainer, batch))
        LOGGER.info(
            "the first batch took %.1f s, the first step %.1f s, the second %.2f s",
            batch_seconds,
            first_seconds,
            step_seconds,
        )
    checkpoints = -(-stop // config.SOLVER.CHECKPOINT_PERIOD)
    evaluations = images = per_image = 0
    if run.evaluator is not None:
        evaluations, images = checkpoints, len(run.evaluator.images)
        few = even_subsample(images, CHECKED_IMAGES, np.random.default_rng(config.SEED))
        tests = run.evaluator.images.restricted(few)
        evaluator = Evaluator(tests, len(run.taxonomy), run.predictor)
        per_image = _timed(lambda: evaluator.run(run.model))[0] / len(tests)
    LOGGER.info(
        "time: %.2f s/iteration × %d, and %d evaluations of %.2f s an image: %s in all, as measured on this machine, "
        "loading apart",
        step_seconds,
        stop,
        evaluations,
        per_image,
        duration(stop * step_seconds + evaluations * images * per_image),
    )
    model = _size(run.model)
    LOGGER.info(
        "disk: %d checkpoints of %.0f MB, %d saved states of %.0f MB",
        checkpoints,
        model / 1e6,
        config.SOLVER.KEEP_STATES + 1,  # one more while it is written
        2 * model / 1e6,  # model, momentum
    )


def _size(model: nn.Module) -> int:
    """Bytes of its weights and statistics."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _try_adaptation(run: Trainer) -> None:
    config = run.config
    few = even_subsample(len(run.images), CHECKED_IMAGES, np.random.default_rng(config.SEED))
    with tempfile.TemporaryDirectory(prefix="dtst-check-") as folder:
        config = config.changed({"OUTPUT_DIR": folder})
        trainer = Trainer(config, run.model, run.images.restricted(few), run.taxonomy)
        # what is done once (compiling, trying out cuDNN's algorithms) comes with the first pass and step, and apart
        trainer.generation = trainer.candidate_pass.run(trainer.teacher, iteration=0)
        batch = _try_paste(trainer)
        first_seconds, scalars = _timed(lambda: _step(trainer, batch))
        LOGGER.info(
            "one training step: loss %.4f, %.1f %% of the pixels labelled", scalars["loss"], 100 * scalars["labelled"]
        )
        step_seconds, _ = _timed(lambda: _step(trainer, batch))
        LOGGER.info("the first step took %.1f s, the second %.2f s", first_seconds, step_seconds)
        full = to_device(batch.full, trainer.device)
        score = trainer.dynamic_teacher.probabilities
        score_seconds, _ = min(_timed(lambda: float(score(full).sum())) for _ in range(2))
        pass_seconds, _ = _timed(lambda: trainer.candidate_pass.run(trainer.teacher, 1, trainer.generation))
        _log_cost(run, trainer, step_seconds, score_seconds, pass_seconds / len(trainer.generation))


def _step(trainer: Training, batch) -> dict[str, float]:
    """The scalars of a step; one whose gradient does not fit fp16, as the first ones' may not, is followed by another.

    Raises:
        UserError: none of :data:`STEP_TRIES` was made.
    """
    for _ in range(STEP_TRIES):
        scalars = {name: float(value) for name, value in trainer.train_step(batch).items()}  # waits for the device
        if scalars:
            return scalars
    raise UserError(f"{STEP_TRIES} training steps, and the gradient of none is finite: set SOLVER.AMP bf16 or off")


def _try_paste(trainer: Trainer) -> Batch:
    """A batch of samples; its first one shows a paste if any of the first few positions gives one."""
    few, size, paste = len(trainer.samples.images), trainer.config.SOLVER.BATCH_SIZE, trainer.config.TCR.PASTE
    pasting = (str(trainer.generation.folder), trainer.schedule.probabilities(0)) if paste else ()

    def sample(position: int) -> dict:
        return trainer.samples[PasteRequest(position % few, position, *pasting)]

    samples = [sample(position) for position in range(size)]
    for position in range(size, size + PASTE_TRIES if paste else 0):
        if bool((samples[0]["pasted"] != IGNORE).any()):
            break
        samples[0] = sample(position)
    pasted = samples[0]["pasted"]
    names = [trainer.taxonomy.names[c] for c in pasted.unique().tolist() if c != IGNORE]
    if names:
        pixels = int((pasted != IGNORE).sum())
        LOGGER.info("one paste: %d pixels of %s into %s", pixels, ", ".join(names), samples[0]["names"])
    elif paste:
        LOGGER.info("no paste: the %d images looked at offer no paste class", few)
    return trainer.samples.collate(samples)


def _log_cost(run: Trainer, trainer: Trainer, step: float, score: float, per_image: float) -> None:
    """What the run takes, by seconds of one step, of scoring one batch, and of one image in a pass."""
    config, stop = run.config, run.config.SOLVER.STOP_ITER
    checkpoints = -(-stop // config.SOLVER.CHECKPOINT_PERIOD)
    least, most = rescored_per_iteration(config.DTU) if config.DTU.DYNAMIC else (0.0, 0.0)
    passes = 1 + stop // config.TCR.UPDATE_FREQUENCY if run.needs_candidates else 0
    evaluations = checkpoints if run.evaluator else 0
    pass_images = len(run.candidate_pass.images)
    images = passes * pass_images + (evaluations * len(run.evaluator.images) if run.evaluator else 0)
    fixed = stop * step + images * per_image
    LOGGER.info(
        "time: %.2f s/iteration × %d, %d candidate passes and %d evaluations of %.2f s an image, and the teacher's "
        "queries: %s to %s in all, as measured on this machine, loading apart",
        step,
        stop,
        passes,
        evaluations,
        per_image,
        duration(fixed + least * stop * score),
        duration(fixed + most * stop * score),
    )
    model = _size(trainer.teacher)
    states = config.SOLVER.KEEP_STATES + 1  # one more while it is written
    candidates = transient = 0.0
    if run.needs_candidates:
        pixels = mean_pixels(run.images)
        grid = FIRST_PASS_SIDE**2 * config.INPUT.INPUT_SIZE_TEST[0] / config.INPUT.INPUT_SIZE_TEST[1]
        stored = [path.stat().st_size for path in trainer.generation.folder.rglob("*.png")]
        per_pixel = sum(stored) / len(stored) / grid
        # every state may need another one
        candidates = (states + 1) * pass_images * max(2 * grid, pixels / 4) * per_pixel
        transient = pass_images * grid * 4
    LOGGER.info(
        "disk: %d checkpoints of %.0f MB, %d saved states of %.0f MB, candidate labels up to about %.0f MB, "
        "during the first pass %.0f MB more",
        checkpoints,
        model / 1e6,
        states,
        3 * model / 1e6,  # student, teacher, momentum
        candidates / 1e6,
        transient / 1e6,
    )


def rescored_per_iteration(dtu) -> tuple[float, float]:
    """Batches re-scored per iteration: (if every first query settles at once, if every query refuses in the end)."""
    least = (dtu.Query_START // 2 + 1) / dtu.Query_START
    queries = range(dtu.Query_START, dtu.META_MAX_UPDATE + 1, dtu.Query_STEP)
    cycle = dtu.Query_START + len(queries) * dtu.Query_STEP
    return least, max(sum(queries) / cycle, least)


def _timed(action: Callable) -> tuple[float, object]:
    start = time.monotonic()
    result = action()
    return time.monotonic() - start, result
