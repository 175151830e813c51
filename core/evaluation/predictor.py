"""From 8-bit images on the host to logits on the device, and to classes and confidences."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from core.datasets.transforms import Normalise
from core.models.deeplab import resize_logits
from core.models.label_maps import label_map
from core.utils.devices import autocast, copy_to_host, to_device

MULTI_SCALES = (0.7, 1.0, 1.3)
Reading = Callable[[], tuple[np.ndarray, np.ndarray | None]]  # H×W uint8 classes, H×W float32 confidence, on the host


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
        """B×3×H×W uint8, on the host or the device → normalised network input on the device, channels last."""
        return self._normalise(to_device(images, self.device))

    def precision(self) -> AbstractContextManager:
        """The context that networks run in."""
        return autocast(self.device, self._amp)

    def logits(self, model: nn.Module, prepared: torch.Tensor) -> torch.Tensor:
        """Stride-8 logits (B×C×h×w, float32) of prepared images."""
        with self.precision():
            return model(prepared)

    def maps(self, model: nn.Module, views: Sequence[torch.Tensor], flip: bool) -> list[tuple[torch.Tensor, bool]]:
        """(B×C×h×w stride-8 logits, whether of the mirrored images) of every view of a batch, and with `flip` of its
        mirror image.

        Args:
            views: B×3×H×W uint8 each.
        """
        maps = []
        for images in views:
            prepared = self.prepare(images)
            maps.append((self.logits(model, prepared), False))
            if flip:
                maps.append((self.logits(model, prepared.flip(-1)), True))
        return maps

    def predict(self, model: nn.Module, batch: dict, flip: bool, confidence: bool = False) -> list[Reading]:
        """:meth:`read` of the :meth:`maps` of a batch of :class:`core.datasets.loading.FullViews`."""
        return self.read(self.maps(model, batch["views"], flip), batch["size"], confidence)

    @staticmethod
    def read(
        maps: Sequence[tuple[torch.Tensor, bool]], sizes: Sequence[tuple[int, int]], confidence: bool = False
    ) -> list[Reading]:
        """Of every image of a batch a function that gives its prediction at its own size.

        Softmax probabilities are averaged over the maps. On the CPU the function does the work, in whatever thread; on
        a GPU that is queued by now, and the function waits for its copy.

        Args:
            maps: of :meth:`maps`.
            sizes: (H, W) of every image.
            confidence: compute it, the probability of the winning class; False: it is None.
        """
        on_cpu = maps[0][0].device.type == "cpu"
        works = [partial(_read, maps, position, size, confidence) for position, size in enumerate(sizes)]
        return [partial(_now, work) if on_cpu else work() for work in works]


def _now(work: Callable[[], Reading]) -> tuple[np.ndarray, np.ndarray | None]:
    return work()()


@torch.inference_mode()
def _read(maps: Sequence[tuple[torch.Tensor, bool]], position: int, size: tuple[int, int], confidence: bool) -> Reading:
    """See :meth:`Predictor.read`."""
    labels = label_map(maps[0][0][position], size) if len(maps) == 1 else None
    if labels is not None and not confidence:
        return lambda: (labels(), None)
    total = 0
    for logits, mirrored in maps:
        probs = resize_logits(logits[position, None], size).softmax(dim=1)
        total = total + (probs.flip(-1) if mirrored else probs)
    best = total.max(dim=1)
    if labels is None:
        winners = copy_to_host(best.indices[0].to(torch.uint8))
        labels = lambda: winners().numpy()  # noqa: E731
    if not confidence:
        return lambda: (labels(), None)
    sure = copy_to_host((best.values[0] / len(maps)).float())
    return lambda: (labels(), sure().numpy())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode, and back into the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
