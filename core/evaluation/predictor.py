"""From 8-bit images on the host to logits on the device, and to classes and confidences."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from core.datasets.loading import ViewSize, full_view_loader
from core.datasets.reader import ImageSet
from core.datasets.transforms import Normalise, stack_images
from core.evaluation.windows import windowed_logits
from core.models.deeplab import resize_logits
from core.models.label_maps import label_map
from core.utils import distributed
from core.utils.devices import autocast, copy_to_host, to_device
from core.utils.logging import LOGGER, progress
from core.utils.threads import overlapped

MULTI_SCALES = (0.7, 1.0, 1.3)
Images = torch.Tensor | Sequence[torch.Tensor]  # B×3×H×W uint8; 3×H×W each, where their sizes differ
Maps = Sequence[tuple[torch.Tensor | Sequence[torch.Tensor], bool]]  # see :meth:`Predictor.maps`
Reading = Callable[[], tuple[np.ndarray, np.ndarray | None]]  # H×W uint8 classes, H×W float32 confidence, on the host


def view_sizes(config, multi_scale: bool) -> list[ViewSize]:
    """Of the views that a prediction averages: INPUT_SIZE_TEST, or 0.7, 1.0 and 1.3 times that as (width, height); with
    TEST.WINDOW these numbers alone, which are times an image's own size.
    """
    scales = MULTI_SCALES if multi_scale else (1.0,)
    if config.TEST.WINDOW:
        return [*scales]
    width, height = config.INPUT.INPUT_SIZE_TEST
    return [(round(width * scale), round(height * scale)) for scale in scales]


class Predictor:
    """Runs networks on one device as a config says: normalisation, memory layout, precision."""

    def __init__(self, config, device: torch.device):
        self.device, self.config, self._normalise = device, config, Normalise(config.INPUT, device)
        self._windows_told = False

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """B×3×H×W uint8, on the host or the device → normalised network input on the device, channels last."""
        return self._normalise(to_device(images, self.device))

    def logits(self, model: nn.Module, prepared: torch.Tensor) -> torch.Tensor:
        """Stride-8 logits (B×C×h×w, float32) of prepared images."""
        with autocast(self.device, self.config.SOLVER.AMP):
            return model(prepared)

    def maps(self, model: nn.Module, views: Sequence[Images], flip: bool) -> Maps:
        """(B×C×h×w stride-8 logits, whether of the mirrored images) of every view of a batch, and with `flip` of its
        mirror image. With TEST.WINDOW the network sees windows of them, and of every image there is a C×h×w map.

        Raises:
            UserError: TEST.WINDOW does not fit the network.
        """
        maps = []
        for images in views:
            if self.config.TEST.WINDOW:
                sides = (False, True) if flip else (False,)
                maps += [(self._windowed(model, images, mirrored), mirrored) for mirrored in sides]
                continue
            prepared = self.prepare(images)
            maps.append((self.logits(model, prepared), False))
            if flip:
                maps.append((self.logits(model, prepared.flip(-1)), True))
        return maps

    def _windowed(self, model: nn.Module, images: Images, mirrored: bool) -> list[torch.Tensor]:
        """C×h×w logits of every image; at a time the network sees one window of each of those that have one size."""
        window = self.config.TEST.WINDOW[::-1]
        step = self.config.TEST.STRIDE[::-1] or tuple(2 * length // 3 for length in window)
        alike, found = defaultdict(list), {}
        for position, image in enumerate(images):
            alike[image.shape].append(position)
        for positions in alike.values():
            group = stack_images([to_device(images[position], self.device) for position in positions])
            logits, layout = windowed_logits(
                lambda part: self.logits(model, self.prepare(part)),
                group.flip(-1) if mirrored else group,
                window,
                step,
                getattr(model, "stride", 0),  # any module will do
            )
            found |= zip(positions, logits, strict=True)
            if not self._windows_told:
                LOGGER.info("windows: %s", layout)
                self._windows_told = True
        return [found[position] for position in range(len(images))]

    def predict(self, model: nn.Module, batch: dict, flip: bool, confidence: bool = False) -> list[Reading]:
        """:meth:`read` of the :meth:`maps` of a batch of :class:`core.datasets.loading.FullViews`."""
        return self.read(self.maps(model, batch["views"], flip), batch["size"], confidence)

    @torch.inference_mode()
    def sweep(
        self,
        model: nn.Module,
        images: ImageSet,
        title: str,
        read: Callable[[dict], Any],
        take: Callable[[Any], None],
        sizes: Sequence[ViewSize] | None = None,
        labels: bool = False,
    ) -> None:
        """Work through a set of images, in order: what is made of one batch is taken while the next is predicted.

        `model` is in eval mode meanwhile. Of several processes each sees to its share of the images.

        Args:
            title: of the work, for its bar.
            read: called with every batch of :class:`core.datasets.loading.FullViews`; gives what `take` is to have: on
                a GPU, functions that wait for their copies.
            take: called with that, in a thread of its own.
            sizes: of the views; None: INPUT_SIZE_TEST, whatever TEST.WINDOW says.
            labels: read the label files, too.
        """
        test, workers, pin = self.config.TEST, self.config.DATALOADER.NUM_WORKERS, self.device.type == "cuda"
        sizes = sizes or [self.config.INPUT.INPUT_SIZE_TEST]
        loader = full_view_loader(images, sizes, test.BATCH_SIZE, workers, labels, pin=pin)
        with evaluating(model):
            for _ in overlapped(take, map(read, distributed.heeding(progress(loader, title)))):
                pass

    def read(self, maps: Maps, sizes: Sequence[tuple[int, int]], confidence: bool = False) -> list[Reading]:
        """Of every image of a batch a function that gives its prediction at its own size.

        Softmax probabilities are averaged over the maps. On the CPU the function does the work, in whatever thread; on
        a GPU that is queued by now, and the function waits for its copy.

        Args:
            maps: of :meth:`maps`.
            sizes: (H, W) of every image.
            confidence: compute it, the probability of the winning class; False: it is None.
        """
        corners = self.config.MODEL.ALIGN_CORNERS
        works = [partial(_read, maps, position, size, confidence, corners) for position, size in enumerate(sizes)]
        if maps[0][0][0].device.type == "cpu":
            return [lambda work=work: work()() for work in works]
        return [work() for work in works]


@torch.inference_mode()
def _read(maps: Maps, position: int, size: tuple[int, int], confidence: bool, align_corners: bool) -> Reading:
    """See :meth:`Predictor.read`."""
    labels = label_map(maps[0][0][position], size, align_corners) if len(maps) == 1 else None
    if labels is not None and not confidence:
        return lambda: (labels(), None)
    total = 0
    for logits, mirrored in maps:
        probs = resize_logits(logits[position][None], size, align_corners).softmax(dim=1)
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
