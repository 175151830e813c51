"""Training samples of the target domain: full view, student view, pasted objects (method §2 and §6)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.datasets import transforms
from core.datasets.reader import ImageSet
from core.datasets.sampling import Request, Stream, TensorBatch, TrainingSamples
from core.datasets.skipping import BadImage
from core.datasets.taxonomy import IGNORE, Taxonomy
from core.datasets.transforms import View
from core.selftraining.copy_paste import cut_instances, paste_instances, paste_probabilities
from core.selftraining.generations import Generation
from core.selftraining.pseudo_labels import BETA
from core.utils.devices import one_thread

_SAMPLE = 0x5341  # first key of the random streams of samples


@dataclass(frozen=True)
class PasteRequest(Request):
    """A request with what may be pasted.

    Attributes:
        generation: folder of the candidates to paste from; None: no pasting.
        paste_probabilities: one per paste class.
    """

    generation: str | None = None
    paste_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Batch(TensorBatch):
    """B samples.

    Attributes:
        full: B×3×H×W uint8 full views.
        student: B×3×h×w uint8 student views with what was pasted.
        dropped: B×h×w bool, cut-out pixels (0 after normalisation), without pasted ones.
        pasted: B×h×w uint8 labels of pasted pixels, 255 elsewhere.
        valid: B×h×w bool, False on padding.
        views: the geometry of each student view.
        names: of the images.
    """

    full: torch.Tensor
    student: torch.Tensor
    dropped: torch.Tensor
    pasted: torch.Tensor
    valid: torch.Tensor
    views: tuple[View, ...]
    names: tuple[str, ...]


class TargetSamples(TrainingSamples):
    """Maps a :class:`PasteRequest` to the parts of a :class:`Batch`; the images need no labels."""

    def __init__(self, images: ImageSet, taxonomy: Taxonomy, config):
        super().__init__(images, config)
        self.taxonomy, self._max_ratio = taxonomy, config.TCR.PASTE_MAX_RATIO
        self.paste_classes = taxonomy.paste_classes(config.TCR.MIX_CLASSES)
        self._paths = dict(zip(images.names, images.paths, strict=True))
        self._generation: Generation | None = None

    def full_views(self, names: Sequence[str]) -> torch.Tensor | None:
        """B×3×H×W uint8 full views of the images so named, as their samples have them.

        None where one has gone bad since and may be done without; it is then counted (DATALOADER.SKIP_BAD_IMAGES).
        """
        try:
            with one_thread():
                return transforms.stack_images([self._full_view(self._paths[name]) for name in names])
        except BadImage as error:
            self.skipped.tolerate(error)
        self.skipped.count(self.skipped.take())
        return None

    def _full_view(self, path: Path) -> torch.Tensor:
        size = self._input.INPUT_SIZE_TEST[::-1]
        view = self.cached(path, ("full view", size), lambda path: _resized(self.images.form.read(path), size))
        return transforms.to_tensor(view)

    def make(self, request: PasteRequest) -> dict:
        rng = np.random.default_rng([self._seed, _SAMPLE, request.position])
        full = self._full_view(self.images.paths[request.image])
        student, view = self._student_view(full, rng)
        dropped = transforms.cutout_mask(view.crop_size, rng)
        student = np.array(student.permute(1, 2, 0).numpy(), order="C")  # a copy: pasting must not reach `full`
        blind = self._blind(request, view, full.shape[-2:])
        pasted = self._paste(student, request, rng, blind)
        return {
            "full": full,
            "student": transforms.to_tensor(student),
            "dropped": torch.from_numpy(dropped & (pasted == IGNORE)),
            "pasted": torch.from_numpy(pasted),
            "valid": view.valid() if blind is None else view.valid() & ~torch.from_numpy(blind),
            "views": view,
            "names": self.images.names[request.image],
        }

    @staticmethod
    def collate(samples: list[dict]) -> Batch:
        joined = {key: tuple(sample[key] for sample in samples) for key in samples[0]}
        images = {k: transforms.stack_images(joined.pop(k)) for k in ("full", "student")}
        tensors = {k: torch.stack(v) for k, v in joined.items() if isinstance(v[0], torch.Tensor)}
        return Batch(**(joined | tensors | images))

    def _student_view(self, full: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, View]:
        options = self._input
        image = transforms.random_blur(full, rng)
        jitter = transforms.ColourJitter.draw(options, rng, transforms.GREY_PROBABILITY)
        scale = rng.uniform(*options.INPUT_SCALES_TRAIN)
        scaled_size = tuple(max(int(n * scale), 1) for n in full.shape[-2:])
        crop_width, crop_height = options.TARGET_INPUT_SIZE_TRAIN
        view = View.draw(scaled_size, (crop_height, crop_width), options.HORIZONTAL_FLIP_PROB_TRAIN, rng)
        image = jitter.apply(image, view.needed(full.shape[-2:]))
        return view.crop(transforms.resize(image, scaled_size, "bicubic")), view

    def _blind(self, request: PasteRequest, view: View, size: tuple[int, int]) -> np.ndarray | None:
        """h×w bool, where the view shows what is blind in the full view of `size`; None where no image is."""
        if self.images.blind is None:
            return None
        blind = self.images.blind_at(self.images.paths[request.image], size)
        scaled = transforms.resize_label(torch.from_numpy(blind.astype(np.uint8)), view.scaled_size)
        return view.crop(scaled).numpy().astype(bool)

    def _paste(
        self, student: np.ndarray, request: PasteRequest, rng: np.random.Generator, blind: np.ndarray | None
    ) -> np.ndarray:
        """Paste the instances of one drawn class and image into `student` (h×w×3 uint8), behind what is blind.

        Returns:
            their labels, h×w uint8, 255 elsewhere.
        """
        nothing = np.full(student.shape[:2], IGNORE, np.uint8)
        if request.generation is None:
            return nothing
        if self._generation is None or str(self._generation.folder) != request.generation:
            self._generation = Generation(request.generation)
        generation = self._generation
        offered = [len(generation.candidates[c]) > 0 for c in self.paste_classes]
        weights = np.asarray(request.paste_probabilities) * offered
        if not weights.sum() > 0:
            weights = np.asarray(offered, float)
        if not weights.sum() > 0:
            return nothing
        drawn = self.paste_classes[rng.choice(len(weights), p=weights / weights.sum())]
        source = int(rng.choice(generation.candidates[drawn]))
        path = self._paths[generation.names[source]]
        largest = tuple(self._max_ratio * n for n in self._input.INPUT_SIZE_TEST[::-1])
        try:
            purpose = ("pasted from", largest)
            image = self.cached(path, purpose, lambda path: _bounded(self.images.form.read(path), largest))
        except BadImage as error:
            self.skipped.tolerate(error)
            return nothing
        classes = (drawn, *self.taxonomy.partners(drawn))
        instances = cut_instances(image, generation.candidate_labels(source), classes)
        before = None if blind is None else student[blind]
        pasted = paste_instances(student, instances, drawn, rng)
        if blind is not None:
            student[blind], pasted[blind] = before, IGNORE
        return pasted


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H×W×3 uint8 → h×w×3, bilinearly."""
    return transforms.resize(transforms.to_tensor(image), size, "bilinear").permute(1, 2, 0).numpy()


def _bounded(image: np.ndarray, largest: tuple[float, float]) -> np.ndarray:
    """An image to cut from, at its own size unless that goes beyond `largest` (h, w)."""
    size = image.shape[:2]
    ratio = min(bound / n for bound, n in zip(largest, size, strict=True))
    return image if ratio >= 1 else _resized(image, tuple(max(int(n * ratio), 1) for n in size))


class PasteSchedule:
    """Paste probabilities per iteration: those of the running confidence some iterations earlier.

    The lag lets a loader prepare batches ahead without its depth showing in the samples.

    Args:
        classes: the paste classes.
        num_classes: C.
        mode: TCR.MIX_SAMPLING.
        lag: TCR.PASTE_LAG, in iterations.
    """

    def __init__(self, classes: Sequence[int], num_classes: int, mode: str, lag: int):
        self._classes, self._mode, self._lag = classes, mode, lag
        self._start = [BETA] * num_classes
        self._recorded: dict[int, Callable[[], torch.Tensor]] = {}
        self._asked = 0  # iteration of the last probabilities

    def record(self, iteration: int, running_conf: Callable[[], torch.Tensor]) -> None:
        """Note the running confidence after `iteration`, as a function that waits for its copy on the host."""
        if self._mode == "confidence":
            self._recorded[iteration] = running_conf
            # what is needed neither for samples to come nor for those that a run going on from here makes anew
            for old in [i for i in self._recorded if i < min(self._asked, iteration + 1) - self._lag]:
                del self._recorded[old]

    def probabilities(self, iteration: int) -> tuple[float, ...]:
        """For the samples of `iteration`; asked for in ascending order."""
        running_conf = self._start
        if self._mode == "confidence" and iteration >= self._lag:
            running_conf = self._recorded[iteration - self._lag]().tolist()
        self._asked = iteration
        return paste_probabilities(running_conf, self._classes, self._mode)

    def state_dict(self) -> dict:
        """What was recorded, by iteration."""
        return {"recorded": {iteration: running_conf() for iteration, running_conf in self._recorded.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._recorded = {iteration: lambda conf=conf: conf for iteration, conf in state["recorded"].items()}


class RequestStream(Stream):
    """:class:`Stream` of requests with the candidates of a generation, and the paste probabilities of their iteration.

    Args:
        generation: folder of the candidates; None: no pasting.
        schedule: gives the paste probabilities.
        stream: as of :class:`Stream`.
    """

    def __init__(self, generation: str | None, schedule: PasteSchedule, *stream):
        super().__init__(*stream)
        self._generation, self._schedule = generation, schedule

    def requests(self, iteration: int) -> list[PasteRequest]:
        probabilities = self._schedule.probabilities(iteration) if self._generation else ()
        plain = super().requests(iteration)
        return [PasteRequest(one.image, one.position, self._generation, probabilities) for one in plain]
