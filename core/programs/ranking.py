"""Checkpoints ordered without labels: by agreement with their neighbours, confidence and diversity of classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from core.datasets.catalog import find_images, find_target_images, find_taxonomy
from core.datasets.images import png_bytes
from core.datasets.reader import ImageSet
from core.evaluation.metrics import iou, joint_counts, value_counts
from core.evaluation.predictor import Predictor
from core.models import build_model
from core.programs.testing import folder_name
from core.runs.resume import find_checkpoints, numbered
from core.selftraining.dynamic_teacher import draw_points, snd_score
from core.utils import distributed
from core.utils.checkpoints import load_checkpoint
from core.utils.devices import copy_to_host, describe_device, prepare_device, to_device
from core.utils.errors import UserError
from core.utils.files import Table, make_folder
from core.utils.logging import LOGGER

# signals whose ranks are averaged, the larger the better: how steady the labels are, how sure, over how many classes
# spread; chosen on four runs, and measured on others (README)
RULE = ("agreement", "confidence", "diversity")
TABLE = "ranking_"  # and the data set's name, .csv


def entropy_of(distribution: np.ndarray) -> float:
    """−Σ p·ln p of C probabilities."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


def measure(
    model: nn.Module, images: ImageSet, predictor: Predictor
) -> tuple[dict[str, float], np.ndarray, list[bytes]]:
    """Look at images with `model`, whose mode is left as it was, at the network's own stride.

    Returns:
        signals that need no label, by name: `snd`, the mean over the images of the soft neighbourhood density of 100
        pixels each; `information`, the mutual information of pixel and class, nats: large where pixels are sure and
        classes many; `confidence`, the mean probability of the winning class; `entropy`, the mean of the pixels'
        entropies, nats; `classes` that win a pixel; `diversity`, the entropy of the class shares, nats: 0 where one
        class wins everywhere;
        the share of the pixels that each class wins, C floats;
        the winning classes of every image as PNG files.
    Raises:
        UserError: an image that cannot be read.
    """
    sums, shares, labels = 0.0, 0, []

    def read(batch: dict) -> list[Sequence[Callable[[], torch.Tensor]]]:
        """Of every image, as they come from the device: the sums over its pixels of confidence, entropy, density and of
        each class's probability, float64, and its h×w uint8 winning classes.
        """
        made, logits = [], predictor.logits(model, predictor.prepare(batch["views"][0]))
        for index, log_probs in zip(batch["index"], logits.log_softmax(dim=1), strict=True):
            probs = log_probs.exp()
            peak, winner = probs.max(dim=0)
            rows = probs.flatten(1).T
            points = to_device(draw_points(len(rows), predictor.config.SEED, index), rows.device)
            density = snd_score(rows, points) * winner.numel()
            signals = torch.stack([peak.sum(), -(probs * log_probs).sum(), density])
            numbers = torch.cat([signals, probs.sum(dim=(1, 2))]).double()
            made.append((copy_to_host(numbers), copy_to_host(winner.to(torch.uint8))))
        return made

    def take(made: list[Sequence[Callable[[], torch.Tensor]]]) -> None:
        nonlocal sums, shares
        for reading in made:
            numbers, winner = (copied().numpy() for copied in reading)
            sums, shares = sums + numbers, shares + value_counts(winner)
            labels.append(png_bytes(winner))

    predictor.sweep(model, images, f"looking at {images.name}", read, take)
    confidence, entropy, density, *mean_probabilities = (sums / shares.sum()).tolist()
    shares = shares[: len(mean_probabilities)] / shares.sum()
    signals = {
        "snd": density,
        "information": entropy_of(np.array(mean_probabilities)) - entropy,
        "confidence": confidence,
        "entropy": entropy,
        "classes": int((shares > 0).sum()),
        "diversity": entropy_of(shares),
    }
    return signals, shares, labels


def agreement(first: Sequence[bytes], second: Sequence[bytes], num_classes: int) -> tuple[float, float]:
    """How far two models agree on the same images: (share of pixels, mean over the classes of IoU).

    Args:
        first, second: the winning classes of the images, of :func:`measure`.
    Returns:
        the mean is over the classes that either of them predicts.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    for files in zip(first, second, strict=True):
        maps = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED) for file in files)
        counts += joint_counts(*maps)[:num_classes, :num_classes]
    occurs = counts.sum(0) + counts.sum(1) > 0
    return float(counts.trace() / counts.sum()), float(iou(counts).numpy()[occurs].mean())


def mean_ranks(table: np.ndarray) -> np.ndarray:
    """N×K values, larger is better → N floats: the mean over the K columns of each row's rank, 1 the best.

    Equal values share the mean of their ranks.
    """
    table = np.asarray(table, np.float64)
    larger = (table[:, None] < table[None]).sum(axis=1)
    equal = (table[:, None] == table[None]).sum(axis=1)
    return (larger + (equal + 1) / 2).mean(axis=1)


@dataclass(frozen=True)
class Candidate:
    """One of several checkpoints.

    Attributes:
        signals: of :func:`measure`, and the mean of its :func:`agreement` with one or two neighbours.
        shares: of the pixels that each class wins, C floats.
        rank: mean over :data:`RULE`.
    """

    path: Path
    signals: dict[str, float]
    shares: np.ndarray
    rank: float = 0.0


def rank(config, model: nn.Module, checkpoints: Sequence[Path], images: ImageSet, num_classes: int) -> list[Candidate]:
    """The checkpoints, the most promising first, by :data:`RULE`; where two are equal, the later one.

    Args:
        model: on its device; every checkpoint is loaded into it.
        checkpoints: in order of iteration: neighbours are compared. The model that was made of them is left out.
    Raises:
        UserError: fewer than two checkpoints, or one that does not fit.
    """
    given, checkpoints = checkpoints, numbered(checkpoints)
    if len(checkpoints) < 2:
        raise UserError(f"nothing to rank: {given[0]} is one checkpoint; give `resume` a folder of several")
    predictor, found, agreements, previous = Predictor(config, next(model.parameters()).device), [], [], None
    for path in checkpoints:
        load_checkpoint(model, path)
        LOGGER.info("checkpoint: %s", path)
        signals, shares, labels = measure(model, images, predictor)
        if previous is not None:
            agreements.append(agreement(previous, labels, num_classes))
        found.append((path, signals, shares))
        previous = labels
    candidates = []
    for place, (path, signals, shares) in enumerate(found):
        pixels, classes = np.mean(agreements[max(place - 1, 0) : place + 1], axis=0).tolist()
        candidates.append(Candidate(path, {"agreement": pixels, "agreement_iou": classes} | signals, shares))
    ranks = mean_ranks([[candidate.signals[name] for name in RULE] for candidate in candidates]).tolist()
    ranked = [replace(candidate, rank=value) for candidate, value in zip(candidates, ranks, strict=True)]
    return sorted(ranked, key=lambda candidate: (candidate.rank, -checkpoints.index(candidate.path)))


def find_unlabelled_images(config) -> ImageSet:
    """The images to look at, without their labels: DATASETS.TEST, or where that is empty TARGET_TRAIN."""
    if not config.DATASETS.TEST:
        return find_target_images(config)
    return replace(find_images(config, "TEST"), label_path=None)


def rank_checkpoints(config) -> None:
    """Order what `resume` names, log the table and write OUTPUT_DIR/ranking_<data set>.csv; no label is opened.

    Raises:
        UserError: no or only one checkpoint, missing images, …
    """
    if distributed.count() > 1:
        raise UserError("--rank-without-labels is for one process: start it by python, not by torchrun")
    checkpoints, device = find_checkpoints(config), prepare_device(config)
    taxonomy, images = find_taxonomy(config), find_unlabelled_images(config)
    model = build_model(config).requires_grad_(False).to(device)
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
    LOGGER.info("images: %d of %s, without labels", len(images), images.name)
    candidates = rank(config, model, checkpoints, images, len(taxonomy))
    path = make_folder(config.OUTPUT_DIR, "OUTPUT_DIR") / f"{TABLE}{folder_name(images.name)}.csv"
    found = rows(candidates, taxonomy.names)
    table = Table(path, tuple(found[0]))
    for row in found:
        table.append(row)
    for line in ranking_lines(candidates):
        LOGGER.info(line)
    LOGGER.info("wrote %s", path)


def rows(candidates: Sequence[Candidate], names: Sequence[str]) -> list[dict[str, str]]:
    """One row of a table per checkpoint, the best first; `names`: of the classes."""
    found = []
    for place, candidate in enumerate(candidates, start=1):
        row = {"place": str(place), "checkpoint": candidate.path.name, "mean_rank": f"{candidate.rank:.4f}"}
        row |= {name: f"{value:.6g}" for name, value in candidate.signals.items()}
        found.append(row | {f"share_{name}": f"{x:.6f}" for name, x in zip(names, candidate.shares, strict=True)})
    return found


def ranking_lines(candidates: Sequence[Candidate]) -> list[str]:
    """The ranking as lines of text."""
    width = max(len(candidate.path.name) for candidate in candidates)
    lines = [f"{'':>3}  {'checkpoint':<{width}}  mean rank  agreement  confidence  diversity  classes    SND"]
    form = "{:9.2f}  {agreement:9.4f}  {confidence:10.4f}  {diversity:9.4f}  {classes:7d}  {snd:5.3f}"
    for place, candidate in enumerate(candidates, start=1):
        numbers = form.format(candidate.rank, **candidate.signals)
        lines.append(f"{place:>3}  {candidate.path.name:<{width}}  {numbers}")
    best = candidates[0]
    lines.append(f"chosen without labels: {best.path} (mean rank by {', '.join(RULE)})")
    return lines
