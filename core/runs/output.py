"""What a training run writes: log lines, tables, checkpoints, states and evaluations. Shared by all trainers."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from core.adaptation.guard import Verdict
from core.datasets.taxonomy import Taxonomy
from core.evaluation.confusion import write_confusion
from core.evaluation.evaluator import report_lines, table_row
from core.evaluation.metrics import Scores
from core.evaluation.pictures import Painter
from core.runs.folder import ADAPTED, CONFUSION, EVALUATION, METRICS, SOURCE_EVALUATION, VERDICT, cut_back
from core.runs.monitor import Monitor, tensorboard_is_there
from core.runs.states import StateFolder
from core.utils import checkpoints, distributed, signals
from core.utils.devices import peak_memory
from core.utils.files import Table, write_json
from core.utils.logging import LOGGER
from core.utils.tables import row_of

LOG_PERIOD = 20  # iterations
FIRST_LINE, QUIET = 25.0, 600.0  # seconds of training without a line: at its start, and later


class RunOutput:
    """OUTPUT_DIR of one run. Of several processes all call its methods, and the main one writes.

    Args:
        config: a whole config; nothing is made or written before the first call.
        taxonomy: the class set.
        device: whose peak memory is logged.

    Attributes:
        monitor: shows the run while it lasts.
        resumed: the iteration that the run goes on from; None: it is new.
        evaluated: iterations.
        scored: the classes that evaluations score.
    """

    def __init__(self, config, taxonomy: Taxonomy, device: torch.device):
        self.folder, solver, vis = Path(config.OUTPUT_DIR), config.SOLVER, config.VIS
        self.states = StateFolder(self.folder, solver.KEEP_STATES)
        painter, shown = Painter.of(vis, taxonomy), distributed.is_main()
        tensorboard = shown and vis.TENSORBOARD and tensorboard_is_there()
        self.monitor = Monitor(self.folder, painter, vis.PERIOD * shown, tensorboard)
        self.resumed: int | None = None
        self.evaluated: set[int] = set()
        self.scored = taxonomy
        self._taxonomy, self._stop, self._device = taxonomy, solver.STOP_ITER, device
        self._test_images = config.DATASETS.TEST
        self._tables: dict[str, Table] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._count, self._told_end = 0, False
        self._saved: tuple[int, str | None] | None = None  # iteration and generation of the last state
        self._waiting: threading.Timer | None = None  # says so where the first iteration takes long
        self.start_clock()

    def append(self, table: str, row: dict) -> None:
        """Add a row to a CSV of the folder, which its first row begins; all have the same columns."""
        if not distributed.is_main():
            return
        if table not in self._tables:
            self._tables[table] = Table(self.folder / table, tuple(row), keep=self.resumed is not None)
        self._tables[table].append(row)

    def start_clock(self, iteration: int = 0) -> None:
        """Training begins now (after a first pass over the data, say), with so many iterations completed."""
        self._started = self._stretch_started = self._spoke = time.monotonic()
        self._first, self._timed = iteration, 0
        self._aside = 0.0  # seconds of the current stretch that were no training
        self._patience = FIRST_LINE

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Context of the training: says so where its first iteration takes long."""
        line = "the first iteration (start of the loader's workers, first batch, step) takes longer than %.0f s"
        self._waiting = threading.Timer(FIRST_LINE, LOGGER.info, (line, FIRST_LINE))
        self._waiting.daemon = True
        self._waiting.start()
        try:
            yield
        finally:
            self._waiting.cancel()

    def completed(
        self,
        iteration: int,
        learning_rate: float,
        scalars: dict[str, torch.Tensor],
        per_class: Callable[[], dict[str, torch.Tensor]] = dict,
    ) -> None:
        """An iteration was just completed: note its scalars (none of a step that was skipped).

        Their means are logged every 20 iterations; nothing waits for the device in between.

        Args:
            per_class: gives what is shown along with them, C floats by name, on the device.
        """
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += bool(scalars)
        self._timed += 1
        if self._waiting is not None:
            self._waiting.cancel()
        if iteration % LOG_PERIOD == 0 or iteration == self._stop:
            if self._count:
                self._log_means(iteration, learning_rate, per_class())
            self._sums, self._count, self._timed, self._aside = {}, 0, 0, 0.0
            self._stretch_started = time.monotonic()
        elif self._quiet_for_long():
            self._log_progress(iteration)

    def _quiet_for_long(self) -> bool:
        """Whether the log would have been silent for too long after one iteration more."""
        now = time.monotonic()
        step = (now - self._stretch_started - self._aside) / self._timed
        return now - self._spoke + step > self._patience

    def _log_progress(self, iteration: int) -> None:
        now = time.monotonic()
        step = (now - self._stretch_started - self._aside) / self._timed
        left = duration(self._seconds_left(iteration))
        LOGGER.info("iteration %d/%d  %.2f s/iteration  %s left", iteration, self._stop, step, left)
        self._spoke, self._patience = now, QUIET

    def _seconds_left(self, iteration: int) -> float:
        return (time.monotonic() - self._started) / (iteration - self._first) * (self._stop - iteration)

    def _log_means(self, iteration: int, learning_rate: float, per_class: dict[str, torch.Tensor]) -> None:
        names, sums = list(self._sums), torch.stack(list(self._sums.values()))
        values = torch.cat([sums, *per_class.values()]).tolist()  # one copy from the device
        means = {name: value / self._count for name, value in zip(names, values, strict=False)}
        now = time.monotonic()
        memory = peak_memory(self._device) / 1e9
        seconds = (now - self._stretch_started - self._aside) / self._timed
        left = self._seconds_left(iteration)
        self._spoke, self._patience = now, QUIET
        LOGGER.info(
            "iteration %d/%d  %s  lr %.3g  %.2f s/iteration  %s left  memory %.1f GB",
            iteration,
            self._stop,
            "  ".join(_readable(name, value) for name, value in means.items()),
            learning_rate,
            seconds,
            duration(left),
            memory,
        )
        if not self._told_end and iteration < self._stop:
            self._told_end = True
            end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left))
            LOGGER.info("expected end: %s, candidate passes and evaluations to come apart", end)
        shown = means | {"lr": learning_rate, "seconds_per_iteration": seconds, "memory_GB": memory}
        tags = [f"{kind}/{name}" for kind in per_class for name in self._taxonomy.names]
        shown = {f"train/{name}": value for name, value in shown.items()}
        self.monitor.scalars(iteration, shown | dict(zip(tags, values[len(names) :], strict=True)))
        row = {"iteration": iteration, "lr": f"{learning_rate:.9g}"}
        row |= {name: f"{value:.9g}" for name, value in means.items()}
        self.append(METRICS, row)

    def save_checkpoint(self, model: nn.Module, iteration: int) -> None:
        """Write `model`, after `iteration`, in the published format."""
        if distributed.is_main():
            path = self.folder / f"model_iter{iteration:06d}.pth"
            checkpoints.save_checkpoint(model, path, iteration)
            LOGGER.info("wrote %s", path)

    def save_verdict(self, model: nn.Module, iteration: int, verdict: Verdict) -> None:
        """Write the model that a run hands over, and say, there and in the log, what is believed of it."""
        path = self.folder / ADAPTED
        for line in verdict.lines(str(path), f"model_iter{iteration:06d}.pth"):
            LOGGER.info(line)
        if distributed.is_main():
            checkpoints.save_checkpoint(model, path, iteration)
            write_json(self.folder / VERDICT, asdict(verdict))

    def evaluation(self, iteration: int, scores: Scores) -> None:
        """Log the scores of a checkpoint, write its confusion matrix, and add both to tables and TensorBoard."""
        for line in report_lines(scores, self.scored, self._test_images):
            LOGGER.info(line)
        if distributed.is_main():
            title = f"{self._test_images}, iteration {iteration}: mIoU {scores.mean_iou:.2f}"
            picture = write_confusion(self.folder / CONFUSION, scores.confusion, self.scored.names, title)
            self.monitor.picture(iteration, "confusion", picture)
        row = table_row(scores, self.scored)
        self.append(EVALUATION, {"iteration": iteration, **row})
        self.evaluated.add(iteration)
        self.monitor.scalars(iteration, {_evaluation_tag(column): float(value) for column, value in row.items()})

    def evaluate_once(self, table: str, model: str, iteration: int, evaluate: Callable[[], Scores]) -> None:
        """Evaluate a model that is no checkpoint of the run's iterations, unless its table has a row of it already.

        Args:
            table: SOURCE_EVALUATION or ADAPTED_EVALUATION.
            model: its file.
            iteration: after which it was made; 0 of the source model.
        """
        path = self.folder / table
        if self.resumed is not None and distributed.from_main(lambda: row_of(path, iteration)):
            return
        LOGGER.info("evaluating %s", model)
        scores = evaluate()
        with signals.deferred():
            for line in report_lines(scores, self.scored, self._test_images):
                LOGGER.info(line)
            row = table_row(scores, self.scored)
            self.append(table, {"iteration": iteration, "checkpoint": model, **row})
            if table == SOURCE_EVALUATION:
                self.monitor.scalars(0, {_evaluation_tag(column): float(value) for column, value in row.items()})

    def save_state(self, state: dict) -> Path:
        """Write a run's state, unless the last one written is that of the same moment; returns its file."""
        moment = (state["iteration"], state["generation"])
        if moment != self._saved:
            if distributed.is_main():
                self.states.write(state)
            self._saved = moment
        return self.newest_state()

    def newest_state(self) -> Path | None:
        """The file of the newest state, if there is one."""
        return next(reversed(self.states.paths()), None)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Context of work whose time is not training time."""
        start = time.monotonic()
        yield
        self._aside += time.monotonic() - start

    def state_dict(self) -> dict:
        """The sums that the next row of metrics is made of."""
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: dict, iteration: int, generation: int) -> None:
        """Go on after `iteration` with the candidates numbered `generation`; rows of later ones are dropped."""
        self._sums = {name: value.to(self._device) for name, value in state["sums"].items()}
        self._count, self.resumed = state["count"], iteration
        if distributed.is_main():
            self.monitor.go_on(iteration)
        self.evaluated = distributed.from_main(lambda: cut_back(self.folder, iteration, generation))


def duration(seconds: float) -> str:
    """`2:05:09`, or `5:09` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _evaluation_tag(column: str) -> str:
    """A class's score under the score's name, as `IoU/road`; the means together, as `evaluation/mIoU`."""
    score, _, name = column.partition("_")
    return f"{score}/{name}" if name and score in ("IoU", "accuracy") else f"evaluation/{column}"


def _readable(name: str, value: float) -> str:
    return f"{name} {100 * value:.1f} %" if name == "labelled" else f"{name} {value:.4f}"
