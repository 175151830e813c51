"""Dynamic teacher update: the EMA teacher moves only when the student has demonstrably improved (DT-ST §3.2)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from core.evaluation.predictor import Predictor
from core.runs.folder import HISTORY
from core.runs.output import RunOutput
from core.utils import distributed
from core.utils.devices import copy_to_host, to_device

NUM_POINTS = 100
SND_TEMPERATURE = 20.0  # the similarities are multiplied by it before the softmax (Saito et al., ICCV 2021: 1 / 0.05)
DECISIONS = ("refused", "improved", "forced", "fixed")  # by their numbers in TensorBoard
HISTORY_FIELDS = (
    "iteration",  # completed iterations
    "decision",  # one of DECISIONS
    "batches",  # in the buffer
    "scored",  # of them, before the majority was settled
    "improved",
    "fraction_improved",  # of the scored ones
    "mean_before",
    "mean_after",
)


def snd_score(probs: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Soft neighbourhood density at the chosen pixels (Saito et al., ICCV 2021); larger is better.

    Args:
        probs: N×C softmax probabilities, one row per pixel.
        points: int64 vector of row numbers.
    Returns:
        a scalar: the mean entropy of each point's softmax similarities to all points, itself included.
    """
    rows = torch.nn.functional.normalize(probs[points], dim=1)
    products = (rows.unsqueeze(1) * rows).sum(dim=2)  # of all pairs; as a matrix product they might round to TF32
    similarity = torch.softmax(SND_TEMPERATURE * products, dim=1)
    return -(similarity * torch.log(similarity + 1e-5)).sum(dim=1).mean()


def entropy_score(probs: torch.Tensor) -> torch.Tensor:
    """Mean over the pixels of 1 + 2·p·log2(p), p the largest probability of each of the N×C rows; larger is better."""
    peak = probs.amax(dim=1)
    return (1 + 2 * peak * torch.log2(peak)).mean()


def majority_improved(stored: Sequence[float], rescore: Callable[[int], float]) -> bool:
    """Whether more than half of the batches score strictly higher than when stored.

    `rescore(i)` gives the new score of batch i; it is called in order and no more often than the decision needs.
    """
    _, improved = count_improved(stored, lambda batches: [rescore(i) for i in batches])
    return 2 * improved > len(stored)


def count_improved(stored: Sequence[float], rescore: Callable[[range], Sequence[float]]) -> tuple[list[float], int]:
    """:func:`majority_improved` with what it rests on.

    `rescore(batches)` gives the new scores of as many batches as no decision can do without, so that a device may work
    on them at a stretch: ⌈n/2⌉ at first, then what the nearer of both decisions still lacks.

    Returns:
        the new scores of the first batches, as many as were needed, and how many are strictly larger than stored.
    """
    total, improved, rescored = len(stored), 0, []
    while True:
        to_accept = total // 2 + 1 - improved
        to_refuse = total - total // 2 - (len(rescored) - improved)
        batches = range(len(rescored), len(rescored) + min(to_accept, to_refuse))
        if not batches:
            return rescored, improved
        rescored += rescore(batches)
        improved += sum(rescored[i] > stored[i] for i in batches)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, weight: float) -> None:
    """teacher = weight · teacher + (1 − weight) · student for the parameters; buffers are copied."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - weight)
    buffers = list(teacher.buffers())
    if buffers:
        torch._foreach_copy_(buffers, list(student.buffers()))


@torch.no_grad()
def pull(model: nn.Module, anchor: Sequence[torch.Tensor], share: float) -> None:
    """parameters = (1 − share) · parameters + share · anchor; buffers are left alone.

    Args:
        anchor: one tensor per parameter, in their order.
    """
    torch._foreach_lerp_(list(model.parameters()), list(anchor), share)


@dataclass(frozen=True)
class StoredBatch:
    """One batch as the student scored it.

    Attributes:
        images: B×3×H×W uint8 full views, on the device that scores them.
        names: theirs.
        points: of SND.
        score: a scalar, as a function that waits for its copy on the host.
    """

    images: torch.Tensor
    names: tuple[str, ...]
    points: torch.Tensor | None
    score: Callable[[], torch.Tensor]


class DynamicTeacher:
    """Decides after every optimiser step whether the teacher follows the student.

    Args:
        teacher, student: modules of one architecture.
        options: the config node DTU.
        predictor: runs the student.
        micro_batch: images that it is run on at once.
        output: takes one row per decision (see :data:`HISTORY_FIELDS`).
        seed: the points of iteration i are drawn from (seed, i).

        anchor: what every move pulls the teacher's parameters back to, in their order; empty: nothing.

    Attributes:
        pull_share: how far, of the way; DTU.ANCHOR until a guard says otherwise.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        options,
        predictor: Predictor,
        micro_batch: int,
        output: RunOutput,
        seed: int,
        anchor: Sequence[torch.Tensor] = (),
    ):
        self.teacher, self.student, self.options = teacher, student, options
        self._predictor, self._micro_batch, self._output, self._seed = predictor, micro_batch, output, seed
        self._buffer: list[StoredBatch] = []
        self._anchor, self.pull_share = anchor, options.ANCHOR

    def before_step(self, iteration: int, images: torch.Tensor, names: Sequence[str], probs: torch.Tensor) -> None:
        """Score what the student makes of a batch, and remember both; only where DTU.DYNAMIC is set.

        Args:
            images: B×3×H×W uint8 full views, on the device that scores them; they are kept.
            names: theirs.
            probs: the student's N×C probabilities of them, of :func:`class_probabilities`.
        """
        points = None
        if self.options.PROXY_METRIC == "SND":
            points = to_device(draw_points(len(probs) * distributed.count(), self._seed, iteration), probs.device)
        if images.device.type == "cpu":  # the loader's memory is shared with its workers, and scarce in containers
            images = images.clone()
        self._buffer.append(StoredBatch(images, tuple(names), points, copy_to_host(self._score(probs, points))))

    def after_step(self, iteration: int) -> bool:
        """Move the teacher if this iteration (from 0) calls for it; returns whether it moved."""
        if not self.options.DYNAMIC:
            moved = iteration % self.options.FIX_ITERATION == 0
            if moved:
                self._move(iteration, decision="fixed")
            return moved
        count = len(self._buffer)
        since_start = count - self.options.Query_START
        if since_start < 0 or since_start % self.options.Query_STEP:
            return False
        if count > self.options.META_MAX_UPDATE:
            self._move(iteration, decision="forced", batches=count, scored=0)
            return True
        stored = [float(batch.score()) for batch in self._buffer]
        rescored, improved = count_improved(stored, self._rescore)
        majority, scored = 2 * improved > count, len(rescored)
        row = {
            "batches": count,
            "scored": scored,
            "improved": improved,
            "fraction_improved": _digits(improved / scored),
            "mean_before": _digits(math.fsum(stored[:scored]) / scored),
            "mean_after": _digits(math.fsum(rescored) / scored),
        }
        if majority:
            self._move(iteration, decision="improved", **row)
        else:
            self._record(iteration, decision="refused", **row)
        return majority

    def forget_last(self) -> None:
        """Take back the last :meth:`before_step`, if there was one: its iteration moved nothing."""
        if self.options.DYNAMIC:
            self._buffer.pop()

    def state_dict(self) -> dict:
        """The buffer, as one process would have it: images by name only, those of all processes."""
        parts = distributed.gathered([batch.names for batch in self._buffer])
        batches = [
            {"names": [name for part in parts for name in part[index]], "points": batch.points, "score": batch.score()}
            for index, batch in enumerate(self._buffer)
        ]
        return {"buffer": batches, "pull_share": self.pull_share}

    def load_state_dict(self, state: dict, full_views: Callable[[Sequence[str]], torch.Tensor | None]) -> None:
        """Take over what :meth:`state_dict` gave.

        Args:
            full_views: makes the 8-bit B×3×H×W full views of the images so named anew; None: they are gone, and so is
                the batch, which could not be scored again.
        """
        device = next(self.student.parameters()).device
        self.pull_share = state.get("pull_share", self.options.ANCHOR)
        shares = [distributed.share(len(batch["names"])) for batch in state["buffer"]]
        names = [b["names"][own.start : own.stop] for b, own in zip(state["buffer"], shares, strict=True)]
        views = [full_views(own) for own in names]
        gone = {index for part in distributed.gathered([v is None for v in views]) for index in np.flatnonzero(part)}
        self._buffer = [
            StoredBatch(
                to_device(images, device),
                tuple(own),
                None if batch["points"] is None else to_device(batch["points"], device),
                partial(torch.clone, batch["score"]),
            )
            for index, (batch, own, images) in enumerate(zip(state["buffer"], names, views, strict=True))
            if index not in gone
        ]

    def _rescore(self, batches: range) -> list[float]:
        """The new scores of some stored batches: all are asked for before the first is waited for."""
        stored = [self._buffer[index] for index in batches]
        return torch.stack([self._score(self.probabilities(b.images), b.points) for b in stored]).tolist()

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """The student's :func:`class_probabilities` of B×3×H×W uint8 images."""
        prepared = [self._predictor.prepare(part) for part in images.split(self._micro_batch)]
        return class_probabilities(self._predictor, self.student, prepared)

    def _score(self, probs: torch.Tensor, points: torch.Tensor | None) -> torch.Tensor:
        """The whole batch's score, one and the same in all processes."""
        if points is None:
            return distributed.agreed(distributed.total(entropy_score(probs)) / distributed.count())
        return distributed.agreed(snd_score(*_global_points(probs, points)))

    def _move(self, iteration: int, **row) -> None:
        ema_update(self.teacher, self.student, self.options.EMA_WEIGHT)
        if self.pull_share:
            pull(self.teacher, self._anchor, self.pull_share)
        self._buffer.clear()
        self._record(iteration, **row)

    def _record(self, iteration: int, **row) -> None:
        """A decision, into the history and TensorBoard."""
        self._output.append(HISTORY, dict.fromkeys(HISTORY_FIELDS) | {"iteration": iteration + 1} | row)
        shown = {"decision": DECISIONS.index(row["decision"])}
        if "batches" in row:
            shown["interval"] = row["batches"]  # one is stored in every iteration since the last move
        if "mean_after" in row:
            shown["score_change"] = row["mean_after"] - row["mean_before"]
        self._output.monitor.scalars(iteration + 1, {f"teacher/{name}": value for name, value in shown.items()})


@torch.no_grad()
def class_probabilities(predictor: Predictor, student: nn.Module, prepared: Sequence[torch.Tensor]) -> torch.Tensor:
    """N×C probabilities at stride 8 of a batch, in parts as networks take them; the student is put into eval mode."""
    student.eval()
    logits = [predictor.logits(student, images) for images in prepared]
    return torch.cat([part.softmax(dim=1).permute(0, 2, 3, 1).flatten(0, 2) for part in logits])


def _digits(value: float) -> float:
    """`value` in as many digits as mean something: sums of another order differ in later ones."""
    return float(f"{value:.9g}")


def _global_points(probs: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the rows of all processes' `probs` that `points` names, the place of each among them)."""
    if distributed.count() == 1:
        return probs, points
    local = points - len(probs) * distributed.rank()
    here = (local >= 0) & (local < len(probs))
    rows = torch.where(here.unsqueeze(1), probs[local.clamp(0, len(probs) - 1)], 0)
    return distributed.total(rows), torch.arange(len(points), device=points.device)


def draw_points(count: int, seed: int, iteration: int) -> torch.Tensor:
    """The (at most) 100 different rows of `count` that iteration `iteration` compares: an int64 vector."""
    rng = np.random.default_rng([seed, 0x504F, iteration])
    return torch.from_numpy(rng.choice(count, size=min(NUM_POINTS, count), replace=False, shuffle=False))
