"""The adaptation program: everything is found and loaded before anything is written, then the trainer runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from core.configs.node import Config
from core.datasets.catalog import ImageSet, find_target_images
from core.datasets.images import image_size
from core.datasets.loading import PREFETCH_FACTOR
from core.datasets.taxonomy import Taxonomy
from core.runs.experiment import Experiment, run_training
from core.selftraining.trainer import Trainer
from core.utils.errors import UserError
from core.utils.logging import LOGGER

ASPECT_TOLERANCE = 0.10
SIZES_LOOKED_AT = 200  # headers read to find aspect and cost


@dataclass(frozen=True)
class Adaptation(Experiment):
    """An experiment with the target's images."""

    targets: ImageSet

    PROGRAM: ClassVar[str] = Trainer.PROGRAM

    @classmethod
    def find_data(cls, config: Config, taxonomy: Taxonomy) -> dict:
        check_paste_lag(config)
        taxonomy.paste_classes(config.TCR.MIX_CLASSES)
        return {"targets": find_target_images(config)}

    def trainer(self, folder: Path) -> Trainer:
        return Trainer(self.config, self.model, self.targets, self.taxonomy, self.output(folder))

    def describe_data(self) -> None:
        LOGGER.info("target images: %d of %s", len(self.targets), self.targets.name)

    def describe(self, skip_test: bool) -> None:
        super().describe(skip_test)
        config = self.config
        if config.MODEL.UNCERTAINTY > 0:
            LOGGER.info("MODEL.UNCERTAINTY is for source training: no DSU here")
        if not config.resume:
            LOGGER.info("no `resume`: the teacher knows nothing of the classes, its labels will be worth nothing")
        if config.TCR.PASTE and not self.taxonomy.paste_classes(config.TCR.MIX_CLASSES):
            LOGGER.info("no paste class: set TCR.MIX_CLASSES to paste objects; training goes on without pasting")
        warn_of_aspect(self.targets, config)


def adapt(config_file: str, options: Sequence[str], skip_test: bool = False) -> None:
    """Adapt, writing to OUTPUT_DIR; as `resume` says, from a checkpoint or on from a saved state."""
    run_training(Adaptation, config_file, options, skip_test)


def check_paste_lag(config: Config) -> None:
    """Raise UserError if an adaptation's workers would run ahead of the paste probabilities."""
    ahead = config.DATALOADER.NUM_WORKERS * PREFETCH_FACTOR
    if config.TCR.PASTE and config.TCR.MIX_SAMPLING == "confidence" and ahead >= config.TCR.PASTE_LAG:
        raise UserError(
            f"DATALOADER.NUM_WORKERS {config.DATALOADER.NUM_WORKERS} prepare {ahead} batches ahead, which must stay "
            f"below TCR.PASTE_LAG {config.TCR.PASTE_LAG}: use fewer workers or a larger lag"
        )


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
