"""Shifts, tiny, and what they are run from, for tests."""

from pathlib import Path

import yaml

from tests.networks import TINY
from tools.toy_domains.drawing import draw_domains

TOY = {"CONFIG": "configs/toy_src.yaml"}
GOOD = {
    "SOURCE": TOY | {"OPTIONS": ["SEED", 1]},
    "OPTIONS": {"MODEL.NUM_CLASSES": 14, "DATASETS.TEST": "toy_night_val", "INPUT.INPUT_SIZE_TEST": "(256, 128)"},
}
CHECKPOINT = {"SOURCE": {"CHECKPOINT": "a.pth"}}


def write(path, tree, comment="# Day → night"):
    path.write_text(f"{comment}\n{yaml.safe_dump(tree)}", encoding="utf-8")
    return path


def tiny_config(path, base, **changes):
    """A few images and iterations."""
    options = yaml.safe_load((Path("configs") / base).read_text(encoding="utf-8"))
    options["MODEL"]["NAME"] = TINY
    options["SOLVER"] |= {"STOP_ITER": 2, "CHECKPOINT_PERIOD": 1, "BATCH_SIZE": 2} | changes
    options.setdefault("INPUT", {})
    options["INPUT"] |= {"INPUT_SIZE_TEST": [64, 32], "SOURCE_INPUT_SIZE_TRAIN": [64, 32]}
    options["INPUT"] |= {"TARGET_INPUT_SIZE_TRAIN": [48, 24]}
    path.write_text(yaml.safe_dump(options | {"VIS": {"PERIOD": 0}}), encoding="utf-8")
    return str(path)


def draw(folder):
    counts = {name: {"train": 2, "val": 2} for name in ("toy_source", "toy_target")}
    draw_domains(folder / "domains", counts=counts, size=(64, 32), workers=1)
