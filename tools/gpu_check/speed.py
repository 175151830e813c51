"""Checks of a training step and a candidate pass as they are on a real device: waits, memory, time."""

import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from core.configs.node import Config
from core.datasets.catalog import find_taxonomy
from core.datasets.reader import ImageSet
from core.evaluation.predictor import Predictor
from core.runs.folder import HISTORY
from core.runs.resume import load_model
from core.selftraining.candidate_pass import CandidatePass
from core.selftraining.samples import Batch
from core.selftraining.trainer import Trainer
from core.utils.devices import prepare_device
from core.utils.environment import PROJECT
from tools.gpu_check.network import make_sensible
from tools.gpu_check.workplace import Failed, Findings, Workplace, first_batch, rows_of

STEP_TFLOP = 22  # of a published step
WARM_UP = 3  # steps
NO_QUERY = 10**6  # DTU.Query_START
STORED = 33  # batches that the dynamic teacher holds at most
MOST_GB = {"off": (9.5, 9.9), "bf16": (5.1, 5.5)}  # by SOLVER.AMP: with few stored batches, with all; H100 + 5 %
ONE_WAIT = "core/runs/solver.py"  # the file of the only one that a step has
WAITING = "synchronizing CUDA operation"  # torch's words
PRECISIONS = {"fp32": {"SOLVER__TF32": False}, "TF32": {"SOLVER__TF32": True}, "bf16": {"SOLVER__AMP": "bf16"}}
GROUPS = {  # kernels by the first that their name matches
    "optimizer": "multi_tensor",
    "nccl": "nccl",
    "copies": "memcpy|memset|copy|convert|transpose|nchwtonhwc|nhwctonchw|cat_?array",
    "softmax": "softmax|nll_loss",
    "upsample": "upsample",
    "convolution": "conv|gemm|cudnn|xmma|cutlass|wgrad|dgrad|splitk|nvjet|sm[89]0_|im2col",
    "reduce": "reduce",
    "elementwise": "elementwise|triton",
    "other": "",
}


# --- waits


def waits(bench: Workplace, found: Findings) -> None:
    """A training step waits for the device once, where the optimiser has to know whether the gradient is finite."""
    for amp in ("off", "bf16"):
        config = bench.small(MODEL__DEVICE=str(bench.device), SOLVER__AMP=amp, DTU__Query_START=NO_QUERY)
        trainer = bench.trainer(f"waits_{amp}", config)
        batch = first_batch(trainer)
        for _ in range(WARM_UP):
            trainer.train_step(batch)
        places = places_of_waits(partial(trainer.train_step, batch))
        found.note(**{f"{amp} waits": sum(places.values()), f"{amp} places": places})
        others = [place for place in places if not place.startswith(ONE_WAIT)]
        found.require(sum(places.values()) == 1, f"{amp}: {sum(places.values())} waits, not 1")
        found.require(not others, f"{amp}: waits in {', '.join(others)}")


def places_of_waits(action: Callable) -> dict[str, int]:
    """How often `action` makes the host wait, by file:line of this project."""
    places = Counter()

    def note(message, *_args, **_named) -> None:
        if WAITING in str(message):
            frames = [f for f in traceback.extract_stack()[:-1] if Path(f.filename).is_relative_to(PROJECT / "core")]
            places[f"{Path(frames[-1].filename).relative_to(PROJECT)}:{frames[-1].lineno}" if frames else "?"] += 1

    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", note):
        warnings.simplefilter("always")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(places)


# --- memory


def memory(bench: Workplace, found: Findings) -> None:
    """Peak memory of published steps, with few and with all the batches that the dynamic teacher may store."""
    for amp, (few, many) in MOST_GB.items():
        trainer = None
        bench.tidy()
        held = torch.cuda.memory_allocated()
        trainer = bench.trainer(f"memory_{amp}", bench.published(SOLVER__AMP=amp, DTU__Query_START=NO_QUERY))
        batch = first_batch(trainer)
        for stored, limit in ((WARM_UP + 2, few), (STORED, many)):
            for _ in range(stored - 2 - trainer.iteration):
                trainer.train_step(batch)
            torch.cuda.reset_peak_memory_stats()
            for _ in range(2):
                checked_step(trainer, batch)
            peak = (torch.cuda.max_memory_allocated() - held) / 1e9
            found.within(f"{amp} GB with {stored} stored", peak, limit)
        found.note(**{f"{amp} GB reserved": torch.cuda.max_memory_reserved() / 1e9})


def checked_step(trainer: Trainer, batch: Batch) -> None:
    """One step; Failed where it was refused, and so did not cost what a step does."""
    if not trainer.train_step(batch):
        raise Failed("a step was refused: its loss or gradient is not finite")


# --- speed


def speed(bench: Workplace, found: Findings) -> None:
    """Seconds of a published step by precision, with and without cudnn.benchmark, and of what a query adds."""
    cases = [(name, benchmark) for name in ("bf16", "TF32", "fp32") for benchmark in (True, False)]
    if bench.quick:
        cases = [("bf16", False), ("bf16", True), ("TF32", False)]
    for name, benchmark in cases:
        options = PRECISIONS[name] | {"SOLVER__CUDNN_BENCHMARK": benchmark}
        note_steps(bench, found, f"{name} {'benchmark' if benchmark else 'heuristic'}", options)


def speed_compiled(bench: Workplace, found: Findings) -> None:
    """The same with MODEL.COMPILE, in bf16; compiling takes minutes."""
    note_steps(bench, found, "bf16 compiled", PRECISIONS["bf16"] | {"MODEL__COMPILE": True})


def note_steps(bench: Workplace, found: Findings, name: str, options: dict) -> None:
    """Note :func:`timed_steps`, of a process of its own: cuDNN keeps an algorithm that it once had, however found."""
    bench.photographs()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        details = pool.submit(timed_steps, bench.folder, bench.quick, name, options).result()
    seconds = median(details["steps"])
    found.note(**{f"{name} s": seconds, f"{name} TFLOP/s": STEP_TFLOP / seconds, f"{name} details": details})


def timed_steps(folder: Path, quick: bool, name: str, options: dict) -> dict:
    """Time published steps with one batch, from the end of one to that of the next, with no wait but their own.

    Returns:
        seconds: `steps` without a query, `host` (what it does until it waits), `rescoring a batch`, `warm-up`.
    """
    bench = Workplace(folder, quick)
    trainer = bench.trainer(f"speed {name}", bench.published(**options))
    batch, history = first_batch(trainer), bench.folder / f"speed {name}" / HISTORY
    solver_step, began = trainer.solver.step, time.perf_counter()
    plain, host, rescoring = [], [], []

    def step(*args):
        host.append(time.perf_counter() - began)
        return solver_step(*args)

    for _ in range(WARM_UP):
        checked_step(trainer, batch)
    torch.cuda.synchronize()
    warm_up, began = time.perf_counter() - began, time.perf_counter()
    with mock.patch.object(trainer.solver, "step", step):
        for _ in range(9 if quick else 15):
            before = len(rows_of(history))
            checked_step(trainer, batch)
            taken, queries = time.perf_counter() - began, rows_of(history)[before:]
            if not queries:
                plain.append(taken)
            rescoring += [(taken - median(plain)) / int(row["scored"]) for row in queries if int(row["scored"])]
            began = time.perf_counter()
    torch.cuda.synchronize()
    return {"steps": plain, "host": median(host), "rescoring a batch": median(rescoring or [0]), "warm-up": warm_up}


# --- passes


def passes_speed(bench: Workplace, found: Findings) -> None:
    """Images per second of candidate passes over large PNGs, of the forward alone, and how busy the device is."""
    count, workers = (64, 192)[not bench.quick], max(bench.cores - 2, 1)
    found.note(images=count, workers=workers)
    paths = sorted(bench.photographs().iterdir())
    names = tuple(f"{n}.png" for n in range(count))
    images = ImageSet("made", tuple(paths[n % len(paths)] for n in range(count)), names)
    for name, batch in (("bf16", 1), ("bf16", 4), ("TF32", 1)):
        options = {"DATALOADER__NUM_WORKERS": workers, "TEST__BATCH_SIZE": batch}
        config = bench.published(**options, **PRECISIONS[name])
        device, classes = prepare_device(config), len(find_taxonomy(config))
        model = load_model(config, device).eval().requires_grad_(False)
        make_sensible(model)
        name = f"{name} by {batch}"
        predictor, folder = Predictor(config, device), bench.folder / f"passes {name}"
        run = partial(CandidatePass(images, classes, predictor, folder).run, model)
        first, generation, _ = timed_pass(partial(run, 0), batch)
        later, _, busy = timed_pass(partial(run, 1, generation), batch)
        found.note(**{f"{name} first/s": first, f"{name} later/s": later, f"{name} busy %": 100 * busy * later / count})
        found.note(**{f"{name} forward/s": forward_rate(config, predictor, model)})


def timed_pass(action: Callable, batch: int) -> tuple[float, object, float]:
    """(images per second between the forwards of the last three quarters, the result, seconds the device was busy).

    Args:
        batch: images of a forward.
    """
    logits, times = Predictor.logits, []

    def noted(self, *args):
        times.append(time.perf_counter())
        return logits(self, *args)

    with mock.patch.object(Predictor, "logits", noted):
        result, kernels = profiled(action)
    begin = len(times) // 4
    return batch * (len(times) - 1 - begin) / (times[-1] - times[begin]), result, sum(kernels.values())


def forward_rate(config: Config, predictor: Predictor, model: torch.nn.Module) -> float:
    """Images per second of the network alone, TEST.BATCH_SIZE at a time."""
    (width, height), batch = config.INPUT.INPUT_SIZE_TEST, config.TEST.BATCH_SIZE
    prepared = predictor.prepare(torch.zeros(batch, 3, height, width, dtype=torch.uint8))
    with torch.inference_mode():
        for repeats in (WARM_UP, 20):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                predictor.logits(model, prepared)
            torch.cuda.synchronize()
    return batch * repeats / (time.perf_counter() - start)


# --- profile


def kernel_profile(bench: Workplace, found: Findings) -> None:
    """Milliseconds of a published step on the device, by kind of kernel."""
    for name in ("bf16", "TF32"):
        trainer = bench.trainer(f"profile_{name}", bench.published(**PRECISIONS[name], DTU__Query_START=NO_QUERY))
        batch = first_batch(trainer)
        for _ in range(WARM_UP):
            checked_step(trainer, batch)
        _, kernels = profiled(partial(checked_step, trainer, batch))
        groups = Counter()
        for kernel, seconds in kernels.items():
            groups[group_of(kernel)] += 1000 * seconds
        found.note(**{f"{name} ms": sum(groups.values())})
        found.note(**{f"{name} {group}": ms for group, ms in groups.most_common()})
        top = [[kernel[:80], 1000 * seconds] for kernel, seconds in kernels.most_common(15)]
        found.note(**{f"{name} kernels": top})
        found.require(bool(kernels), "the profiler saw no kernel")


def profiled(action: Callable) -> tuple[object, Counter]:
    """The result of `action`, and the seconds that each kernel took on the device, by name."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        result = action()
        torch.cuda.synchronize()
    kernels = Counter()
    for event in seen.key_averages():
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if on_device and not getattr(event, "is_user_annotation", False):
            kernels[event.key] += event.self_device_time_total / 1e6
    return result, kernels


def group_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    return next(group for group, words in GROUPS.items() if re.search(words, kernel, re.IGNORECASE))
