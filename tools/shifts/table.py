"""What runs over shifts came to: a row per shift and seed, and three lines about all of them; as text, CSV and page."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.runs.folder import CHECKPOINTS
from core.utils.errors import UserError
from tools.pages import page_environment

ADAPTED = "model_adapted.pth"  # the model that a run picked, where it picks one
HEAD = ("shift", "seed", "source", "last", "picked", "best", "at")
GAINS = ("last−source", "picked−source", "best−source")
SECONDS = "seconds"
FAILED = "failed"
IOU = "IoU_"
Scores = Mapping[str, float]  # test.py's columns


@dataclass(frozen=True)
class Row:
    """One run. Scores are mIoU in percent; they are 0 where it failed.

    Attributes:
        source: of the model that it started from.
        last, picked: of its last checkpoint, and of the one that it picked (the last one where it picks none).
        best, iteration: of its best checkpoint by labels, and which one that is.
        classes: IoU per class by column of the CSV, source_… and picked_….
        error: why it failed; empty where it did not.
    """

    shift: str
    seed: int
    source: float = 0.0
    last: float = 0.0
    picked: float = 0.0
    best: float = 0.0
    iteration: int = 0
    seconds: float = 0.0
    classes: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def gains(self) -> tuple[float, float, float]:
        """Of the last, the picked and the best one."""
        return self.last - self.source, self.picked - self.source, self.best - self.source


@dataclass(frozen=True)
class Summary:
    """Of the rows that did not fail.

    Attributes:
        mean: whose numbers are the means over them.
        worst: with the least picked−source.
        ratio: the sum of picked−source to that of best−source; None where the latter is not above 0.
    """

    mean: Row
    worst: Row
    ratio: float | None


def row_of(shift: str, seed: int, source: Scores, scores: Mapping[str, Scores], seconds: float) -> Row:
    """A run's row.

    Args:
        source: of its source model.
        scores: of its checkpoints by their files' names.
    Raises:
        UserError: no numbered checkpoint is among them.
    """
    pattern = re.escape(CHECKPOINTS).replace(r"\*", r"(\d+)")
    matches = {name: re.fullmatch(pattern, name) for name in scores}
    numbered = {int(match[1]): scores[name] for name, match in matches.items() if match}
    if not numbered:
        raise UserError(f"no {CHECKPOINTS} was evaluated")
    last = numbered[max(numbered)]
    picked = scores.get(ADAPTED, last)
    best = max(sorted(numbered), key=lambda iteration: numbered[iteration]["mIoU"])  # the first of several
    classes = {
        f"{name}_{column}": value
        for name, model in (("source", source), ("picked", picked))
        for column, value in model.items()
        if column.startswith(IOU)
    }
    numbers = (source["mIoU"], last["mIoU"], picked["mIoU"], numbered[best]["mIoU"])
    return Row(shift, seed, *numbers, best, seconds, classes)


def summarise(rows: Sequence[Row]) -> Summary | None:
    """The last lines of the table; None where every run failed."""
    done = [row for row in rows if not row.error]
    if not done:
        return None
    columns = ("source", "last", "picked", "best", SECONDS)
    means = {name: sum(getattr(row, name) for row in done) / len(done) for name in columns}
    _, picked, best = (sum(gains) for gains in zip(*(row.gains for row in done), strict=True))
    return Summary(
        Row("mean", 0, **means), min(done, key=lambda row: row.gains[1]), picked / best if best > 0 else None
    )


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The table for a terminal."""
    summary = summarise(rows)
    lines = [(*HEAD, *GAINS, SECONDS), *map(cells, rows)]
    if summary is not None:
        lines.append(cells(summary.mean))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[0] *= -1  # names stand left, numbers right
    text = ["  ".join(map(_aligned, line, widths)).rstrip() for line in lines]
    return text + closing_lines(summary)


def _aligned(cell: str, width: int) -> str:
    return cell.ljust(-width) if width < 0 else cell.rjust(width)


def closing_lines(summary: Summary | None) -> list[str]:
    """The worst loss, and how much of what could be gained was."""
    if summary is None:
        return []
    worst, ratio = summary.worst, "–" if summary.ratio is None else f"{100 * summary.ratio:.0f} %"
    return [
        f"worst picked−source: {worst.gains[1]:+.2f} ({worst.shift}, seed {worst.seed})",
        f"gains in all, picked/best: {ratio}",
    ]


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown; the mean has neither seed nor iteration."""
    seed, iteration = (str(number) if number else "" for number in (row.seed, row.iteration))
    if row.error:
        return (row.shift, seed, FAILED, *[""] * (len(HEAD) + len(GAINS) - 2))
    scores = (f"{score:.2f}" for score in (row.source, row.last, row.picked, row.best))
    return (row.shift, seed, *scores, iteration, *(f"{gain:+.2f}" for gain in row.gains), f"{row.seconds:.0f}")


def csv_text(rows: Sequence[Row]) -> str:
    """Every number; columns of classes that a shift does not have stay empty in its row."""
    classes = list(dict.fromkeys(column for row in rows for column in row.classes))
    gains = [name.replace("−source", "_gain") for name in GAINS]
    scores = ("source", "last", "picked", "best")
    columns = ["shift", "seed", *scores, "best_iteration", *gains, SECONDS, *classes, FAILED]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        numbers = {"shift": row.shift, "seed": row.seed, FAILED: row.error}
        if not row.error:
            numbers |= {name: f"{getattr(row, name):.4f}" for name in scores}
            numbers |= {name: f"{gain:.4f}" for name, gain in zip(gains, row.gains, strict=True)}
            numbers |= {"best_iteration": row.iteration, SECONDS: f"{row.seconds:.1f}"}
            numbers |= {name: f"{value:.4f}" for name, value in row.classes.items()}
        writer.writerow(numbers)
    return text.getvalue()


def page(rows: Sequence[Row], title: str, command: str) -> str:
    """The same table as one HTML file that holds all it shows, with a bar per gain."""
    summary = summarise(rows)
    shown = [*rows, *([summary.mean] if summary else [])]
    most = max((abs(gain) for row in shown for gain in row.gains), default=0) or 1.0
    template = page_environment(Path(__file__).parent).get_template("page.html")
    head = (*HEAD, *GAINS, SECONDS)
    return template.render(
        title=title, command=command, head=head, rows=shown, cells=cells, closing=closing_lines(summary), most=most
    )
