"""What both trainers share: what a run needs, the loop, the states that it goes on from, and how it stops."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from core.configs.choices import Choices
from core.configs.node import Config
from core.datasets.catalog import find_taxonomy, find_test_images
from core.datasets.loading import Loader
from core.datasets.reader import ImageSet
from core.datasets.sampling import Stream, TrainingSamples
from core.datasets.taxonomy import Taxonomy
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models.build import check_compiler
from core.models.deeplab import batch_norms
from core.models.dsu import DSU
from core.models.own_network import OwnNetwork
from core.runs.folder import IMAGES
from core.runs.known import SPAN_KEY
from core.runs.output import RunOutput
from core.runs.resume import check_length, check_source, load_model
from core.runs.solver import Solver
from core.runs.states import FORMAT, fingerprint, flat_config
from core.utils import distributed, signals
from core.utils.checkpoints import BANDS, DOMAIN
from core.utils.devices import prepare_device
from core.utils.errors import UserError, shorten
from core.utils.logging import LOGGER
from core.utils.seeding import random_states, restore_random_states, seed_step

AnyTraining = TypeVar("AnyTraining", bound="Training")


class Training(ABC):
    """One run. Between two steps its state is whole: it may be stopped there at any moment, and saved.

    A trainer says where its images come from (:meth:`find_images`), what it makes samples of (`samples`,
    :meth:`requests`), and what one iteration is (:meth:`train_step`).

    Args:
        config: a whole config; the run writes to its OUTPUT_DIR, which is not touched before :meth:`run`.
        model: the network that learns, on its device.
        images: the training images.
        taxonomy: the class set.
        evaluator: evaluates every checkpoint; None: no evaluation.
    Raises:
        UserError: of several processes, some see other images.

    Attributes:
        result: the network that checkpoints hold.
    """

    PROGRAM: ClassVar[str]  # its name, as states know it
    DOMAIN: ClassVar[str]  # of its images
    NEEDS_SOURCE: ClassVar[bool] = False  # whether a source model is what it is about
    UNCERTAIN: ClassVar[bool] = False  # whether DSU (MODEL.UNCERTAINTY) has a place in this program
    CHOSEN: ClassVar[tuple[str, ...]] = ()  # options that a run finds for itself where they are not given
    samples: TrainingSamples
    config_file = ""  # of the command that has started the run

    def __init__(
        self, config: Config, model: nn.Module, images: ImageSet, taxonomy: Taxonomy, evaluator: Evaluator | None = None
    ):
        distributed.check_alike(images.names, f"the images of {images.name}")
        self.config, self.model, self.images, self.taxonomy = config, model, images, taxonomy
        self.result = model
        self.evaluator, self.device = evaluator, next(model.parameters()).device
        self.output = RunOutput(config, taxonomy, self.device)
        self.predictor = Predictor(config, self.device)
        self.solver = Solver(model, config.SOLVER)
        looks = distributed.count() > 1 and isinstance(model, OwnNetwork)
        self.idle = model.idle_parameters() if looks else []  # names of those that no step moves
        self.parallel = distributed.parallel(model, bool(self.idle))  # what a step calls for its gradients
        self.accumulate = config.SOLVER.ACCUMULATE
        self.micro_batch = config.SOLVER.BATCH_SIZE // (distributed.count() * self.accumulate)  # images
        self.iteration = 0  # completed
        self.stop = config.SOLVER.STOP_ITER  # or earlier, where a run ends itself
        self.choices = Choices(config)  # what the run has found for itself
        self.survey = None  # what `settle` saw
        self.stretch = range(0)  # the iterations whose images were drawn at once
        self.bad_steps = 0  # skipped so far

    @classmethod
    def load(cls: type[AnyTraining], config: Config, skip_test: bool, weights: bool = True) -> AnyTraining:
        """Find and load everything that a run needs; nothing is written.

        Args:
            skip_test: no evaluation.
            weights: read those that the config names; False: a state's will follow.
        Raises:
            UserError: for whatever is missing or does not fit together.
        """
        if cls.NEEDS_SOURCE and weights:
            check_source(config)
        device = prepare_device(config)
        if config.MODEL.COMPILE:
            check_compiler(device)
        taxonomy = find_taxonomy(config)
        images = cls.find_images(config, taxonomy)
        if images.form.span:
            config = config.changed({SPAN_KEY: images.form.span})
            config.freeze()
        choices = Choices(config)
        if weights:
            cls.choose(choices, images)
        config, evaluator = choices.config, None
        check_length(config.SOLVER)
        check_division(config.SOLVER)
        if config.DATASETS.TEST and not skip_test:
            tests = find_test_images(cls.config_of_tests(config))
            if tests.label_path is None:
                raise UserError(
                    f"DATASETS.TEST {tests.name} has no labels to evaluate on; leave it empty, or give --skip-test"
                )
            evaluator = Evaluator(tests, len(taxonomy), Predictor(config, device))
        model = load_model(config, device, uncertain=cls.UNCERTAIN, weights=weights)
        if images.form.bands:
            model.about[BANDS] = list(images.form.bands)
        if images.form.span:
            model.about[DOMAIN] = cls.DOMAIN
        survey = cls.settle(choices, model, images, taxonomy) if weights else None
        config = choices.config
        check_whole_batches(model, config)
        check_pooled_norms(model, config)
        if not config.MODEL.FREEZE_BN:
            model = distributed.synchronised_norms(model, device)
        training = cls(config, model, images, taxonomy, evaluator)
        training.choices, training.survey = choices, survey
        if evaluator is not None:
            training.output.scored = evaluator.images.scored_of(taxonomy)
        return training

    @classmethod
    def config_of_tests(cls, config: Config) -> Config:
        """The config by which DATASETS.TEST is read."""
        return config

    @classmethod
    def choose(cls, choices: Choices, images: ImageSet) -> None:
        """What a new run finds for itself before its network is made."""
        return

    @classmethod
    def settle(cls, choices: Choices, model: nn.Module, images: ImageSet, taxonomy: Taxonomy) -> Any:
        """What it finds by its network, which is moved to where the run starts; returns what it saw."""
        return None

    @classmethod
    @abstractmethod
    def find_images(cls, config: Config, taxonomy: Taxonomy) -> ImageSet:
        """The training images, once the options that concern only this program are checked. Raises UserError."""

    def describe_images(self) -> None:
        """Log the training images."""
        note = f": {self.images.note}" if self.images.note else ""
        LOGGER.info("%s images: %d of %s%s", self.DOMAIN, len(self.images), self.images.name, note)
        if self.images.left_out:
            count, names = len(self.images.left_out), shorten(self.images.left_out)
            LOGGER.info("%d label files among these images are left out: %s", count, names)

    @abstractmethod
    def describe(self) -> None:
        """Log what else a user of this program should know at its start."""

    @abstractmethod
    def train_step(self, batch) -> dict[str, torch.Tensor]:
        """One iteration; returns the scalars to log, on the device: none where the step was skipped."""

    @abstractmethod
    def stretch_end(self, stop: int) -> int:
        """Completed iterations at which a stretch that begins now ends."""

    @abstractmethod
    def requests(self, iterations: range, stretch: range) -> Stream:
        """The requests for `iterations`, which are (the rest of) a stretch, drawn for the whole of it at once."""

    def batches(self, iterations: range, stretch: range | None = None) -> Iterator:
        """The batches of `iterations`, which are (the rest of) a stretch (None: a whole one)."""
        stream = self.requests(iterations, iterations if stretch is None else stretch)
        workers, pin = self.config.DATALOADER.NUM_WORKERS, self.device.type == "cuda"
        return iter(Loader(self.samples, self.samples.collate, workers, batch_sampler=stream, pin_memory=pin))

    def run(self) -> None:
        """Train to STOP_ITER, with whatever is due on the way.

        Raises:
            Stopped: a signal asked for it; the state is saved.
        """
        several = distributed.count() > 1
        # of several processes, those that a signal reaches may only stop where all of them do
        with signals.deferred() if several else nullcontext():
            try:
                self._run()
                if several:
                    signals.acknowledge()  # what comes now finds nothing left to stop
            except signals.Stopped as stopped:
                signals.acknowledge()
                path = self.output.save_state(self.state_dict())
                distributed.barrier()  # the first to end has torchrun end the others
                stopped.note = f"after iteration {self.iteration}, state saved as {path}"
                raise

    def _run(self) -> None:
        self.begin()
        self.conclude()
        self.output.start_clock(self.iteration)
        with self.output.heard():
            self._train()
        self.finish()
        self.say_farewell()

    def _train(self) -> None:
        while self.iteration < self.stop:
            if self.iteration not in self.stretch:
                self.stretch = range(self.iteration, self.stretch_end(self.stop))
            for batch in self.batches(range(self.iteration, self.stretch.stop), self.stretch):
                with signals.deferred():
                    scalars = self.train_step(batch)
                    learning_rate = self.solver.learning_rate(self.iteration - 1)
                    self.output.completed(self.iteration, learning_rate, scalars, self.per_class)
                self.images.skipped.settle()
                distributed.stop_together()
                self.conclude()
                if self.iteration >= self.stop:
                    break

    def begin(self) -> None:  # noqa: B027
        """What comes before the first iteration; again where a run goes on."""

    @abstractmethod
    def say_farewell(self) -> None:
        """Log, last of all, how it went, and what to do next."""

    def finish(self) -> None:  # noqa: B027
        """What follows the last iteration and its checkpoint; again where a run that was complete goes on."""

    def per_class(self) -> dict[str, torch.Tensor]:
        """What is shown of each class in TensorBoard while the run lasts: C floats by name, on the device."""
        return {}

    def conclude(self) -> bool:
        """What follows an iteration where it is due: state, checkpoint, evaluation; returns whether they were.

        At the iteration that a run goes on from, this makes up for what it was stopped before.
        """
        solver, output = self.config.SOLVER, self.output
        if self.iteration == 0 or (self.iteration % solver.CHECKPOINT_PERIOD and self.iteration != self.stop):
            return False
        with output.aside():
            with signals.deferred():
                if self.iteration != output.resumed:
                    output.save_state(self.state_dict())  # first: going on from it makes up for all that follows
                output.save_checkpoint(self.result, self.iteration)
            if self.evaluator is not None and self.iteration not in output.evaluated:
                scores = self.evaluator.run(self.result)
                with signals.deferred():
                    output.evaluation(self.iteration, scores)
        return True

    def begin_step(self) -> None:
        """Before a step's first forward: its randomness, and what it may have to put back."""
        seed_step(self.config.SEED, self.iteration)
        self.solver.remember_statistics()

    def accumulation(self) -> list[AbstractContextManager]:
        """A context for forward and backward of every part of a step."""
        last = self.accumulate - 1
        return [distributed.accumulating(self.parallel, part == last) for part in range(self.accumulate)]

    def refuse_step(self, loss: torch.Tensor, names: tuple[str, ...]) -> None:
        """A step's loss or gradient is not finite, and nothing was changed by it: log that, or stop the run.

        A gradient that only was too large for fp16 is part of finding the scale of the loss, and does not count.

        Raises:
            UserError: SOLVER.MAX_BAD_STEPS such steps were skipped already.
        """
        if self.solver.overflowed:
            message = "iteration %d: the gradient does not fit fp16; step skipped, the loss is now scaled by %g"
            LOGGER.info(message, self.iteration + 1, self.solver.loss_scale)
            return
        names = tuple(distributed.joined(list(names)))
        value = float(loss.detach())
        what = "gradient" if math.isfinite(value) else f"loss {value:g}"
        rate = self.solver.learning_rate(self.iteration)
        found = f"iteration {self.iteration + 1}: {what} is not finite (learning rate {rate:.3g}, images {{}})"
        allowed = self.config.SOLVER.MAX_BAD_STEPS
        if self.bad_steps >= allowed:
            state = self.output.newest_state()
            raise UserError(
                f"{found.format(shorten(names, len(names)))}; the last good state is {state or 'not saved yet'}: "
                "lower SOLVER.BASE_LR, set SOLVER.CLIP_GRAD, or skip such steps by SOLVER.MAX_BAD_STEPS"
            )
        self.bad_steps += 1
        LOGGER.info("%s: step skipped, %d of %d", found.format(shorten(names, len(names))), self.bad_steps, allowed)

    def state_dict(self) -> dict:
        """Everything that the next iteration depends on; subclasses add their own."""
        return {
            "format": FORMAT,
            "program": self.PROGRAM,
            "config": flat_config(self.config),
            "images": fingerprint(self.images.names),
            "generation": None,  # name of the candidates in use
            "iteration": self.iteration,
            "stretch": [self.stretch.start, self.stretch.stop],
            "stop": self.stop if self.stop < self.config.SOLVER.STOP_ITER else None,
            "bad_steps": self.bad_steps,
            "skipped": self.images.skipped.paths,
            "solver": self.solver.state_dict(),
            "output": self.output.state_dict(),
            "about": self.result.about,
            "random": random_states(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state.

        Raises:
            UserError: the training images are others.
        """
        if state["images"] != fingerprint(self.images.names):
            raise UserError(self._other_images())
        self.result.about = {**self.result.about, **state.get("about", {})}  # the source model's, too, may be gone
        self.iteration, self.stretch = state["iteration"], range(*state["stretch"])
        self.stop = state.get("stop") or self.stop
        self.bad_steps = state["bad_steps"]
        self.images.skipped.paths[:] = state["skipped"]
        self.solver.load_state_dict(state["solver"])
        generation = -1 if state["generation"] is None else int(state["generation"].removeprefix("g"))
        self.output.load_state_dict(state["output"], self.iteration, generation)
        restore_random_states(state["random"])

    def _other_images(self) -> str:
        """In what the images differ from those of the run to go on with."""
        what = f"{self.images.name} does not hold the images of the run to go on with"
        begun = self.output.folder / IMAGES
        if not begun.is_file():  # a run of an earlier version
            return f"{what}: bring them back (hidden folders, and label files among images, are left out by now)"
        before, now = begun.read_text(encoding="utf-8").splitlines(), self.images.names
        missing, new = sorted({*before} - {*now}), sorted({*now} - {*before})
        found = (("missing", missing), ("new", new))
        changes = [f"{len(names)} {word} ({shorten(names)})" for word, names in found if names]
        advice = "bring the missing ones back" if missing else "take the new ones out"
        if not missing and self.DOMAIN == "target":
            advice += f", or go on with the old ones alone by DATASETS.TARGET_LIST {begun}"
        return f"{what}: {', '.join(changes) or 'they come in another order'}; {advice}"


def check_division(solver: Config) -> None:
    """Raise UserError unless every process's every part of a batch gets the same number of images.

    Args:
        solver: the config node SOLVER.
    """
    processes = distributed.count()
    if solver.BATCH_SIZE % (processes * solver.ACCUMULATE):
        several = f"{processes} processes × " if processes > 1 else ""
        raise UserError(
            f"SOLVER.BATCH_SIZE {solver.BATCH_SIZE} is the images of an iteration, which do not divide by {several}"
            f"SOLVER.ACCUMULATE {solver.ACCUMULATE}: give a multiple of {processes * solver.ACCUMULATE}"
        )


def check_whole_batches(model: nn.Module, config: Config) -> None:
    """Raise UserError if the model takes statistics of a whole batch, and that comes in parts."""
    if config.SOLVER.ACCUMULATE == 1:
        return
    moving = not config.MODEL.FREEZE_BN and bool(batch_norms(model))
    uncertain = any(isinstance(module, DSU) for module in model.modules())
    if moving or uncertain:
        ways = ("MODEL.FREEZE_BN True", moving), ("MODEL.UNCERTAINTY 0", uncertain)
        raise UserError(
            f"SOLVER.ACCUMULATE {config.SOLVER.ACCUMULATE} would change the batch that statistics are taken of: "
            f"give 1, or {' and '.join(way for way, helps in ways if helps)}"
        )


def check_pooled_norms(model: nn.Module, config: Config) -> None:
    """Raise UserError if the model takes statistics of one value: of an image's mean, where a step has one image."""
    several = config.SOLVER.BATCH_SIZE > 1 or config.MODEL.FREEZE_BN
    names = () if several or not isinstance(model, OwnNetwork) else model.pooled_norms
    if names:
        raise UserError(
            f"SOLVER.BATCH_SIZE 1: of each channel, {shorten(names)} of {model.name} sees one value (a map of 1×1), of "
            "which there are no statistics; give 2 or more, or MODEL.FREEZE_BN True"
        )
