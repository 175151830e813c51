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
from core.runs.loop import Training
from core.runs.output import RunOutput
from core.sourcetraining.panels import batch_tiles
from core.sourcetraining.samples import SourceBatch, SourceSamples, SourceStream, collate_source, source_order
from core.sourcetraining.statistics import LabelStatistics
from core.utils import distributed
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
                logits = resize_logits(logits, target.shape[-2:])
                loss = cross_entropy_sum(logits, target, self.class_weights) / count.to(logits.dtype)
                self.backward(loss)
            total += loss.detach()
        loss = distributed.total(total).to(loss.dtype)
        stepped = self.solver.step(loss, self.iteration)
        if not stepped:
            self.refuse_step(loss, batch.names)
        if self.panel_due:
            self.output.panel(self.iteration + 1, *batch_tiles(parts[-1], logits.detach()))
        self.iteration += 1
        return {"loss": loss} if stepped else {}

    def stretch_end(self, stop: int) -> int:
        """The whole run is one stretch; another follows only where a continued run's STOP_ITER has grown."""
        return stop

    def batches(self, iterations: range, stretch: range | None = None) -> Iterator[SourceBatch]:
        """The batches of `iterations`, drawn for the whole stretch (None: the run) at once."""
        stretch = self._whole if stretch is None else stretch
        order = self.order if stretch == self._whole else self._draw(stretch)
        size = self.config.SOLVER.BATCH_SIZE
        stream = SourceStream(iterations, size, order, stretch.start, distributed.share(size))
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
