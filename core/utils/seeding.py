"""Random states: of a training step, and of the process as a whole."""

import random

import numpy as np
import torch

_STEP = 0x5354  # first key of the random stream of steps


def seed_step(seed: int, iteration: int) -> None:
    """Make what a network draws in a step (DSU, dropout) a function of (SEED, iteration), whatever ran in between."""
    key = np.random.SeedSequence([seed, _STEP, iteration])
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0]))


def random_states() -> dict:
    """Every generator that is global, as tensors, numbers and lists."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - a user's network may draw from it
    states = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
    }
    if torch.cuda.is_initialized():  # the device of this process: to ask the others would begin to use them
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict) -> None:
    """Put back what :func:`random_states` gave; the state of a device is left out where none is used."""
    torch.set_rng_state(states["torch"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if torch.cuda.is_initialized() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
