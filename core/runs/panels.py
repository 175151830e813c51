"""What a panel shows of one iteration, by its title and tiles (see :meth:`core.evaluation.pictures.Painter.panel`)."""

import cv2
import numpy as np
import torch

from core.datasets.taxonomy import IGNORE
from core.evaluation.pictures import fitted
from core.models.label_maps import label_map

_STRIPES, _STRIPE = np.array((90, 165), np.uint8), 4  # grey levels of a cut-out; px
_LINE, _RIM = 255, 0


def adaptation_tiles(
    batch,
    teacher: torch.Tensor,
    confidence: torch.Tensor,
    labels: torch.Tensor,
    logits: torch.Tensor,
    align_corners: bool = True,
) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """What the student saw and learnt of one image: the first one with a paste, or else the first.

    Args:
        batch: of :mod:`core.selftraining.samples`.
        teacher: B×h×w int64 pseudo-labels before pasting, 255 = none.
        confidence: B×h×w floats, probability of the teacher's winning class.
        labels: B×h×w int64, what was learnt.
        logits: B×C×h/8×w/8 of the student, before it learnt.
        align_corners: as :func:`core.models.deeplab.resize_logits` takes it.
    """
    shown = int((batch.pasted != IGNORE).flatten(1).any(dim=1).int().argmax())
    prediction = label_map(logits[shown], tuple(labels.shape[-2:]), align_corners)()
    learnt = _host(labels[shown].to(torch.uint8))
    share = 100 * float((learnt != IGNORE).mean())
    sure = _host(confidence[shown].float()) * _host(batch.valid[shown])
    mirrored = ", mirrored" if batch.views[shown].flip else ""
    return f"{share:.0f} % labelled · {batch.names[shown]}", [
        (f"original frame; outlined: the view{mirrored}", _frame(batch, shown, learnt.shape)),
        ("student's view: cut-outs striped, pastes outlined", _student_view(batch, shown)),
        ("student's prediction", prediction),
        ("teacher's pseudo-labels", _host(teacher[shown].to(torch.uint8))),
        ("final labels: the teacher's, and the pasted ones", learnt),
        ("teacher's confidence", sure),
    ]


def _frame(batch, shown: int, size: tuple[int, int]) -> np.ndarray:
    """The full view brought to `size` (h, w), with a line around what became the student's view."""
    frame = np.array(_host(batch.full[shown]).transpose(1, 2, 0), order="C")  # a copy, to draw into
    view, (height, width) = batch.views[shown], frame.shape[:2]
    (top, bottom), (left, right) = (
        (part.start * length // scaled, part.stop * length // scaled - 1)
        for part, length, scaled in zip(view.overlap()[0], (height, width), view.scaled_size, strict=True)
    )
    line = -(-2 * max(height, width) // max(size))  # two pixels of the tile
    for colour, thickness in ((_RIM, 3 * line), (_LINE, line)):
        cv2.rectangle(frame, (left, top), (right, bottom), (colour,) * 3, thickness)
    return fitted(frame, size)


def _student_view(batch, shown: int) -> np.ndarray:
    """h×w×3: cut-out pixels, which the network sees grey, in stripes, and a line around what was pasted."""
    view = np.array(_host(batch.student[shown]).transpose(1, 2, 0), order="C")  # a copy, to draw into
    rows, columns = np.nonzero(_host(batch.dropped[shown]))
    view[rows, columns] = _STRIPES[(rows + columns) // _STRIPE % 2][:, None]
    pasted = (_host(batch.pasted[shown]) != IGNORE).astype(np.uint8)
    view[cv2.dilate(pasted, np.ones((3, 3), np.uint8)) > pasted] = _LINE
    return view


def _host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def source_tiles(batch, logits: torch.Tensor) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The first image of a batch of source training, and the B×C×H×W `logits` of before the model learnt from it."""
    return batch.names[0], [
        ("image as it is trained on", batch.images[0].permute(1, 2, 0).numpy()),
        ("its label", batch.labels[0].numpy()),
        ("model's prediction", _host(logits[0].argmax(dim=0).to(torch.uint8))),
    ]
