"""The published experiment on a GPU that only counts: kernels do nothing, so sizes are real and numbers are not.

The scripts here are run by `shared/ghost_gpu/ghost.sh SCRIPT`.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, os.environ.get("REPO") or str(Path(__file__).resolve().parents[2]))
sys.path.append(os.environ["GHOST_DIR"])

import cv2
import ghostlib
import numpy as np
import torch

from core.configs.loading import load_config
from core.datasets.catalog import find_target_images, find_taxonomy
from core.runs.resume import load_model
from core.selftraining.samples import PasteRequest
from core.selftraining.trainer import Trainer

REPO = sys.path[0]
IMAGE = (1024, 2048)  # (H, W) of Cityscapes
WAITS = ("cudaMemcpy", "streamSync", "deviceSync", "eventSync")
_FINITE = torch.isfinite


def arguments(description):
    """The command line that the scripts share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--amp", default="off", help="SOLVER.AMP")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("options", nargs="*", help="further options of the config, KEY VALUE")
    return parser


def begin():
    """Have the ghost count from now on."""
    torch.set_num_threads(1)
    ghostlib.start(lazy=True, asynchronous=False, copy=False)
    ghostlib.where = where
    # no kernel computes that a loss is finite
    torch.isfinite = lambda x: ghostlib.poke_true(_FINITE(x)) if x.is_cuda and not x.ndim else _FINITE(x)


def where():
    """The functions of the project that are being called, the innermost first: at most three."""
    frame, found = sys._getframe(1), []
    while frame and len(found) < 3:
        path = frame.f_code.co_filename
        if path.startswith((f"{REPO}/core", f"{REPO}/tools")):
            found.append(f"{path.removeprefix(f'{REPO}/')} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


@contextmanager
def published(amp, options):
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
    with published(amp, options) as (config, taxonomy, images, model, _):
        trainer = Trainer(config, model, images, taxonomy)
        samples = [trainer.samples[PasteRequest(n % len(images), n)] for n in range(config.SOLVER.BATCH_SIZE)]
        batch = trainer.samples.collate(samples).pin_memory()
        for _ in range(2):
            trainer.train_step(batch)
        yield trainer, batch


def waits_of(events):
    """How often the host waited, by place."""
    found = {}
    for (kind, _, place), times in events.items():
        if kind in WAITS:
            found[f"{kind}: {place}"] = found.get(f"{kind}: {place}", 0) + times
    return found


def write(figures, path):
    """Print the figures, and write them to a file if one is wanted."""
    print(json.dumps(figures, indent=1))
    if path:
        path.write_text(json.dumps(figures))
