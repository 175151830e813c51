"""What the benchmark measures with, made up: photographs, candidates, a network."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.datasets.images import write_label


def write_generation(
    folder: Path, names: Sequence[str], classes: Sequence[int], num_classes: int, size: tuple[int, int]
) -> None:
    """Candidates of `classes` in every image of `size` (width, height): boxes as large as persons and signs."""
    (folder / "labels").mkdir(parents=True)
    width, height = size[0] // 2, size[1] // 2
    rng = np.random.default_rng(0)
    images = []
    for number, name in enumerate(names):
        labels = np.zeros((height, width), np.uint8)
        for _ in range(5 * len(classes)):
            h, w = rng.integers(height // 64, height // 6), rng.integers(width // 256, width // 25)
            y, x = rng.integers(0, height - h), rng.integers(0, width - w)
            labels[y : y + h, x : x + w] = rng.choice(classes)
        write_label(folder / "labels" / f"{number:06d}.png", labels)
        entry = {"name": name, "size": [2 * height, 2 * width], "present": [0, *classes], "masked": [0]}
        images.append(entry | {"candidates": list(classes)})
    index = {"format": 1, "generation": 1, "iteration": 0, "num_classes": num_classes, "pixelwise": False}
    (folder / "index.json").write_text(json.dumps(index | {"thresholds": [0.0] * num_classes, "images": images}))


def random_labels(num_classes: int, size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, num_classes, (size[0] // 32, size[1] // 32), np.uint8)
    return coarse.repeat(32, 0).repeat(32, 1)


def photograph(seed: int, size: tuple[int, int]) -> np.ndarray:
    """H×W×3 uint8 with the spectrum of a photograph and a sensor's noise; as a PNG, about 1.15 bytes a pixel."""
    rng = np.random.default_rng(seed)
    width, height = size
    image, strength = np.full((height, width, 3), 110.0, np.float32), 90.0
    for side in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        colours = rng.normal(0, 1, (side, 2 * side, 3)).astype(np.float32)
        colours = 1.02 * colours.mean(2, keepdims=True) + 0.4 * colours
        grown = F.interpolate(torch.from_numpy(colours).permute(2, 0, 1)[None], (height, width), mode="bicubic")
        image += strength * grown[0].permute(1, 2, 0).numpy()
        strength *= 0.42
    return (image + rng.normal(0, 1.2, image.shape)).clip(0, 255).astype(np.uint8)


def small_network(config) -> tuple[nn.Module, nn.Module]:
    """A stride-8 network that costs nothing."""
    return nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, config.MODEL.NUM_CLASSES, 1)
