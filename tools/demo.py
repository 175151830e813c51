"""The whole story on toy domains: draw them, train a source model, adapt it, compare, and show a picture.

Every step is one of the project's own commands, which is printed before it runs; what an earlier demo has finished is
used again.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.configs import load_config
from core.datasets.catalog import ImageSet, find_taxonomy, find_test_images, output_names
from core.datasets.images import read_image, read_label
from core.datasets.taxonomy import Taxonomy
from core.programs.frame import Parser, run_program
from core.runs.folder import CONFIG
from core.utils.devices import autocast, choose_device
from core.utils.errors import UserError
from core.utils.files import make_folder, replacing, write_json
from tools.tables import read_table
from tools.toy_domains.drawing import COUNTS

SOURCE_CONFIG, ADAPTATION_CONFIG = "configs/toy_src.yaml", "configs/toy_dtst.yaml"
TARGET = "toy_target_val"
DRAWING_OPTIONS: tuple[str, ...] = ()  # of tools.toy_domains
SHOWN_IMAGES = 3
MARK = ".demo.json"


@dataclass(frozen=True)
class Run:
    """A training run of the demo.

    Attributes:
        title: of its column in the table.
        program, config_file, options: its command.
        folder: OUTPUT_DIR.
    """

    title: str
    program: str
    config_file: str
    folder: Path
    options: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return [*self.options, "OUTPUT_DIR", str(self.folder)]

    @property
    def checkpoint(self) -> Path:
        """The last one."""
        return self.folder / f"model_iter{load_config(self.config_file, self.words).SOLVER.STOP_ITER:06d}.pth"

    @property
    def evaluation(self) -> Path:
        """Inside the run's own folder, so that it goes with it."""
        return self.folder / "evaluation"

    def predictions(self, dataset: str) -> Path:
        return self.evaluation / "inference" / dataset

    def is_complete(self) -> bool:
        """Whether the folder holds this very run, to its end."""
        saved = self.folder / CONFIG
        config_text = load_config(self.config_file, self.words).dump()
        return self.checkpoint.is_file() and saved.is_file() and saved.read_text(encoding="utf-8") == config_text


class Demo:
    """The demo in one folder.

    Args:
        folder: for everything that it makes; new, empty, or an earlier demo's.
        seed: of source training and adaptation; each has a sub-folder of its own.
    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, folder: Path, seed: int):
        amp = claim_folder(folder)
        self.domains, runs = folder / "domains", folder / f"seed_{seed}"
        self.picture = runs / "before_and_after.png"
        common = ("DATASETS.ROOT", str(self.domains), "SEED", str(seed), "SOLVER.AMP", amp)
        self.source = Run("source model", "train_src.py", SOURCE_CONFIG, runs / "source", common)
        self.adapted = (*common, "resume", str(self.source.checkpoint))
        self.fixed = Run(
            "fixed EMA",
            "train_TCR_DTU.py",
            ADAPTATION_CONFIG,
            runs / "fixed_ema",
            (*self.adapted, "DTU.DYNAMIC", "False", "TCR.RESAMPLE", "False", "TCR.PASTE", "False"),
        )
        self.full = Run("full method", "train_TCR_DTU.py", ADAPTATION_CONFIG, runs / "full_method", self.adapted)

    def run(self) -> None:
        """Make or reuse every part, print the table and the path of the picture.

        Raises:
            UserError: a command failed.
        """
        runs = (self.source, self.fixed, self.full)
        drawn = all((self.domains / name).is_dir() for name in COUNTS)
        draw = ["-m", "tools.toy_domains", str(self.domains), *DRAWING_OPTIONS]
        self._make(self.domains, drawn, draw, [run.folder for run in runs])
        for run in runs:
            command = [run.program, "-cfg", run.config_file, *(["--skip-test"] if run is not self.source else [])]
            later = [self.fixed.folder, self.full.folder] if run is self.source else []
            self._make(run.folder, run.is_complete(), [*command, *run.words], later)
        at_home = self._evaluate(self.source, SOURCE_CONFIG, "toy_source_val")
        # adaptation starts from the source model with frozen batch norm, so that is what "before" means
        on_target = [self._evaluate(run, ADAPTATION_CONFIG, TARGET) for run in runs]
        config = load_config(ADAPTATION_CONFIG, self.full.words)
        taxonomy = find_taxonomy(config)
        titles = ("source model at home", *(f"{run.title} on the target" for run in runs))
        print("\n" + "\n".join(table_lines(taxonomy, titles, [at_home, *on_target])))
        columns = {"before adaptation": self.source, "after adaptation": self.full}
        predicted = [(title, run.predictions(TARGET)) for title, run in columns.items()]
        draw_picture(self.picture, find_test_images(config), taxonomy, predicted)
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

    def _evaluate(self, run: Run, config_file: str, dataset: str) -> dict[str, float]:
        """Scores of a run's last checkpoint by column of test.py's table."""
        table = run.evaluation / f"test_{dataset}.csv"
        scores = read_scores(table)
        if scores is not None and run.predictions(dataset).is_dir():
            print(f"reused: {table}", flush=True)
            return scores
        words = ["test.py", "-cfg", config_file, "--saveres", *self.adapted[:-1], str(run.checkpoint)]
        run_command([*words, "OUTPUT_DIR", str(run.evaluation), "DATASETS.TEST", dataset])
        return read_scores(table)


def claim_folder(folder: Path) -> str:
    """Mark the demo's folder as its own; returns the precision to work in (SOLVER.AMP), decided once.

    Raises:
        UserError: the folder holds something that no demo made, or cannot be written to.
    """
    mark = folder / MARK
    if not mark.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} holds something else: give the demo a folder of its own")
        make_folder(folder, "--folder")
        write_json(mark, {"amp": faster_precision()})
    return json.loads(mark.read_text(encoding="utf-8"))["amp"]


def faster_precision() -> str:
    """`bf16` where this machine convolves faster in bfloat16 than in float32, else `off`."""
    device = choose_device("auto")
    conv = torch.nn.Conv2d(128, 128, 3, padding=1).to(device, memory_format=torch.channels_last)
    image = torch.randn(4, 128, 32, 64, device=device).contiguous(memory_format=torch.channels_last)
    seconds = {}
    for amp in ("off", "bf16"):
        times = []
        for _ in range(6):
            start = time.perf_counter()
            with torch.no_grad(), autocast(device, amp):
                float(conv(image).sum())  # waits for the device
            times.append(time.perf_counter() - start)
        seconds[amp] = min(times)
    return min(seconds, key=seconds.get)


def read_scores(table: Path) -> dict[str, float] | None:
    """The one row of a table of test.py; None unless it is there and whole."""
    rows = read_table(table)
    if len(rows) != 1:
        return None
    return {column: float(value) for column, value in rows[0].items() if column != "checkpoint"}


def run_command(words: Sequence[str]) -> None:
    """Print and run `python …`. Raises UserError if it fails."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, *words]).returncode
    if code:
        raise UserError(f"the command above ended with exit code {code}; mend what it says and run the demo again")


def table_lines(taxonomy: Taxonomy, titles: Sequence[str], scores: Sequence[dict[str, float]]) -> list[str]:
    """IoU per class and mIoU, a column per title; then the gain of the last one, and its share of the gap."""
    width = max(map(len, (*taxonomy.names, "mIoU")))
    rows = [(name, [score[f"IoU_{name}"] for score in scores]) for name in taxonomy.names]
    rows.append(("mIoU", [score["mIoU"] for score in scores]))
    lines = ["  ".join((" " * width, *(f"{title:>6}" for title in titles)))]
    for name, values in rows:
        cells = (f"{value:{max(len(title), 6)}.2f}" for title, value in zip(titles, values, strict=True))
        lines.append("  ".join((f"{name:<{width}}", *cells)))
    home, before, *_, after = (score["mIoU"] for score in scores)
    share = f" ({100 * (after - before) / (home - before):.0f} %)" if home > before else ""
    gain = f"adaptation brings back {after - before:.2f}{share}"
    return [*lines, f"the shift costs {home - before:.2f} points of mIoU; {gain}"]


def draw_picture(
    path: Path, images: ImageSet, taxonomy: Taxonomy, predicted: Sequence[tuple[str, Path]], count: int = SHOWN_IMAGES
) -> None:
    """Target image, ground truth and predictions side by side, for a few images spread evenly over the set.

    Args:
        predicted: (title, folder of palette PNGs as test.py --saveres writes them) per column.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    palette, names = taxonomy.palette(), output_names(images)
    titles = ("target image", "ground truth", *(title for title, _ in predicted))
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
    size = (3.2 * len(titles), 1.65 * count + 0.6)
    figure, axes = pyplot.subplots(count, len(titles), figsize=size, squeeze=False, layout="constrained")
    for row, index in zip(axes, chosen, strict=True):
        maps = [images.read_label(index), *(read_label(folder / names[index]) for _, folder in predicted)]
        pictures = [read_image(images.paths[index]), *(palette[classes] for classes in maps)]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    patches = [Patch(color=colour / 255, label=name) for name, colour in zip(taxonomy.names, palette, strict=False)]
    figure.legend(handles=patches, ncols=7, loc="outside lower center", frameon=False)
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
