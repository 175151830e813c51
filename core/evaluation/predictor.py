"""From 8-bit images on the host to logits on the device."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from core.datasets.transforms import Normalise
from core.utils.devices import autocast, to_device


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode, and back into the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
