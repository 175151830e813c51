"""The source training program: everything is found, counted and loaded before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from core.configs.node import Config
from core.datasets.catalog import ImageSet, find_source_images
from core.datasets.taxonomy import Taxonomy
from core.models.dsu import DSU
from core.runs.experiment import Experiment, run_training
from core.sourcetraining.statistics import LabelStatistics, usable_pairs
from core.sourcetraining.trainer import SourceTrainer
from core.utils.errors import UserError
from core.utils.logging import LOGGER


@dataclass(frozen=True)
class SourceTraining(Experiment):
    """An experiment with the source's images, the statistics of their labels, and lines to log about them."""

    sources: ImageSet
    statistics: LabelStatistics | None = None
    notes: Sequence[str] = ()

    PROGRAM: ClassVar[str] = SourceTrainer.PROGRAM
    UNCERTAIN: ClassVar[bool] = True

    @classmethod
    def find_data(cls, config: Config, taxonomy: Taxonomy) -> dict:
        model = config.MODEL
        if model.UNCERTAINTY > 0 and not model.POS:
            raise UserError("MODEL.UNCERTAINTY (DSU) acts nowhere without MODEL.POS: set that, as to [0,1,2,3,4,5]")
        own_network = ":" in model.NAME  # which may load weights of its own
        if model.FREEZE_BN and not (config.resume or model.WEIGHTS or own_network):
            raise UserError(
                "MODEL.FREEZE_BN True needs weights to start from: set it to False to train from random weights, "
                "or give `resume` or MODEL.WEIGHTS"
            )
        return {"sources": find_source_images(config)}

    @classmethod
    def load(cls, config: Config, skip_test: bool, weights: bool = True) -> "SourceTraining":
        """As :meth:`Experiment.load`; labels are counted last, after whatever else could be wrong: it takes minutes."""
        experiment = super().load(config, skip_test, weights)
        sources, statistics, notes = usable_pairs(
            experiment.sources, experiment.taxonomy, config.DATASETS.ROOT, config.DATALOADER.NUM_WORKERS
        )
        return replace(experiment, sources=sources, statistics=statistics, notes=notes)

    def describe_data(self) -> None:
        for note in self.notes:
            LOGGER.info(note)
        LOGGER.info("source images: %d of %s", len(self.sources), self.sources.name)

    def describe(self, skip_test: bool) -> None:
        super().describe(skip_test)
        if any(isinstance(module, DSU) for module in self.model.modules()):
            options = self.config.MODEL
            LOGGER.info("DSU with probability %g at the positions %s", options.UNCERTAINTY, tuple(options.POS))
            if self.config.SOLVER.BATCH_SIZE < 2:
                LOGGER.info("a batch of one has no variance over the batch: DSU never acts with SOLVER.BATCH_SIZE 1")

    def trainer(self, folder: Path) -> SourceTrainer:
        return SourceTrainer(self.config, self.model, self.sources, self.statistics, self.output(folder))


def train_source(config_file: str, options: Sequence[str], skip_test: bool = False) -> None:
    """Train a source model, writing to OUTPUT_DIR; as `resume` says, from a checkpoint or on from a saved state."""
    run_training(SourceTraining, config_file, options, skip_test)
