"""The whole story on toy domains: draw them, train a source model, adapt it three ways, compare, and show a picture.

Every step is one of the project's own commands, which is printed before it runs; what an earlier demo has finished is
used again.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if not __package__:  # started by its path, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core.configs import load_config
from core.datasets.catalog import ImageSet, find_taxonomy, find_test_images, output_names
from core.datasets.images import read_image, read_label
from core.datasets.taxonomy import IGNORE, Taxonomy
from core.evaluation.metrics import confusion_matrix, iou, mean_iou_in_label
from core.evaluation.pictures import Painter
from core.programs.frame import Parser, run_program
from core.utils.environment import from_here
from core.utils.errors import UserError
from core.utils.files import replacing
from core.utils.tables import read_table
from tools.runs import Run, claim_folder
from tools.toy_domains.drawing import COUNTS

SOURCE_CONFIG, ADAPTATION_CONFIG = "configs/toy_src.yaml", "configs/toy_dtst.yaml"
AUTOMATIC_CONFIG = "configs/adapt.yaml"
TARGET = "toy_target_val"
LENGTH = "1100"  # iterations of source training, so that the demo stays below twelve minutes; the config has 1800
SOURCE_OPTIONS = ("SOLVER.MAX_ITER", LENGTH, "SOLVER.STOP_ITER", LENGTH, "SOLVER.CHECKPOINT_PERIOD", LENGTH)
DRAWING_OPTIONS: tuple[str, ...] = ()  # of tools.toy_domains
QUARTILES = {"25th percentile": 0.25, "median image": 0.5, "75th percentile": 0.75}  # of the improvement
MARKS = {"gained": (20, 90, 230), "lost": (225, 30, 30), "wrong": (250, 205, 100)}  # pixels, between two predictions
MEANINGS = {"gained": "gained: right only after", "lost": "lost: right only before", "wrong": "wrong before and after"}
DIMMED, LIFTED = 0.5, 75  # pixels that stay right: LIFTED + DIMMED · grey
TOLD = 2  # classes that gained most, and as many that lost most
MARK = ".demo.json"


@dataclass(frozen=True)
class DemoRun(Run):
    """A training run of the demo, under its title in the table."""

    title: str

    @property
    def evaluation(self) -> Path:
        """Inside the run's own folder, so that it goes with it."""
        return self.folder / "evaluation"

    def predictions(self, dataset: str) -> Path:
        return self.evaluation / "inference" / dataset


class Demo:
    """The demo in one folder.

    Args:
        folder: for everything that it makes; new, empty, or an earlier demo's.
        seed: of source training and adaptation; each has a sub-folder of its own.
    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, folder: Path, seed: int):
        amp = claim_folder(folder, MARK, "the demo")
        self.domains, runs = folder / "domains", folder / f"seed_{seed}"
        self.picture = runs / "before_and_after.png"
        common = ("DATASETS.ROOT", str(self.domains), "SEED", str(seed), "SOLVER.AMP", amp)
        trained = (*common, *SOURCE_OPTIONS)
        self.source = DemoRun("train_src.py", SOURCE_CONFIG, runs / "source", trained, "source model")
        self.adapted = (*common, "resume", str(self.source.checkpoint))
        program, off = "train_TCR_DTU.py", ("DTU.DYNAMIC", "False", "TCR.RESAMPLE", "False", "TCR.PASTE", "False")
        fixed = (*self.adapted, *off)
        self.fixed = DemoRun(program, ADAPTATION_CONFIG, runs / "fixed_ema", fixed, "fixed EMA")
        self.full = DemoRun(program, ADAPTATION_CONFIG, runs / "full_method", self.adapted, "full method")
        # no setting: the source model's file says the rest
        automatic = (*self.adapted, "DATASETS.TARGET_TRAIN", "toy_target_train", "DATASETS.TEST", TARGET)
        self.automatic = DemoRun(program, AUTOMATIC_CONFIG, runs / "automatic", automatic, "automatic")

    def run(self) -> None:
        """Make or reuse every part, print the table and the path of the picture.

        Raises:
            UserError: a command failed.
        """
        adaptations = (self.fixed, self.full, self.automatic)
        runs = (self.source, *adaptations)
        drawn = all((self.domains / name).is_dir() for name in COUNTS)
        draw = ["-m", "tools.toy_domains", str(self.domains), *DRAWING_OPTIONS]
        self._make(self.domains, drawn, draw, [run.folder for run in runs])
        for run in runs:
            command = [run.program, "-cfg", run.config_file, *(["--skip-test"] if run is not self.source else [])]
            later = [adaptation.folder for adaptation in adaptations] if run is self.source else []
            self._make(run.folder, run.is_complete(), [*command, *run.words], later)
        at_home = self._evaluate(self.source, SOURCE_CONFIG, "toy_source_val")
        # adaptation starts from the source model with frozen batch norm, so that is what "before" means
        on_target = [self._evaluate(run, ADAPTATION_CONFIG, TARGET) for run in runs]
        config = load_config(ADAPTATION_CONFIG, self.full.words)
        taxonomy = find_taxonomy(config)
        titles = ("source model at home", *(f"{run.title} on the target" for run in runs))
        print("\n" + "\n".join(table_lines(taxonomy, titles, [at_home, *on_target])))
        shown = {"source": self.source.predictions(TARGET), "automatic": self.automatic.predictions(TARGET)}
        palette = Painter.of(config.VIS, taxonomy).palette
        draw_picture(self.picture, find_test_images(config), taxonomy, palette, shown)
        print(f"\npicture: {self.picture}")

    def _make(self, folder: Path, complete: bool, words: Sequence[str], later: Sequence[Path]) -> None:
        """Run a command that makes `folder`, unless it is complete; what was made from it (`later`) goes first."""
        if complete:
            print(f"reused: {folder}", flush=True)
            return
        for old in (*later, folder):
            if old.exists():
                print(f"removed: {old} (incomplete, or made with something else)", flush=True)
                shutil.rmtree(old)
        run_command(words)

    def _evaluate(self, run: DemoRun, config_file: str, dataset: str) -> dict[str, float]:
        """Scores of a run's checkpoint by column of test.py's table."""
        table = run.evaluation / f"test_{dataset}.csv"
        scores = read_scores(table)
        if scores is not None and run.predictions(dataset).is_dir():
            print(f"reused: {table}", flush=True)
            return scores
        words = ["test.py", "-cfg", config_file, "--saveres", *self.adapted[:-1], str(run.checkpoint)]
        run_command([*words, "OUTPUT_DIR", str(run.evaluation), "DATASETS.TEST", dataset])
        return read_scores(table)


def read_scores(table: Path) -> dict[str, float] | None:
    """The one row of a table of test.py; None unless it is there and whole."""
    rows = read_table(table)
    if len(rows) != 1:
        return None
    return {column: float(value) for column, value in rows[0].items() if column != "checkpoint"}


def run_command(words: Sequence[str]) -> None:
    """Print and run `python …`. Raises UserError if it fails."""
    words = from_here(words)
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise UserError(f"the command above ended with exit code {code}; mend what it says and run the demo again")


def table_lines(taxonomy: Taxonomy, titles: Sequence[str], scores: Sequence[dict[str, float]]) -> list[str]:
    """IoU per class and mIoU, a column per title; then what the last two bring back: the published, the automatic one.

    Args:
        titles, scores: first the source model's at home and on the target.
    """
    width = max(map(len, (*taxonomy.names, "mIoU")))
    rows = [(name, [score[f"IoU_{name}"] for score in scores]) for name in taxonomy.names]
    rows.append(("mIoU", [score["mIoU"] for score in scores]))
    lines = ["  ".join((" " * width, *(f"{title:>6}" for title in titles)))]
    for name, values in rows:
        cells = (f"{value:{max(len(title), 6)}.2f}" for title, value in zip(titles, values, strict=True))
        lines.append("  ".join((f"{name:<{width}}", *cells)))
    home, before, *_, published, automatic = (score["mIoU"] for score in scores)

    def gain(after: float) -> str:
        share = f" ({100 * (after - before) / (home - before):.0f} %)" if home > before else ""
        return f"{after - before:.2f}{share}"

    gains = f"automatic adaptation brings back {gain(automatic)}, the published method {gain(published)}"
    return [*lines, f"the shift costs {home - before:.2f} points of mIoU; {gains}"]


def mean_ious(images: ImageSet, taxonomy: Taxonomy, folder: Path) -> np.ndarray:
    """Of every image the mean IoU (percent) of the classes in its label; NaN where that is empty.

    Args:
        folder: of predictions, palette PNGs as test.py --saveres writes them.
    """
    pairs = ((read_label(folder / name), images.read_label(index)) for index, name in enumerate(output_names(images)))
    return np.array([mean_iou_in_label(confusion_matrix(found, label, len(taxonomy))) for found, label in pairs])


def at_quartiles(before: np.ndarray, after: np.ndarray) -> dict[str, int]:
    """The images at the quartiles of the improvement, by what they are."""
    order = np.argsort(after - before, kind="stable")
    order = order[: np.isfinite(after - before).sum()]  # NaNs stand last
    return {name: int(order[round(place * (len(order) - 1))]) for name, place in QUARTILES.items()}


def change_map(image: np.ndarray, label: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """H×W×3 uint8: pixels by :data:`MARKS`, right ones in pale grey, those without a label black."""
    picture = np.repeat(LIFTED + DIMMED * image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    was, is_now = before == label, after == label
    picture[~was & ~is_now] = MARKS["wrong"]
    picture[~was & is_now] = MARKS["gained"]
    picture[was & ~is_now] = MARKS["lost"]
    picture[label == IGNORE] = 0
    return picture


def shares(label: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Percent of the labelled pixels that are gained, lost, and wrong after."""
    counted = max(int((label != IGNORE).sum()), 1)
    was, is_now = ((seen == label) | (label == IGNORE) for seen in (before, after))
    found = {"gained": ~was & is_now, "lost": was & ~is_now, "wrong": ~is_now}
    return {name: 100 * int(pixels.sum()) / counted for name, pixels in found.items()}


def class_changes(taxonomy: Taxonomy, label: np.ndarray, before: np.ndarray, after: np.ndarray) -> str:
    """Of one image the classes whose IoU (percent) gained and lost most: `light +30, sign +12; pole −4`."""
    one, other = (iou(confusion_matrix(seen, label, len(taxonomy))).numpy() for seen in (before, after))
    held = np.unique(label[label != IGNORE])
    gains = sorted(((100 * float(other[c] - one[c]), taxonomy.names[c]) for c in held), reverse=True)
    best = [f"{name} {gain:+.0f}" for gain, name in gains[:TOLD] if gain >= 0.5]
    worst = [f"{name} −{-gain:.0f}" for gain, name in gains[::-1][:TOLD] if gain <= -0.5]
    return "; ".join(", ".join(names) for names in (best, worst) if names) or "no class gained or lost"


def draw_picture(
    path: Path, images: ImageSet, taxonomy: Taxonomy, palette: np.ndarray, predictions: dict[str, Path]
) -> None:
    """Of three images, in two rows each: image and two predictions; ground truth, the errors, gains and losses.

    They are those at the quartiles of the improvement, so that the picture neither flatters nor hides.

    Args:
        palette: 256×3 uint8 RGB.
        predictions: folders of palette PNGs as test.py --saveres writes them by title: before and after.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    names, (first, second) = output_names(images), predictions
    scores = [mean_ious(images, taxonomy, folder) for folder in predictions.values()]
    chosen = at_quartiles(*scores)
    figure = pyplot.figure(figsize=(11.4, 4.6 * len(chosen) + 1.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.05, wspace=0, hspace=0)
    groups = figure.subfigures(len(chosen), 1, squeeze=False)[:, 0]
    for group, (words, index) in zip(groups, chosen.items(), strict=True):
        image, label = read_image(images.paths[index]), images.read_label(index)
        before, after = (read_label(folder / names[index]) for folder in predictions.values())
        was, now = (float(values[index]) for values in scores)
        at_first, change = shares(label, before, before)["wrong"], shares(label, before, after)
        told = ", ".join(f"{share:.1f} % {name}" for name, share in change.items())
        by_class = class_changes(taxonomy, label, before, after)
        cells = [
            (words, image),
            (f"{first}: mIoU {was:.1f}", palette[before]),
            (f"{second}: mIoU {now:.1f} ({now - was:+.1f})".replace("-", "−"), palette[after]),
            ("ground truth", palette[label]),
            (f"{first}: {at_first:.1f} % of the pixels wrong", change_map(image, label, before, before)),
            (f"{second}: {told}\nIoU: {by_class}", change_map(image, label, before, after)),
        ]
        for axis, (title, picture) in zip(group.subplots(2, 3).flat, cells, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
            axis.set_title(title, fontsize="medium", weight="bold" if title == words else "normal", pad=4)
    figure.suptitle(
        "Three images, at the quartiles of the improvement; mIoU (%) of the classes in each\n",
        fontsize="large",
        va="top",
    )
    coloured = zip((*taxonomy.names, *MARKS), [*palette[: len(taxonomy)], *map(np.array, MARKS.values())], strict=True)
    patches = [Patch(color=colour / 255, label=MEANINGS.get(name, name)) for name, colour in coloured]
    figure.legend(handles=patches, ncols=6, loc="outside lower center", frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    pyplot.close(figure)


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns its exit code."""
    parser = Parser(__doc__, "python -m tools.demo --seed 2")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)")
    parser.add_argument("--seed", type=int, default=1, help="of source training and adaptation (default: 1)")
    return run_program(lambda args: Demo(args.folder, args.seed).run(), parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
