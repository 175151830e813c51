"""Supervised training on a labelled source domain (the source models of DT-ST and FADA)."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.datasets.catalog import ImageSet
from core.datasets.loading import Loader
from core.evaluation.predictor import Predictor
from core.models.deeplab import resize_logits
from core.runs import RunOutput
from core.selftraining.pseudo_labels import IGNORE
from core.solver import Solver
from core.sourcetraining.samples import SourceBatch, SourceSamples, SourceStream, collate_source, source_order
from core.sourcetraining.statistics import LabelStatistics
from core.utils.devices import to_device

BALANCED_BLOCK = 3000  # class-balanced draws after which the balance starts anew
_STEP = 0x5354  # first key of the random stream of steps


class SourceTrainer:
    """One source training run.

    Args:
        config: a whole config.
        model: on its device.
        images: the labelled images.
        statistics: of their labels.
        output: the folder that the run writes to.
    """

    def __init__(self, config, model: nn.Module, images: ImageSet, statistics: LabelStatistics, output: RunOutput):
        self.config, self.model, self.output = config, model, output
        self.device = next(model.parameters()).device
        self.predictor = Predictor(config, self.device)
        self.solver = Solver(model, config.SOLVER)
        self.samples = SourceSamples(images, config)
        self.class_weights = None
        if config.SOLVER.CLASS_WEIGHTS:
            weights = torch.from_numpy(statistics.class_weights()).float()
            self.class_weights = weights.to(self.device)
        self.order = source_order(
            statistics.presence,
            config.SOLVER.STOP_ITER * config.SOLVER.BATCH_SIZE,
            balanced_block(config, images),
            config.SEED,
        )
        self.iteration = 0  # completed

    def train_step(self, batch: SourceBatch) -> dict[str, torch.Tensor]:
        """One iteration; returns the scalars to log, on the device."""
        self._seed_noise()
        labels = to_device(batch.labels, self.device).long()
        self.model.train()
        logits = resize_logits(
            self.predictor.logits(self.model, self.predictor.prepare(batch.images)), labels.shape[-2:]
        )
        total, count = cross_entropy_sum(logits, labels, self.class_weights)
        loss = total / count.clamp(min=torch.finfo(count.dtype).tiny)
        self.solver.step(loss, self.iteration)
        self.iteration += 1
        return {"loss": loss.detach()}

    def _seed_noise(self) -> None:
        """Make the network's own noise (DSU) a function of (SEED, iteration), whatever was evaluated in between."""
        key = np.random.SeedSequence([self.config.SEED, _STEP, self.iteration])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def run(self) -> None:
        """Train to STOP_ITER, with checkpoints and evaluations on the way."""
        self.output.start_clock()
        for batch in self.batches(range(self.iteration, self.config.SOLVER.STOP_ITER)):
            scalars = self.train_step(batch)
            learning_rate = self.solver.learning_rate(self.iteration - 1)
            self.output.completed(self.iteration, learning_rate, scalars, self.model)

    def batches(self, iterations: range) -> Iterator[SourceBatch]:
        """The batches of a stretch of iterations."""
        stream = SourceStream(iterations, self.config.SOLVER.BATCH_SIZE, self.order)
        workers, pin = self.config.DATALOADER.NUM_WORKERS, self.device.type == "cuda"
        return iter(Loader(self.samples, collate_source, workers, batch_sampler=stream, pin_memory=pin))


def cross_entropy_sum(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the cross-entropy over the labelled pixels, what to divide it by), two float scalars.

    Args:
        logits: B×C×H×W floats.
        labels: B×H×W int64, 255 = ignore.
        weights: C floats that multiply the pixels of each class and count them; None: 1.
    """
    total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORE, reduction="sum")
    if weights is None:
        return total, (labels != IGNORE).sum().float()
    padded = torch.cat([weights, weights.new_zeros(1)])
    return total, padded[labels.clamp(max=len(weights))].sum()


def balanced_block(config, images: ImageSet) -> int:
    """Length of a block of class-balanced draws; 0 where images are drawn uniformly (DATASETS.SOURCE_SAMPLING)."""
    mode = config.DATASETS.SOURCE_SAMPLING
    if mode == "auto":
        return images.balanced_block
    return BALANCED_BLOCK if mode == "balanced" else 0
