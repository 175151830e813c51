"""The adaptation run: student, teacher, and the loop that joins the method's parts (DT-ST, Fig. 2)."""

import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from core.datasets.catalog import ImageSet
from core.datasets.loading import Loader
from core.datasets.taxonomy import Taxonomy
from core.evaluation.predictor import Predictor
from core.models.deeplab import resize_logits
from core.runs import RunOutput
from core.selftraining.candidates import CandidatePass, Generation, delete_generation, log_candidates
from core.selftraining.dynamic_teacher import HISTORY_FIELDS, DynamicTeacher
from core.selftraining.losses import negative_loss, positive_loss
from core.selftraining.pseudo_labels import (
    IGNORE,
    initial_running_confidence,
    select_pseudo_labels,
    update_running_confidence,
)
from core.selftraining.resampling import even_subsample
from core.selftraining.samples import (
    Batch,
    PasteSchedule,
    RequestStream,
    TargetSamples,
    balanced_order,
    collate_batch,
    uniform_order,
)
from core.selftraining.views import warp_to_view
from core.solver import Solver
from core.utils.devices import copy_to_host, to_device

_SUBSAMPLE = 0x5355  # key of the random stream that picks the images of a bounded pass


class Trainer:
    """One adaptation run.

    Args:
        config: a whole config.
        model: the source model, on its device; it becomes the student.
        images: the target images.
        taxonomy: the class set.
        output: the folder that the run writes to.
    """

    def __init__(
        self,
        config,
        model: nn.Module,
        images: ImageSet,
        taxonomy: Taxonomy,
        output: RunOutput,
    ):
        self.config, self.taxonomy, self.output = config, taxonomy, output
        self.device = next(model.parameters()).device
        self.student, self.teacher = model, copy.deepcopy(model).requires_grad_(False).eval()
        self.predictor = Predictor(config, self.device)
        self.solver = Solver(self.student, config.SOLVER)
        self.running_conf = initial_running_confidence(len(taxonomy), device=self.device)
        self.iteration = 0  # completed
        self.samples = TargetSamples(images, taxonomy, config)
        tcr = config.TCR
        self.schedule = PasteSchedule(self.samples.paste_classes, len(taxonomy), tcr.MIX_SAMPLING, tcr.PASTE_LAG)
        chosen = even_subsample(len(images), tcr.MAX_PASS_IMAGES, np.random.default_rng([config.SEED, _SUBSAMPLE]))
        self._pass_images = chosen  # index into all images of every image of a pass
        self.candidate_pass = CandidatePass(
            images.restricted(chosen), len(taxonomy), self.predictor, config, output.folder / "candidates"
        )
        self.generation: Generation | None = None
        self.dynamic_teacher = DynamicTeacher(
            self.teacher, self.student, config.DTU, self.student_probabilities, self._record, config.SEED
        )

    def train_step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One iteration; returns the scalars to log, on the device."""
        iteration = self.iteration
        labels, teacher_probs, valid = self.pseudo_label(batch)
        if self.config.TCR.PASTE:
            self.schedule.record(iteration, copy_to_host(self.running_conf))
        self.dynamic_teacher.before_step(iteration, batch.full, batch.names)

        student_input = self.predictor.prepare(batch.student)
        student_input.masked_fill_(to_device(batch.dropped, self.device).unsqueeze(1), 0)
        self.student.train()
        logits = resize_logits(self.predictor.logits(self.student, student_input), labels.shape[-2:])
        positive = positive_loss(logits, labels)
        negative = negative_loss(logits, teacher_probs, valid)
        loss = positive + negative

        self.solver.step(loss, iteration)
        self.dynamic_teacher.after_step(iteration)
        self.iteration += 1
        return {
            "loss": loss.detach(),
            "positive": positive.detach(),
            "negative": negative.detach(),
            "labelled": (labels != IGNORE).float().mean(),
        }

    @torch.no_grad()
    def pseudo_label(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the student learns from: labels (B×h×w int64), teacher probabilities (B×C×h×w), valid (B×h×w bool).

        Updates the running confidence from the full views first.
        """
        full = self.predictor.prepare(batch.full)
        logits = resize_logits(self.predictor.logits(self.teacher, full), full.shape[-2:])
        self.running_conf = update_running_confidence(self.running_conf, logits.softmax(dim=1))
        probs = warp_to_view(logits, batch.views).softmax(dim=1)
        valid, pasted = (to_device(mask, self.device) for mask in (batch.valid, batch.pasted))
        labels = select_pseudo_labels(probs, self.running_conf)
        labels = torch.where(valid, labels, IGNORE)
        labels = torch.where(pasted != IGNORE, pasted.long(), labels)
        return labels, probs, valid

    @torch.no_grad()
    def student_probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """N×C probabilities at stride 8 of the student in eval mode, for its scores."""
        self.student.eval()
        probs = self.predictor.logits(self.student, self.predictor.prepare(images)).softmax(dim=1)
        return probs.permute(0, 2, 3, 1).flatten(0, 2)

    def run(self) -> None:
        """Train to STOP_ITER, with passes, checkpoints and evaluations on the way."""
        stop = self.config.SOLVER.STOP_ITER
        if self.needs_candidates:
            self.update_candidates()
        self.output.start_clock()
        while self.iteration < stop:
            for batch in self.batches(range(self.iteration, self.next_pass(stop))):
                scalars = self.train_step(batch)
                learning_rate = self.solver.learning_rate(self.iteration - 1)
                self.output.completed(self.iteration, learning_rate, scalars, self.teacher)
            if self.iteration < stop:
                with self.output.aside():
                    self.update_candidates()

    @property
    def needs_candidates(self) -> bool:
        return self.config.TCR.RESAMPLE or self.config.TCR.PASTE

    def next_pass(self, stop: int) -> int:
        """Completed iterations N that end the current stretch: (N + 1) mod UPDATE_FREQUENCY = 0, or `stop`."""
        if not self.needs_candidates:
            return stop
        frequency = self.config.TCR.UPDATE_FREQUENCY
        return min(((self.iteration + 1) // frequency + 1) * frequency - 1, stop)

    def batches(self, iterations: range) -> Iterator[Batch]:
        """The batches of a stretch of iterations with the current candidates."""
        config = self.config
        count = len(iterations) * config.SOLVER.BATCH_SIZE
        if config.TCR.RESAMPLE:
            order = balanced_order(self.generation.presence, count, config.SEED, iterations.start)
            order = self._pass_images[order]
        else:
            order = uniform_order(len(self.samples.images), count, config.SEED, iterations.start)
        stream = RequestStream(
            iterations,
            config.SOLVER.BATCH_SIZE,
            order,
            str(self.generation.folder) if config.TCR.PASTE else None,
            self.schedule,
        )
        workers = config.DATALOADER.NUM_WORKERS
        pin = self.device.type == "cuda"
        return iter(Loader(self.samples, collate_batch, workers, batch_sampler=stream, pin_memory=pin))

    def update_candidates(self) -> None:
        """A candidate pass; the generation before it is deleted once the new one is complete."""
        previous, start = self.generation, time.monotonic()
        self.generation = self.candidate_pass.run(self.teacher, self.iteration, previous)
        if previous is not None:
            delete_generation(previous)
        paste_classes = self.samples.paste_classes if self.config.TCR.PASTE else ()
        log_candidates(self.generation, self.taxonomy.names, paste_classes, time.monotonic() - start)

    def _record(self, row: dict) -> None:
        self.output.append("dtu_history.csv", HISTORY_FIELDS, row)
