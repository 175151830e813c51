"""Supervised training on a labelled source domain (the source models of DT-ST and FADA)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from core.configs.choices import Choices
from core.configs.node import Config
from core.datasets.catalog import find_source_images, find_targets_range
from core.datasets.reader import ImageSet
from core.datasets.sampling import Stream
from core.datasets.taxonomy import IGNORE, Taxonomy
from core.evaluation.evaluator import Evaluator
from core.models.build import compile_networks
from core.models.deeplab import batch_norms, frozen_norms, resize_logits
from core.models.dsu import DSU
from core.runs.farewell import say_trained
from core.runs.known import SPAN_KEY
from core.runs.loop import Training
from core.runs.panels import source_tiles
from core.runs.resume import source_checkpoint
from core.sourcetraining.choices import CHOSEN, choose_all
from core.sourcetraining.samples import SourceBatch, SourceSamples, source_order
from core.sourcetraining.statistics import LabelStatistics, usable_pairs
from core.utils import distributed
from core.utils.devices import to_device
from core.utils.errors import UserError
from core.utils.logging import LOGGER

BALANCED_BLOCK = 3000  # class-balanced draws after which the balance starts anew


class SourceTrainer(Training):
    """One source training run.

    Args:
        statistics: of the images' labels; None: they are counted, which takes minutes the first time, after whatever
            else could be wrong; pairs that cannot be trained on are then left out.
    """

    PROGRAM, DOMAIN, UNCERTAIN = "train_src.py", "source", True

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        images: ImageSet,
        taxonomy: Taxonomy,
        evaluator: Evaluator | None = None,
        statistics: LabelStatistics | None = None,
    ):
        self._notes: list[str] = []
        if statistics is None:
            root, workers = config.DATASETS.ROOT, config.DATALOADER.NUM_WORKERS
            images, statistics, self._notes = usable_pairs(images, taxonomy, root, workers)
        super().__init__(config, model, images, taxonomy, evaluator)
        if config.MODEL.COMPILE:
            compile_networks(model)
        self.samples = SourceSamples(images, config)
        self.class_weights = None
        if config.SOLVER.CLASS_WEIGHTS:
            weights = torch.from_numpy(statistics.class_weights()).float()
            self.class_weights = weights.to(self.device)
        self.statistics = statistics

    @classmethod
    def find_images(cls, config: Config, taxonomy: Taxonomy) -> ImageSet:
        model = config.MODEL
        if model.UNCERTAINTY > 0 and not model.POS:
            raise UserError("MODEL.UNCERTAINTY (DSU) acts nowhere without MODEL.POS: set that, as to [0,1,2,3,4,5]")
        return find_source_images(config)

    @classmethod
    def settle(cls, choices: Choices, model: nn.Module, images: ImageSet, taxonomy: Taxonomy) -> None:
        """Nothing; raises UserError if batch norms would stay as a network is built."""
        norms = batch_norms(model) + frozen_norms(model)
        if norms and choices.config.MODEL.FREEZE_BN and starts_random(choices.config):
            raise UserError(
                "MODEL.FREEZE_BN True needs weights to start from: set it to False to train from random weights, "
                "or give `resume` or MODEL.WEIGHTS"
            )

    @classmethod
    def config_of_tests(cls, config: Config) -> Config:
        """With the range of the target's 16-bit images, where it has such, in place of that of the source's."""
        span = () if config.gives(SPAN_KEY) else find_targets_range(config.changed({SPAN_KEY: ()}))
        return config.changed({SPAN_KEY: span}) if span else config

    def describe_images(self) -> None:
        for note in self._notes:
            LOGGER.info(note)
        super().describe_images()

    def describe(self) -> None:
        if any(isinstance(module, DSU) for module in self.model.modules()):
            options = self.config.MODEL
            LOGGER.info("DSU with probability %g at the positions %s", options.UNCERTAINTY, tuple(options.POS))
            if self.config.SOLVER.BATCH_SIZE < 2:
                LOGGER.info("a batch of one has no variance over the batch: DSU never acts with SOLVER.BATCH_SIZE 1")

    def say_farewell(self) -> None:
        if distributed.is_main():
            say_trained(self.config, self.iteration, self.config_file)

    def train_step(self, batch: SourceBatch) -> dict[str, torch.Tensor]:
        """One iteration; returns the scalars to log, on the device: none where the step was skipped."""
        self.begin_step()
        parts = batch.split(self.accumulate)
        labels = [to_device(part.labels, self.device).long() for part in parts]
        counts = torch.stack([label_weight(part, self.class_weights) for part in labels])
        count = distributed.total(counts.sum()).clamp(min=torch.finfo(torch.float32).tiny)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train()
        self.solver.zero_gradients()
        for part, target, accumulating in zip(parts, labels, self.accumulation(), strict=True):
            with accumulating:
                logits = self.predictor.logits(self.parallel, self.predictor.prepare(part.images))
                logits = resize_logits(logits, target.shape[-2:], self.config.MODEL.ALIGN_CORNERS)
                loss = cross_entropy_sum(logits, target, self.class_weights) / count.to(logits.dtype)
                self.solver.backward(loss)
            total += loss.detach()
        loss = distributed.total(total).to(loss.dtype)
        stepped = self.solver.step(loss, self.iteration)
        if not stepped:
            self.refuse_step(loss, batch.names)
        if self.output.monitor.panel_due(self.iteration + 1):
            self.output.monitor.panel(self.iteration + 1, *source_tiles(parts[-1], logits.detach()))
        self.iteration += 1
        return {"loss": loss} if stepped else {}

    def stretch_end(self, stop: int) -> int:
        """The whole run is one stretch; another follows only where a continued run's STOP_ITER has grown."""
        return stop

    def requests(self, iterations: range, stretch: range) -> Stream:
        size, seed = self.config.SOLVER.BATCH_SIZE, self.config.SEED
        block = balanced_block(self.config, self.images)
        order = source_order(self.statistics.presence, len(stretch) * size, block, seed, stretch.start)
        return Stream(iterations, size, order, stretch.start, distributed.share(size))

    def state_dict(self) -> dict:
        return super().state_dict() | {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.model.load_state_dict(state["model"])


class AutomaticSourceTrainer(SourceTrainer):
    """With `SOLVER.AUTO`: the run finds its settings itself."""

    CHOSEN: ClassVar[tuple[str, ...]] = CHOSEN

    @classmethod
    def choose(cls, choices: Choices, images: ImageSet) -> None:
        parts = distributed.count() * choices.config.SOLVER.ACCUMULATE
        choose_all(choices, images, starts_random(choices.config), parts)


def source_trainer_for(config: Config) -> type[SourceTrainer]:
    """Which kind of run a config asks for."""
    return AutomaticSourceTrainer if config.SOLVER.AUTO else SourceTrainer


def starts_random(config: Config) -> bool:
    """Whether a run's weights are random at first: a network of one's own may load some itself."""
    return not (source_checkpoint(config) or config.MODEL.WEIGHTS or ":" in config.MODEL.NAME)


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sum of the cross-entropy over the labelled pixels, a scalar; :func:`label_weight` is what to divide it by.

    Args:
        logits: B×C×H×W floats.
        labels: B×H×W int64, 255 = ignore.
        weights: C floats that multiply the pixels of each class; None: 1.
    """
    weights = None if weights is None else weights.to(logits.dtype)
    # summed apart: torch has no deterministic form of the reduction "sum" on CUDA
    return F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="none").sum()


def label_weight(labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Number of labelled pixels, or the sum of their weights: a float64 scalar."""
    if weights is None:
        return (labels != IGNORE).sum().double()
    padded = torch.cat([weights, weights.new_zeros(1)])
    return padded[labels.clamp(max=len(weights))].sum(dtype=torch.float64)


def balanced_block(config, images: ImageSet) -> int:
    """Length of a block of class-balanced draws; 0 where images are drawn uniformly (DATASETS.SOURCE_SAMPLING)."""
    mode = config.DATASETS.SOURCE_SAMPLING
    balanced = images.balanced if mode == "auto" else mode == "balanced"
    return BALANCED_BLOCK if balanced else 0
