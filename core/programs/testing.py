"""The evaluation program: one checkpoint or a folder of them, on DATASETS.TEST."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from core.datasets.catalog import find_submission, find_taxonomy, find_test_images, output_names
from core.datasets.folders import FOLDER_PREFIX, folders_of
from core.datasets.images import write_palette_png, write_png
from core.datasets.videos import VIDEO_PREFIX
from core.evaluation.confusion import write_confusion
from core.evaluation.evaluator import Evaluator, report_lines, table_row
from core.evaluation.predictor import Predictor
from core.models import log_network
from core.models.build import check_compiler, compile_networks
from core.runs.known import with_known
from core.runs.resume import find_checkpoints, new_model
from core.utils import distributed
from core.utils.checkpoints import load_checkpoint
from core.utils.devices import describe_device, prepare_device
from core.utils.errors import UserError
from core.utils.files import Table, make_folder, refuse_existing
from core.utils.logging import LOGGER


def evaluate_checkpoints(
    config,
    save: bool = False,
    flip: bool = False,
    multi_scale: bool = False,
    label_ids: str | None = None,
    overwrite: bool = False,
) -> None:
    """Evaluate what `resume` names, log the scores and write one row per checkpoint to OUTPUT_DIR/test_<data set>.csv
    (`…_flip.csv`, `…_multi_scale.csv` where they are averaged), and its confusion matrix to confusion_<data set>.csv
    and .png beside it; of several checkpoints, to a folder of that name, by theirs.

    Args:
        save: write every prediction as a palette PNG.
        flip, multi_scale: see :class:`Evaluator`.
        label_ids: folder for every prediction as a PNG of numbers, see :func:`find_submission` (Cityscapes' labelIds,
            as its official evaluation expects them); None: they are not written.
        overwrite: replace label ids that are there already.
    Raises:
        UserError: no such checkpoint, missing data, predictions that are there already, …
    """
    checkpoints = distributed.from_main(lambda: find_checkpoints(config))  # a run may be adding to them
    config = with_known(config, checkpoints[0], evaluated=True)
    device = prepare_device(config)
    taxonomy = find_taxonomy(config)
    images = find_test_images(config)
    if images.label_path is None and not save and label_ids is None:
        raise UserError(
            f"DATASETS.TEST {images.name} has no labels to evaluate on; give --saveres or --save-label-ids for "
            "predictions, or --rank-without-labels"
        )
    label, names = folder_name(images.name), output_names(images)
    submitted, values = find_submission(config, images)

    def write_values(path: Path, prediction: np.ndarray) -> None:
        write_png(path, values[prediction])

    # of every checkpoint, the folders for its predictions, their names in it, and what writes one there
    savers: dict[Path, list[tuple[Path, list[str], Callable[[Path, np.ndarray], None]]]]
    savers = {path: [] for path in checkpoints}
    for path, own_savers in savers.items():
        own = path.stem if len(checkpoints) > 1 else ""
        if save:
            write_colours = partial(write_palette_png, palette=taxonomy.palette())
            own_savers.append((Path(config.OUTPUT_DIR) / "inference" / label / own, names, write_colours))
        if label_ids is not None:
            target = Path(label_ids) / own
            own_savers.append((target, submitted, write_values))
            if not overwrite:
                refuse_existing([target / name for name in submitted], "choose another folder, or give --overwrite")

    def save_prediction(own_savers: list, index: int, prediction: np.ndarray) -> None:
        for target, saved_as, write in own_savers:
            file = target / saved_as[index]
            file.parent.mkdir(parents=True, exist_ok=True)
            write(file, prediction)

    distributed.barrier()  # none writes before all have looked
    model = new_model(config).requires_grad_(False)
    load_checkpoint(model, checkpoints[0])  # before anything is written
    put_on_device(model, config, device)
    LOGGER.info("images: %d of %s%s", len(images), images.name, images.note and f": {images.note}")
    evaluator = Evaluator(images, len(taxonomy), Predictor(config, device), flip, multi_scale)
    scored = images.scored_of(taxonomy)
    folder = make_folder(config.OUTPUT_DIR, "OUTPUT_DIR")
    if label_ids is not None:
        make_folder(label_ids, "--save-label-ids")
    table, results = None, []
    for path in checkpoints:
        if path != checkpoints[0]:
            load_checkpoint(model, path)
        LOGGER.info("checkpoint: %s", path)
        log_network(model)
        for target, _, _ in savers[path]:
            LOGGER.info("predictions go to %s", target)
        scores = evaluator.run(model, partial(save_prediction, savers[path]) if savers[path] else None)
        if scores is None:
            continue
        for line in report_lines(scores, scored, images.name):
            LOGGER.info(line)
        if not distributed.is_main():
            continue
        row = {"checkpoint": path.name, **table_row(scores, scored)}
        averaged = "_flip" * flip + "_multi_scale" * multi_scale
        if table is None:
            table = Table(folder / f"test_{label}{averaged}.csv", tuple(row))
        table.append(row)
        confusion = folder / f"confusion_{label}{averaged}"
        if len(checkpoints) > 1:
            confusion = make_folder(confusion, "OUTPUT_DIR") / path.stem
        title = f"{images.name}, {path.name}: mIoU {scores.mean_iou:.2f}"
        write_confusion(confusion, scores.confusion, scored.names, title)
        LOGGER.info("wrote %s.csv and .png", confusion)
        results.append((scores.mean_iou, path))
    if table is not None:
        LOGGER.info("wrote %s", table.path)
    if len(results) > 1:
        best = max(results, key=lambda result: result[0])
        LOGGER.info("best: %s with mIoU %.2f", best[1], best[0])


def put_on_device(model: nn.Module, config, device: torch.device) -> None:
    """Put a model on its device, compiled where MODEL.COMPILE says so, and log the device. Raises UserError."""
    model.to(device)
    if config.MODEL.COMPILE:
        check_compiler(device)
        compile_networks(model)
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))


def folder_name(dataset: str) -> str:
    """A data set's name as a folder name: `folder:/my/frames` → `frames`, `video:/my/drive.mp4` → `drive.mp4`.

    Of several folders their names with + between them.
    """
    folders = folders_of(dataset) if dataset.startswith(FOLDER_PREFIX) else [dataset.removeprefix(VIDEO_PREFIX)]
    return "+".join(Path(folder).name for folder in folders) or "images"
