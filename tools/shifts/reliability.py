"""How well the estimated precision of a class tells its true one: over shifts, with the labels of their test sets.

The estimate, of :func:`core.adaptation.looks.reliability`, needs no label, and nothing is chosen by what is found here.
It is measured of the source model, and of the one that a run starts as, whose batch norms are mixed.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import nn

from core.adaptation.looks import Looks, kept, look_at, reliability
from core.adaptation.survey import looking, mix_norms
from core.configs.choices import Choices
from core.configs.node import Config
from core.datasets.catalog import find_target_images, find_taxonomy, find_test_images
from core.datasets.reader import ImageSet
from core.datasets.sampling import even_subsample
from core.evaluation.metrics import joint_counts
from core.evaluation.predictor import Predictor
from core.runs.known import with_network
from core.runs.resume import load_model, source_checkpoint
from core.selftraining.automatic import trainer_for
from core.utils.devices import device_errors, prepare_device
from core.utils.errors import UserError
from core.utils.files import make_folder, replacing, write_text
from tools.shifts.declared import Shift
from tools.shifts.workplace import Workplace

NAME = "reliability"  # .csv and .png
MODELS = ("source", "start")
MEASURED = 64  # images of a test set, at most, spread evenly
LEAST_SHARE = 5e-4  # of the pixels that a class must win to be measured
SEED = 1  # of the run whose start it is
_SUBSAMPLE = 0x524C  # key of the random stream that picks the images
_MARKERS = "os^vD*PX"


@dataclass(frozen=True)
class Point:
    """A class of one model on one shift.

    Attributes:
        model: one of MODELS.
        name: of the class.
        share: of the pixels that it wins.
        estimated, true: precision.
        mirrored, smaller: the share of its pixels that keep it in either look; their product is the estimate.
    """

    shift: str
    model: str
    name: str
    share: float
    estimated: float
    true: float
    mirrored: float
    smaller: float


@dataclass(frozen=True)
class Fit:
    """What some points come to; NaN where they are too few, or all alike.

    Attributes:
        rank: Spearman's correlation.
        error: mean of |true − estimated|.
        slope, offset: of the straight line true ≈ slope · estimated + offset, by least squares.
    """

    count: int
    rank: float
    error: float
    slope: float
    offset: float


def run_reliability(workplace: Workplace, shifts: Sequence[Shift]) -> list[str]:
    """Measure every shift, print and write what was found; returns the names of those that failed."""
    points, failed = [], []
    for shift in shifts:
        try:
            points += measure(workplace, shift)
            print(f"{shift.name}: measured", flush=True)
        except UserError as error:
            failed.append(shift.name)
            print(f"{shift.name}: failed: {error}", flush=True)
    print("\n" + "\n".join(table_lines(points)), flush=True)
    folder = make_folder(workplace.results, "--folder")
    write_text(folder / f"{NAME}.csv", csv_text(points))
    with replacing(folder / f"{NAME}.png") as temporary:
        draw(points).savefig(temporary, format="png", dpi=110)
    for ending in ("csv", "png"):
        print(f"wrote {folder / NAME}.{ending}")
    return failed


def measure(workplace: Workplace, shift: Shift) -> list[Point]:
    """The points of both models. Raises UserError for what is missing or cannot be read."""
    config, begun = workplace.start_of(shift, SEED)
    config = with_network(config, source_checkpoint(config))
    with device_errors(config, training=False):
        return _measure(config, begun, shift.name)


def _measure(config: Config, begun: bool, shift: str) -> list[Point]:
    device = prepare_device(config)
    taxonomy, tests = find_taxonomy(config), find_test_images(config)
    if tests.label_path is None:
        raise UserError(f"DATASETS.TEST {tests.name} has no labels to compare with")
    tests = tests.restricted(even_subsample(len(tests), MEASURED, np.random.default_rng([config.SEED, _SUBSAMPLE])))
    targets, model = find_target_images(config), load_model(config, device)
    points = _points(shift, MODELS[0], model, tests, taxonomy.names, Predictor(config, device))
    if not (begun and config.ADAPT.AUTO):
        choices, kind = Choices(config), trainer_for(config)
        kind.choose(choices, targets)
        kind.settle(choices, model, targets, taxonomy)
        config = choices.config
    elif config.ADAPT.NORM_MIX:  # as the run has chosen it
        mix_norms(model, config.ADAPT.NORM_MIX, targets, looking(Predictor(config, device)))
    return points + _points(shift, MODELS[1], model, tests, taxonomy.names, Predictor(config, device))


def _points(
    shift: str, which: str, model: nn.Module, tests: ImageSet, names: Sequence[str], predictor: Predictor
) -> list[Point]:
    unlabelled = ImageSet(tests.name, tests.paths, tests.names)
    looks = look_at(model, unlabelled, len(names), predictor, f"{shift}: looking with the {which} model")
    true, estimated, keeping = true_precision(looks, tests), reliability(looks.joint), kept(looks.joint)
    return [
        Point(shift, which, name, looks.shares[c], estimated[c], true[c], *keeping[:, c])
        for c, name in enumerate(names)
        if looks.shares[c] >= LEAST_SHARE and not np.isnan(true[c])
    ]


def true_precision(looks: Looks, images: ImageSet) -> np.ndarray:
    """C floats: the share of every class's labelled pixels that are right; NaN where none of them is labelled.

    Args:
        images: with labels, in the order of the looks.
    """
    classes, right = len(looks.probabilities), np.zeros((len(looks.probabilities),) * 2, np.int64)
    for index, file in enumerate(looks.labels):
        winners = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
        labels = nearest(images.read_label(index), winners.shape)
        right += joint_counts(winners, np.ascontiguousarray(labels))[:classes, :classes]  # IGNORE lies beyond
    won = right.sum(axis=1)
    return np.where(won > 0, right.diagonal() / np.maximum(won, 1), np.nan)


def nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label at fewer pixels, each the one nearest to where upsampled logits (aligned corners) have it.

    Args:
        size: (h, w).
    """
    rows, columns = (
        (2 * np.arange(few) * (many - 1) + few - 1) // (2 * max(few - 1, 1))
        for many, few in zip(label.shape, size, strict=True)
    )
    return label[np.ix_(rows, columns)]


def ranks(values: Sequence[float]) -> np.ndarray:
    """From 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation of the :func:`ranks`; NaN where one side is all ties."""
    one, other = (ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    length = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / length) if length > 0 else float("nan")


def fit(points: Sequence[Point]) -> Fit:
    """Of points of any shifts and models."""
    x, y = (np.array([getattr(point, name) for point in points], float) for name in ("estimated", "true"))
    if not len(points):
        return Fit(0, *[float("nan")] * 4)
    centred = x - x.mean()
    slope = centred @ y / (centred @ centred) if np.ptp(x) > 0 else float("nan")
    numbers = (np.abs(y - x).mean(), slope, y.mean() - slope * x.mean())
    return Fit(len(points), spearman(x, y), *map(float, numbers))


def table_lines(points: Sequence[Point]) -> list[str]:
    """A line per shift and model, and two of all shifts together."""
    shifts = list(dict.fromkeys(point.shift for point in points))
    width = max(map(len, (*shifts, "all shifts")))
    lines = [f"{'shift':<{width}}  {'model':<6}  classes  Spearman  error  line: true ≈"]
    for name in (*shifts, ""):
        for model in MODELS:
            found = fit([point for point in points if point.model == model and point.shift == (name or point.shift)])
            lines.append(
                f"{name or 'all shifts':<{width}}  {model:<6}  {found.count:7}  {found.rank:8.2f}  {found.error:5.3f}  "
                f"{found.slope:.2f} · estimated {'-' if found.offset < 0 else '+'} {abs(found.offset):.2f}"
            )
    return lines


def csv_text(points: Sequence[Point]) -> str:
    """A row per point."""
    columns = [{"name": "class"}.get(field.name, field.name) for field in fields(Point)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for point in points:
        values = [getattr(point, field.name) for field in fields(Point)]
        writer.writerow([f"{value:.6f}" if isinstance(value, float) else value for value in values])
    return text.getvalue()


def draw(points: Sequence[Point]) -> Figure:
    """Estimated precision across, the true one upwards, of each model; a colour and a marker for every shift."""
    shifts, colours = list(dict.fromkeys(point.shift for point in points)), matplotlib.colormaps["tab10"]
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(MODELS), sharex=True, sharey=True)
    for axes, model in zip(panels, MODELS, strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for number, shift in enumerate(shifts):
            own = [point for point in points if (point.model, point.shift) == (model, shift)]
            x, y = [point.estimated for point in own], [point.true for point in own]
            marker, label = _MARKERS[number % len(_MARKERS)], shift if model == MODELS[0] else None
            axes.scatter(x, y, s=16, color=colours(number % 10), marker=marker, label=label, alpha=0.8, linewidths=0)
        axes.set(title=f"{model} model", xlabel="estimated precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_aspect("equal")
    panels[0].set_ylabel("true precision")
    if shifts:
        figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    return figure
