"""The clock of the benchmark: a stage and its limit, timed in turns."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from core.datasets.catalog import find_target_images, find_taxonomy
from core.evaluation.predictor import Predictor
from core.models import build_model
from core.utils.devices import prepare_device, recent_peak_memory, reset_peak_memory

HEADER = f"{'stage':<42}{'time':>13}  {'limit':<40}{'its time':>13}{'ratio':>8}{'peak':>12}"


@dataclass(frozen=True)
class Row:
    """One line of the table: medians in seconds; peak memory in bytes beyond what was held at the start."""

    stage: str
    seconds: float
    limit: str
    limit_seconds: float
    peak: int = 0

    @property
    def ratio(self) -> float:
        return self.seconds / self.limit_seconds

    def line(self) -> str:
        times = [f"{1000 * seconds:10.1f} ms" for seconds in (self.seconds, self.limit_seconds)]
        peak = f"{self.peak / 1e6:9.0f} MB" if self.peak else ""
        return f"{self.stage:<42}{times[0]}  {self.limit:<40}{times[1]}{self.ratio:8.2f}{peak}"


class Bench:
    """An experiment, and a clock.

    Args:
        config: a whole config, whose target images lie in `folder`.
        folder: takes whatever is written.
        repeats: of every measurement.
    """

    def __init__(self, config, folder: Path, repeats: int):
        self.config, self.folder, self.repeats = config, folder, repeats
        self.device = prepare_device(config)
        self.taxonomy, self.images = find_taxonomy(config), find_target_images(config)
        self.predictor = Predictor(config, self.device)
        self.rows: list[Row] = []

    def model(self, config=None) -> nn.Module:
        torch.manual_seed(0)
        return build_model(config or self.config).to(self.device)

    def measure(self, stage: str, action: Callable, limit: str, limit_action: Callable) -> Row:
        """Time both in turns, after one round that does not count."""
        taken = [(*self.watched(action), self.seconds(limit_action)) for _ in range(self.repeats + 1)]
        seconds, peaks, limits = zip(*taken[1:], strict=True)
        return self.add(Row(stage, median(seconds), limit, median(limits), max(0, *peaks)))

    def add(self, row: Row) -> Row:
        print(row.line(), flush=True)
        self.rows.append(row)
        return row

    def watched(self, action: Callable) -> tuple[float, int]:
        """Seconds, and the peak of the memory beyond what was held before."""
        reset_peak_memory(self.device)
        held, _ = recent_peak_memory(self.device)
        seconds = self.seconds(action)
        return seconds, recent_peak_memory(self.device)[1] - held

    def seconds(self, action: Callable) -> float:
        self._wait()
        start = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
