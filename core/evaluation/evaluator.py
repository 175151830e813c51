"""Evaluation of a model on labelled images, and its predictions as label maps (method §7)."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import nn

from core.datasets.catalog import ImageSet
from core.datasets.loading import full_view_loader
from core.datasets.taxonomy import Taxonomy
from core.evaluation.metrics import Scores, confusion_matrix
from core.evaluation.predictor import Predictor, evaluating
from core.models.deeplab import resize_logits, winning_class
from core.models.label_maps import winning_labels
from core.utils.logging import progress
from core.utils.threads import overlapped

MULTI_SCALES = (0.7, 1.0, 1.3)


class Evaluator:
    """Runs a model over the images of DATASETS.TEST.

    Args:
        images: the images; without labels only predictions come out.
        num_classes: C.
        predictor: device and precision.
        config: a whole config.
        flip: average the softmax probabilities with those of the mirrored image.
        multi_scale: average them over 0.7, 1.0 and 1.3 times INPUT_SIZE_TEST.
    """

    def __init__(
        self,
        images: ImageSet,
        num_classes: int,
        predictor: Predictor,
        config,
        flip: bool = False,
        multi_scale: bool = False,
    ):
        self.images, self.num_classes = images, num_classes
        self._predictor, self._config = predictor, config
        self._flip, self._scales = flip, MULTI_SCALES if multi_scale else (1.0,)

    def run(self, model: nn.Module, save: Callable[[int, np.ndarray], None] | None = None) -> Scores | None:
        """Scores of `model` over the set (None without labels); its mode is left as it was.

        Args:
            save: called with image index and H×W uint8 prediction of every image, in order, in a thread.
        Raises:
            UserError: an image or label that cannot be read or does not fit its partner.
        """
        width, height = self._config.INPUT.INPUT_SIZE_TEST
        labelled = self.images.label_path is not None
        loader = full_view_loader(
            self.images,
            [(round(width * scale), round(height * scale)) for scale in self._scales],
            self._config.TEST.BATCH_SIZE,
            self._config.DATALOADER.NUM_WORKERS,
            labels=labelled,
        )
        confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

        def take(maps: list[tuple[torch.Tensor, bool]], batch: dict) -> None:
            for position, prediction in enumerate(self._predictions(maps, batch["size"])):
                if labelled:
                    confusion.add_(confusion_matrix(prediction, batch["label"][position], self.num_classes))
                if save is not None:
                    save(batch["index"][position], prediction)

        with evaluating(model):
            batches = progress(loader, f"evaluating on {self.images.name}")
            forwards = ((self._forward(model, batch["views"]), batch) for batch in batches)
            for _ in overlapped(lambda parts: take(*parts), forwards):
                pass
        return Scores.of(confusion) if labelled else None

    @torch.inference_mode()
    def _forward(self, model: nn.Module, scales: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, bool]]:
        """(B×C×h×w stride-8 logits, whether of the mirrored images) for every scale of a batch."""
        maps = []
        for views in scales:
            prepared = self._predictor.prepare(views)
            maps.append((self._predictor.logits(model, prepared), False))
            if self._flip:
                maps.append((self._predictor.logits(model, prepared.flip(-1)), True))
        return maps

    @torch.inference_mode()
    def _predictions(
        self, maps: list[tuple[torch.Tensor, bool]], sizes: Sequence[tuple[int, int]]
    ) -> Iterable[np.ndarray]:
        """H×W uint8 class indices of every image of the batch, at the image's own size."""
        for position, size in enumerate(sizes):
            if len(maps) == 1:
                yield winning_labels(maps[0][0][position], size)
                continue
            total = 0
            for logits, mirrored in maps:
                probs = resize_logits(logits[position, None], size).softmax(dim=1)
                total = total + (probs.flip(-1) if mirrored else probs)
            yield winning_class(total)[0].to(torch.uint8).cpu().numpy()


def report_lines(scores: Scores, taxonomy: Taxonomy) -> list[str]:
    """The scores as lines of text: per class, then the means."""
    lines = [
        f"{name:<12} IoU {iou:6.2f}  accuracy {acc:6.2f}{'' if occurs else '  (occurs nowhere)'}"
        for name, iou, acc, occurs in zip(taxonomy.names, scores.iou, scores.accuracy, scores.occurs, strict=True)
    ]
    lines.append(
        f"mIoU {scores.mean_iou:.2f}  mAcc {scores.mean_accuracy:.2f}  allAcc {scores.all_accuracy:.2f}  "
        f"({len(taxonomy)} classes)"
    )
    if not scores.occurs.all():
        lines.append(f"mIoU {scores.mean_iou_occurring:.2f} over the {scores.occurs.sum()} classes that occur")
    for title, names in taxonomy.subsets:
        lines.append(f"mIoU {scores.mean_iou_over(map(taxonomy.index, names)):.2f} over {title}")
    return lines


def table_row(scores: Scores, taxonomy: Taxonomy) -> dict:
    """The scores as one row of a CSV with :func:`table_columns`."""
    row = {"mIoU": scores.mean_iou, "mIoU_occurring": scores.mean_iou_occurring}
    row |= {f"mIoU_{len(names)}": scores.mean_iou_over(map(taxonomy.index, names)) for _, names in taxonomy.subsets}
    row |= {"mAcc": scores.mean_accuracy, "allAcc": scores.all_accuracy}
    row |= {f"IoU_{name}": iou for name, iou in zip(taxonomy.names, scores.iou, strict=True)}
    row |= {f"accuracy_{name}": accuracy for name, accuracy in zip(taxonomy.names, scores.accuracy, strict=True)}
    return {column: f"{value:.4f}" for column, value in row.items()}


def table_columns(taxonomy: Taxonomy) -> list[str]:
    """Columns of :func:`table_row`."""
    means = ["mIoU", "mIoU_occurring", *(f"mIoU_{len(names)}" for _, names in taxonomy.subsets)]
    return [*means, "mAcc", "allAcc", *(f"{score}_{name}" for score in ("IoU", "accuracy") for name in taxonomy.names)]
