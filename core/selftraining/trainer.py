"""The adaptation run: student, teacher, and the loop that joins the method's parts (DT-ST, Fig. 2)."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from core.adaptation.survey import mix_norms
from core.configs.choices import Choices
from core.configs.node import Config
from core.datasets.catalog import find_target_images
from core.datasets.loading import PREFETCH_FACTOR
from core.datasets.reader import ImageSet
from core.datasets.sampling import even_subsample, uniform_order
from core.datasets.sizes import warn_of_sizes
from core.datasets.taxonomy import IGNORE, Taxonomy
from core.evaluation.evaluator import Evaluator
from core.evaluation.metrics import Scores
from core.evaluation.predictor import Predictor
from core.models.build import compile_networks
from core.models.deeplab import resize_logits
from core.runs.farewell import say_adapted
from core.runs.folder import CANDIDATES, SOURCE_EVALUATION
from core.runs.loop import Training
from core.runs.panels import adaptation_tiles
from core.runs.resume import load_model, source_checkpoint
from core.runs.states import GENERATIONS
from core.selftraining.candidate_pass import CandidatePass
from core.selftraining.dynamic_teacher import DynamicTeacher, class_probabilities
from core.selftraining.generations import Generation, delete_generations, log_candidates, table_row
from core.selftraining.losses import negative_loss_sum, negative_pairs, positive_loss_sum
from core.selftraining.pseudo_labels import (
    advance_running_confidence,
    class_thresholds,
    initial_running_confidence,
    mean_confidence,
    select_pseudo_labels,
)
from core.selftraining.resampling import balanced_order
from core.selftraining.samples import Batch, PasteSchedule, RequestStream, TargetSamples
from core.selftraining.views import warp_to_view
from core.utils import distributed, signals
from core.utils.devices import copy_to_host, to_device
from core.utils.errors import UserError
from core.utils.logging import LOGGER

LARGER = 1.25  # × the full view's width and height, where the teacher also looks at it so
LEAST = 1e-12  # probability
_SUBSAMPLE = 0x5355  # key of the random stream that picks the images of a bounded pass


class Trainer(Training):
    """One adaptation run; the model that it is given, of the source domain, becomes the student."""

    PROGRAM, DOMAIN, NEEDS_SOURCE = "train_TCR_DTU.py", "target", True

    def __init__(
        self, config: Config, model: nn.Module, images: ImageSet, taxonomy: Taxonomy, evaluator: Evaluator | None = None
    ):
        super().__init__(config, model, images, taxonomy, evaluator)
        self.student = model
        self.teacher = self.result = copy.deepcopy(model).requires_grad_(False).eval()
        if config.MODEL.COMPILE:
            compile_networks(self.student, self.teacher)
        self.running_conf = initial_running_confidence(len(taxonomy), device=self.device)
        self.samples = TargetSamples(images, taxonomy, config)
        self.align_corners = config.MODEL.ALIGN_CORNERS
        tcr = config.TCR
        self.schedule = PasteSchedule(self.samples.paste_classes, len(taxonomy), tcr.MIX_SAMPLING, tcr.PASTE_LAG)
        chosen = even_subsample(len(images), tcr.MAX_PASS_IMAGES, np.random.default_rng([config.SEED, _SUBSAMPLE]))
        self._pass_images = chosen  # index into all images of every image of a pass
        self.candidate_pass = CandidatePass(
            images.restricted(chosen), len(taxonomy), self.predictor, self.output.folder / GENERATIONS
        )
        self.generation: Generation | None = None
        weights = config.ADAPT.CLASS_WEIGHTS
        self.class_weights = torch.tensor(weights, device=self.device).float() if weights else None
        kept = config.ADAPT.AUTO or config.DTU.ANCHOR > 0
        # the model that the run starts as: what the teacher is pulled to, one end of the line to the result
        self.start = {key: value.clone() for key, value in self.teacher.state_dict().items()} if kept else None
        anchor = [self.start[name] for name, _ in self.teacher.named_parameters()] if kept else ()
        self.dynamic_teacher = DynamicTeacher(
            self.teacher, self.student, config.DTU, self.predictor, self.micro_batch, self.output, config.SEED, anchor
        )

    @classmethod
    def find_images(cls, config: Config, taxonomy: Taxonomy) -> ImageSet:
        check_paste_lag(config)
        taxonomy.paste_classes(config.TCR.MIX_CLASSES)
        return find_target_images(config)

    @classmethod
    def settle(cls, choices: Choices, model: nn.Module, images: ImageSet, taxonomy: Taxonomy) -> Any:
        """Batch norm, where the config gives how to mix it; further choices are :class:`AutomaticTrainer`'s."""
        config = choices.config
        if config.ADAPT.NORM_MIX:
            mix_norms(model, config.ADAPT.NORM_MIX, images, Predictor(config, next(model.parameters()).device))

    def begin(self) -> None:
        """Evaluate the source model, where there are labels to do it by."""
        source = source_checkpoint(self.config)
        if self.evaluator is None or source is None:
            return
        if self.output.resumed is not None and not source.is_file():
            LOGGER.info("the source model %s is not there any more, and not evaluated", source)
            return
        with self.output.aside():
            self.output.evaluate_once(SOURCE_EVALUATION, str(source), 0, self._evaluate_source)

    def _evaluate_source(self) -> Scores:
        return self.evaluator.run(load_model(self.config, self.device).requires_grad_(False))

    def say_farewell(self) -> None:
        if distributed.is_main():
            say_adapted(self.config, self.iteration)

    def describe(self) -> None:
        config = self.config
        if config.MODEL.UNCERTAINTY > 0:
            LOGGER.info("MODEL.UNCERTAINTY is for source training: no DSU here")
        if config.TCR.PASTE and not self.samples.paste_classes:
            LOGGER.info("no paste class: set TCR.MIX_CLASSES to paste objects; training goes on without pasting")
        warn_of_sizes(self.images, config, training=True)

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One iteration; returns the scalars to log, on the device: none where the step was skipped.

        What labels and losses need of the whole batch, which may lie in several parts and processes, is found first.
        """
        iteration, running_conf = self.iteration, self.running_conf
        self.begin_step()
        shown = {} if self.output.monitor.panel_due(iteration + 1) else None
        parts = batch.split(self.accumulate)
        full = to_device(batch.full, self.device)
        prepared = [self.predictor.prepare(images) for images in full.split(len(parts[0].names))]
        targets, negatives = self.pseudo_label(parts, prepared, shown)
        if self.config.DTU.DYNAMIC:
            probs = class_probabilities(self.predictor, self.student, prepared)
            self.dynamic_teacher.before_step(iteration, full, batch.names, probs)
        del full, prepared

        self.student.train()
        positive, negative, labelled = self.backward(parts, targets, negatives, shown)
        loss = positive + negative

        stepped = self.solver.step(loss, iteration)
        if stepped:
            self.dynamic_teacher.after_step(iteration)
        else:
            self.running_conf = running_conf
            self.dynamic_teacher.forget_last()
            self.refuse_step(loss, batch.names)
        if self.config.TCR.PASTE:
            self.schedule.record(iteration, copy_to_host(self.running_conf))
        self.iteration += 1
        if shown is not None:
            self.output.monitor.panel(
                self.iteration, *adaptation_tiles(parts[0], **shown, align_corners=self.align_corners)
            )
        if not stepped:
            return {}
        return {"loss": loss, "positive": positive, "negative": negative, "labelled": labelled}

    def backward(
        self, parts: Sequence[Batch], targets: Sequence, negatives: torch.Tensor, shown: dict | None = None
    ) -> torch.Tensor:
        """The gradients of a step, of :meth:`pseudo_label`'s targets; its positive and negative loss, and the share of
        the pixels that is labelled: 3 floats of the whole batch.
        """
        pixels = distributed.count() * sum(labels.numel() for labels, _ in targets)
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self.solver.zero_gradients()
        for part, (labels, pairs), accumulating in zip(parts, targets, self.accumulation(), strict=True):
            with accumulating:
                logits = self._student_logits(part)
                losses, gradient = part_losses(
                    logits, labels, pairs, pixels, negatives, self.class_weights, self.align_corners
                )
                self.solver.backward(logits, gradient)
            if shown is not None and part is parts[0]:
                shown.update(labels=labels, logits=logits.detach())
            sums += torch.stack([*losses, (labels != IGNORE).sum() / pixels])
        return distributed.total(sums).to(logits.dtype)

    def _student_logits(self, part: Batch) -> torch.Tensor:
        """Stride-8 logits of the student views, with gradient."""
        prepared = self.predictor.prepare(part.student)
        prepared.masked_fill_(to_device(part.dropped, self.device).unsqueeze(1), 0)
        return self.predictor.logits(self.parallel, prepared)

    def _teacher_logits(self, prepared: torch.Tensor) -> torch.Tensor:
        """Stride-8 logits of full views as networks take them; of several looks, the logarithm of their mean."""
        logits, looks = self.predictor.logits(self.teacher, prepared), self.config.ADAPT.TEACHER_LOOKS
        if not looks:
            return logits
        probs = logits.softmax(dim=1)
        for look in looks:
            seen = prepared.flip(-1) if look.endswith("mirrored") else prepared
            if look.startswith("larger"):
                seen = resize_logits(seen, [round(n * LARGER) for n in seen.shape[-2:]], self.align_corners)
            other = self.predictor.logits(self.teacher, seen)
            if look.startswith("larger"):
                other = resize_logits(other, logits.shape[-2:], self.align_corners)
            probs += (other.flip(-1) if look.endswith("mirrored") else other).softmax(dim=1)
        return (probs / (1 + len(looks))).clamp(min=LEAST).log()

    @torch.no_grad()
    def pseudo_label(
        self, parts: Sequence[Batch], prepared: Sequence[torch.Tensor], shown: dict | None = None
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """What the student learns from.

        Updates the running confidence from the full views first, those of all processes. One image's maps at a time.

        Args:
            parts: of this process's share of a batch.
            prepared: the full views of each part, as networks take them.
            shown: takes what a panel shows of the first part.
        Returns:
            of each part the labels (B×h×w int64) and the negative pairs (B×C×h×w bool), and how many pairs there are in
            the whole batch, at least 1.
        """
        logits = [self._teacher_logits(images) for images in prepared]
        size, corners = prepared[0].shape[-2:], self.align_corners
        own = [mean_confidence(resize_logits(one, size, corners).softmax(dim=1)) for one in torch.cat(logits).split(1)]
        images = distributed.count() * len(own)
        mean_conf = distributed.total(torch.stack(own).sum(dim=0, dtype=torch.float64)) / images
        self.running_conf = advance_running_confidence(self.running_conf, mean_conf.to(self.running_conf.dtype))

        targets, count = [], torch.zeros((), dtype=torch.int64, device=self.device)
        for part, part_logits in zip(parts, logits, strict=True):
            valid, pasted = (to_device(mask, self.device) for mask in (part.valid, part.pasted))
            labels, pairs, confidence = [], [], []
            for one, view, inside in zip(part_logits.split(1), part.views, valid.split(1), strict=True):
                # resized again: kept since the running confidence was taken, the maps would be those of the whole batch
                probs = warp_to_view(resize_logits(one, size, corners), [view], corners).softmax(dim=1)
                labels.append(torch.where(inside, select_pseudo_labels(probs, self.running_conf), IGNORE))
                pairs.append(negative_pairs(probs, inside))
                if shown is not None and part is parts[0]:
                    confidence.append(probs.amax(dim=1))
            labels, pairs = torch.cat(labels), torch.cat(pairs)
            if shown is not None and part is parts[0]:
                shown.update(teacher=labels, confidence=torch.cat(confidence))
            targets.append((torch.where(pasted != IGNORE, pasted.long(), labels), pairs))
            count += pairs.sum()
        return targets, distributed.total(count).clamp(min=1)

    def per_class(self) -> dict[str, torch.Tensor]:
        """Running confidence, and the threshold where an image's surest pixel of the class has probability 1."""
        scale = class_thresholds(torch.ones_like(self.running_conf)[None], self.running_conf)[0]
        return {"running_confidence": self.running_conf, "threshold_scale": scale}

    @property
    def needs_candidates(self) -> bool:
        return self.config.TCR.RESAMPLE or self.config.TCR.PASTE

    def stretch_end(self, stop: int) -> int:
        """Completed iterations N at which the next pass is due, (N + 1) mod UPDATE_FREQUENCY = 0, or `stop`."""
        if not self.needs_candidates:
            return stop
        frequency = self.config.TCR.UPDATE_FREQUENCY
        return min(((self.iteration + 1) // frequency + 1) * frequency - 1, stop)

    def requests(self, iterations: range, stretch: range) -> RequestStream:
        """With the current candidates."""
        config, size = self.config, self.config.SOLVER.BATCH_SIZE
        count = len(stretch) * size
        if config.TCR.RESAMPLE:
            order = balanced_order(self.generation.presence, count, config.SEED, stretch.start)
            order = self._pass_images[order]
        else:
            order = uniform_order(len(self.images), count, config.SEED, stretch.start)
        generation = str(self.generation.folder) if config.TCR.PASTE else None
        part = distributed.share(size)
        return RequestStream(generation, self.schedule, iterations, size, order, stretch.start, part)

    def conclude(self) -> bool:
        """Checkpoint, state and evaluation, then the candidate pass, where they are due."""
        concluded = super().conclude()
        if concluded:
            self._delete_generations()  # the state that was removed may have been the last to need one
        if self.pass_is_due:
            with self.output.aside():
                self.update_candidates()
            if self.iteration >= self.stop:  # the pass has ended the run
                concluded = super().conclude()
        return concluded

    @property
    def pass_is_due(self) -> bool:
        """Whether a pass has to be made before the next iteration."""
        if not self.needs_candidates or self.iteration >= self.config.SOLVER.STOP_ITER:
            return False
        if self.generation is None:
            return True
        due = (self.iteration + 1) % self.config.TCR.UPDATE_FREQUENCY == 0
        return due and self.generation.iteration != self.iteration

    def update_candidates(self) -> None:
        """A candidate pass; generations that neither the run nor a saved state needs are then deleted."""
        start = time.monotonic()
        generation = self.candidate_pass.run(self.teacher, self.iteration, self.generation)
        names = self.taxonomy.names
        with signals.deferred():  # the table has a row of every generation that a state may name
            self.generation = generation
            self.output.append(CANDIDATES, table_row(generation, names))
        self._delete_generations()
        paste_classes = self.samples.paste_classes if self.config.TCR.PASTE else ()
        log_candidates(self.generation, names, paste_classes, time.monotonic() - start)

    def _delete_generations(self) -> None:
        if not distributed.is_main():
            return
        own = set() if self.generation is None else {self.generation.folder.name}
        delete_generations(self.candidate_pass.folder, own | self.output.states.generations())

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "generation": None if self.generation is None else self.generation.folder.name,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "running_conf": self.running_conf,
            "schedule": self.schedule.state_dict(),
            "dynamic_teacher": self.dynamic_teacher.state_dict(),
            "start": self.start,
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.running_conf = state["running_conf"].to(self.device)
        self.schedule.load_state_dict(state["schedule"])
        self.dynamic_teacher.load_state_dict(state["dynamic_teacher"], self.samples.full_views)
        for key, value in (self.start or {}).items():
            value.copy_(state["start"][key])
        if state["generation"] is not None:
            self.generation = Generation(self.candidate_pass.folder / state["generation"])
        self._delete_generations()  # and what is left of a pass that was not completed


def part_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    pairs: torch.Tensor,
    pixels: int,
    negatives: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    align_corners: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A part's shares of positive and negative loss, and their sum's gradient at the stride-8 logits.

    Of each image the full-size maps are gone before the next one's are made.

    Args:
        logits: B×C×h×w of the student.
        labels, pairs: B×H×W int64 and B×C×H×W bool, of :meth:`Trainer.pseudo_label`.
        pixels, negatives: how many the whole batch has.
        class_weights: C floats; None: all 1.
        align_corners: as :func:`core.models.deeplab.resize_logits` takes it.
    Returns:
        2 floats, and B×C×h×w.
    """
    losses, images = 0, [one.requires_grad_() for one in logits.detach().split(1)]
    for one, own_labels, own_pairs in zip(images, labels.split(1), pairs.split(1), strict=True):
        upsampled = resize_logits(one, labels.shape[1:], align_corners)
        positive = positive_loss_sum(upsampled, own_labels, class_weights) / pixels
        negative = negative_loss_sum(upsampled, own_pairs) / negatives.to(upsampled.dtype)
        (positive + negative).backward()
        losses += torch.stack([positive.detach(), negative.detach()]).double()
    return losses, torch.cat([one.grad for one in images])


def check_paste_lag(config: Config) -> None:
    """Raise UserError if workers would run ahead of the paste probabilities."""
    ahead = config.DATALOADER.NUM_WORKERS * PREFETCH_FACTOR
    if config.TCR.PASTE and config.TCR.MIX_SAMPLING == "confidence" and ahead >= config.TCR.PASTE_LAG:
        raise UserError(
            f"DATALOADER.NUM_WORKERS {config.DATALOADER.NUM_WORKERS} prepare {ahead} batches ahead, which must stay "
            f"below TCR.PASTE_LAG {config.TCR.PASTE_LAG}: use fewer workers or a larger lag"
        )
