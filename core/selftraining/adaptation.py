"""The adaptation program: everything is found and loaded before anything is written, then the trainer runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.configs import load_config
from core.configs.node import Config
from core.datasets.catalog import ImageSet, find_target_images, find_taxonomy, find_test_images
from core.datasets.images import image_size
from core.datasets.taxonomy import Taxonomy
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models import load_model, log_dead_channels
from core.runs import RunOutput, claim_folder, release_folder
from core.selftraining.trainer import Trainer
from core.utils.devices import choose_device, describe_device
from core.utils.errors import UserError
from core.utils.logging import LOGGER, start_logging

ASPECT_TOLERANCE = 0.10
SIZES_LOOKED_AT = 200  # headers read to find aspect and cost


@dataclass(frozen=True)
class Experiment:
    """What a config names, found and loaded."""

    config: Config
    device: torch.device
    taxonomy: Taxonomy
    targets: ImageSet
    evaluator: Evaluator | None
    model: nn.Module

    @classmethod
    def load(cls, config: Config, skip_test: bool) -> "Experiment":
        """Raises UserError for whatever is missing or does not fit together."""
        device = choose_device(config.MODEL.DEVICE)
        taxonomy = find_taxonomy(config)
        taxonomy.paste_classes(config.TCR.MIX_CLASSES)
        targets = find_target_images(config)
        evaluator = None
        if config.DATASETS.TEST and not skip_test:
            tests = find_test_images(config)
            if tests.label_path is None:
                raise UserError(
                    f"DATASETS.TEST {tests.name} has no labels to evaluate on; leave it empty, or give --skip-test"
                )
            evaluator = Evaluator(tests, len(taxonomy), Predictor(config, device), config)
        return cls(config, device, taxonomy, targets, evaluator, load_model(config, device))

    def trainer(self, folder: Path) -> Trainer:
        solver = self.config.SOLVER
        output = RunOutput(
            folder, self.taxonomy, solver.STOP_ITER, solver.CHECKPOINT_PERIOD, self.device, self.evaluator
        )
        return Trainer(self.config, self.model, self.targets, self.taxonomy, output)

    def describe(self, skip_test: bool) -> None:
        """Log what was found."""
        config = self.config
        parameters = sum(p.numel() for p in self.model.parameters())
        LOGGER.info("device: %s", describe_device(self.device, config.MODEL.DEVICE))
        LOGGER.info("target images: %d of %s", len(self.targets), self.targets.name)
        LOGGER.info("classes: %d (%s)", len(self.taxonomy), ", ".join(self.taxonomy.names))
        start = config.resume or config.MODEL.WEIGHTS
        LOGGER.info("model: %s, %.1f M parameters, from %s", config.MODEL.NAME, parameters / 1e6, start or "random")
        log_dead_channels(self.model)
        if config.MODEL.UNCERTAINTY > 0:
            LOGGER.info("MODEL.UNCERTAINTY is for source training: no DSU here")
        if not config.resume:
            LOGGER.info("no `resume`: the teacher knows nothing of the classes, its labels will be worth nothing")
        if config.TCR.PASTE and not self.taxonomy.paste_classes(config.TCR.MIX_CLASSES):
            LOGGER.info("no paste class: set TCR.MIX_CLASSES to paste objects; training goes on without pasting")
        if self.evaluator is not None:
            images = self.evaluator.images
            LOGGER.info("evaluation: %d images of %s at every checkpoint", len(images), images.name)
        else:
            LOGGER.info("no evaluation: %s", "--skip-test" if skip_test else "DATASETS.TEST is empty")
        warn_of_aspect(self.targets, config)


def adapt(config_file: str, options: Sequence[str], skip_test: bool = False) -> None:
    """Adapt, writing to OUTPUT_DIR."""
    start_logging()
    config = load_config(config_file, options)
    experiment = Experiment.load(config, skip_test)
    folder = claim_folder(config.OUTPUT_DIR, config.dump())
    try:
        start_logging(folder / "log.txt")
        LOGGER.info("writing to %s", folder)
        experiment.describe(skip_test)
        experiment.trainer(folder).run()
    except BaseException:  # whatever it was, a corrected command may use the folder again
        release_folder(folder)
        raise


def warn_of_aspect(images: ImageSet, config) -> None:
    """Say once if an image's aspect is more than 10 % off INPUT_SIZE_TEST, with sizes that would fit it."""
    width, height = config.INPUT.INPUT_SIZE_TEST
    for index in np.linspace(0, len(images) - 1, min(len(images), SIZES_LOOKED_AT)).astype(int):
        size = image_size(images.paths[index])
        if size is None or abs(size[0] / size[1] / (width / height) - 1) <= ASPECT_TOLERANCE:
            continue
        fitting = fitting_size((width, height), size[0] / size[1])
        crop = config.INPUT.TARGET_INPUT_SIZE_TRAIN
        LOGGER.info(
            "aspect: %s is %d×%d, but INPUT.INPUT_SIZE_TEST %d×%d has another aspect, so images are squeezed; "
            "INPUT_SIZE_TEST %s and TARGET_INPUT_SIZE_TRAIN %s would fit it",
            images.names[index],
            *size,
            width,
            height,
            fitting,
            fitting_size(crop, size[0] / size[1]),
        )
        return


def fitting_size(size: tuple[int, int], aspect: float, multiple: int = 8) -> tuple[int, int]:
    """(width, height) of about the area of `size` with width / height = `aspect`, in multiples of the stride."""
    height = (size[0] * size[1] / aspect) ** 0.5
    return tuple(max(round(n / multiple), 1) * multiple for n in (height * aspect, height))
