"""What can be said of a model without labels: confidence, neighbourhood density, class shares, agreement."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn

from core.datasets.catalog import ImageSet
from core.datasets.images import png_bytes
from core.datasets.loading import full_view_loader
from core.evaluation.metrics import iou, joint_counts
from core.evaluation.predictor import Predictor, evaluating
from core.selftraining.dynamic_teacher import draw_points, snd_score
from core.utils.logging import progress


@dataclass(frozen=True)
class Signals:
    """Label-free signals of one model over a set of images, read at the network's own stride.

    Attributes:
        confidence: mean probability of the winning class.
        entropy: mean entropy of the pixels' class probabilities, nats.
        snd: mean over the images of the soft neighbourhood density of 100 pixels each.
        shares: share of the pixels that each class wins, C floats.
        mean_probabilities: mean class probabilities of all pixels, C floats.
        labels: the winning classes of every image, as PNG files.
    """

    confidence: float
    entropy: float
    snd: float
    shares: np.ndarray
    mean_probabilities: np.ndarray
    labels: tuple[bytes, ...]

    @property
    def classes(self) -> int:
        """Classes that win a pixel."""
        return int((self.shares > 0).sum())

    @property
    def diversity(self) -> float:
        """Entropy of the class shares, nats; 0 where one class wins everywhere."""
        return entropy_of(self.shares)

    @property
    def information(self) -> float:
        """Mutual information of pixel and class, nats: large where pixels are sure and classes many."""
        return entropy_of(self.mean_probabilities) - self.entropy


def entropy_of(distribution: np.ndarray) -> float:
    """−Σ p·ln p of C probabilities."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


@torch.inference_mode()
def measure(model: nn.Module, images: ImageSet, predictor: Predictor, config) -> Signals:
    """The signals of `model`, whose mode is left as it was; label files play no part.

    Raises:
        UserError: an image that cannot be read.
    """
    loader = full_view_loader(
        images, [config.INPUT.INPUT_SIZE_TEST], config.TEST.BATCH_SIZE, config.DATALOADER.NUM_WORKERS
    )
    sums, shares, mean, pixels, labels = torch.zeros(3, dtype=torch.float64), 0, 0, 0, []
    with evaluating(model):
        for batch in progress(loader, f"looking at {images.name}"):
            logits = predictor.logits(model, predictor.prepare(batch["views"][0]))
            for index, log_probs in zip(batch["index"], logits.log_softmax(dim=1), strict=True):
                classes = len(log_probs)
                probs = log_probs.exp()
                peak, winner = probs.max(dim=0)
                rows = probs.flatten(1).T
                points = draw_points(len(rows), config.SEED, index).to(rows.device)
                density = snd_score(rows, points)
                entropy = -(probs * log_probs).sum()
                sums += torch.stack([peak.sum(), entropy, density * winner.numel()]).double().cpu()
                shares = shares + torch.bincount(winner.flatten(), minlength=classes).cpu()
                mean = mean + probs.sum(dim=(1, 2)).double().cpu()
                pixels += winner.numel()
                labels.append(png_bytes(winner.to(torch.uint8).cpu().numpy()))
    confidence, entropy, density = (sums / pixels).tolist()
    return Signals(confidence, entropy, density, shares.numpy() / pixels, mean.numpy() / pixels, tuple(labels))


def agreement(first: Sequence[bytes], second: Sequence[bytes], num_classes: int) -> tuple[float, float]:
    """How far two models agree on the same images: (share of pixels, mean over the classes of IoU).

    Args:
        first, second: :attr:`Signals.labels`.
    Returns:
        the mean is over the classes that either of them predicts.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    for one, other in zip(first, second, strict=True):
        counts += joint_counts(*map(_decoded, (one, other)))[:num_classes, :num_classes]
    occurs = counts.sum(0) + counts.sum(1) > 0
    return float(counts.trace() / counts.sum()), float(iou(counts).numpy()[occurs].mean())


def _decoded(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
