"""A training program, from its command line to the trainer's loop: a new run, or one that goes on."""

import json
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from core.configs.loading import default_output_dir, load_config
from core.configs.node import Config
from core.models import describe_norms, log_network
from core.models.layers import layers_of
from core.runs.folder import CONFIG, ENVIRONMENT, IMAGES, LOG, PANELS, TENSORBOARD, check_folder, claimed_folder
from core.runs.loop import Training
from core.runs.monitor import tensorboard_is_there
from core.runs.output import LOG_PERIOD
from core.runs.resume import continued_config, describe_start, find_start
from core.runs.states import StateFolder, flat_config
from core.utils import distributed
from core.utils.devices import describe_device, describe_precision, device_errors
from core.utils.environment import describe_environment, started_as
from core.utils.errors import shorten
from core.utils.files import remove_leftovers, write_text
from core.utils.locks import locked
from core.utils.logging import LOGGER, start_logging

SHOWN_CLASSES = 5  # of the class names, at the start


def run_training(
    find_kind: Callable[[Config], type[Training]], config_file: str, options: Sequence[str], skip_test: bool
) -> None:
    """A training program: a new run, or one that goes on from a state, as `resume` says, in OUTPUT_DIR.

    Everything is found and loaded before anything is written.

    Args:
        find_kind: config → the kind of run that it asks for.
    Raises:
        UserError: bad config, missing data, a folder in use, a full disk, …
        Stopped: a signal asked for it.
    """
    start_logging()
    config = load_config(config_file, options)
    kind = find_kind(config)
    config, continued, restart = distributed.from_main(lambda: find_start(config, default_output_dir(config_file)))
    test = ["--skip-test"] if skip_test else []
    command = shlex.join(map(str, [*started_as(kind.PROGRAM), "-cfg", config_file, *options, *test]))
    with device_errors(config, training=True):
        if continued:
            _continue_run(kind, config, config_file, skip_test, command)
        else:
            _begin_run(kind, config, config_file, skip_test, command, restart)


def _begin_run(
    kind: type[Training], config: Config, config_file: str, skip_test: bool, command: str, restart: bool
) -> None:
    if distributed.is_main():
        check_folder(config.OUTPUT_DIR, restart)
    trainer = kind.load(config, skip_test)
    trainer.config_file = config_file
    with _by_main(claimed_folder(config.OUTPUT_DIR, trainer.config.dump(), restart)):
        if distributed.is_main():
            write_names(trainer)
        distributed.barrier()  # claimed
        _announce(trainer, f"writing to {trainer.output.folder}", skip_test, command)
        with device_errors(trainer.config, training=True, domain=trainer.DOMAIN):  # with what it has chosen
            trainer.run()


def _continue_run(kind: type[Training], config: Config, config_file: str, skip_test: bool, command: str) -> None:
    folder = Path(config.OUTPUT_DIR)
    with _by_main(locked(folder, "OUTPUT_DIR")):
        path, state = StateFolder(folder).newest()
        config = continued_config(state, config, kind.PROGRAM, kind.CHOSEN)
        trainer = kind.load(config, skip_test, weights=False)
        trainer.config_file = config_file
        _announce(trainer, f"going on in {folder} from {path}", skip_test, command)
        if (before := state["config"]["SOLVER.MAX_ITER"]) != config.SOLVER.MAX_ITER:
            rates = "the learning rate follows the longer curve from here on"
            LOGGER.info("SOLVER.MAX_ITER grows from %d to %d: %s", before, config.SOLVER.MAX_ITER, rates)
        if distributed.is_main():
            remove_leftovers(folder)
        trainer.load_state_dict(state)
        del state
        if distributed.is_main():
            write_text(folder / CONFIG, config.dump())
            write_names(trainer)  # that a run of an earlier version has not
        if trainer.iteration == trainer.stop:
            LOGGER.info("all %d iterations are done: nothing is left but what follows the last one", trainer.iteration)
        with device_errors(trainer.config, training=True, domain=trainer.DOMAIN):
            trainer.run()


def _by_main(context: AbstractContextManager) -> AbstractContextManager:
    """A context that only the main process enters."""
    return context if distributed.is_main() else nullcontext()


def _announce(trainer: Training, what: str, skip_test: bool, command: str) -> None:
    """Log from now on to the run's folder, what was found first; note there what the run is (now) made with."""
    config, device = trainer.config, trainer.device
    start_logging(trainer.output.folder / LOG)
    LOGGER.info(what)
    log_run(trainer, skip_test)
    if distributed.is_main():
        words = describe_device(device, config.MODEL.DEVICE), describe_precision(device, config.SOLVER)
        text = json.dumps(describe_environment(command, *words), indent=1)
        write_text(trainer.output.folder / ENVIRONMENT, text)


def write_names(trainer: Training) -> None:
    """Of the training images, for a later start to be compared with."""
    write_text(trainer.output.folder / IMAGES, "".join(f"{name}\n" for name in trainer.images.names))


def log_run(trainer: Training, skip_test: bool) -> None:
    """Log what was found, and what the run will write."""
    config, taxonomy = trainer.config, trainer.taxonomy
    solver, vis = config.SOLVER, config.VIS
    for key, value in flat_config(config).items():
        LOGGER.debug("option %s: %s", key, value)
    LOGGER.debug("class names: %s", ", ".join(taxonomy.names))
    device = describe_device(trainer.device, config.MODEL.DEVICE)
    LOGGER.info("device: %s, %s", device, describe_precision(trainer.device, solver))
    trainer.describe_images()
    more = ", …" if len(taxonomy) > SHOWN_CLASSES else ""
    LOGGER.info("classes: %d (%s%s)", len(taxonomy), ", ".join(taxonomy.names[:SHOWN_CLASSES]), more)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    LOGGER.info("model: %s, %.1f M parameters, from %s", config.MODEL.NAME, parameters / 1e6, describe_start(config))
    log_network(trainer.model)
    LOGGER.info(describe_norms(trainer.model))
    if solver.LAYER_DECAY < 1:
        count = len(layers_of(trainer.model.feature_extractor))
        stem = solver.LAYER_DECAY ** (count + 1)
        LOGGER.info("%d layers, whose rates decay towards the stem: it learns at %.2g × SOLVER.BASE_LR", count, stem)
    if trainer.idle:
        found = f"{len(trainer.idle)} parameters have no part in the output, and do not learn: {shorten(trainer.idle)}"
        LOGGER.info("%s (each step looks for them: find_unused_parameters)", found)
    if trainer.evaluator is not None:
        images = trainer.evaluator.images
        note = images.note and f": {images.note}"
        LOGGER.info("evaluation: %d images of %s at every checkpoint%s", len(images), images.name, note)
    else:
        LOGGER.info("no evaluation: %s", "--skip-test" if skip_test else "DATASETS.TEST is empty")
    LOGGER.info(
        "%d iterations of %d images; checkpoint and state every %d, the newest %d states are kept; "
        "metrics and log every %d",
        solver.STOP_ITER,
        solver.BATCH_SIZE,
        solver.CHECKPOINT_PERIOD,
        solver.KEEP_STATES,
        LOG_PERIOD,
    )
    board = f"below {TENSORBOARD}/" if vis.TENSORBOARD else "off (VIS.TENSORBOARD)"
    if vis.TENSORBOARD and not tensorboard_is_there():
        board = "off: the package is missing (pip install tensorboard)"
    number = solver.STOP_ITER // vis.PERIOD if vis.PERIOD else 0
    panels = f"{number} below {PANELS}/, every {vis.PERIOD}" if vis.PERIOD else "off (VIS.PERIOD 0)"
    LOGGER.info("TensorBoard: %s; panels: %s", board, panels)
    for line in trainer.choices.lines:
        LOGGER.info(line)
    trainer.describe()
