"""The selection program: checkpoints, their source model and models between, judged by a few labelled images."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.datasets.catalog import check_test_labels, find_images, find_taxonomy
from core.datasets.reader import ImageSet
from core.evaluation.bootstrap import LEVEL, Comparison, ImageCounts, compare
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models.interpolation import interpolate
from core.programs.testing import folder_name, put_on_device
from core.runs.known import handed_on, known_form, with_known
from core.runs.resume import find_checkpoints, find_run_source, new_model, numbered
from core.utils import distributed
from core.utils.checkpoints import load_checkpoint, save_checkpoint
from core.utils.devices import prepare_device
from core.utils.errors import UserError
from core.utils.files import Table, make_folder, refuse_existing
from core.utils.logging import LOGGER

SOURCE = "source"
SHARES = (0.25, 0.5, 0.75)  # of the last checkpoint, in what lies between it and the source model
TABLE = "selection_"  # and the data set's name, .csv
FEW = 5  # images, below which intervals say little
ADVICE = "label 10 to 30"


@dataclass(frozen=True)
class Candidate:
    """One of several models.

    Attributes:
        name: for tables: `source`, `0.25 adapted`, or a checkpoint's file name.
        load: load it into the model; gives the iteration that its file names.
    """

    name: str
    load: Callable[[nn.Module], int]


def find_candidates(checkpoints: Sequence[Path], source: Path | None, model: nn.Module) -> list[Candidate]:
    """The source model, what lies between it and the last numbered checkpoint, and the checkpoints.

    The first of equal ones is selected: the source model, where it is among them.

    Args:
        source: None: neither it nor what lies between.
        model: both are loaded into it here, to keep their weights.
    Raises:
        UserError: a file of the two does not fit.
    """
    own = [Candidate(path.name, lambda model, path=path: load_checkpoint(model, path)) for path in checkpoints]
    if source is None:
        return own
    last = (numbered(checkpoints) or checkpoints)[-1]
    (first, _), (second, iteration) = (_weights(model, path) for path in (source, last))

    def between(model: nn.Module, share: float) -> int:
        interpolate(model, first, second, share)
        return iteration

    mixed = [Candidate(f"{share:g} adapted", lambda model, share=share: between(model, share)) for share in SHARES]
    return [Candidate(SOURCE, lambda model: load_checkpoint(model, source)), *mixed, *own]


def _weights(model: nn.Module, path: Path) -> tuple[Mapping[str, torch.Tensor], int]:
    """A checkpoint's weights as the model takes them, on the host, and its iteration."""
    iteration = load_checkpoint(model, path)
    return {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}, iteration


def find_labelled_images(config) -> ImageSet:
    """The images of DATASETS.TEST whose label files are there.

    Raises:
        UserError: as :func:`core.datasets.catalog.find_test_images`, by the name of the program's option; none is
            labelled.
    """
    with _by_own_name():
        images = find_images(config, "TEST")
    if images.label_path is None:
        raise UserError(f"--select-with {images.name} has no labels: give a data set that has, and {ADVICE} images")
    labelled = [i for i, path in enumerate(images.paths) if os.path.isfile(images.label_path(path))]
    if not labelled:
        first = images.label_path(images.paths[0])
        raise UserError(f"--select-with {images.name}: none of {len(images)} images is labelled, as by {first}")
    if len(labelled) < len(images):
        LOGGER.info("%d of %d images of %s are labelled", len(labelled), len(images), images.name)
    images = images.restricted(labelled)
    with _by_own_name():
        check_test_labels(config, images)
    return images


@contextmanager
def _by_own_name() -> Iterator[None]:
    """Context of what takes the images for those of DATASETS.TEST."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("DATASETS.TEST", "--select-with")) from None


def select_checkpoint(
    config, data_set: str, source: str | None = None, save: str | None = None, overwrite: bool = False
) -> None:
    """Select among what `resume` names, its source model and models between by mIoU on a few labelled images, log how
    surely, and write OUTPUT_DIR/selection_<data set>.csv.

    Args:
        data_set: the labelled images, as DATASETS.TEST names them.
        source: the source model's file; None: the one that the run's config.yaml names, if it is still there.
        save: file for the selected model, in the published format.
        overwrite: replace that file.
    Raises:
        UserError: no candidates or labels, a file that does not fit, `save` exists, several processes, …
    """
    if distributed.count() > 1:
        raise UserError("--select-with is for one process: start it by python, not by torchrun")
    config = config.changed({"DATASETS.TEST": data_set})
    checkpoints, found = find_checkpoints(config), _find_source(config, source)
    config = with_known(config, checkpoints[0], evaluated=True)
    if len(checkpoints) == 1 and found is None:
        raise UserError(f"nothing to select from: {checkpoints[0]} is one checkpoint; give --source FILE, or a folder")
    if save is not None and os.path.isdir(save):
        raise UserError(f"--save {save} is a folder: give a file")
    if save is not None and not overwrite:
        refuse_existing([save], "choose another file, or give --overwrite")
    images, taxonomy, device = find_labelled_images(config), find_taxonomy(config), prepare_device(config)
    model = new_model(config).requires_grad_(False)
    candidates = find_candidates(checkpoints, found, model)
    candidates[-1].load(model)  # before anything is written
    model.about |= known_form(checkpoints[-1]) | handed_on(checkpoints[-1])
    put_on_device(model, config, device)
    note = images.note and f": {images.note}"
    LOGGER.info("images: %d of %s, with labels%s", len(images), images.name, note)
    path = make_folder(config.OUTPUT_DIR, "OUTPUT_DIR") / f"{TABLE}{folder_name(images.name)}.csv"
    if save is not None:
        make_folder(Path(save).absolute().parent, "--save: folder")
    evaluator, counts = Evaluator(images, len(taxonomy), Predictor(config, device)), []
    for candidate in candidates:
        candidate.load(model)
        LOGGER.info("candidate: %s", candidate.name)
        counts.append(ImageCounts.of(evaluator.matrices(model)))
    if not counts[0].truths.any():
        raise UserError(f"--select-with {images.name}: no pixel of its labels has a class")
    names, comparison = [candidate.name for candidate in candidates], compare(counts, config.SEED)
    _write_table(path, names, comparison, [images.scored_of(taxonomy).names[index] for index in comparison.classes])
    LOGGER.info("wrote %s", path)
    if save is not None:
        chosen = candidates[comparison.best]
        save_checkpoint(model, save, chosen.load(model))
        LOGGER.info("wrote %s: %s", save, chosen.name)
    for line in selection_lines(names, comparison):
        LOGGER.info(line)
    if save is None:
        LOGGER.info("next, the selected model as a checkpoint: the same command with --save FILE")


def _find_source(config, given: str | None) -> Path | None:
    """The file of the source model; None, and a line about it, where the run's own is not to be found."""
    if given is not None:
        return Path(given)
    try:
        return find_run_source(config)
    except UserError as error:
        LOGGER.info("left out: the source model, and what lies between (%s); give --source FILE", error)
        return None


def _write_table(path: Path, names: Sequence[str], found: Comparison, classes: Sequence[str]) -> None:
    """One row per candidate; in percent. `classes`: names of the comparison's."""
    rows = []
    for place, name in enumerate(names):
        numbers = {"mIoU": found.mean_iou[place]}
        numbers |= dict(zip(("mIoU_low", "mIoU_high"), found.interval[place], strict=True))
        numbers |= {"behind": found.behind[place]}
        numbers |= dict(zip(("behind_low", "behind_high"), found.behind_interval[place], strict=True))
        row = {"candidate": name, "selected": "yes" if place == found.best else "no", "images": str(found.images)}
        row |= {column: "" if np.isnan(value) else f"{value:.4f}" for column, value in numbers.items()}
        apart, needed = found.told_apart(place), found.images_needed(place)
        row |= {"told_apart": "yes" if apart else "no", "images_needed": "" if needed is None else str(needed)}
        rows.append(row | {f"IoU_{one}": f"{iou:.4f}" for one, iou in zip(classes, found.iou[place], strict=True)})
    table = Table(path, tuple(rows[0]))
    for row in rows:
        table.append(row)


def selection_lines(names: Sequence[str], found: Comparison) -> list[str]:
    """The comparison as lines of text: a table, what the labels show and what they do not, and the selected one."""
    width, level = max(len("candidate"), *map(len, names)), f"{100 * LEVEL:.0f} %"
    lines = [f"{'candidate':<{width}}   mIoU  {level:>13}  behind best  {level:>13}"]
    for place, name in enumerate(names):
        apart = (
            "" if place == found.best else f"  {found.behind[place]:11.2f}  {_span(found.behind_interval[place]):>13}"
        )
        lines.append(f"{name:<{width}}  {found.mean_iou[place]:5.2f}  {_span(found.interval[place]):>13}{apart}")
    if found.images < FEW:
        few = "one image gives no interval" if found.images == 1 else "intervals of so few say little"
        lines.append(f"warning: labelled images: {found.images}; {few}; {ADVICE}")
    best, source = found.best, names.index(SOURCE) if SOURCE in names else None
    if source is not None:
        lines.append(_against_source(found, names, source))
    unclear = [place for place in range(len(names)) if place not in (best, source) and not found.told_apart(place)]
    if unclear:
        told = "; ".join(f"{names[place]} ({_how_many(found, place)})" for place in unclear)
        lines.append(f"cannot be told from {names[best]}: {told}")
    interval = "" if found.images == 1 else f", {level} {_span(found.interval[best])}"
    beside = "" if source is None else f"; source {found.mean_iou[source]:.2f}"
    many = f"{found.images} labelled image{'s' * (found.images > 1)}"
    lines.append(f"selected with {many}: {names[best]} (mIoU {found.mean_iou[best]:.2f}{interval}{beside})")
    return lines


def _against_source(found: Comparison, names: Sequence[str], source: int) -> str:
    """What the labels show of the best and the source model."""
    best = found.best
    if best == source:
        return "the labels do not show that any candidate is better than the source model"
    by = f"by {found.behind[source]:.2f} points"
    by += "" if found.images == 1 else f", {100 * LEVEL:.0f} % {_span(found.behind_interval[source])}"
    if found.told_apart(source):
        return f"{names[best]} is better than the source model ({by})"
    how_many = _how_many(found, source)
    return (
        f"{names[best]} is ahead, but the labels do not show that it is better than the source model ({by}): {how_many}"
    )


def _how_many(found: Comparison, place: int) -> str:
    """How many labelled images would tell a candidate from the best, which these do not."""
    needed = found.images_needed(place)
    if found.behind[place] == 0:
        return "the scores are equal"
    if needed is None:
        return "one image does not say how many would"
    if needed <= found.images:  # the interval is not as wide on both sides
        return "a few more images would tell them apart"
    return f"about {needed} images would tell them apart"


def _span(interval: Sequence[float]) -> str:
    low, high = interval
    return "–" if np.isnan(low) else f"{low:.2f} … {high:.2f}"
