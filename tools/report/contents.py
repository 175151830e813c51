"""Everything about one run that its page (page.html) shows, as numbers, tables and figures."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import nn

from core.datasets.catalog import find_images, find_test_images
from core.datasets.reader import ImageSet
from core.datasets.sampling import even_subsample
from core.evaluation.confusion import shares_of_truth
from core.evaluation.evaluator import table_row
from core.evaluation.metrics import Scores
from core.evaluation.pictures import Painter
from core.programs import ranking
from core.runs.folder import ADAPTED
from core.runs.resume import new_model, numbered, source_checkpoint
from core.utils.devices import describe_device, prepare_device
from core.utils.errors import UserError
from core.utils.logging import LOGGER
from core.utils.tables import read_table
from tools.pages import Table
from tools.report.figures import Curve, bands, curves, decisions
from tools.report.run import Run
from tools.report.views import Observation, Viewer, extremes

RANKED_IMAGES = 100  # spread evenly: every checkpoint sees them
Shown = tuple[str, list[tuple[str, bytes]]]


class Shaded(str):
    """A cell with a background from red (−1) through none to green (1)."""

    def __new__(cls, words: str, strength: float):
        cell = super().__new__(cls, words)
        colour = "34,160,84" if strength > 0 else "220,60,60"
        cell.background = f"rgba({colour},{0.55 * min(abs(strength), 1):.2f})"
        return cell


class Report:
    """One run, and its models over the images.

    Args:
        run: what its folder holds.
        count: how many of the worst and of the best images to show; None: neither images nor models are touched.

    Attributes:
        labelled: whether the run, and so the page, has used labels.
        missing: what could not be shown, and why.
        ranking: rows of the checkpoints' order without labels.
        pictures: (caption, (column, JPEG file) of each view) of images by heading.
        changed: the same of those that adaptation changed most, where there is no label to order images by.
    """

    def __init__(self, run: Run, count: int | None):
        self.run, self.names = run, run.taxonomy.names
        self.test_names = run.scored.names
        self.painter = Painter.of(run.config.VIS, run.taxonomy)
        self.labelled = bool(run.evaluations)
        self.missing: list[str] = []
        self.source: Observation | None = None
        self.adapted: Observation | None = None
        self.pictures: dict[str, list[Shown]] = {}
        self.changed: list[Shown] = []
        self.ranking = self._written_ranking()
        if count is not None and not run.checkpoints:
            self.missing.append("There is no checkpoint yet: no images, no order of the checkpoints.")
        elif count is not None:
            self._look(count)

    # --- what takes the networks -------------------------------------------------------------------------------------

    def _look(self, count: int) -> None:
        config, run = self.run.config, self.run
        try:
            images = self._images()
        except UserError as error:
            self.missing.append(f"The images were not found: {error}")
            return
        device = prepare_device(config)
        LOGGER.info("device: %s", describe_device(device, config.MODEL.DEVICE))
        LOGGER.info("images: %d of %s", len(images), images.name)
        model = new_model(config).requires_grad_(False).to(device)
        if not self.ranking and len(numbered(run.checkpoints)) > 1:
            self.ranking = self._rank(model, images)
        viewer = Viewer(config, model, images, len(self.names))
        source = source_checkpoint(config)
        if source is not None and not source.is_file():
            self.missing.append(f"The source model {source} is not there any more.")
            source = None
        self.source = None if source is None else viewer.observe(source)
        self.adapted = viewer.observe(run.checkpoints[-1])
        self.labelled = self.adapted.scores is not None
        if count:
            self._take_pictures(viewer, [path for path in (source, run.checkpoints[-1]) if path], count)

    def _images(self) -> ImageSet:
        config = self.run.config
        if not config.DATASETS.TEST:
            return ranking.find_unlabelled_images(config)
        if self.run.evaluations:
            return find_test_images(config)
        return replace(find_images(config, "TEST"), label_path=None)  # the run did not use labels: nor does its report

    def _rank(self, model: nn.Module, images: ImageSet) -> list[dict]:
        chosen = even_subsample(len(images), RANKED_IMAGES, np.random.default_rng(self.run.config.SEED))
        unlabelled = replace(images.restricted(chosen), label_path=None)
        source = source_checkpoint(self.run.config)
        known = source if source is not None and source.is_file() else None
        found = ranking.rank(self.run.config, model, self.run.checkpoints, unlabelled, len(self.names), known)
        return ranking.rows(found, self.names)

    def _written_ranking(self) -> list[dict]:
        """What test.py --rank-without-labels wrote into the run's folder, if of the checkpoints that are there."""
        checkpoints = numbered(self.run.checkpoints)
        wanted = {path.name for path in checkpoints}
        newest = max((path.stat().st_mtime for path in checkpoints), default=0)
        for path in sorted(self.run.folder.glob(f"{ranking.TABLE}*.csv")):
            rows = read_table(path)
            if {row["checkpoint"] for row in rows} == wanted and path.stat().st_mtime >= newest:
                return rows
        return []

    def _take_pictures(self, viewer: Viewer, checkpoints: list[Path], count: int) -> None:
        values = self.adapted.per_image
        columns = ["image", *(["model"] if self.source is None else ["source", "adapted", "changed"]), "label"]
        headings = ("Worst", "Best") if self.labelled else ("Least sure", "Most sure")
        groups, changes = extremes(values, count), self.changes_per_image()
        changed = [int(index) for index in np.argsort(-changes, kind="stable")[:count] if changes[index] > 0]
        indices = list(dict.fromkeys(index for group in (changed, *groups) for index in group))
        drawn = dict(zip(indices, viewer.pictures(checkpoints, indices, self.painter), strict=True))

        def shown(index: int, what: str) -> Shown:
            return f"{Path(viewer.images.names[index]).name}: {what}", list(zip(columns, drawn[index], strict=False))

        def value(index: int) -> str:
            before = "" if self.source is None else f"{self.source.per_image[index]:.1f} → "
            return f"{'mIoU' if self.labelled else 'confidence'} {before}{values[index]:.1f} %"

        self.pictures = {
            heading: [shown(index, value(index)) for index in group]
            for heading, group in zip(headings, groups, strict=True)
        }
        self.changed = [shown(i, f"{changes[i]:.1f} % of the pixels changed class, {value(i)}") for i in changed]

    # --- what the page shows -----------------------------------------------------------------------------------------

    @property
    def source_scores(self) -> Scores | None:
        return None if self.source is None else self.source.scores

    @property
    def colours(self) -> list[tuple[str, list[int]]]:
        """Names of the classes, and RGB."""
        return list(zip(self.names, self.painter.palette.tolist(), strict=False))

    def changes_per_image(self) -> np.ndarray:
        """Percent of the pixels whose class adaptation changed; empty with labels, and without a source model."""
        if self.labelled or self.source is None:
            return np.zeros(0)
        return self.adapted.changed(self.source)

    def verdict(self) -> list[str]:
        """Of an automatic run the lines of its verdict."""
        verdict, checkpoints = self.run.verdict, numbered(self.run.checkpoints)
        if verdict is None:
            return []
        last = checkpoints[-1].name if checkpoints else "the last checkpoint"
        return verdict.lines(str(self.run.folder / ADAPTED), last)

    def cards(self) -> list[tuple[str, str]]:
        """Large figures, and what they are; the first, of the source model and the adapted one, may be a loss."""
        run, entries = self.run, []
        if self.source_scores:
            before, after = self.source_scores.mean_iou, self.adapted.scores.mean_iou
            entries.append((f"{before:.2f} → {after:.2f}", f"mIoU, source → adapted ({after - before:+.2f})"))
        elif run.evaluations:
            entries.append((f"{float(run.evaluations[-1]['mIoU']):.2f}", "mIoU of the last evaluation"))
        if len(run.evaluations) > 1:
            best = max(run.evaluations, key=lambda row: float(row["mIoU"]))
            entries.append((f"{float(best['mIoU']):.2f}", f"best mIoU by labels, iteration {best['iteration']}"))
        if not self.labelled and self.adapted is not None:
            before = "" if self.source is None else f"{self.source.per_image.mean():.1f} → "
            entries.append((f"{before}{self.adapted.per_image.mean():.1f} %", "mean confidence"))
        if len(changes := self.changes_per_image()):
            entries.append((f"{changes.mean():.1f} %", "of the pixels changed class"))
        entries.append((f"{run.done} / {run.config.SOLVER.STOP_ITER}", "iterations"))
        if run.history:
            moves = sum(row["decision"] != "refused" for row in run.history)
            entries.append((str(moves), "moves of the teacher"))
        if self.ranking:
            first = self.ranking[0]
            chosen = "source model" if first.get("ruin") else f"at {_iteration(first)}"
            entries.append((chosen, "checkpoint chosen without labels"))
        return entries

    def changes(self) -> list[tuple[str, float, float]]:
        """(name, source's, adapted) IoU of every class, and means, in percent."""
        before, after = (table_row(seen.scores, self.run.scored) for seen in (self.source, self.adapted))
        occurs, labelled = self.source.scores.occurs | self.adapted.scores.occurs, self.adapted.scores.labelled
        held = {"mIoU_occurring": occurs, "mIoU_labelled": labelled}
        same = [name for name, classes in held.items() if classes.all()]  # as mIoU
        shown = {
            f"IoU_{n}": n + " (occurs nowhere)" * (not seen) for n, seen in zip(self.test_names, occurs, strict=True)
        }
        for column in sorted(before, key=lambda name: not name.startswith("mIoU")):
            if not column.startswith(("IoU_", "accuracy_")) and column not in same:
                name = column.replace("_occurring", " (occurring)").replace("_labelled", " (labelled)")
                shown[column] = name.replace("mIoU_", "mIoU of ")
        return [(name, float(before[column]), float(after[column])) for column, name in shown.items()]

    def training(self) -> dict[str, bytes]:
        metrics = self.run.metrics
        losses = [name for name in ("loss", "positive", "negative") if name in metrics[0]]
        plots = {"Loss": curves({name: _curve(metrics, name) for name in losses})}
        plots["Learning rate of the backbone"] = curves({"learning rate": _curve(metrics, "lr")})
        if "labelled" in metrics[0]:
            plots["Pixels with a label, %"] = curves({"labelled": _curve(metrics, "labelled", 100)})
        return plots

    def progress(self) -> bytes:
        level = ("source", self.source_scores.mean_iou) if self.source_scores else None
        return curves({"mIoU": _curve(self.run.evaluations, "mIoU")}, level, marks=True)

    def over_time(self) -> Table:
        source, shown, rows = self.source_scores, spread(self.run.evaluations), []
        for number, name in enumerate(self.test_names):
            values = [float(row[f"IoU_{name}"]) for row in shown]
            first = source.iou[number] if source else values[0]
            start = [f"{first:.1f}"] if source else []
            rows.append((name, *start, *(Shaded(f"{value:.1f}", (value - first) / 15) for value in values)))
        return Table(("IoU, %", *(["source"] if source else []), *(row["iteration"] for row in shown)), rows)

    def taken_for(self) -> Table:
        """Of every class that the truth holds, the shares that the adapted model takes for each class."""
        scores, rows = self.adapted.scores, []
        classes = np.flatnonzero(scores.occurs)
        for number, shares in enumerate(shares_of_truth(scores.confusion)[: len(self.test_names), classes]):
            if scores.confusion[number].any():
                strengths = np.where(classes == number, shares, -2 * shares) / 100
                words = [f"{share:.1f}" if share >= 0.05 else "" for share in shares]
                rows.append((self.test_names[number], *map(Shaded, words, strengths)))
        return Table(("truth, %", *(self.test_names[number] for number in classes)), rows)

    def order(self) -> tuple[Table, float | None]:
        """The checkpoints, and by how many points of mIoU the first is behind the best, where labels tell."""
        evaluated = {int(row["iteration"]): float(row["mIoU"]) for row in self.run.evaluations}
        head = ["checkpoint", "mean rank", "agreement, %", "confidence, %", "diversity", "classes", "SND"]
        rows = []
        for row in self.ranking:
            line = [str(_iteration(row)), f"{float(row['mean_rank']):.2f}"]
            line += [f"{100 * float(row[name]):.2f}" for name in ("agreement", "confidence")]
            line += [f"{float(row['diversity']):.3f}", row["classes"], f"{float(row['snd']):.3f}"]
            rows.append(line + [f"{evaluated.get(_iteration(row), float('nan')):.2f}"] * bool(evaluated))
        first = evaluated.get(_iteration(self.ranking[0]))
        behind = None if first is None else max(evaluated.values()) - first
        return Table(head + ["mIoU, %"] * bool(evaluated), rows, strong=0), behind

    @property
    def scored(self) -> list[dict]:
        """The teacher's queries that scored the student."""
        return [row for row in self.run.history if row["mean_before"]]

    @property
    def improved(self) -> float:
        """Percent."""
        return 100 * sum(float(row["fraction_improved"]) for row in self.scored) / len(self.scored)

    def teacher(self) -> dict[str, bytes]:
        history, scored = self.run.history, self.scored
        plots = {"Queries: fraction of the stored batches that improved": decisions(history)}
        moves = [int(row["iteration"]) for row in history if row["decision"] != "refused"]
        if len(moves) > 1:
            gaps = (moves[1:], [after - before for before, after in pairwise(moves)])
            plots["Iterations between two moves of the teacher"] = curves({"interval": gaps})
        if scored:
            lines = {name: _curve(scored, f"mean_{name}") for name in ("before", "after")}
            plots[f"{self.run.config.DTU.PROXY_METRIC} score of the student, before and after"] = curves(lines)
        return plots

    def decision_counts(self) -> str:
        counts = Counter(row["decision"] for row in self.run.history)
        return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())

    def offering(self, shown: Sequence[dict]) -> Table:
        """Of the generations `shown`, in how many images a class is offered."""
        rows = []
        for name in self.names:
            counts = [(row[f"offering_{name}"], max(int(row["images"]), 1)) for row in shown]
            rows.append((name, *(Shaded(count, int(count) / images) for count, images in counts)))
        return Table(("images offering", *map(_generation, shown)), rows)

    def agreement(self, shown: Sequence[dict]) -> Table:
        """Of the later ones, how well they agree with the one before; without rows where there are none."""
        later = [row for row in shown if row[f"consistency_{self.names[0]}"]]
        if not later:
            return Table((), ())
        ious = np.array([[float(row[f"consistency_{name}"]) for row in later] for name in self.names])
        means = ious.sum(0) / (ious > 0).sum(0).clip(1)  # of the classes that occur
        names = (*self.names, "mean of classes")
        rows = [(name, *(f"{100 * iou:.1f}" for iou in row)) for name, row in zip(names, [*ious, means], strict=True)]
        return Table(("mean IoU, %", *map(_generation, later)), rows, strong=len(self.names))

    def shares(self, shown: Sequence[dict]) -> Table:
        rows = [(name, *(f"{100 * float(row[f'share_{name}']):.2f}" for row in shown)) for name in self.names]
        return Table(("pixels, %", *(row["iteration"] for row in shown)), rows)

    def bands(self) -> bytes:
        rows = self.run.candidates
        shares = {name: [float(row[f"share_{name}"]) for row in rows] for name in self.names}
        colours = [f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in self.colours]
        return bands([int(row["iteration"]) for row in rows], shares, colours)


def spread(rows: Sequence[dict], count: int = 12) -> list[dict]:
    """At most `count` rows, evenly, the first and the last included."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (count - 1))] for place in range(count)]


def _curve(rows: Sequence[dict], column: str, scale: float = 1) -> Curve:
    return [int(row["iteration"]) for row in rows], [scale * float(row[column]) for row in rows]


def _iteration(row: dict) -> int:
    """120 of `model_iter000120.pth`."""
    return int(Path(row["checkpoint"]).stem.removeprefix("model_iter"))


def _generation(row: dict) -> str:
    return f"g{int(row['generation']):04d}"
