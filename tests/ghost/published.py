"""Figures of the published experiment on a GPU that only counts: sizes are real, numbers are not.

ghost.sh published.py step|timed|passes [--amp bf16] [--json FILE] [KEY VALUE …]: launches, waits and memory of steps;
how long the device is busy in steps and queries; both of candidate passes, per image, without their loader. A kernel
takes what its sizes say, by a clock that only the last two start; the host is the real one.
"""

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, os.environ.get("REPO") or str(Path(__file__).resolve().parents[2]))
sys.path.append(os.environ["GHOST_DIR"])

import cv2
import ghostlib
import numpy as np
import torch

import core.selftraining.candidate_pass as candidates
from core.configs.loading import load_config
from core.datasets.catalog import find_target_images, find_taxonomy
from core.evaluation import predictor as predictors
from core.runs.resume import load_model
from core.selftraining.generations import delete_generations
from core.selftraining.samples import PasteRequest
from core.selftraining.trainer import Trainer

REPO = sys.path[0]
IMAGE = (1024, 2048)  # (H, W) of Cityscapes
WAITS = ("cudaMemcpy", "streamSync", "deviceSync", "eventSync")
TF32, HALF = 200e12, 400e12  # FLOP/s of convolutions by the clock, in float32 and in half precision
STEPS = 14
PASS_IMAGES = 16
_FINITE = torch.isfinite


def begin():
    """Have the ghost count from now on."""
    torch.set_num_threads(1)
    ghostlib.start(lazy=True, asynchronous=False, copy=False)
    ghostlib.where = where
    # no kernel computes that a loss is finite
    torch.isfinite = lambda x: ghostlib.poke_true(_FINITE(x)) if x.is_cuda and not x.ndim else _FINITE(x)


def begin_clock():
    """Have launches take time."""
    ghostlib.L.ghost_busy.restype = ctypes.c_double
    ghostlib.L.ghost_rates.argtypes = [ctypes.c_double, ctypes.c_double]
    ghostlib.L.ghost_rates(TF32, HALF)


def where():
    """The functions of the project that are being called, the innermost first: at most three."""
    frame, found = sys._getframe(1), []
    while frame and len(found) < 3:
        path = frame.f_code.co_filename
        if path.startswith((f"{REPO}/core", f"{REPO}/tools")):
            found.append(f"{path.removeprefix(f'{REPO}/')} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


def waits_of(events):
    """How often the host waited, by place."""
    found = {}
    for (kind, _, place), times in events.items():
        if kind in WAITS:
            found[f"{kind}: {place}"] = found.get(f"{kind}: {place}", 0) + times
    return found


@contextmanager
def experiment(amp, options):
    """(config, taxonomy, images, model on cuda:0, folder) of the experiment, with images that are drawn for it."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(4):
            noise = np.random.default_rng(number).integers(0, 256, (16, 32, 3), np.uint8)
            image = cv2.resize(noise, IMAGE[::-1], interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(f"{folder}/{number}.png", image)
        given = {
            "SOLVER.AMP": amp,
            "SOLVER.MAX_BAD_STEPS": 1000,
            "DATASETS.TARGET_TRAIN": f"folder:{folder}",
            "DATASETS.TEST": "",
            "OUTPUT_DIR": folder,
            "MODEL.WEIGHTS": "",
            "MODEL.DEVICE": "cuda:0",
            "TCR.PASTE": False,
            "TCR.RESAMPLE": False,
            "DATALOADER.NUM_WORKERS": 0,
            "VIS.PERIOD": 0,
        }
        words = [str(word) for pair in given.items() for word in pair]
        config = load_config(f"{REPO}/configs/deeplabv2_r101_dtst.yaml", [*words, *options])
        device = torch.device(config.MODEL.DEVICE)
        torch.cuda.set_device(device)
        yield config, find_taxonomy(config), find_target_images(config), load_model(config, device), Path(folder)


@contextmanager
def training(amp, options):
    """(trainer, a batch in page-locked memory), after two steps."""
    with experiment(amp, options) as (config, taxonomy, images, model, _):
        trainer = Trainer(config, model, images, taxonomy)
        samples = [trainer.samples[PasteRequest(n % len(images), n)] for n in range(config.SOLVER.BATCH_SIZE)]
        batch = trainer.samples.collate(samples).pin_memory()
        for _ in range(2):
            trainer.train_step(batch)
        yield trainer, batch


def counted(trainer, batch):
    """Figures of one step, of which the host's time is the machine's own."""
    torch.cuda.reset_peak_memory_stats()
    stored, launches = len(trainer.dynamic_teacher._buffer), ghostlib.L.ghost_launches()
    with ghostlib.recording() as events:
        start = time.perf_counter()
        trainer.train_step(batch)
        seconds = time.perf_counter() - start
    return {
        "stored": stored,
        "launches": ghostlib.L.ghost_launches() - launches,
        "host_ms": 1000 * seconds,
        "waits": waits_of(events),
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
    }


def timed(action):
    """How long the device works on what `action()` asks of it, and its launches."""
    torch.cuda.synchronize()
    ghostlib.L.ghost_time(1)
    launches = ghostlib.L.ghost_launches()
    action()
    torch.cuda.synchronize()
    return {"busy_ms": 1000 * ghostlib.L.ghost_busy(), "launches": ghostlib.L.ghost_launches() - launches}


def steps(args):
    """A plain step, the step of the first query, and one while many batches are stored."""
    with training(args.amp, args.options) as (trainer, batch):
        dtu = trainer.dynamic_teacher.options
        figures = {"step": counted(trainer, batch)}
        while len(trainer.dynamic_teacher._buffer) < dtu.Query_START - 1:
            trainer.train_step(batch)
        figures["query"] = counted(trainer, batch)
        dtu = dtu.clone()
        dtu.defrost()
        dtu.Query_START = 10**6
        trainer.dynamic_teacher.options = dtu
        while len(trainer.dynamic_teacher._buffer) < args.stored:
            trainer.train_step(batch)
        figures["full"] = counted(trainer, batch)
    return figures


def timed_steps(args):
    """Steps, and the queries between others."""
    begin_clock()
    with training(args.amp, args.options) as (trainer, batch):
        after_step, queries = trainer.dynamic_teacher.after_step, []

        def watched(iteration):
            stored = len(trainer.dynamic_teacher._buffer)
            queries.append({"stored": stored} | timed(lambda: after_step(iteration)))

        figures = [timed(lambda: trainer.train_step(batch)) for _ in range(STEPS)]
        trainer.dynamic_teacher.after_step = watched
        for _ in range(STEPS):
            trainer.train_step(batch)
    return {"steps": figures, "queries": [query for query in queries if query["launches"]]}


class Images:
    """As many of one size."""

    def __init__(self, count, skipped):
        self.names, self.skipped = [f"{number}.png" for number in range(count)], skipped

    def __len__(self):
        return len(self.names)


def passes(args):
    """A first and a later candidate pass, per image."""
    begin_clock()
    with experiment(args.amp, args.options) as (config, taxonomy, images, model, folder):
        width, height = config.INPUT.INPUT_SIZE_TEST
        size = config.TEST.BATCH_SIZE
        view = torch.zeros(size, 3, height, width, dtype=torch.uint8).pin_memory()

        def batches(images, *_, **__):
            for first in range(0, len(images), size):
                index = list(range(first, first + size))
                yield {"views": [view], "index": index, "size": [IMAGE] * size, "bad": [False] * size}

        predictors.full_view_loader, predictors.progress = batches, lambda items, *_: items
        candidates.progress = predictors.progress
        predictor = predictors.Predictor(config, torch.device(config.MODEL.DEVICE))
        some = Images(PASS_IMAGES, images.skipped)
        work = candidates.CandidatePass(some, len(taxonomy), predictor, folder / "candidates")
        model.requires_grad_(False)
        figures, previous = {}, work.run(model, 0)
        for name, before in (("first", None), ("later", previous)):
            if before is None:
                delete_generations(work.folder, set())
            with ghostlib.recording() as events:
                found = timed(lambda: work.run(model, 0, before))  # noqa: B023 - called at once
            figures[name] = {key: value / PASS_IMAGES for key, value in found.items()}
            figures[name]["waits"] = {place: times / PASS_IMAGES for place, times in waits_of(events).items()}
    return figures


def main():
    kinds = {"step": steps, "timed": timed_steps, "passes": passes}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", choices=kinds)
    parser.add_argument("--amp", default="off", help="SOLVER.AMP")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--stored", type=int, default=32, help="step: batches on the device at the last one")
    parser.add_argument("options", nargs="*", help="further options of the config, KEY VALUE")
    args = parser.parse_args()
    begin()
    figures = kinds[args.figures](args)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
