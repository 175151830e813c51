"""The panel of one iteration of source training."""

import numpy as np
import torch

from core.sourcetraining.samples import SourceBatch


def batch_tiles(batch: SourceBatch, logits: torch.Tensor) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """Title and tiles of a panel (see :meth:`Painter.panel`) of the first image.

    Args:
        logits: B×C×H×W of the model, before it learnt from the batch.
    """
    prediction = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return batch.names[0], [
        ("image", batch.images[0].permute(1, 2, 0).numpy()),
        ("label", batch.labels[0].numpy()),
        ("prediction", prediction),
    ]
