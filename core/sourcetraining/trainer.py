"""Supervised training on a labelled source domain (the source models of DT-ST and FADA)."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.datasets.catalog import ImageSet
from core.datasets.loading import Loader
from core.datasets.taxonomy import IGNORE
from core.models.compiling import compile_networks
from core.models.deeplab import resize_logits
from core.runs import RunOutput
from core.sourcetraining.samples import SourceBatch, SourceSamples, SourceStream, collate_source, source_order
from core.sourcetraining.statistics import LabelStatistics
from core.training import Training
from core.utils.devices import to_device

BALANCED_BLOCK = 3000  # class-balanced draws after which the balance starts anew


class SourceTrainer(Training):
    """One source training run.

    Args:
        config: a whole config.
        model: on its device.
        images: the labelled images.
        statistics: of their labels.
        output: the folder that the run writes to.
    """

    PROGRAM = "train_src.py"

    def __init__(self, config, model: nn.Module, images: ImageSet, statistics: LabelStatistics, output: RunOutput):
        super().__init__(config, model, images, output)
        self.model = model
        if config.MODEL.COMPILE:
            compile_networks(model)
        self.samples = SourceSamples(images, config)
        self.class_weights = None
        if config.SOLVER.CLASS_WEIGHTS:
            weights = torch.from_numpy(statistics.class_weights()).float()
            self.class_weights = weights.to(self.device)
        self._presence = statistics.presence
        self._whole = range(self.stretch_end(config.SOLVER.STOP_ITER))
        self.order = self._draw(self._whole)

    @property
    def result(self) -> nn.Module:
        return self.model

    def train_step(self, batch: SourceBatch) -> dict[str, torch.Tensor]:
        """One iteration; returns the scalars to log, on the device: none where the step was skipped."""
        self.begin_step()
        labels = to_device(batch.labels, self.device).long()
        self.model.train()
        logits = resize_logits(
            self.predictor.logits(self.model, self.predictor.prepare(batch.images)), labels.shape[-2:]
        )
        total, count = cross_entropy_sum(logits, labels, self.class_weights)
        loss = total / count.clamp(min=torch.finfo(count.dtype).tiny)
        stepped = self.solver.step(loss, self.iteration)
        if not stepped:
            self.refuse_step(loss, batch.names)
        self.iteration += 1
        return {"loss": loss.detach()} if stepped else {}

    def stretch_end(self, stop: int) -> int:
        """The whole run is one stretch; another follows only where a continued run's STOP_ITER has grown."""
        return stop

    def batches(self, iterations: range, stretch: range | None = None) -> Iterator[SourceBatch]:
        """The batches of `iterations`, drawn for the whole stretch (None: the run) at once."""
        stretch = self._whole if stretch is None else stretch
        order = self.order if stretch == self._whole else self._draw(stretch)
        stream = SourceStream(iterations, self.config.SOLVER.BATCH_SIZE, order, stretch.start)
        workers, pin = self.config.DATALOADER.NUM_WORKERS, self.device.type == "cuda"
        return iter(Loader(self.samples, collate_source, workers, batch_sampler=stream, pin_memory=pin))

    def _draw(self, stretch: range) -> np.ndarray:
        """Image indices for every position of a stretch."""
        block = balanced_block(self.config, self._images)
        count = len(stretch) * self.config.SOLVER.BATCH_SIZE
        return source_order(self._presence, count, block, self.config.SEED, stretch.start)

    def state_dict(self) -> dict:
        return super().state_dict() | {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.model.load_state_dict(state["model"])


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
    balanced = images.balanced if mode == "auto" else mode == "balanced"
    return BALANCED_BLOCK if balanced else 0
