"""Independent looks at the same pixels: what can be told of a network on images without any label.

A class is trusted as far as its pixels keep it when the image is mirrored and when it is made smaller: the product of
both shares estimates the class's precision (docs/adapting.md shows how well). Recoloured images, and another network on
the same ones, were tried and tell less.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import nn

from core.datasets.images import png_bytes
from core.datasets.reader import ImageSet
from core.datasets.taxonomy import IGNORE
from core.evaluation.metrics import joint_counts
from core.evaluation.predictor import Predictor
from core.models.deeplab import resize_logits
from core.utils import distributed
from core.utils.devices import copy_to_host, to_device

LOOKS = ("mirrored", "smaller")
SMALLER = 0.75  # of the full view's width and height


@dataclass(frozen=True)
class Looks:
    """One network's predictions for some images, at its own stride.

    Attributes:
        joint: L×C×C int64, how many pixels have a class in the plain look (rows) and a class in each of LOOKS.
        sure: the same of the surer pixels of every class, TCR.TOPK_CANDIDATE of them left out, as of paste candidates.
        probabilities: C floats, the mean over the pixels.
        confidence: mean probability of the winning class.
        entropy: mean entropy of a pixel's probabilities, nats.
        labels: the winning classes of every image as a PNG file, h×w uint8, 255 where it is blind, which counts
            nowhere.
    """

    joint: np.ndarray
    sure: np.ndarray
    probabilities: np.ndarray
    confidence: float
    entropy: float
    labels: Sequence[bytes]

    @property
    def shares(self) -> np.ndarray:
        """C floats: the share of the pixels that each class wins."""
        pixels = self.joint[0].sum(axis=1)
        return pixels / max(pixels.sum(), 1)

    @property
    def information(self) -> float:
        """Mutual information of pixel and class, nats: large where pixels are sure and classes many."""
        return entropy_of(self.probabilities) - self.entropy

    @property
    def steadiness(self) -> float:
        """Share of the pixels that keep their class, mean over LOOKS."""
        return float(np.mean(self.joint.trace(axis1=1, axis2=2) / np.maximum(self.joint.sum(axis=(1, 2)), 1)))

    def agreement(self, other: "Looks") -> np.ndarray:
        """C×C int64: pixels by this network's class (rows) and another's, of the same images."""
        classes = len(self.probabilities)
        counts = np.zeros((classes, classes), np.int64)
        for files in zip(self.labels, other.labels, strict=True):
            first, second = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files)
            if first.shape == second.shape:
                counts += joint_counts(first, second)[:classes, :classes]
        return counts


def entropy_of(distribution: np.ndarray) -> float:
    """−Σ p·ln p of C probabilities, nats."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


def kept(joint: np.ndarray) -> np.ndarray:
    """…×C×C counts → …×C: the share of each row's pixels on the diagonal; 0 for an empty row."""
    pixels = joint.sum(axis=-1)
    return np.diagonal(joint, axis1=-2, axis2=-1) / np.maximum(pixels, 1)


def reliability(joint: np.ndarray) -> np.ndarray:
    """Estimated precision of each class: the product over LOOKS of the share of its pixels that keep it.

    Args:
        joint: L×C×C, of :class:`Looks`.
    Returns:
        C floats in 0 … 1; 0 for a class that wins nowhere.
    """
    return kept(joint).prod(axis=0)


def look_at(model: nn.Module, images: ImageSet, num_classes: int, predictor: Predictor, title: str) -> Looks:
    """Look at images with `model`, whose mode is left as it was. Of several processes each looks at its share.

    Raises:
        UserError: an image that cannot be read.
    """
    width, height = predictor.config.INPUT.INPUT_SIZE_TEST
    corners = predictor.config.MODEL.ALIGN_CORNERS
    sizes = [(width, height), (max(round(width * SMALLER), 1), max(round(height * SMALLER), 1))]
    joint, seen = np.zeros((len(LOOKS), num_classes, num_classes), np.int64), []
    sums, labels = np.zeros(num_classes + 2), []

    def read(batch: dict) -> list[tuple[Callable[[], torch.Tensor], ...]]:
        plain, small = batch["views"]
        prepared = predictor.prepare(plain)
        logits = predictor.logits(model, prepared)
        size = logits.shape[-2:]
        looks = [
            predictor.logits(model, prepared.flip(-1)).flip(-1),
            resize_logits(predictor.logits(model, predictor.prepare(small)), size, corners),
        ]
        winners = torch.stack([one.argmax(dim=1).to(torch.uint8) for one in (logits, *looks)], dim=1)
        log_probs = logits.log_softmax(dim=1)
        probs = log_probs.exp()
        if images.blind is not None:
            blind = [images.blind_at(images.paths[index], size) for index in batch["index"]]
            blind = [np.zeros(tuple(size), bool) if one is None else one for one in blind]
            blind = to_device(torch.from_numpy(np.stack(blind)), probs.device)[:, None]
            winners.masked_fill_(blind, IGNORE)
            probs.masked_fill_(blind, 0)
        entropy = -(probs * log_probs).sum(dim=(1, 2, 3))
        peak = probs.amax(dim=1)
        numbers = torch.stack([peak.sum(dim=(1, 2)), entropy], dim=1)
        numbers = torch.cat([numbers, probs.sum(dim=(2, 3))], dim=1).double()
        return [
            tuple(map(copy_to_host, of_image))
            for *of_image, bad in zip(winners, numbers, peak.half(), batch["bad"], strict=True)
            if not bad
        ]

    def take(made: list[tuple[Callable[[], torch.Tensor], ...]]) -> None:
        for reading in made:
            (plain, *looks), numbers, peak = (copied().numpy() for copied in reading)
            sums[:] += numbers
            seen.append((np.stack([plain, *looks]).reshape(1 + len(looks), -1), peak.ravel()))
            for counts, other in zip(joint, looks, strict=True):
                counts += joint_counts(plain, other)[:num_classes, :num_classes]
            labels.append(png_bytes(plain))

    with distributed.own_part():
        predictor.sweep(model, images, title, read, take, sizes)
    found, sums = distributed.total_array(joint), distributed.total_array(sums)
    pixels = max(int(found[0].sum()), 1)
    confidence, entropy, *probabilities = (sums / pixels).tolist()
    seen = distributed.joined(seen)
    sure = _sure_counts(
        *(np.concatenate(part, axis=-1) for part in zip(*seen, strict=True)), predictor.config, num_classes
    )
    return Looks(found, sure, np.array(probabilities), confidence, entropy, distributed.joined(labels))


def _sure_counts(winners: np.ndarray, peak: np.ndarray, config, num_classes: int) -> np.ndarray:
    """See :attr:`Looks.sure`; (1 + L)×n classes of all pixels in the plain look and in LOOKS, and n confidences."""
    counts = np.zeros((len(LOOKS), num_classes, num_classes), np.int64)
    for c in range(num_classes):
        own = winners[0] == c
        if own.any():
            sure = own & (peak >= np.quantile(peak[own].astype(np.float32), config.TCR.TOPK_CANDIDATE))
            counts[:, c] = [np.bincount(other[sure], minlength=num_classes) for other in winners[1:]]
    return counts
