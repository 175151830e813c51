"""What every stage of a run costs beside its own limit, measured in one process on data that it makes.

A stage and its limit are timed in turns, and their medians compared. Nothing passes or fails here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from core.configs import load_config
from core.datasets.catalog import find_target_images, find_taxonomy
from core.datasets.images import read_image, write_label
from core.datasets.loading import FullViews
from core.datasets.reader import ImageSet
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models import build_model
from core.models.backbone import FoldedConv2d, FrozenBatchNorm
from core.models.deeplab import Segmentor
from core.programs.frame import run_program
from core.runs.output import RunOutput
from core.selftraining.candidates import CandidatePass
from core.selftraining.samples import Batch, Request, TargetSamples, collate_batch
from core.selftraining.trainer import Trainer, part_losses, stored_probabilities
from core.utils.devices import describe_device, prepare_device, recent_peak_memory, reset_peak_memory, to_device
from core.utils.errors import UserError
from tools.benchmark_data import photograph, random_labels, write_generation

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 4
IMAGE_SIZE = (2048, 1024)  # (width, height)
PASS_IMAGES = 24
SWEEP_REPEATS = 3
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

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return build_model(self.config).to(self.device)

    def measure(self, stage: str, action: Callable, limit: str, limit_action: Callable) -> Row:
        """Time both in turns, after one round that does not count."""
        taken = []
        for _ in range(self.repeats + 1):
            reset_peak_memory(self.device)
            held, _ = recent_peak_memory(self.device)
            seconds = self.seconds(action)
            peak = recent_peak_memory(self.device)[1] - held
            taken.append((seconds, self.seconds(limit_action), peak))
        seconds, limits, peaks = zip(*taken[1:], strict=True)
        return self.add(Row(stage, median(seconds), limit, median(limits), max(0, *peaks)))

    def add(self, row: Row) -> Row:
        print(row.line(), flush=True)
        self.rows.append(row)
        return row

    def seconds(self, action: Callable) -> float:
        self._wait()
        start = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# --- stages


def bench_samples(bench: Bench) -> None:
    """A training sample from the file to the normalised tensors, and the decoding of as many files."""
    paths, generation = bench.images.paths, bench.folder / "candidates/g0001"
    classes = bench.taxonomy.paste_classes(bench.config.TCR.MIX_CLASSES)
    write_generation(generation, bench.images.names, classes, len(bench.taxonomy), IMAGE_SIZE)
    numbers = count()

    def make(samples: TargetSamples) -> None:
        number = next(numbers)
        request = Request(number % len(paths), number, str(generation), (1 / len(classes),) * len(classes))
        batch = collate_batch([samples[request]])
        bench.predictor.prepare(batch.full)
        bench.predictor.prepare(batch.student)

    def decode_two() -> None:
        number = next(numbers)
        for step in (0, 1):
            read_image(paths[(number + step) % len(paths)])

    rounds = 4 * len(paths)  # of different samples, which differ in cost

    def again(action: Callable, *args) -> Callable:
        return lambda: [action(*args) for _ in range(rounds)]

    with compute_threads(1):
        for name, cache in (("", ""), (" from a cache", str(bench.folder / "cache"))):
            samples = TargetSamples(bench.images, bench.taxonomy, changed(bench.config, DATALOADER__CACHE=cache))
            again(make, samples)()
            bench.measure(
                f"{rounds} samples{name}", again(make, samples), "decoding two files for each", again(decode_two)
            )


def bench_step(bench: Bench) -> None:
    """A training step, the network passes in it, and what else there is."""
    predictor = bench.predictor
    folder = bench.folder / "step"
    folder.mkdir()
    output = RunOutput(folder, bench.taxonomy, 10**6, 10**6, bench.device)
    trainer = Trainer(bench.config, bench.model(), bench.images, bench.taxonomy, output)
    trainer.generation = trainer.candidate_pass.run(trainer.teacher, 0)
    batch = next(trainer.batches(range(1)))
    student, teacher = trainer.student, trainer.teacher
    full, view = predictor.prepare(batch.full), predictor.prepare(batch.student)

    def learn() -> None:
        student.train()
        student.zero_grad(set_to_none=True)
        predictor.logits(student, view).sum().backward()

    @torch.no_grad()
    def forward(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return predictor.logits(model.eval(), images)

    def step() -> None:
        trainer.train_step(batch)
        trainer.dynamic_teacher.forget_last()

    by_student, by_teacher = forward(student, view), forward(teacher, full)
    passes = [
        bench.measure("student, forward and backward", learn, "forward alone", partial(forward, student, view)),
        bench.measure("teacher", partial(forward, teacher, full), "forward alone", partial(forward, teacher, full)),
        bench.measure(
            "student's score",
            partial(stored_probabilities, predictor, student, len(batch.full), batch.full),
            "forward alone",
            partial(forward, student, full),
        ),
    ]
    whole = bench.measure("training step", step, "forward and backward of the student", learn)
    rest = partial(all_but_networks, trainer, batch, by_teacher, by_student)
    bench.measure("all but the networks", rest, "training step", step)
    bench.add(Row("three network passes", sum(row.seconds for row in passes), "training step", whole.seconds))
    bench_query(bench, trainer, batch, partial(forward, student, full))


def bench_query(bench: Bench, trainer: Trainer, batch: Batch, forward: Callable) -> None:
    """A query of the dynamic teacher over as many batches as settle it."""
    teacher, options = trainer.dynamic_teacher, bench.config.DTU
    full = to_device(batch.full, bench.device)
    probs = stored_probabilities(trainer.predictor, trainer.student, len(full), full)
    for _ in range(options.Query_START):
        teacher.before_step(0, full, batch.names, probs)
    stored = teacher.state_dict()
    refused = options.Query_START - options.Query_START // 2  # as many as rule a majority out

    def ask() -> None:
        teacher.load_state_dict(stored, lambda names: full)
        teacher.after_step(0)

    bench.measure(
        f"DTU query of {options.Query_START}", ask, f"{refused} forwards", lambda: [forward() for _ in range(refused)]
    )


def bench_networks(bench: Bench) -> None:
    """Frozen batch norm folded and as it stands, in both precisions."""
    config = changed(bench.config, MODEL__FREEZE_BN=True)
    width, height = config.INPUT.TARGET_INPUT_SIZE_TRAIN
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    for amp in ("off", "bf16"):
        predictor = Predictor(changed(config, SOLVER__AMP=amp), bench.device)
        torch.manual_seed(0)
        model, prepared = build_model(config).to(bench.device), predictor.prepare(images)

        def infer(predictor=predictor, model=model, prepared=prepared) -> None:
            with torch.inference_mode():
                predictor.logits(model.eval(), prepared)

        def learn(predictor=predictor, model=model, prepared=prepared) -> None:
            model.train().zero_grad(set_to_none=True)
            predictor.logits(model, prepared).sum().backward()

        for name, action in (("forward", infer), ("forward and backward", learn)):
            bench.measure(
                f"{name}, {amp if amp != 'off' else 'fp32'}", action, "norms not folded", unfolded(model, action)
            )


def bench_sweeps(bench: Bench) -> None:
    """Candidate pass and evaluation per image: one loader process, one thread, a network as slow as the decoding."""
    config = changed(bench.config, DATALOADER__NUM_WORKERS=1, TEST__BATCH_SIZE=1)
    sweeps = (
        ("candidate pass", candidate_sweep, many_images(bench)),
        ("evaluation", evaluation_sweep, labelled_images(bench)),
    )
    with compute_threads(1):
        loading = loading_seconds(bench, sweeps[0][-1])
        for factor in (1.0, 1.5, 2.0):
            model = slow_network(bench, factor * loading)
            for stage, sweep, images in sweeps:
                measure_sweep(bench, stage, sweep(bench, config, model, images), model, images)


def measure_sweep(bench: Bench, stage: str, sweep: Callable[[], object], model: nn.Module, images: ImageSet) -> None:
    """From one forward to the next once the loader is at work, beside the longer of loading and forward, in turns."""
    taken, stamps = [], []
    with model.register_forward_hook(lambda *_: stamps.append(time.perf_counter())):
        for _ in range(min(bench.repeats, SWEEP_REPEATS)):
            load, forward = loading_seconds(bench, images), forward_seconds(bench, model)
            stamps.clear()
            reset_peak_memory(bench.device)
            held, _ = recent_peak_memory(bench.device)
            sweep()
            peak = recent_peak_memory(bench.device)[1] - held
            running = stamps[len(images) // 4 :]
            taken.append(((running[-1] - running[0]) / (len(running) - 1), load, forward, peak))
    seconds, load, forward, _ = map(median, zip(*taken, strict=True))
    name = f"forward, {forward / load:.1f} × loading" if forward > load else f"loading, {load / forward:.1f} × forward"
    bench.add(Row(f"{stage}, per image", seconds, name, max(load, forward), max(0, *(peak for *_, peak in taken))))


def candidate_sweep(bench: Bench, config, model: nn.Module, images: ImageSet) -> Callable[[], object]:
    """A later pass, once the first one is made."""
    candidates = CandidatePass(images, len(bench.taxonomy), bench.predictor, config, bench.folder / "candidates")
    first = candidates.run(model, 0)
    return lambda: candidates.run(model, 1, first)


def evaluation_sweep(bench: Bench, config, model: nn.Module, images: ImageSet) -> Callable[[], object]:
    """An evaluation against labels."""
    evaluator = Evaluator(images, len(bench.taxonomy), bench.predictor, config)
    return lambda: evaluator.run(model)


def labelled_images(bench: Bench) -> ImageSet:
    """The images of a sweep with labels."""
    labels = bench.folder / "labels"
    labels.mkdir()
    for path in bench.images.paths:
        write_label(labels / path.name, random_labels(len(bench.taxonomy), IMAGE_SIZE[::-1]))
    return many_images(bench, partial(_label_of, labels))


def loading_seconds(bench: Bench, images: ImageSet) -> float:
    """What a loader takes to make one sample of a sweep."""
    views = FullViews(images, [bench.config.INPUT.INPUT_SIZE_TEST], images.label_path is not None)
    return median(bench.seconds(lambda: views[0]) for _ in range(7))


def _label_of(folder: Path, path: Path) -> Path:
    return folder / path.name


def bench_start(bench: Bench) -> None:
    """A whole small run of one iteration by `resume auto`, and the import of its libraries."""
    command = [sys.executable, "train_TCR_DTU.py", "-cfg", "configs/toy_dtst.yaml", "--skip-test", "DATASETS.TEST", ""]
    command += ["DATASETS.TARGET_TRAIN", f"folder:{bench.folder / 'images'}", "DATASETS.TARGET_LIST", ""]
    command += ["MODEL.NAME", "tools.benchmark:small_network", "MODEL.DEVICE", bench.config.MODEL.DEVICE]
    command += ["INPUT.INPUT_SIZE_TEST", "(128, 64)", "INPUT.TARGET_INPUT_SIZE_TRAIN", "(64, 32)"]
    command += ["OUTPUT_DIR", str(bench.folder / "start"), "SOLVER.BATCH_SIZE", "1", "SOLVER.CHECKPOINT_PERIOD", "1000"]
    imports = [sys.executable, "-c", "import torch, torchvision, cv2"]
    iterations = count(2)

    def run(words: Sequence[str]) -> None:
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)

    run([*command, "SOLVER.STOP_ITER", "1"])
    bench.measure(
        "resume auto, one iteration of a small run",
        lambda: run([*command, "SOLVER.STOP_ITER", str(next(iterations)), "resume", "auto"]),
        "importing torch, torchvision, cv2",
        partial(run, imports),
    )


# --- what they need


def small_network(config) -> tuple[nn.Module, nn.Module]:
    """A stride-8 network that costs nothing."""
    return nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, config.MODEL.NUM_CLASSES, 1)


def all_but_networks(trainer: Trainer, batch: Batch, by_teacher: torch.Tensor, by_student: torch.Tensor) -> None:
    """All of a step between the networks: resizing, confidence, labels, warp, both losses and their gradient."""
    running_conf, prepared = trainer.running_conf, [trainer.predictor.prepare(batch.full)]
    with mock.patch.object(trainer.predictor, "logits", return_value=by_teacher):
        [(labels, pairs)], negatives = trainer.pseudo_label([batch], prepared)
    trainer.running_conf = running_conf
    part_losses(by_student, labels, pairs, labels.numel(), negatives)


def unfolded(model: nn.Module, action: Callable) -> Callable:
    """`action` with every frozen batch norm as a map of its own behind its convolution."""

    def run() -> None:
        with (
            mock.patch.object(FrozenBatchNorm, "folded", False),
            mock.patch.object(FoldedConv2d, "forward", nn.Conv2d.forward),
        ):
            norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm)]
            for norm in norms:
                norm.folded = False
            action()
            for norm in norms:
                norm.folded = True

    return run


def slow_network(bench: Bench, seconds: float) -> Segmentor:
    """A stride-8 network whose forward at INPUT_SIZE_TEST takes about `seconds`.

    Averaged over 3×3 pixels, its classes meet in 9 to 19 % of the cells of its map; the CamVid model's do in 14 %.
    """

    def build(channels: int) -> Segmentor:
        torch.manual_seed(0)
        convolutions = (nn.Conv2d(3, 32, 8, stride=8), nn.Conv2d(32, channels, 3, padding=1))
        convolutions += (nn.Conv2d(channels, 32, 3, padding=1),)
        features = nn.Sequential(*(layer for conv in convolutions for layer in (conv, nn.ReLU(inplace=True))))
        average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        model = Segmentor(features, nn.Sequential(nn.Conv2d(32, len(bench.taxonomy), 1), average)).eval()
        return model.to(bench.device, memory_format=torch.channels_last)

    few, many = 64, 384
    fast, slow = (forward_seconds(bench, build(channels)) for channels in (few, many))
    return build(max(8, round(few + (seconds - fast) * (many - few) / (slow - fast))))


def forward_seconds(bench: Bench, model: nn.Module) -> float:
    """What a forward of one image at INPUT_SIZE_TEST takes."""
    width, height = bench.config.INPUT.INPUT_SIZE_TEST
    prepared = bench.predictor.prepare(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    with torch.inference_mode():
        return median(bench.seconds(lambda: bench.predictor.logits(model, prepared)) for _ in range(7))


def many_images(bench: Bench, label_path: Callable[[Path], Path] | None = None) -> ImageSet:
    paths = tuple(bench.images.paths[n % len(bench.images)] for n in range(PASS_IMAGES))
    table = np.arange(256, dtype=np.uint8)
    return ImageSet("benchmark", paths, tuple(f"{n}.png" for n in range(PASS_IMAGES)), label_path, table)


@contextmanager
def compute_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def changed(config, **options):
    """A copy of `config` with SECTION__NAME=value."""
    config = config.clone()
    config.defrost()
    for key, value in options.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


STAGES = {
    "samples": bench_samples,
    "step": bench_step,
    "networks": bench_networks,
    "sweeps": bench_sweeps,
    "start": bench_start,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=__doc__,
        epilog="example: python -m tools.benchmark --config configs/deeplabv2_r101_dtst.yaml --json benchmark.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="configs/deeplabv2_r101_dtst.yaml", help="default %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …")
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement (default %(default)s)")
    parser.add_argument("--stages", default=",".join(STAGES), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="write the table to this file, too")
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="any option of the config")
    return run_program(run, parser, sys.argv[1:] if argv is None else argv)


def run(args: argparse.Namespace) -> None:
    """Make the data and measure what was asked for."""
    stages = args.stages.split(",")
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise UserError(f"--stages {','.join(unknown)}: no such stage; there are {', '.join(STAGES)}")
    with tempfile.TemporaryDirectory(prefix="dtst-benchmark-") as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number in range(IMAGES):
            Image.fromarray(photograph(number, IMAGE_SIZE)).save(folder / f"images/{number}.png")
        options = ["SOLVER.BATCH_SIZE", "1", "DATALOADER.NUM_WORKERS", "0", *args.options]
        options += ["MODEL.DEVICE", args.device, "DATASETS.TARGET_TRAIN", f"folder:{folder / 'images'}"]
        config = load_config(args.config, [*options, "resume", "", "MODEL.WEIGHTS", ""])
        bench = Bench(config, folder, args.repeats)
        print(
            f"{describe_device(bench.device, args.device)}, torch {torch.__version__}, batch {config.SOLVER.BATCH_SIZE}"
        )
        print(HEADER)
        for stage in stages:
            STAGES[stage](bench)
        if args.json:
            rows = [asdict(row) | {"ratio": row.ratio} for row in bench.rows]
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
