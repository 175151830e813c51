"""What every training program needs of a config, found and loaded before anything is written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from core.configs.node import Config
from core.datasets.catalog import find_taxonomy, find_test_images
from core.datasets.taxonomy import Taxonomy
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models import load_model, log_dead_channels
from core.runs import RunOutput, claim_folder, release_folder
from core.utils.devices import choose_device, describe_device
from core.utils.errors import UserError
from core.utils.logging import LOGGER, start_logging


@dataclass(frozen=True)
class Experiment:
    """A config with device, class set, evaluator (None: no evaluation) and model.

    Each program's own experiment adds its images by :meth:`find_data`, which runs before the model is loaded.
    """

    config: Config
    device: torch.device
    taxonomy: Taxonomy
    evaluator: Evaluator | None
    model: nn.Module

    UNCERTAIN: ClassVar[bool] = False  # whether DSU (MODEL.UNCERTAINTY) has a place in this program

    @classmethod
    def load(cls, config: Config, skip_test: bool) -> "Experiment":
        """Raises UserError for whatever is missing or does not fit together."""
        device = choose_device(config.MODEL.DEVICE)
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
        model = load_model(config, device, uncertain=cls.UNCERTAIN)
        return cls(config, device, taxonomy, evaluator, model, **data)

    @classmethod
    def find_data(cls, config: Config, taxonomy: Taxonomy) -> dict:
        """The fields that the subclass adds, by name."""
        raise NotImplementedError

    def describe_data(self) -> None:
        """Log what :meth:`find_data` found."""
        raise NotImplementedError

    def output(self, folder: Path) -> RunOutput:
        """The writer of a run in `folder`."""
        solver = self.config.SOLVER
        return RunOutput(folder, self.taxonomy, solver.STOP_ITER, solver.CHECKPOINT_PERIOD, self.device, self.evaluator)

    def describe(self, skip_test: bool) -> None:
        """Log what was found."""
        config = self.config
        parameters = sum(p.numel() for p in self.model.parameters())
        LOGGER.info("device: %s", describe_device(self.device, config.MODEL.DEVICE))
        self.describe_data()
        LOGGER.info("classes: %d (%s)", len(self.taxonomy), ", ".join(self.taxonomy.names))
        start = config.resume or config.MODEL.WEIGHTS
        LOGGER.info("model: %s, %.1f M parameters, from %s", config.MODEL.NAME, parameters / 1e6, start or "random")
        log_dead_channels(self.model)
        if self.evaluator is not None:
            images = self.evaluator.images
            LOGGER.info("evaluation: %d images of %s at every checkpoint", len(images), images.name)
        else:
            LOGGER.info("no evaluation: %s", "--skip-test" if skip_test else "DATASETS.TEST is empty")


def run_in_output_folder(experiment: Experiment, train: Callable[[Path], None], skip_test: bool) -> None:
    """Claim OUTPUT_DIR, log there what was found, and call `train` with it."""
    config = experiment.config
    folder = claim_folder(config.OUTPUT_DIR, config.dump())
    try:
        start_logging(folder / "log.txt")
        LOGGER.info("writing to %s", folder)
        experiment.describe(skip_test)
        train(folder)
    except BaseException:  # whatever it was, a corrected command may use the folder again
        release_folder(folder)
        raise
