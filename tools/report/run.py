"""What a run folder holds, read for tools.report: tables, config, environment, checkpoints, verdict."""

import json
from dataclasses import dataclass
from pathlib import Path

from core.adaptation.guard import Verdict
from core.configs import load_config
from core.configs.node import Config
from core.datasets.catalog import find_pairing, find_taxonomy
from core.datasets.taxonomy import Taxonomy
from core.runs.folder import CANDIDATES, CONFIG, ENVIRONMENT, EVALUATION, HISTORY, METRICS, VERDICT
from core.runs.resume import checkpoints_in
from core.utils.errors import UserError
from core.utils.tables import read_table


@dataclass(frozen=True)
class Run:
    """A run folder; tables are lists of rows, strings by column, empty where the run has none.

    Attributes:
        scored: the classes that evaluations score; mostly `taxonomy`.
        checkpoints: by iteration, and last the adapted model where the run has one; empty before the first.
        environment: what the run was made with, empty where it did not say.
        verdict: what an automatic run holds of its adapted model; None of others, and before the end.
    """

    folder: Path
    config: Config
    taxonomy: Taxonomy
    scored: Taxonomy
    metrics: list[dict]
    evaluations: list[dict]
    history: list[dict]
    candidates: list[dict]
    checkpoints: list[Path]
    environment: dict
    verdict: Verdict | None

    @classmethod
    def read(cls, folder: Path, options: list[str]) -> "Run":
        """Raises UserError where `folder` is no run; `options` overwrite those of its config, KEY VALUE."""
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is not a run's folder: it holds no {CONFIG}; give the OUTPUT_DIR of a training")
        if not (folder / METRICS).is_file():
            raise UserError(f"{folder}: its run has no {METRICS} yet; the first rows come after 20 iterations")
        config = load_config(folder / CONFIG, options)
        tables = [read_table(folder / name) for name in (METRICS, EVALUATION, HISTORY, CANDIDATES)]
        found = checkpoints_in(folder), _read_object(folder / ENVIRONMENT), _read_verdict(folder)
        taxonomy, pairing = find_taxonomy(config), find_pairing(config)
        return cls(folder, config, taxonomy, pairing.taxonomy if pairing else taxonomy, *tables, *found)

    @property
    def done(self) -> int:
        """Iterations that the tables know of."""
        return int(self.metrics[-1]["iteration"]) if self.metrics else 0


def _read_verdict(folder: Path) -> Verdict | None:
    try:
        return Verdict(**_read_object(folder / VERDICT))
    except TypeError:  # it is not there, or not one of ours
        return None


def _read_object(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
