"""What a panel shows of one iteration, by its title and tiles (see :meth:`core.evaluation.pictures.Painter.panel`)."""

import cv2
import numpy as np
import torch

from core.datasets.taxonomy import IGNORE
from core.models.label_maps import label_map

_CUTOUT, _OUTLINE = 127, 255  # grey levels


def adaptation_tiles(
    batch, teacher: torch.Tensor, confidence: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor
) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """What the student saw and learnt of one image: the first one with a paste, or else the first.

    Args:
        batch: of :mod:`core.selftraining.samples`.
        teacher: B×h×w int64 pseudo-labels before pasting, 255 = none.
        confidence: B×h×w floats, probability of the teacher's winning class.
        labels: B×h×w int64, what was learnt.
        logits: B×C×h/8×w/8 of the student, before it learnt.
    """
    shown = int((batch.pasted != IGNORE).flatten(1).any(dim=1).int().argmax())
    prediction = label_map(logits[shown], tuple(labels.shape[-2:]))()
    learnt = _host(labels[shown].to(torch.uint8))
    share = 100 * float((learnt != IGNORE).mean())
    sure = _host(confidence[shown].float()) * _host(batch.valid[shown])
    return f"{share:.0f} % labelled · {batch.names[shown]}", [
        ("student view, pastes outlined", _student_view(batch, shown)),
        ("teacher's pseudo-labels", _host(teacher[shown].to(torch.uint8))),
        ("pasted labels", _host(batch.pasted[shown])),
        ("final labels", learnt),
        ("student's prediction", prediction),
        ("teacher's confidence (white: 1)", sure),
    ]


def _student_view(batch, shown: int) -> np.ndarray:
    """h×w×3: cut-out pixels grey, as the network sees them, and a line around what was pasted."""
    view = np.array(_host(batch.student[shown]).transpose(1, 2, 0), order="C")  # a copy, to draw into
    view[_host(batch.dropped[shown])] = _CUTOUT
    pasted = (_host(batch.pasted[shown]) != IGNORE).astype(np.uint8)
    view[cv2.dilate(pasted, np.ones((3, 3), np.uint8)) > pasted] = _OUTLINE
    return view


def _host(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def source_tiles(batch, logits: torch.Tensor) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The first image of a batch of source training, and the B×C×H×W `logits` of before the model learnt from it."""
    return batch.names[0], [
        ("image", batch.images[0].permute(1, 2, 0).numpy()),
        ("label", batch.labels[0].numpy()),
        ("prediction", _host(logits[0].argmax(dim=0).to(torch.uint8))),
    ]
