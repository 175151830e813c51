"""What both trainers share: the loop, the states that it goes on from, and how it stops."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import nn

from core.datasets.catalog import ImageSet
from core.evaluation.predictor import Predictor
from core.runs.output import RunOutput
from core.runs.solver import Solver
from core.runs.states import FORMAT, fingerprint, flat_config
from core.utils import distributed, signals
from core.utils.errors import UserError, shorten
from core.utils.logging import LOGGER
from core.utils.seeding import random_states, restore_random_states, seed_step


class Training(ABC):
    """One run. Between two steps its state is whole: it may be stopped there at any moment, and saved.

    Args:
        config: a whole config.
        model: the network that learns, on its device.
        images: the training images.
        output: the folder that the run writes to; None: only steps are to be made, which write nothing.
    Raises:
        UserError: of several processes, some see other images.
    """

    PROGRAM: ClassVar[str]

    def __init__(self, config, model: nn.Module, images: ImageSet, output: RunOutput | None):
        distributed.check_alike(fingerprint(images.names), f"the images of {images.name}")
        self.config, self.output = config, output
        self.device = next(model.parameters()).device
        self.predictor = Predictor(config, self.device)
        self.solver = Solver(model, config.SOLVER)
        self.parallel = distributed.parallel(model)  # what a step calls for its gradients
        self.accumulate = config.SOLVER.ACCUMULATE
        self.micro_batch = config.SOLVER.BATCH_SIZE // (distributed.count() * self.accumulate)  # images
        self.iteration = 0  # completed
        self.stretch = range(0)  # the iterations whose images were drawn at once
        self.bad_steps = 0  # skipped so far
        self._images = images

    @property
    @abstractmethod
    def result(self) -> nn.Module:
        """The network that checkpoints hold."""

    @abstractmethod
    def train_step(self, batch) -> dict[str, torch.Tensor]:
        """One iteration; returns the scalars to log, on the device: none where the step was skipped."""

    @abstractmethod
    def stretch_end(self, stop: int) -> int:
        """Completed iterations at which a stretch that begins now ends."""

    @abstractmethod
    def batches(self, iterations: range, stretch: range | None = None) -> Iterator:
        """The batches of `iterations`, which are (the rest of) a stretch (None: a whole one)."""

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
        stop = self.config.SOLVER.STOP_ITER
        self.conclude()
        self.output.start_clock(self.iteration)
        while self.iteration < stop:
            if self.iteration not in self.stretch:
                self.stretch = range(self.iteration, self.stretch_end(stop))
            for batch in self.batches(range(self.iteration, self.stretch.stop), self.stretch):
                with signals.deferred():
                    scalars = self.train_step(batch)
                    learning_rate = self.solver.learning_rate(self.iteration - 1)
                    self.output.completed(self.iteration, learning_rate, scalars, self.per_class)
                self._images.skipped.settle()
                distributed.stop_together()
                self.conclude()

    @property
    def panel_due(self) -> bool:
        """Whether a panel is wanted of the iteration at hand."""
        return self.output is not None and self.output.panel_due(self.iteration + 1)

    def per_class(self) -> dict[str, torch.Tensor]:
        """What is shown of each class in TensorBoard while the run lasts: C floats by name, on the device."""
        return {}

    def conclude(self) -> bool:
        """What follows an iteration where it is due: checkpoint, state, evaluation; returns whether they were.

        A state is saved before all that follows its iteration is done, so this is also how a continued run begins.
        """
        return self.output.conclude(self.iteration, self.result, self.state_dict)

    def begin_step(self) -> None:
        """Before a step's first forward: its randomness, and what it may have to put back."""
        seed_step(self.config.SEED, self.iteration)
        self.solver.remember_statistics()

    def accumulation(self) -> list[AbstractContextManager]:
        """A context for forward and backward of every part of a step."""
        last = self.accumulate - 1
        return [distributed.accumulating(self.parallel, part == last) for part in range(self.accumulate)]

    def backward(self, output: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
        """Add to the parameters' gradients what a part adds to the whole batch's.

        Args:
            output: the part's share of the loss, a scalar; with `gradient`, which is the loss's there, any tensor.
        """
        gradient = torch.ones_like(output) if gradient is None else gradient
        self.solver.backward(output, gradient * distributed.count())  # the mean over the processes is to be their sum

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
            "images": fingerprint(self._images.names),
            "generation": None,
            "iteration": self.iteration,
            "stretch": [self.stretch.start, self.stretch.stop],
            "bad_steps": self.bad_steps,
            "skipped": self._images.skipped.paths,
            "solver": self.solver.state_dict(),
            "output": self.output.state_dict(),
            "random": random_states(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state.

        Raises:
            UserError: the training images are others.
        """
        if state["images"] != fingerprint(self._images.names):
            raise UserError(f"{self._images.name} does not hold the images of the run to go on with: bring them back")
        self.iteration, self.stretch = state["iteration"], range(*state["stretch"])
        self.bad_steps = state["bad_steps"]
        self._images.skipped.paths[:] = state["skipped"]
        self.solver.load_state_dict(state["solver"])
        self.output.load_state_dict(state["output"], self.iteration)
        restore_random_states(state["random"])
