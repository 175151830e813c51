"""The automatic adaptation (`ADAPT.AUTO`): a run finds its settings, watches over itself, and ends with a verdict."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
from torch import nn

from core.adaptation.choices import CHOSEN, choose_rate, choose_schedule, choose_sizes
from core.adaptation.guard import STRONGER, WEAKEST, Watch, conclude
from core.adaptation.looks import Looks, look_at
from core.adaptation.survey import Survey, few_images, looking, settle
from core.configs.choices import Choices
from core.configs.node import Config
from core.datasets.reader import ImageSet
from core.datasets.sampling import uniform_order
from core.datasets.taxonomy import Taxonomy
from core.evaluation.evaluator import Evaluator
from core.runs.folder import ADAPTED, ADAPTED_EVALUATION
from core.runs.known import known_size
from core.runs.resume import load_model, source_checkpoint
from core.selftraining.samples import Batch, RequestStream
from core.selftraining.trainer import Trainer
from core.utils import distributed, signals
from core.utils.logging import LOGGER
from core.utils.seeding import seed_step

PROBES = 4  # batches whose gradients are looked at before the first iteration


class AutomaticTrainer(Trainer):
    """An adaptation run with `ADAPT.AUTO`.

    Attributes:
        watch: over the candidate passes.
        survey: what was seen before the first iteration; None in a process that goes on with a run.
    """

    CHOSEN: ClassVar[tuple[str, ...]] = CHOSEN

    def __init__(
        self, config: Config, model: nn.Module, images: ImageSet, taxonomy: Taxonomy, evaluator: Evaluator | None = None
    ):
        super().__init__(config, model, images, taxonomy, evaluator)
        self.watch = Watch(taxonomy.names)

    @classmethod
    def choose(cls, choices: Choices, images: ImageSet) -> None:
        source = source_checkpoint(choices.config)
        choose_sizes(choices, images, None if source is None else known_size(source))
        choose_schedule(choices, len(images), distributed.count() * choices.config.SOLVER.ACCUMULATE)

    @classmethod
    def settle(cls, choices: Choices, model: nn.Module, images: ImageSet, taxonomy: Taxonomy) -> Survey:
        return settle(choices, model, images, taxonomy, next(model.parameters()).device)

    @classmethod
    def load(cls, config: Config, skip_test: bool, weights: bool = True) -> "AutomaticTrainer":
        trainer = super().load(config, skip_test, weights)
        if trainer.survey is not None:
            trainer.watch.shifted = trainer.survey.shifted
            trainer._choose_rate()
        return trainer

    def _choose_rate(self) -> None:
        """SOLVER.BASE_LR, by how far first steps would move the weights, for their size."""
        size, running_conf = self.config.SOLVER.BATCH_SIZE, self.running_conf
        order = uniform_order(len(self.images), PROBES * size, self.config.SEED, 0)
        stream = RequestStream(None, self.schedule, range(PROBES), size, order, 0, distributed.share(size))
        speeds = [self._speed(self.samples.collate([self.samples[one] for one in requests])) for requests in stream]
        self.running_conf = running_conf
        choose_rate(self.choices, float(np.median(speeds)))
        self.config = self.choices.config
        self.solver.options = self.config.SOLVER

    def _speed(self, batch: Batch) -> float:
        """How far a first step by the batch would move the weights, for their size: :meth:`Solver.speed`."""
        seed_step(self.config.SEED, 0)
        parts = batch.split(self.accumulate)
        targets, negatives = self.pseudo_label(parts, [self.predictor.prepare(part.full) for part in parts])
        self.student.eval()  # no statistics move
        self.backward(parts, targets, negatives)
        return self.solver.speed()

    def update_candidates(self) -> None:
        super().update_candidates()
        if signs := self.watch.see(self.generation.pixels, self.generation.consistency):
            self._answer(signs)

    def _answer(self, signs: Sequence[str]) -> None:
        """What the run does about signs of harm: at first it pulls the teacher back harder, then it ends."""
        if self.watch.count == 1:
            teacher = self.dynamic_teacher
            teacher.pull_share = min(STRONGER * max(teacher.pull_share, WEAKEST), 1.0)
            answer = f"the teacher is pulled back by {teacher.pull_share:.0%} at every move now"
        else:
            self.stop = self.iteration
            answer = "the run ends here"
        LOGGER.info("signs of harm after iteration %d: %s; %s", self.iteration, "; ".join(signs), answer)

    def finish(self) -> None:
        """Write the model that the guard stands for, and say what it holds of it."""
        with self.output.aside():
            result, few = copy.deepcopy(self.teacher), few_images(self.images, self.config.SEED)
            predictor = looking(self.predictor)

            def look(model: nn.Module) -> Looks:
                return look_at(model, few, len(self.taxonomy), predictor, "looking at the target with the result")

            source, start = (self.survey.source, self.survey.start) if self.survey else self._look_again(look)
            last = self.teacher.state_dict()
            verdict = conclude(self.taxonomy.names, source, start, result, self.start, last, look, self.watch.shifted)
            with signals.deferred():
                self.output.save_verdict(result, self.iteration, verdict)
            if self.evaluator is not None:
                scores = partial(self.evaluator.run, result)
                self.output.evaluate_once(ADAPTED_EVALUATION, ADAPTED, self.iteration, scores)

    def _look_again(self, look: Callable[[nn.Module], Looks]) -> tuple[Looks, Looks]:
        """Looks of the source model, and of the one that the run started as, where they were seen by another process.

        Raises:
            UserError: the source model is no longer there.
        """
        start = copy.deepcopy(self.teacher)
        start.load_state_dict(self.start)
        return look(load_model(self.config, self.device)), look(start)

    def state_dict(self) -> dict:
        return super().state_dict() | {"watch": self.watch.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.watch.load_state_dict(state.get("watch", {}))


def trainer_for(config: Config) -> type[Trainer]:
    """Which kind of run a config asks for."""
    return AutomaticTrainer if config.ADAPT.AUTO else Trainer
