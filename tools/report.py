"""One page about a training run: how it went, what it made of the model, and with what.

Writes one HTML file that holds all it shows: curves, IoU per class, source → adapted, the dynamic teacher's decisions,
candidates, an order of the checkpoints without labels, the worst and best images, config, environment and command. No
network and no script is needed to read it. Of a run without labels it shows the label-free signals instead of IoU. The
run may still be going on.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import nn

from core.configs.loading import split_options
from core.datasets.catalog import find_images, find_test_images
from core.datasets.reader import ImageSet
from core.evaluation.evaluator import table_row
from core.evaluation.pictures import Painter
from core.models import build_model
from core.programs import ranking
from core.programs.frame import Parser, run_program
from core.selftraining.candidates import TABLE as CANDIDATES
from core.selftraining.resampling import even_subsample
from core.utils.devices import describe_device, device_errors, prepare_device
from core.utils.errors import UserError, shorten
from core.utils.files import make_folder, write_text
from core.utils.logging import LOGGER, start_logging
from tools import report_page as html
from tools.report_figures import bands, curves, decisions
from tools.report_run import Run, read_table
from tools.report_views import Observation, Viewer, extremes

EXAMPLE = "python -m tools.report results/camvid_day2dusk_dtst -o report.html"
FILE = "report.html"
IMAGES = 3  # worst ones, and as many best ones
RANKED_IMAGES = 100  # spread evenly: every checkpoint sees them
MAX_COLUMNS = 12  # of a table over time


class Report:
    """Everything about one run that a page shows.

    Args:
        run: what its folder holds.
        count: how many of the worst and of the best images to show; None: neither images nor models are touched.
    """

    def __init__(self, run: Run, count: int | None):
        self.run, self.names = run, run.taxonomy.names
        self.labelled = bool(run.evaluations)
        self.missing: list[str] = []  # what could not be shown, and why
        self.source: Observation | None = None
        self.adapted: Observation | None = None
        self.pictures: list[tuple[str, str, list[bytes]]] = []  # (heading, caption, JPEG files)
        self.ranking = self._written_ranking()
        if count is None:
            return
        if not run.checkpoints:
            self.missing.append("There is no checkpoint yet: no images, no order of the checkpoints.")
            return
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
        model = build_model(config).requires_grad_(False).to(device)
        if not self.ranking and len(run.checkpoints) > 1:
            self.ranking = self._rank(model, images)
        viewer = Viewer(config, model, images, len(self.names))
        source = Path(config.resume) if config.resume else None
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
        found = ranking.rank(self.run.config, model, self.run.checkpoints, unlabelled, len(self.names))
        return ranking.rows(found, self.names)

    def _written_ranking(self) -> list[dict]:
        """What test.py --rank-without-labels wrote into the run's folder, if of the checkpoints that are there."""
        wanted = {path.name for path in self.run.checkpoints}
        newest = max((path.stat().st_mtime for path in self.run.checkpoints), default=0)
        for path in sorted(self.run.folder.glob(f"{ranking.TABLE}*.csv")):
            rows = read_table(path)
            if {row["checkpoint"] for row in rows} == wanted and path.stat().st_mtime >= newest:
                return rows
        return []

    def _take_pictures(self, viewer: Viewer, checkpoints: list[Path], count: int) -> None:
        taxonomy, values = self.run.taxonomy, self.adapted.per_image
        worst, best = extremes(values, count)
        what = "mIoU" if self.labelled else "confidence"
        painter = Painter(taxonomy, taxonomy.palette())
        drawn = viewer.pictures(checkpoints, [*worst, *best], painter)
        headings = [self._headings[0]] * len(worst) + [self._headings[1]] * len(best)
        for heading, index, files in zip(headings, [*worst, *best], drawn, strict=True):
            before = "" if self.source is None else f"{self.source.per_image[index]:.1f} → "
            caption = f"{Path(viewer.images.names[index]).name}: {what} {before}{values[index]:.1f} %"
            self.pictures.append((heading, caption, files))

    # --- sections ----------------------------------------------------------------------------------------------------

    def html(self) -> str:
        config = self.run.config
        data = config.DATASETS
        from_to = f"{data.SOURCE_TRAIN} → {data.TARGET_TRAIN}" if data.TARGET_TRAIN else data.SOURCE_TRAIN
        subtitle = f"{from_to} · {config.MODEL.NAME} · {len(self.names)} classes"
        parts = [self.summary(), self.source_to_adapted(), self.training(), self.over_time(), self.order()]
        parts += [self.teacher(), self.candidates(), self.shares(), self.images(), self.made_with()]
        return html.page(self.run.folder.resolve().name, subtitle, filter(None, parts))

    def summary(self) -> str:
        run, entries = self.run, []
        if self.source is not None and self.source.scores is not None:
            before, after = self.source.scores.mean_iou, self.adapted.scores.mean_iou
            entries.append((f"{before:.2f} → {after:.2f}", f"mIoU, source → adapted ({after - before:+.2f})"))
        elif run.evaluations:
            entries.append((f"{float(run.evaluations[-1]['mIoU']):.2f}", "mIoU of the last evaluation"))
        if len(run.evaluations) > 1:
            best = max(run.evaluations, key=lambda row: float(row["mIoU"]))
            entries.append((f"{float(best['mIoU']):.2f}", f"best mIoU by labels, iteration {best['iteration']}"))
        if not self.labelled and self.adapted is not None:
            before = "" if self.source is None else f"{self.source.per_image.mean():.1f} → "
            entries.append((f"{before}{self.adapted.per_image.mean():.1f} %", "mean confidence"))
        entries.append((f"{run.done} / {run.config.SOLVER.STOP_ITER}", "iterations"))
        if run.history:
            counts = Counter(row["decision"] for row in run.history)
            entries.append((str(sum(counts.values()) - counts["refused"]), "moves of the teacher"))
        if self.ranking:
            entries.append((f"at {_iteration(self.ranking[0]['checkpoint'])}", "checkpoint chosen without labels"))
        return html.cards(entries) + "".join(map(html.note, self.missing))

    def source_to_adapted(self) -> str:
        if self.source is None or self.source.scores is None:
            return ""
        before, after = (table_row(seen.scores, self.run.taxonomy) for seen in (self.source, self.adapted))
        rows, occurs = [], self.source.scores.occurs | self.adapted.scores.occurs
        names = [name for name in before if name.startswith("mIoU") or name in ("mAcc", "allAcc")]
        if occurs.all():
            names.remove("mIoU_occurring")
        for column in [f"IoU_{name}" for name in self.names] + names:
            first, second = float(before[column]), float(after[column])
            name = column.removeprefix("IoU_")
            if name in self.names and not occurs[self.names.index(name)]:
                name += " (occurs nowhere)"
            name = name.replace("_occurring", " (occurring)").replace("mIoU_", "mIoU of ")
            change, bar = html.change(second - first), html.bar(second, first)
            rows.append((name, f"{first:.2f}", f"{second:.2f}", change, bar))
        head = ("IoU, %", "source", "adapted", "change", html.Cell("adapted, and | the source", html.BARS))
        last = self.run.checkpoints[-1].name
        words = f"{self.run.config.resume} and {last}, evaluated on {self.run.config.DATASETS.TEST} for this page."
        return html.section("Source → adapted", html.table(head, rows, strong=[len(self.names)]), html.note(words))

    def training(self) -> str:
        metrics = self.run.metrics
        x = [int(row["iteration"]) for row in metrics]

        def column(name: str, scale: float = 1) -> tuple[list[int], list[float]]:
            return x, [scale * float(row[name]) for row in metrics]

        losses = [name for name in ("loss", "positive", "negative") if name in metrics[0]] if metrics else []
        if not losses:
            return html.section("Training", html.note("No row of metrics yet."))
        parts = [html.plot("Loss", curves({name: column(name) for name in losses}))]
        parts.append(html.plot("Learning rate of the backbone", curves({"learning rate": column("lr")})))
        if "labelled" in metrics[0]:
            parts.append(html.plot("Pixels with a label, %", curves({"labelled": column("labelled", 100)})))
        return html.section("Training", html.figures(parts))

    def over_time(self) -> str:
        rows = self.run.evaluations
        if not rows:
            return ""
        x = [int(row["iteration"]) for row in rows]
        source = None if self.source is None or self.source.scores is None else self.source.scores
        level = None if source is None else ("source", source.mean_iou)
        lines = {"mIoU": (x, [float(row["mIoU"]) for row in rows])}
        figure = html.figures([html.plot("mIoU, %", curves(lines, level, marks=True))])
        shown = _spread(rows, MAX_COLUMNS)
        cells = []
        for number, name in enumerate(self.names):
            values = [float(row[f"IoU_{name}"]) for row in shown]
            first = values[0] if source is None else source.iou[number]
            start = [] if source is None else [f"{first:.1f}"]
            cells.append((name, *start, *(html.shaded(f"{value:.1f}", (value - first) / 15) for value in values)))
        head = ("IoU, %", *(["source"] if source is not None else []), *(row["iteration"] for row in shown))
        words = f"Colours: change against the {'source model' if source is not None else 'first evaluation'}."
        return html.section("IoU over time", figure, html.table(head, cells), html.note(words))

    def order(self) -> str:
        if not self.ranking:
            return ""
        evaluated = {int(row["iteration"]): float(row["mIoU"]) for row in self.run.evaluations}
        head = ["checkpoint", "mean rank", "agreement, %", "confidence, %", "diversity", "classes", "SND"]
        rows = []
        for row in self.ranking:
            line = [_iteration(row["checkpoint"]), f"{float(row['mean_rank']):.2f}"]
            line += [f"{100 * float(row[name]):.2f}" for name in ("agreement", "confidence")]
            line += [f"{float(row['diversity']):.3f}", row["classes"], f"{float(row['snd']):.3f}"]
            rows.append([*line, *([f"{evaluated.get(int(line[0]), float('nan')):.2f}"] if evaluated else [])])
        words = (
            "The most promising first, by the mean of three ranks, none of which needs a label: agreement with the "
            "checkpoints before and after (share of pixels), mean confidence, and diversity (entropy of class shares)."
        )
        if evaluated:
            head.append("mIoU, %")
            if int(rows[0][0]) in evaluated:
                behind = max(evaluated.values()) - evaluated[int(rows[0][0])]
                words += f" By labels, the first is {behind:.2f} points behind the best."
        return html.section("Checkpoints, ordered without labels", html.table(head, rows, strong=[0]), html.note(words))

    def teacher(self) -> str:
        history = self.run.history
        if not history:
            return ""
        moves = [int(row["iteration"]) for row in history if row["decision"] != "refused"]
        parts = [html.plot("Queries: fraction of the stored batches that improved", decisions(history))]
        if len(moves) > 1:
            gaps = (moves[1:], [after - before for before, after in pairwise(moves)])
            parts.append(html.plot("Iterations between two moves of the teacher", curves({"interval": gaps})))
        scored = [row for row in history if row["mean_before"]]
        if scored:
            x = [int(row["iteration"]) for row in scored]
            lines = {name: (x, [float(row[f"mean_{name}"]) for row in scored]) for name in ("before", "after")}
            metric = self.run.config.DTU.PROXY_METRIC
            parts.append(html.plot(f"{metric} score of the student, before and after", curves(lines)))
        counts = Counter(row["decision"] for row in history)
        words = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        fractions = [float(row["fraction_improved"]) for row in scored]
        mean = (
            f"; on average {100 * sum(fractions) / len(fractions):.0f} % of what was scored had improved"
            if scored
            else ""
        )
        return html.section("Dynamic teacher", html.figures(parts), html.note(f"Decisions: {words}{mean}."))

    def candidates(self) -> str:
        rows = self.run.candidates
        if not rows:
            known = self.run.config.TCR.RESAMPLE or self.run.config.TCR.PASTE
            words = f"The run recorded none ({CANDIDATES} is missing)."
            return html.section("Candidates", html.note(words)) if known and self.run.history else ""
        shown = _spread(rows, MAX_COLUMNS)
        head = ("images offering", *(f"g{int(row['generation']):04d}" for row in shown))
        cells = [
            (
                name,
                *(
                    html.shaded(row[f"offering_{name}"], int(row[f"offering_{name}"]) / max(int(row["images"]), 1))
                    for row in shown
                ),
            )
            for name in self.names
        ]
        words = (
            f"Made after {', '.join(row['iteration'] for row in shown)} iterations, of {shown[-1]['images']} images."
        )
        parts = [html.table(head, cells), html.note(words)]
        later = [row for row in shown if row[f"consistency_{self.names[0]}"]]
        if later:
            parts.append("<h3>Agreement of each generation with the one before</h3>")
            head = ("mean IoU, %", *(f"g{int(row['generation']):04d}" for row in later))
            cells = [(name, *(_percent(row[f"consistency_{name}"]) for row in later)) for name in self.names]
            means = [[float(row[f"consistency_{name}"]) for name in self.names] for row in later]
            occurring = [[value for value in values if value > 0] for values in means]
            cells.append(("mean of classes", *(_percent(sum(v) / max(len(v), 1)) for v in occurring)))
            parts.append(html.table(head, cells, strong=[len(self.names)]))
        return html.section("Candidates", *parts)

    def shares(self) -> str:
        rows = self.run.candidates
        if not rows:
            return ""
        shown = _spread(rows, MAX_COLUMNS)
        palette = self.run.taxonomy.palette()[: len(self.names)].tolist()
        head = ("pixels, %", *(row["iteration"] for row in shown))
        cells = [(name, *(f"{100 * float(row[f'share_{name}']):.2f}" for row in shown)) for name in self.names]
        parts = [html.table(head, cells)]
        if len(rows) > 1:
            shares = {name: [float(row[f"share_{name}"]) for row in rows] for name in self.names}
            colours = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette]
            figure = bands([int(row["iteration"]) for row in rows], shares, colours)
            parts = [
                html.figures([html.plot("Share of the teacher's pixels, by class", figure)]),
                self._legend(),
                *parts,
            ]
        return html.section(
            "Label shares", *parts, html.note("Of the teacher's labels in the candidate passes, by iteration.")
        )

    def images(self) -> str:
        if not self.pictures:
            return ""
        models = ["model"] if self.source is None else ["source", "adapted"]
        columns = ["image", *models, *(["label"] if self.labelled else [])]
        parts = [self._legend()]
        for heading in self._headings:
            shown = [entry for entry in self.pictures if entry[0] == heading]
            if shown:
                parts.append(f"<h3>{heading}</h3>")
            for _, caption, files in shown:
                parts.append(html.note(caption))
                views = [html.view(file, column, caption) for column, file in zip(columns, files, strict=True)]
                parts.append(html.figures(views, "views"))
        kind = "mIoU of the classes in its label" if self.labelled else "mean confidence"
        return html.section(f"Images, by {kind}", *parts)

    def made_with(self) -> str:
        found = self.run.environment
        parts = []
        if command := found.get("command"):
            parts += ["<h3>Command</h3>", html.code(command, wrap=True)]
        rows = [(key, value) for key, value in found.items() if key != "command" and value != ""]
        parts += ["<h3>Environment</h3>", html.facts(rows)] if rows else [html.note("The run did not note it.")]
        parts.append(html.details("Config: every option in force", html.code(self.run.config.dump())))
        return html.section("Made with", *parts)

    @property
    def _headings(self) -> tuple[str, str]:
        return ("Worst", "Best") if self.labelled else ("Least sure", "Most sure")

    def _legend(self) -> str:
        palette = self.run.taxonomy.palette().tolist()
        return html.legend(zip(self.names, palette, strict=False))


def _iteration(checkpoint: str) -> str:
    """`model_iter000120.pth` → `120`."""
    return str(int(Path(checkpoint).stem.removeprefix("model_iter")))


def _percent(value: str | float) -> str:
    return f"{100 * float(value):.1f}"


def _spread(rows: Sequence[dict], count: int) -> list[dict]:
    """At most `count` rows, evenly, the first and the last included."""
    if len(rows) <= count:
        return list(rows)
    return [rows[round(place * (len(rows) - 1) / (count - 1))] for place in range(count)]


def write_report(args: argparse.Namespace) -> None:
    """Everything is read and drawn before the file is written."""
    start_logging()
    options, words = split_options(args.words)
    if len(words) != 1:
        raise UserError(f"give one run's folder, not {shorten(words) or 'none'}; try --help")
    run = Run.read(Path(words[0]), options)
    out = Path(args.out) if args.out else run.folder / FILE
    refuse_other_file(out)
    with device_errors(run.config, training=False):
        content = Report(run, None if args.no_images else args.images).html()
    make_folder(out.absolute().parent, "-o")
    write_text(out, content)
    LOGGER.info("wrote %s (%.1f MB)", out, len(content.encode()) / 1e6)


def refuse_other_file(path: Path) -> None:
    """Raise UserError if `path` is there and no earlier report."""
    if path.is_dir():
        raise UserError(f"-o {path} is a folder: give the name of a file")
    if not path.exists():
        return
    with path.open("rb") as file:
        if html.MARK.encode() not in file.read(200):
            raise UserError(f"-o {path} is there and is no report: choose another name")


def _count(words: str) -> int:
    count = int(words)
    if not 0 <= count <= 50:
        raise ValueError
    return count


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit code."""
    parser = Parser(
        prog="python -m tools.report",
        description=__doc__,
        epilog=f"example: {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN | KEY VALUE",
        help="the run's OUTPUT_DIR; and options of its config that have changed since, as DATASETS.ROOT",
    )
    parser.add_argument("-o", "--out", metavar="FILE", help=f"(default: RUN/{FILE})")
    parser.add_argument(
        "--images",
        type=_count,
        default=IMAGES,
        metavar="N",
        help=f"show the N worst and N best images (default {IMAGES})",
    )
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="only what the run recorded: no model is run, so no source → adapted and no new order of the checkpoints",
    )
    return run_program(write_report, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
