"""What a training run writes: log lines, tables, checkpoints and their evaluation. Shared by all trainers."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from core.datasets.taxonomy import Taxonomy
from core.evaluation.evaluator import Evaluator, report_lines, table_columns, table_row
from core.utils.checkpoints import save_checkpoint
from core.utils.devices import peak_memory
from core.utils.errors import UserError
from core.utils.files import Table, make_folder, replacing
from core.utils.logging import LOGGER

LOG_PERIOD = 20  # iterations
CONFIG, METRICS, EVALUATION = "config.yaml", "metrics.csv", "evaluation.csv"


class RunOutput:
    """The output folder of one run.

    Args:
        folder: OUTPUT_DIR, made by :func:`claim_folder`.
        taxonomy: the class set.
        stop: STOP_ITER.
        checkpoint_period: iterations between two checkpoints.
        device: whose peak memory is logged.
        evaluator: evaluates every checkpoint; None: they are only written.
    """

    def __init__(
        self,
        folder: Path,
        taxonomy: Taxonomy,
        stop: int,
        checkpoint_period: int,
        device: torch.device,
        evaluator: Evaluator | None = None,
    ):
        self.folder = folder
        self._taxonomy, self._stop, self._period = taxonomy, stop, checkpoint_period
        self._device, self._evaluator = device, evaluator
        self._tables: dict[str, Table] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._started = self._stretch_started = time.monotonic()
        self._aside = 0.0  # seconds of the current stretch that were no training

    def append(self, table: str, columns: Sequence[str], row: dict) -> None:
        """Add a row to a CSV of the folder, which its first row begins."""
        if table not in self._tables:
            self._tables[table] = Table(self.folder / table, columns)
        self._tables[table].append(row)

    def start_clock(self) -> None:
        """Training begins now (after a first pass over the data, say)."""
        self._started = self._stretch_started = time.monotonic()

    def completed(
        self, iteration: int, learning_rate: float, scalars: dict[str, torch.Tensor], model: nn.Module
    ) -> None:
        """An iteration was just completed: note its scalars, and write (and evaluate) `model` when that is due.

        The scalars' means are logged every 20 iterations; nothing waits for the device in between.
        """
        self._note(iteration, learning_rate, scalars)
        if iteration % self._period == 0 or iteration == self._stop:
            self._checkpoint(model, iteration)

    def _note(self, iteration: int, learning_rate: float, scalars: dict[str, torch.Tensor]) -> None:
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += 1
        if iteration % LOG_PERIOD and iteration != self._stop:
            return
        names, sums = list(self._sums), torch.stack(list(self._sums.values())).tolist()
        means = {name: value / self._count for name, value in zip(names, sums, strict=True)}
        now = time.monotonic()
        seconds = (now - self._stretch_started - self._aside) / self._count
        left = (now - self._started) / iteration * (self._stop - iteration)
        LOGGER.info(
            "iteration %d/%d  %s  lr %.3g  %.2f s/iteration  %s left  memory %.1f GB",
            iteration,
            self._stop,
            "  ".join(_readable(name, value) for name, value in means.items()),
            learning_rate,
            seconds,
            duration(left),
            peak_memory(self._device) / 1e9,
        )
        row = {"iteration": iteration, "lr": f"{learning_rate:.9g}"}
        row |= {name: f"{value:.9g}" for name, value in means.items()}
        self.append(METRICS, tuple(row), row)
        self._sums, self._count, self._aside = {}, 0, 0.0
        self._stretch_started = time.monotonic()

    def _checkpoint(self, model: nn.Module, iteration: int) -> None:
        """Write `model_iter%06d.pth`, and evaluate the model."""
        with self.aside():
            path = self.folder / f"model_iter{iteration:06d}.pth"
            save_checkpoint(model, path, iteration)
            LOGGER.info("wrote %s", path)
            if self._evaluator is None:
                return
            scores = self._evaluator.run(model)
            for line in report_lines(scores, self._taxonomy):
                LOGGER.info(line)
            columns = ("iteration", *table_columns(self._taxonomy))
            self.append(EVALUATION, columns, {"iteration": iteration, **table_row(scores, self._taxonomy)})

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Context of work whose time is not training time."""
        start = time.monotonic()
        yield
        self._aside += time.monotonic() - start


def claim_folder(path: str | Path, config_text: str) -> Path:
    """Make OUTPUT_DIR for a new run and write its config there, which marks the folder as taken.

    Raises:
        UserError: it cannot be written to, or holds a run already.
    """
    check_folder(path)
    folder = make_folder(path, "OUTPUT_DIR")
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(config_text, encoding="utf-8")
    return folder


def check_folder(path: str | Path) -> None:
    """Raise UserError if OUTPUT_DIR could not be claimed; nothing is made or written."""
    folder = Path(path)
    held = [*folder.glob("model_iter*.pth"), *folder.glob(METRICS), *folder.glob(CONFIG)]
    if held:
        raise UserError(
            f"OUTPUT_DIR {folder} holds a run already ({held[0].name}): give another OUTPUT_DIR, or remove it"
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"OUTPUT_DIR {folder} cannot be written to ({existing}); choose another folder")


def release_folder(folder: Path) -> None:
    """Give OUTPUT_DIR free again if the run ended before it had computed anything worth keeping."""
    if not [*folder.glob("model_iter*.pth"), *folder.glob(METRICS)]:
        (folder / CONFIG).unlink(missing_ok=True)


def duration(seconds: float) -> str:
    """`2:05:09`, or `5:09` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _readable(name: str, value: float) -> str:
    return f"{name} {100 * value:.1f} %" if name == "labelled" else f"{name} {value:.4f}"
