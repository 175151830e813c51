"""The evaluation program: one checkpoint or a folder of them, on DATASETS.TEST."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from core.configs import load_config
from core.datasets.catalog import ImageSet, find_label_values, find_taxonomy, find_test_images, output_names
from core.datasets.images import write_palette_png, write_png
from core.evaluation.evaluator import Evaluator, report_lines, table_row
from core.evaluation.predictor import Predictor
from core.models import build_model, log_dead_channels
from core.models.compiling import check_compiler, compile_networks
from core.runs.resume import find_checkpoints
from core.utils import distributed
from core.utils.checkpoints import load_checkpoint
from core.utils.devices import describe_device, device_errors, prepare_device
from core.utils.errors import UserError
from core.utils.files import Table, make_folder, refuse_existing
from core.utils.logging import LOGGER, start_logging


def evaluate_checkpoints(
    config_file: str,
    options: Sequence[str],
    save: bool = False,
    flip: bool = False,
    multi_scale: bool = False,
    label_ids: str | None = None,
    overwrite: bool = False,
) -> None:
    """Evaluate what `resume` names, log the scores and write one row per checkpoint to OUTPUT_DIR/test_<data set>.csv
    (`…_flip.csv`, `…_multi_scale.csv` where they are averaged).

    Args:
        save: write every prediction as a palette PNG.
        flip, multi_scale: see :class:`Evaluator`.
        label_ids: folder for every prediction as a PNG of the data set's own label values; None: they are not written.
        overwrite: replace label ids that are there already.
    Raises:
        UserError: bad config, no such checkpoint, missing data, predictions that are there already, …
    """
    start_logging()
    config = load_config(config_file, options)
    with device_errors(config, training=False):
        _evaluate(config, save, flip, multi_scale, label_ids, overwrite)


def _evaluate(config, save: bool, flip: bool, multi_scale: bool, label_ids: str | None, overwrite: bool) -> None:
    checkpoints = distributed.from_main(lambda: find_checkpoints(config))  # a run may be adding to them
    device = prepare_device(config)
    taxonomy = find_taxonomy(config)
    images = find_test_images(config)
    if images.label_path is None and not save and label_ids is None:
        raise UserError(
            f"DATASETS.TEST {images.name} has no labels to evaluate on; give --saveres or --save-label-ids for "
            "predictions, or --rank-without-labels"
        )
    label = folder_name(images.name)
    savers = {path: [] for path in checkpoints}
    for path in checkpoints:
        own = path.stem if len(checkpoints) > 1 else ""
        if save:
            target, palette = Path(config.OUTPUT_DIR) / "inference" / label / own, taxonomy.palette()
            savers[path].append(PredictionSaver(target, images, partial(write_palette_png, palette=palette)))
        if label_ids is not None:
            savers[path].append(PredictionSaver(Path(label_ids) / own, images, label_id_writer(config)))
            if not overwrite:
                refuse_existing(savers[path][-1].files, "choose another folder, or give --overwrite")
    distributed.barrier()  # none writes before all have looked
    model = build_model(config).requires_grad_(False)
    load_checkpoint(model, checkpoints[0])  # before anything is written
    model.to(device)
    if config.MODEL.COMPILE:
        check_compiler(device)
        compile_networks(model)
    LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
    LOGGER.info("images: %d of %s", len(images), images.name)
    evaluator = Evaluator(images, len(taxonomy), Predictor(config, device), config, flip, multi_scale)
    folder = make_folder(config.OUTPUT_DIR, "OUTPUT_DIR")
    if label_ids is not None:
        make_folder(label_ids, "--save-label-ids")
    table, results = None, []
    for path in checkpoints:
        if path != checkpoints[0]:
            load_checkpoint(model, path)
        LOGGER.info("checkpoint: %s", path)
        log_dead_channels(model)
        for saver in savers[path]:
            LOGGER.info("predictions go to %s", saver.folder)
        scores = evaluator.run(model, partial(_save_all, savers[path]) if savers[path] else None)
        if scores is None:
            continue
        for line in report_lines(scores, taxonomy):
            LOGGER.info(line)
        if not distributed.is_main():
            continue
        row = {"checkpoint": path.name, **table_row(scores, taxonomy)}
        if table is None:
            averaged = "_flip" * flip + "_multi_scale" * multi_scale
            table = Table(folder / f"test_{label}{averaged}.csv", tuple(row))
        table.append(row)
        results.append((scores.mean_iou, path))
    if table is not None:
        LOGGER.info("wrote %s", table.path)
    if len(results) > 1:
        best = max(results, key=lambda result: result[0])
        LOGGER.info("best: %s with mIoU %.2f", best[1], best[0])


class PredictionSaver:
    """Writes predictions as PNG files, named after their images.

    Args:
        folder: made when needed.
        images: the images that predictions are of.
        write: called with a file's path and an H×W uint8 prediction.
    """

    def __init__(self, folder: Path, images: ImageSet, write: Callable[[Path, np.ndarray], None]):
        self.folder, self.files, self._write = folder, [folder / name for name in output_names(images)], write

    def __call__(self, index: int, prediction: np.ndarray) -> None:
        self.files[index].parent.mkdir(parents=True, exist_ok=True)
        self._write(self.files[index], prediction)


def label_id_writer(config) -> Callable[[Path, np.ndarray], None]:
    """Writes a prediction as a grey PNG of the label values of the data set that gives the run its classes.

    Those are Cityscapes' labelIds, for one, and the file is what its pixel-level evaluation expects.
    """
    values = find_label_values(config)
    return lambda path, prediction: write_png(path, values[prediction])


def _save_all(savers: Sequence[PredictionSaver], index: int, prediction: np.ndarray) -> None:
    for saver in savers:
        saver(index, prediction)


def folder_name(dataset: str) -> str:
    """A data set's name as a folder name: `folder:/my/frames` → `frames`."""
    return Path(dataset.removeprefix("folder:")).name or "images"
