"""Checkpoints ordered without labels: by agreement with their neighbours, confidence and diversity of classes.

The source model is no candidate: on the way from it to a better one confidence may fall. Checkpoints are held against
it: one that has lost classes, or whose confidence has collapsed, is ruined, and comes behind all that are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from core.adaptation.guard import KEPT_SHARE, LEAST_SHARE
from core.adaptation.looks import entropy_of
from core.datasets.catalog import find_images, find_target_images, find_taxonomy
from core.datasets.images import png_bytes
from core.datasets.reader import ImageSet
from core.evaluation.metrics import iou, joint_counts, value_counts
from core.evaluation.predictor import Predictor
from core.programs.testing import folder_name
from core.runs.known import with_known
from core.runs.resume import find_checkpoints, find_run_source, new_model, numbered
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
COLLAPSED = 0.85  # of the source model's confidence
RUINED_CLASSES = 0.15  # of the source model's classes: with more of them lost, a model is ruined
NO_CHANGE = 0.97  # share of the pixels on which a checkpoint and the source model agree
TABLE = "ranking_"  # and the data set's name, .csv


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
        ruin: signs of it beside the source model, in words; empty where there is none, or no source model.
        same: share of the pixels on which it agrees with the source model; None without one.
        surer: it has more information or more confidence than the source model.
    """

    path: Path
    signals: dict[str, float]
    shares: np.ndarray
    rank: float = 0.0
    ruin: str = ""
    same: float | None = None
    surer: bool = True


def signs_of_ruin(source: dict[str, float], had: np.ndarray, signals: dict[str, float], shares: np.ndarray) -> str:
    """What says that a model is ruined beside its source model, in words; empty where nothing does.

    Args:
        source, signals: of both, of :func:`measure`.
        had, shares: of the pixels that each class wins, of both.
    """
    signs = []
    lost = sum((had >= LEAST_SHARE) & (shares < KEPT_SHARE * had))
    if lost > RUINED_CLASSES * sum(had >= LEAST_SHARE):
        signs.append(f"{lost} classes lost")
    if signals["confidence"] < COLLAPSED * source["confidence"]:
        signs.append(f"confidence {source['confidence']:.2f} → {signals['confidence']:.2f}")
    return ", ".join(signs)


def rank(
    config,
    model: nn.Module,
    checkpoints: Sequence[Path],
    images: ImageSet,
    num_classes: int,
    source: Path | None = None,
) -> list[Candidate]:
    """The checkpoints, the most promising first, by :data:`RULE`; where two are equal, the later one. Ruined ones last.

    Args:
        model: on its device; every checkpoint is loaded into it.
        checkpoints: in order of iteration: neighbours are compared. The model that was made of them is left out.
        source: the source model, by which ruined ones are told; None: none is.
    Raises:
        UserError: fewer than two checkpoints, or one that does not fit.
    """
    given, checkpoints = checkpoints, numbered(checkpoints)
    if len(checkpoints) < 2:
        raise UserError(f"nothing to rank: {given[0]} is one checkpoint; give `resume` a folder of several")
    predictor, found, agreements, previous = Predictor(config, next(model.parameters()).device), [], [], None
    if source is not None:
        load_checkpoint(model, source)
        LOGGER.info("source model: %s", source)
        had, had_shares, had_labels = measure(model, images, predictor)
    for path in checkpoints:
        load_checkpoint(model, path)
        LOGGER.info("checkpoint: %s", path)
        signals, shares, labels = measure(model, images, predictor)
        beside = {}
        if source is not None:
            beside["ruin"] = signs_of_ruin(had, had_shares, signals, shares)
            beside["same"] = agreement(had_labels, labels, num_classes)[0]
            beside["surer"] = any(signals[name] > had[name] for name in ("information", "confidence"))
        if previous is not None:
            agreements.append(agreement(previous, labels, num_classes))
        found.append((path, signals, shares, beside))
        previous = labels
    candidates = []
    for place, (path, signals, shares, beside) in enumerate(found):
        pixels, classes = np.mean(agreements[max(place - 1, 0) : place + 1], axis=0).tolist()
        signals = {"agreement": pixels, "agreement_iou": classes} | signals
        candidates.append(Candidate(path, signals, shares, **beside))
    ranks = mean_ranks([[candidate.signals[name] for name in RULE] for candidate in candidates]).tolist()
    ranked = [replace(candidate, rank=value) for candidate, value in zip(candidates, ranks, strict=True)]
    return sorted(ranked, key=lambda one: (bool(one.ruin), one.rank, -checkpoints.index(one.path)))


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
    checkpoints = find_checkpoints(config)
    config = with_known(config, checkpoints[0], evaluated=True)
    device = prepare_device(config)
    taxonomy, images = find_taxonomy(config), find_unlabelled_images(config)
    model = new_model(config).requires_grad_(False).to(device)
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
    LOGGER.info("images: %d of %s, without labels", len(images), images.name)
    source = source_of_run(config)
    candidates = rank(config, model, checkpoints, images, len(taxonomy), source)
    path = make_folder(config.OUTPUT_DIR, "OUTPUT_DIR") / f"{TABLE}{folder_name(images.name)}.csv"
    found = rows(candidates, taxonomy.names)
    table = Table(path, tuple(found[0]))
    for row in found:
        table.append(row)
    for line in ranking_lines(candidates, source):
        LOGGER.info(line)
    LOGGER.info("wrote %s", path)


def source_of_run(config) -> Path | None:
    """The source model of the run to look at; None, and a line in the log, where it is not at hand."""
    try:
        return find_run_source(config)
    except UserError as error:
        LOGGER.info("no source model to hold the checkpoints against: %s", error)
        return None


def rows(candidates: Sequence[Candidate], names: Sequence[str]) -> list[dict[str, str]]:
    """One row of a table per checkpoint, the best first; `names`: of the classes."""
    found = []
    for place, candidate in enumerate(candidates, start=1):
        row = {"place": str(place), "checkpoint": candidate.path.name, "mean_rank": f"{candidate.rank:.4f}"}
        row |= {"ruin": candidate.ruin, "same_as_source": "" if candidate.same is None else f"{candidate.same:.4f}"}
        row |= {name: f"{value:.6g}" for name, value in candidate.signals.items()}
        found.append(row | {f"share_{name}": f"{x:.6f}" for name, x in zip(names, candidate.shares, strict=True)})
    return found


def ranking_lines(candidates: Sequence[Candidate], source: Path | None = None) -> list[str]:
    """The ranking as lines of text; the last one says what to use, or that it cannot be told."""
    width = max(len(candidate.path.name) for candidate in candidates)
    lines = [f"{'':>3}  {'checkpoint':<{width}}  mean rank  agreement  confidence  diversity  classes    SND"]
    form = "{:9.2f}  {agreement:9.4f}  {confidence:10.4f}  {diversity:9.4f}  {classes:7d}  {snd:5.3f}"
    for place, candidate in enumerate(candidates, start=1):
        numbers = form.format(candidate.rank, **candidate.signals)
        ruin = f"  ruined: {candidate.ruin}" if candidate.ruin else ""
        lines.append(f"{place:>3}  {candidate.path.name:<{width}}  {numbers}{ruin}")
    best, by = candidates[0], f"mean rank by {', '.join(RULE)}"
    if best.ruin:
        lines.append(f"chosen without labels: the source model {source}, for every checkpoint is ruined")
    elif best.same is not None and best.same >= NO_CHANGE:
        same = f"{best.same:.1%} of the pixels have the class that the source model {source} gives them"
        lines.append(f"cannot tell: {same}; first of the checkpoints is {best.path} ({by})")
    elif not best.surer:
        less = f"less sure than the source model {source}, by information and by confidence"
        lines.append(f"cannot tell: {best.path} ({by}) is {less}")
    else:
        lines.append(f"chosen without labels: {best.path} ({by})")
    return lines
