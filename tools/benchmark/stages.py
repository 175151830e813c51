"""The stages of a run, each beside its limit."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch
from torch import nn

from core.datasets.images import read_image, write_label
from core.datasets.loading import FullViews
from core.datasets.reader import ImageSet
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models.backbone import FoldedConv2d, FrozenBatchNorm
from core.models.deeplab import Segmentor
from core.selftraining.candidate_pass import CandidatePass
from core.selftraining.dynamic_teacher import class_probabilities
from core.selftraining.samples import Batch, PasteRequest, TargetSamples
from core.selftraining.trainer import Trainer, part_losses
from core.utils.devices import one_thread, to_device
from tools.benchmark.bench import Bench, Row
from tools.benchmark.data import random_labels, write_generation

ROOT = Path(__file__).resolve().parents[2]
IMAGE_SIZE = (2048, 1024)  # (width, height)
PASS_IMAGES = 24
SWEEP_REPEATS = 3


def bench_samples(bench: Bench) -> None:
    """A training sample from the file to the normalised tensors, and the decoding of as many files."""
    paths, generation = bench.images.paths, bench.folder / "candidates/g0001"
    classes = bench.taxonomy.paste_classes(bench.config.TCR.MIX_CLASSES)
    write_generation(generation, bench.images.names, classes, len(bench.taxonomy), IMAGE_SIZE)
    numbers = count()
    rounds = 4 * len(paths)  # of different samples, which differ in cost

    def make(samples: TargetSamples) -> None:
        for number in (next(numbers) for _ in range(rounds)):
            request = PasteRequest(number % len(paths), number, str(generation), (1 / len(classes),) * len(classes))
            batch = samples.collate([samples[request]])
            bench.predictor.prepare(batch.full)
            bench.predictor.prepare(batch.student)

    def decode() -> None:
        for number in (next(numbers) for _ in range(rounds)):
            for step in (0, 1):
                read_image(paths[(number + step) % len(paths)])

    with one_thread():
        for name, cache in (("", ""), (" from a cache", str(bench.folder / "cache"))):
            samples = TargetSamples(bench.images, bench.taxonomy, bench.config.changed({"DATALOADER.CACHE": cache}))
            make(samples)
            bench.measure(f"{rounds} samples{name}", partial(make, samples), "decoding two files for each", decode)


def bench_step(bench: Bench) -> None:
    """A training step, the network passes in it, and what else there is."""
    predictor, config = bench.predictor, bench.config.changed({"OUTPUT_DIR": str(bench.folder / "step")})
    Path(config.OUTPUT_DIR).mkdir()
    trainer = Trainer(config, bench.model(), bench.images, bench.taxonomy)
    trainer.generation = trainer.candidate_pass.run(trainer.teacher, 0)
    batch = next(trainer.batches(range(1)))
    student, teacher = trainer.student, trainer.teacher
    full, view = predictor.prepare(batch.full), predictor.prepare(batch.student)

    @torch.no_grad()
    def forward(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return predictor.logits(model.eval(), images)

    def step() -> None:
        trainer.train_step(batch)
        trainer.dynamic_teacher.forget_last()

    def beside_forward(stage: str, action: Callable, model: nn.Module, images: torch.Tensor) -> Row:
        return bench.measure(stage, action, "forward alone", partial(forward, model, images))

    learn, by_teacher = partial(learn_once, predictor, student, view), partial(forward, teacher, full)
    score = partial(class_probabilities, predictor, student, [full])
    maps = by_teacher(), forward(student, view)
    passes = [
        beside_forward("student, forward and backward", learn, student, view),
        beside_forward("teacher", by_teacher, teacher, full),
        beside_forward("student's score", score, student, full),
    ]
    whole = bench.measure("training step", step, "forward and backward of the student", learn)
    bench.measure("all but the networks", partial(all_but_networks, trainer, batch, *maps), "training step", step)
    bench.add(Row("three network passes", sum(row.seconds for row in passes), "training step", whole.seconds))
    bench_query(bench, trainer, batch, partial(forward, student, full))


def learn_once(predictor: Predictor, model: nn.Module, images: torch.Tensor) -> None:
    """Forward and backward."""
    model.train().zero_grad(set_to_none=True)
    predictor.logits(model, images).sum().backward()


def all_but_networks(trainer: Trainer, batch: Batch, by_teacher: torch.Tensor, by_student: torch.Tensor) -> None:
    """All of a step between the networks: resizing, confidence, labels, warp, both losses and their gradient."""
    running_conf, prepared = trainer.running_conf, [trainer.predictor.prepare(batch.full)]
    with mock.patch.object(trainer.predictor, "logits", return_value=by_teacher):
        [(labels, pairs)], negatives = trainer.pseudo_label([batch], prepared)
    trainer.running_conf = running_conf
    part_losses(by_student, labels, pairs, labels.numel(), negatives)


def bench_query(bench: Bench, trainer: Trainer, batch: Batch, forward: Callable) -> None:
    """A query of the dynamic teacher over as many batches as settle it."""
    teacher, options = trainer.dynamic_teacher, bench.config.DTU
    full = to_device(batch.full, bench.device)
    probs = class_probabilities(trainer.predictor, trainer.student, [trainer.predictor.prepare(full)])
    for _ in range(options.Query_START):
        teacher.before_step(0, full, batch.names, probs)
    stored = teacher.state_dict()
    refused = options.Query_START - options.Query_START // 2  # as many as rule a majority out

    def ask() -> None:
        teacher.load_state_dict(stored, lambda names: full)
        teacher.after_step(0)

    def refuse() -> None:
        for _ in range(refused):
            forward()

    bench.measure(f"DTU query of {options.Query_START}", ask, f"{refused} forwards", refuse)


def bench_networks(bench: Bench) -> None:
    """Frozen batch norm folded and as it stands, in both precisions."""
    config = bench.config.changed({"MODEL.FREEZE_BN": True})
    width, height = config.INPUT.TARGET_INPUT_SIZE_TRAIN
    images = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)

    @torch.inference_mode()
    def infer(predictor: Predictor, model: nn.Module, prepared: torch.Tensor) -> None:
        predictor.logits(model.eval(), prepared)

    for amp, name in (("off", "fp32"), ("bf16", "bf16")):
        predictor, model = Predictor(config.changed({"SOLVER.AMP": amp}), bench.device), bench.model(config)
        prepared = predictor.prepare(images)
        for what, act in (("forward", infer), ("forward and backward", learn_once)):
            action = partial(act, predictor, model, prepared)
            bench.measure(f"{what}, {name}", action, "norms not folded", partial(unfolded, model, action))


def unfolded(model: nn.Module, action: Callable) -> None:
    """`action` with every frozen batch norm as a map of its own behind its convolution."""
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm)]
    with mock.patch.object(FoldedConv2d, "forward", nn.Conv2d.forward):
        for norm in norms:
            norm.folded = False
        action()
        for norm in norms:
            norm.folded = True


def bench_sweeps(bench: Bench) -> None:
    """Candidate pass and evaluation per image: one loader process, one thread, a network as slow as the decoding."""
    config = bench.config.changed({"DATALOADER.NUM_WORKERS": 1, "TEST.BATCH_SIZE": 1})
    predictor = Predictor(config, bench.device)
    unlabelled, labelled = many_images(bench), labelled_images(bench)
    evaluator = Evaluator(labelled, len(bench.taxonomy), predictor)
    with one_thread():
        loading = loading_seconds(bench, unlabelled)
        for factor in (1.0, 1.5, 2.0):
            model = slow_network(bench, factor * loading)
            candidates = CandidatePass(unlabelled, len(bench.taxonomy), predictor, bench.folder / "candidates")
            later = partial(candidates.run, model, 1, candidates.run(model, 0))
            measure_sweep(bench, "candidate pass", later, model, unlabelled)
            measure_sweep(bench, "evaluation", partial(evaluator.run, model), model, labelled)


def measure_sweep(bench: Bench, stage: str, sweep: Callable[[], object], model: nn.Module, images: ImageSet) -> None:
    """From one forward to the next once the loader is at work, beside the longer of loading and forward, in turns."""
    taken, stamps = [], []
    with model.register_forward_hook(lambda *_: stamps.append(time.perf_counter())):
        for _ in range(min(bench.repeats, SWEEP_REPEATS)):
            load, forward = loading_seconds(bench, images), forward_seconds(bench, model)
            stamps.clear()
            _, peak = bench.watched(sweep)
            running = stamps[len(images) // 4 :]
            taken.append(((running[-1] - running[0]) / (len(running) - 1), load, forward, peak))
    seconds, load, forward, _ = map(median, zip(*taken, strict=True))
    name = f"forward, {forward / load:.1f} × loading" if forward > load else f"loading, {load / forward:.1f} × forward"
    bench.add(Row(f"{stage}, per image", seconds, name, max(load, forward), max(0, *(peak for *_, peak in taken))))


def many_images(bench: Bench, label_path: Callable[[Path], Path] | None = None) -> ImageSet:
    paths = tuple(bench.images.paths[n % len(bench.images)] for n in range(PASS_IMAGES))
    table = np.arange(256, dtype=np.uint8)
    return ImageSet("benchmark", paths, tuple(f"{n}.png" for n in range(PASS_IMAGES)), label_path, table)


def labelled_images(bench: Bench) -> ImageSet:
    """The images of a sweep with labels."""
    labels = bench.folder / "labels"
    labels.mkdir()
    for path in bench.images.paths:
        write_label(labels / path.name, random_labels(len(bench.taxonomy), IMAGE_SIZE[::-1]))
    return many_images(bench, partial(_label_of, labels))


def _label_of(folder: Path, path: Path) -> Path:
    return folder / path.name


def loading_seconds(bench: Bench, images: ImageSet) -> float:
    """What a loader takes to make one sample of a sweep."""
    views = FullViews(images, [bench.config.INPUT.INPUT_SIZE_TEST], images.label_path is not None)
    return median(bench.seconds(lambda: views[0]) for _ in range(7))


def forward_seconds(bench: Bench, model: nn.Module) -> float:
    """What a forward of one image at INPUT_SIZE_TEST takes."""
    width, height = bench.config.INPUT.INPUT_SIZE_TEST
    prepared = bench.predictor.prepare(torch.zeros(1, 3, height, width, dtype=torch.uint8))
    with torch.inference_mode():
        return median(bench.seconds(lambda: bench.predictor.logits(model, prepared)) for _ in range(7))


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


def bench_start(bench: Bench) -> None:
    """A whole small run of one iteration by `resume auto`, and the import of its libraries."""
    command = [sys.executable, "train_TCR_DTU.py", "-cfg", "configs/toy_dtst.yaml", "--skip-test", "DATASETS.TEST", ""]
    command += ["DATASETS.TARGET_TRAIN", f"folder:{bench.folder / 'images'}", "DATASETS.TARGET_LIST", ""]
    command += ["MODEL.NAME", "tools.benchmark.data:small_network", "MODEL.DEVICE", bench.config.MODEL.DEVICE]
    command += ["INPUT.INPUT_SIZE_TEST", "(128, 64)", "INPUT.TARGET_INPUT_SIZE_TRAIN", "(64, 32)"]
    command += ["OUTPUT_DIR", str(bench.folder / "start"), "SOLVER.BATCH_SIZE", "1", "SOLVER.CHECKPOINT_PERIOD", "1000"]
    iterations = count(2)

    def run(words: Sequence[str]) -> None:
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)

    def go_on() -> None:
        run([*command, "SOLVER.STOP_ITER", str(next(iterations)), "resume", "auto"])

    run([*command, "SOLVER.STOP_ITER", "1", "resume", "random"])
    imports = partial(run, [sys.executable, "-c", "import torch, torchvision, cv2"])
    bench.measure("resume auto, one iteration of a small run", go_on, "importing torch, torchvision, cv2", imports)
