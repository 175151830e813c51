"""What a run folder holds, read for tools.report: tables, config, environment, checkpoints."""

import json
from dataclasses import dataclass
from pathlib import Path

from core.configs import load_config
from core.configs.node import Config
from core.datasets.catalog import find_taxonomy
from core.datasets.taxonomy import Taxonomy
from core.programs.testing import find_checkpoints
from core.runs.output import CONFIG, ENVIRONMENT, EVALUATION, METRICS
from core.selftraining import candidates
from core.utils.errors import UserError
from tools.tables import read_table

HISTORY = "dtu_history.csv"


@dataclass(frozen=True)
class Run:
    """A run folder; tables are lists of rows, strings by column, empty where the run has none.

    Attributes:
        checkpoints: by iteration; empty before the first.
        environment: what the run was made with, empty where it did not say.
    """

    folder: Path
    config: Config
    taxonomy: Taxonomy
    metrics: list[dict]
    evaluations: list[dict]
    history: list[dict]
    candidates: list[dict]
    checkpoints: list[Path]
    environment: dict

    @classmethod
    def read(cls, folder: Path, options: list[str]) -> "Run":
        """Raises UserError where `folder` is no run; `options` overwrite those of its config, KEY VALUE."""
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not a run's folder: it holds no {CONFIG}; give the OUTPUT_DIR of a training")
        if not (folder / METRICS).is_file():
            raise UserError(f"{folder}: its run has no {METRICS} yet; the first rows come after 20 iterations")
        config = load_config(folder / CONFIG, options)
        checkpoints = find_checkpoints(str(folder)) if [*folder.glob("model_iter*.pth")] else []
        names = (METRICS, EVALUATION, HISTORY, candidates.TABLE)
        tables = [read_table(folder / name) for name in names]
        return cls(folder, config, find_taxonomy(config), *tables, checkpoints, _read_environment(folder))

    @property
    def done(self) -> int:
        """Iterations that the tables know of."""
        return int(self.metrics[-1]["iteration"]) if self.metrics else 0


def _read_environment(folder: Path) -> dict:
    try:
        found = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
