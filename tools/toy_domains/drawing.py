"""The toy domains' images and labels, drawn by several processes into Cityscapes' layout."""

import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from core.datasets.cityscapes import label_path
from core.datasets.images import write_label
from core.utils.errors import UserError
from core.utils.files import make_folder
from tools.toy_domains.domains import DAYLIGHT, DOMAINS
from tools.toy_domains.scenes import draw_scene

SIZE = (512, 256)  # width, height, px
LEAST_SIZE = (64, 32)
MOST_SIZE = (4096, 2048)
TOWNS = {"train": "toyton", "val": "drawwich"}
COUNTS = {name: dict(DOMAINS[name].counts) for name in ("toy_source", "toy_target")}  # unless others are named


def draw_image(
    domain: str, split: str, number: int, seed: int = 1, size: tuple[int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H×W×3 uint8 RGB) and labelIds (H×W uint8) `number` of a split: a function of the arguments alone."""
    chosen = DOMAINS[domain]
    rng = np.random.default_rng([seed, chosen.number, list(TOWNS).index(split), number])
    canvas = draw_scene(chosen.style, rng, size)
    camera = DAYLIGHT.towards(chosen.camera, rng.uniform(*chosen.shift))
    return camera.photograph(rng, canvas), canvas.label


def draw_domains(
    folder: str | Path,
    seed: int = 1,
    counts: Mapping[str, Mapping[str, int]] = COUNTS,
    size: tuple[int, int] = SIZE,
    workers: int | None = None,
) -> None:
    """Write `folder`/<domain> for every domain of `counts`; each appears only when it is complete.

    Args:
        seed: not negative.
        counts: images per domain and split.
        size: width, height, px.
        workers: processes; None for as many as there are cores. They do not change what is drawn.

    Raises:
        UserError: a bad seed, count or size; the folder cannot be written to or holds one of them already.
    """
    _check(seed, counts, size)
    folder = _claim(Path(folder), counts)
    partials = {name: folder / f"{name}.partial" for name in counts}
    try:
        tasks = [task for name, part in partials.items() for task in _tasks(name, part, counts[name])]
        draw = partial(_draw_file, seed=seed, size=size)
        if workers == 1:
            list(map(draw, tasks))
        else:
            _draw_in_processes(draw, tasks, workers)
        for name, part in partials.items():
            part.rename(folder / name)
    except OSError as error:
        raise UserError(f"the toy domains cannot be written to {folder}: {error.strerror}") from None
    finally:
        for part in partials.values():
            shutil.rmtree(part, ignore_errors=True)


def _check(seed: int, counts: Mapping[str, Mapping[str, int]], size: tuple[int, int]) -> None:
    if seed < 0:
        raise UserError(f"seed {seed}: it must not be negative")
    if not all(a <= b <= c for a, b, c in zip(LEAST_SIZE, size, MOST_SIZE, strict=True)):
        raise UserError("size {}x{}: it must lie between {}x{} and {}x{}".format(*size, *LEAST_SIZE, *MOST_SIZE))
    for domain, splits in counts.items():
        for split, count in splits.items():
            if not 1 <= count <= 999_999:
                raise UserError(f"{count} images for {domain} {split}: it must be 1 to 999999")


def _claim(folder: Path, domains: Iterable[str]) -> Path:
    """Make the folder unless it is there.

    Raises:
        UserError: it is a file, cannot be written to, or holds one of the domains, be it one in the making.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder")
    for made in (folder / f"{name}{ending}" for name in domains for ending in ("", ".partial")):
        if made.exists():
            raise UserError(f"{made} is there already; remove it or choose another folder")
    return make_folder(folder, "OUT")


def _tasks(domain: str, folder: Path, counts: Mapping[str, int]) -> list[tuple[str, str, int, Path]]:
    """(domain, split, number, image file) of all that is drawn into a domain's folder; makes the folders."""
    tasks = []
    for split, count in counts.items():
        town = TOWNS[split]
        pictures = folder / "leftImg8bit" / split / town
        paths = [pictures / f"{town}_{number:06d}_000019_leftImg8bit.png" for number in range(count)]
        for made in (pictures, label_path(paths[0]).parent):
            made.mkdir(parents=True)
        tasks += [(domain, split, number, path) for number, path in enumerate(paths)]
    return tasks


def _draw_file(task: tuple[str, str, int, Path], seed: int, size: tuple[int, int]) -> None:
    cv2.setNumThreads(0)  # the processes are the parallelism
    *which, path = task
    image, label = draw_image(*which, seed, size)
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
    path.write_bytes(encoded.tobytes())
    write_label(label_path(path), label)


def _draw_in_processes(draw: partial, tasks: list[tuple], workers: int | None) -> None:
    # spawned, for a fork of a process in which torch has started threads may hang
    with ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn"), _ignore_interrupts) as pool:
        try:
            list(pool.map(draw, tasks, chunksize=4))
        except KeyboardInterrupt:
            before = _ignore_interrupts()  # a second Ctrl-C would leave the processes behind
            pool.shutdown(cancel_futures=True)
            signal.signal(signal.SIGINT, before)
            raise


def _ignore_interrupts():
    """Leave Ctrl-C, which reaches every process, to the one that started the others; returns the handler before."""
    return signal.signal(signal.SIGINT, signal.SIG_IGN)
