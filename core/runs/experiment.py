"""What every training program needs of a config, found and loaded before anything is written."""

import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from core.configs.loading import default_output_dir, load_config
from core.configs.node import Config
from core.datasets.catalog import find_taxonomy, find_test_images
from core.datasets.taxonomy import Taxonomy
from core.evaluation.evaluator import Evaluator
from core.evaluation.pictures import Painter
from core.evaluation.predictor import Predictor
from core.models import load_model, log_dead_channels
from core.models.compiling import check_compiler
from core.models.dsu import DSU
from core.runs.loop import Training
from core.runs.monitor import PANELS, TENSORBOARD, Monitor
from core.runs.output import CONFIG, ENVIRONMENT, LOG_PERIOD, RunOutput, check_folder, claimed_folder
from core.runs.states import StateFolder, continued_config, find_start, flat_config
from core.utils import distributed, events
from core.utils.devices import describe_device, describe_precision, device_errors, prepare_device
from core.utils.environment import describe_environment
from core.utils.errors import UserError
from core.utils.files import remove_leftovers, write_text
from core.utils.locks import locked
from core.utils.logging import LOGGER, start_logging

SHOWN_CLASSES = 5  # of the class names, at the start


@dataclass(frozen=True)
class Experiment(ABC):
    """A config with device, class set, evaluator (None: no evaluation) and model.

    Each program's own experiment adds its images by :meth:`find_data`, which runs before the model is loaded.
    """

    config: Config
    device: torch.device
    taxonomy: Taxonomy
    evaluator: Evaluator | None
    model: nn.Module

    PROGRAM: ClassVar[str]  # its name, as states know it
    UNCERTAIN: ClassVar[bool] = False  # whether DSU (MODEL.UNCERTAINTY) has a place in this program

    @classmethod
    def load(cls, config: Config, skip_test: bool, weights: bool = True) -> "Experiment":
        """Raises UserError for whatever is missing or does not fit together.

        Args:
            skip_test: no evaluation.
            weights: read those that the config names; False: a state's will follow.
        """
        device = prepare_device(config)
        if config.MODEL.COMPILE:
            check_compiler(device)
        taxonomy = find_taxonomy(config)
        data = cls.find_data(config, taxonomy)
        evaluator = None
        if config.DATASETS.TEST and not skip_test:
            tests = find_test_images(config)
            if tests.label_path is None:
                raise UserError(
                    f"DATASETS.TEST {tests.name} has no labels to evaluate on; leave it empty, or give --skip-test"
                )
            evaluator = Evaluator(tests, len(taxonomy), Predictor(config, device), config)
        model = load_model(config, device, uncertain=cls.UNCERTAIN, weights=weights)
        check_whole_batches(model, config)
        if not config.MODEL.FREEZE_BN:
            model = distributed.synchronised_norms(model, device)
        return cls(config, device, taxonomy, evaluator, model, **data)

    @classmethod
    @abstractmethod
    def find_data(cls, config: Config, taxonomy: Taxonomy) -> dict:
        """The fields that the subclass adds, by name."""

    @abstractmethod
    def describe_data(self) -> None:
        """Log what :meth:`find_data` found."""

    @abstractmethod
    def trainer(self, folder: Path) -> Training:
        """The trainer of a run in `folder`."""

    def output(self, folder: Path) -> RunOutput:
        """The writer of a run in `folder`."""
        solver, vis = self.config.SOLVER, self.config.VIS
        painter = Painter(self.taxonomy, self.taxonomy.palette())
        return RunOutput(
            folder,
            self.taxonomy,
            solver.STOP_ITER,
            solver.CHECKPOINT_PERIOD,
            self.device,
            self.evaluator,
            solver.KEEP_STATES,
            Monitor(folder, painter, vis.PERIOD, vis.TENSORBOARD and events.available())
            if distributed.is_main()
            else None,
        )

    def note_environment(self, folder: Path, command: str) -> None:
        """Write what the run in `folder` is (now) made with to :data:`ENVIRONMENT`."""
        if not distributed.is_main():
            return
        device = describe_device(self.device, self.config.MODEL.DEVICE)
        precision = describe_precision(self.device, self.config.SOLVER)
        write_text(folder / ENVIRONMENT, json.dumps(describe_environment(command, device, precision), indent=1))

    def describe(self, skip_test: bool) -> None:
        """Log what was found."""
        config = self.config
        parameters = sum(p.numel() for p in self.model.parameters())
        for key, value in flat_config(config).items():
            LOGGER.debug("option %s: %s", key, value)
        LOGGER.debug("class names: %s", ", ".join(self.taxonomy.names))
        precision = describe_precision(self.device, config.SOLVER)
        LOGGER.info("device: %s, %s", describe_device(self.device, config.MODEL.DEVICE), precision)
        self.describe_data()
        more = ", …" if len(self.taxonomy) > SHOWN_CLASSES else ""
        LOGGER.info("classes: %d (%s%s)", len(self.taxonomy), ", ".join(self.taxonomy.names[:SHOWN_CLASSES]), more)
        start = config.resume or config.MODEL.WEIGHTS
        LOGGER.info("model: %s, %.1f M parameters, from %s", config.MODEL.NAME, parameters / 1e6, start or "random")
        log_dead_channels(self.model)
        if self.evaluator is not None:
            images = self.evaluator.images
            LOGGER.info("evaluation: %d images of %s at every checkpoint", len(images), images.name)
        else:
            LOGGER.info("no evaluation: %s", "--skip-test" if skip_test else "DATASETS.TEST is empty")
        self._describe_output()

    def _describe_output(self) -> None:
        solver, vis = self.config.SOLVER, self.config.VIS
        stop = solver.STOP_ITER
        LOGGER.info(
            "%d iterations of %d images; checkpoint and state every %d, the newest %d states are kept; "
            "metrics and log every %d",
            stop,
            solver.BATCH_SIZE,
            solver.CHECKPOINT_PERIOD,
            solver.KEEP_STATES,
            LOG_PERIOD,
        )
        board = f"below {TENSORBOARD}/" if vis.TENSORBOARD else "off (VIS.TENSORBOARD)"
        if vis.TENSORBOARD and not events.available():
            board = "off: the package is missing (pip install tensorboard)"
        panels = f"{stop // vis.PERIOD} below {PANELS}/, every {vis.PERIOD}" if vis.PERIOD else "off (VIS.PERIOD 0)"
        LOGGER.info("TensorBoard: %s; panels: %s", board, panels)


def run_training(kind: type[Experiment], config_file: str, options: Sequence[str], skip_test: bool) -> None:
    """A training program: a new run, or one that goes on from a state, as `resume` says, in OUTPUT_DIR.

    Raises:
        UserError: bad config, missing data, a folder in use, a full disk, …
        Stopped: a signal asked for it.
    """
    start_logging()
    config = load_config(config_file, options)
    check_division(config)
    given = config.resume
    config, continued = distributed.from_main(lambda: find_start(config, default_output_dir(config_file)))
    words = [
        *distributed.launcher(),
        kind.PROGRAM,
        "-cfg",
        config_file,
        *options,
        *(["--skip-test"] if skip_test else []),
    ]
    command = shlex.join(map(str, words))
    restart = given != config.resume  # resume auto:FILE
    with device_errors(config, training=True):
        if continued:
            _continue_run(kind, config, skip_test, command)
        else:
            _begin_run(kind, config, skip_test, command, restart)


def _begin_run(kind: type[Experiment], config: Config, skip_test: bool, command: str, restart: bool) -> None:
    if distributed.is_main():
        check_folder(config.OUTPUT_DIR, restart)
    experiment = kind.load(config, skip_test)
    with _by_main(claimed_folder(config.OUTPUT_DIR, config.dump(), restart)):
        distributed.barrier()  # claimed
        folder = Path(config.OUTPUT_DIR)
        start_logging(folder / "log.txt")
        LOGGER.info("writing to %s", folder)
        experiment.describe(skip_test)
        experiment.note_environment(folder, command)
        experiment.trainer(folder).run()


def _continue_run(kind: type[Experiment], config: Config, skip_test: bool, command: str) -> None:
    folder = Path(config.OUTPUT_DIR)
    with _by_main(locked(folder, "OUTPUT_DIR")):
        path, state = StateFolder(folder).newest()
        config = continued_config(state, config, kind.PROGRAM)
        experiment = kind.load(config, skip_test, weights=False)
        start_logging(folder / "log.txt")
        LOGGER.info("going on in %s from %s", folder, path)
        experiment.describe(skip_test)
        experiment.note_environment(folder, command)
        if distributed.is_main():
            remove_leftovers(folder)
        trainer = experiment.trainer(folder)
        trainer.load_state_dict(state)
        del state
        if distributed.is_main():
            write_text(folder / CONFIG, config.dump())
        if trainer.iteration == config.SOLVER.STOP_ITER:
            LOGGER.info("all %d iterations are done: nothing is left but what follows the last one", trainer.iteration)
        trainer.run()


def _by_main(context: AbstractContextManager) -> AbstractContextManager:
    """A context that only the main process enters."""
    return context if distributed.is_main() else nullcontext()


def check_division(config: Config) -> None:
    """Raise UserError unless every process's every part of a batch gets the same number of images."""
    solver, processes = config.SOLVER, distributed.count()
    if solver.BATCH_SIZE % (processes * solver.ACCUMULATE):
        several = f"{processes} processes × " if processes > 1 else ""
        raise UserError(
            f"SOLVER.BATCH_SIZE {solver.BATCH_SIZE} is the images of an iteration, which do not divide by {several}"
            f"SOLVER.ACCUMULATE {solver.ACCUMULATE}: give a multiple of {processes * solver.ACCUMULATE}"
        )


def check_whole_batches(model: nn.Module, config: Config) -> None:
    """Raise UserError if the model takes statistics of a whole batch, and that comes in parts."""
    if config.SOLVER.ACCUMULATE == 1:
        return
    for module in model.modules():
        moving = isinstance(module, nn.modules.batchnorm._BatchNorm) and not config.MODEL.FREEZE_BN
        if moving or isinstance(module, DSU):
            what = "MODEL.UNCERTAINTY 0" if isinstance(module, DSU) else "MODEL.FREEZE_BN True"
            raise UserError(
                f"SOLVER.ACCUMULATE {config.SOLVER.ACCUMULATE} would change the batch that statistics are taken of: "
                f"give 1, or {what}"
            )
