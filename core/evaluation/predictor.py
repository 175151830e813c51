"""From 8-bit images on the host to logits, classes and confidences on the device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from core.datasets.transforms import Normalise
from core.models.deeplab import resize_logits
from core.utils.devices import autocast, to_device

MULTI_SCALES = (0.7, 1.0, 1.3)


def view_sizes(config, multi_scale: bool) -> list[tuple[int, int]]:
    """(width, height) of the views that a prediction averages: INPUT_SIZE_TEST, or 0.7, 1.0 and 1.3 times that."""
    width, height = config.INPUT.INPUT_SIZE_TEST
    return [(round(width * scale), round(height * scale)) for scale in (MULTI_SCALES if multi_scale else (1.0,))]


class Predictor:
    """Runs networks on one device as a config says: normalisation, memory layout, precision.

    Args:
        config: a whole config.
        device: where the networks are.
    """

    def __init__(self, config, device: torch.device):
        self.device = device
        self._normalise, self._amp = Normalise(config.INPUT, device), config.SOLVER.AMP

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """B×3×H×W uint8 on the host → normalised network input on the device."""
        images = to_device(images, self.device)
        return self._normalise(images).contiguous(memory_format=torch.channels_last)

    def precision(self) -> AbstractContextManager:
        """The context that networks run in."""
        return autocast(self.device, self._amp)

    def logits(self, model: nn.Module, prepared: torch.Tensor) -> torch.Tensor:
        """Stride-8 logits (B×C×h×w, float32) of prepared images."""
        with self.precision():
            return model(prepared)

    def predictions(
        self, model: nn.Module, batch: dict, flip: bool = False, confidence: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Of every image of a batch, at its own size: H×W int64 classes, H×W float32 confidence.

        Softmax probabilities are averaged over the views, and with `flip` over each of them and its mirror image.

        Args:
            batch: of :func:`core.datasets.loading.full_view_loader`: `views` and `size`.
            confidence: compute it, the probability of the winning class; False: it is None.
        """
        maps = []  # (logits of the batch, mirrored)
        for views in batch["views"]:
            prepared = self.prepare(views)
            maps.append((self.logits(model, prepared), False))
            if flip:
                maps.append((self.logits(model, prepared.flip(-1)), True))
        for position, size in enumerate(batch["size"]):
            if len(maps) == 1:
                logits = resize_logits(maps[0][0][position, None], size)
                best = logits.max(dim=1)
                yield best.indices[0], (best.values - logits.logsumexp(dim=1)).exp()[0] if confidence else None
                continue
            total = 0
            for logits, mirrored in maps:
                probs = resize_logits(logits[position, None], size).softmax(dim=1)
                total = total + (probs.flip(-1) if mirrored else probs)
            best = total.max(dim=1)
            yield best.indices[0], best.values[0] / len(maps) if confidence else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode, and back into the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
