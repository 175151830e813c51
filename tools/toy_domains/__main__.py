"""Draw two small sets of street scenes, by daylight and at dusk, in Cityscapes' layout, names and labelIds.

They need no download, and a ResNet-18 learns them on two CPU cores in minutes: enough to see every program of this
project at work. The scenes of both sets follow one grammar (`tools.toy_scenes`); SHIFT says how far apart they look.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from core.datasets.cityscapes import label_path
from core.datasets.images import write_label
from core.programs.frame import Parser, run_program
from core.utils.errors import UserError
from core.utils.files import make_folder
from tools.toy_canvas import Tone
from tools.toy_scenes import Style, draw_scene

# How far the target's camera and weather are from the source's, drawn evenly for every image: 0 not at all, 1 as in
# TARGET_CAMERA. A wide range, as weather has it: self-training finds its way from the clear images to the dense ones.
SHIFT = (0.1, 1.1)

SIZE = (512, 256)  # width, height, px
LEAST_SIZE = (64, 32)
MOST_SIZE = (4096, 2048)
TOWNS = {"train": "toyton", "val": "drawwich"}


@dataclass(frozen=True)
class Camera:
    """Weather and camera. Every field is a range, from which each image draws evenly.

    Attributes:
        haze: extinction, 1/m: the share exp(-haze·depth) of the scene's light arrives.
        haze_red, haze_green, haze_blue: the haze's colour, 0 to 255.
        exposure: factor on the light.
        red, blue: white balance, factors on the two channels.
        saturation: 0 grey, 1 as it is.
        contrast: about the image's mean, 1 as it is.
        gamma: exponent of the response.
        blur: Gaussian, px of an image 256 px high.
        noise: standard deviation, of 255.
    """

    haze: tuple[float, float] = (0.0, 0.002)
    haze_red: tuple[float, float] = (190, 215)
    haze_green: tuple[float, float] = (200, 220)
    haze_blue: tuple[float, float] = (215, 235)
    exposure: tuple[float, float] = (0.9, 1.1)
    red: tuple[float, float] = (0.97, 1.03)
    blue: tuple[float, float] = (0.97, 1.03)
    saturation: tuple[float, float] = (0.9, 1.1)
    contrast: tuple[float, float] = (0.95, 1.1)
    gamma: tuple[float, float] = (0.92, 1.08)
    blur: tuple[float, float] = (0.35, 0.5)
    noise: tuple[float, float] = (1.5, 4.0)


SOURCE_CAMERA = Camera()
TARGET_CAMERA = Camera(
    haze=(0.001, 0.004),
    haze_red=(150, 180),
    haze_green=(160, 185),
    haze_blue=(185, 215),
    exposure=(0.4, 0.6),
    red=(0.8, 0.9),
    blue=(1.1, 1.25),
    saturation=(0.6, 0.9),
    contrast=(0.7, 0.9),
    gamma=(1.0, 1.2),
    blur=(0.45, 0.7),
    noise=(3.0, 6.0),
)
SOURCE_STYLE = Style(
    buildings=Tone((-0.02, 0.14), (0.08, 0.5), (0.4, 0.9)),
    leaves=Tone((0.2, 0.36), (0.35, 0.7), (0.3, 0.6)),
    road=Tone((0.5, 0.7), (0.0, 0.1), (0.3, 0.5)),
    sidewalk=Tone((0.0, 0.15), (0.02, 0.2), (0.5, 0.75)),
    sky_top=Tone((0.55, 0.62), (0.3, 0.65), (0.65, 0.95)),
    sky_low=Tone((0.53, 0.62), (0.05, 0.25), (0.85, 1.0)),
)
TARGET_STYLE = Style(
    buildings=Tone((-0.08, 0.14), (0.04, 0.4), (0.32, 0.85)),
    leaves=Tone((0.16, 0.36), (0.3, 0.65), (0.28, 0.55)),
    road=Tone((0.4, 0.75), (0.0, 0.1), (0.28, 0.48)),
    sidewalk=Tone((0.0, 0.15), (0.02, 0.2), (0.5, 0.75)),
    sky_top=Tone((0.55, 0.66), (0.15, 0.45), (0.6, 0.9)),
    sky_low=Tone((0.5, 0.65), (0.05, 0.25), (0.75, 0.97)),
    storeys=(2, 6),
    lit=0.2,
    distance=1.05,
    grain=1.2,
)


@dataclass(frozen=True)
class Domain:
    """One of the two sets.

    Attributes:
        number: distinguishes its images from the other's in the seed.
        counts: images per split, unless the user says otherwise.
        shift: range, from which each image draws evenly: 0 for SOURCE_CAMERA, 1 for TARGET_CAMERA.
    """

    number: int
    style: Style
    counts: Mapping[str, int]
    shift: tuple[float, float]


DOMAINS = {
    "toy_source": Domain(0, SOURCE_STYLE, {"train": 400, "val": 80}, (0.0, 0.0)),
    "toy_target": Domain(1, TARGET_STYLE, {"train": 200, "val": 80}, SHIFT),
}
COUNTS = {name: dict(domain.counts) for name, domain in DOMAINS.items()}


def blend_cameras(first: Camera, second: Camera, share: float) -> Camera:
    """The camera `share` of the way from the first to the second, field by field."""
    pairs = ((getattr(first, field.name), getattr(second, field.name)) for field in fields(Camera))
    return Camera(*(tuple(a + share * (b - a) for a, b in zip(p, q, strict=True)) for p, q in pairs))


def photograph(camera: Camera, rng: np.random.Generator, scene: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The scene (H×W×3 uint8, depths H×W float32 m) as the camera sees it through the weather, H×W×3 uint8."""
    (haze, *haze_colour, exposure, red, blue, saturation, contrast, gamma, blur, noise) = (
        rng.uniform(*getattr(camera, field.name)) for field in fields(camera)
    )
    clear = np.exp(-max(haze, 0) * depth)[:, :, None].astype(np.float32)
    light = scene * clear + np.float32(haze_colour) * (1 - clear)
    light *= np.float32((exposure * red, exposure, exposure * blue))
    grey = light.mean(2, keepdims=True)
    light = grey + np.float32(saturation) * (light - grey)
    light = grey.mean() + np.float32(contrast) * (light - grey.mean())
    light = 255 * (np.clip(light, 0, 255) / 255) ** np.float32(gamma)
    light = cv2.GaussianBlur(light, (0, 0), max(blur * len(scene) / 256, 0.05))
    light += np.float32(noise) * rng.standard_normal(light.shape, np.float32)
    return np.clip(np.round(light), 0, 255).astype(np.uint8)


def draw_image(
    domain: str, split: str, number: int, seed: int = 1, size: tuple[int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Image (H×W×3 uint8 RGB) and labelIds (H×W uint8) `number` of a split: a function of the arguments alone."""
    chosen = DOMAINS[domain]
    rng = np.random.default_rng([seed, chosen.number, list(TOWNS).index(split), number])
    scene, label, depth = draw_scene(chosen.style, rng, size)
    camera = blend_cameras(SOURCE_CAMERA, TARGET_CAMERA, rng.uniform(*chosen.shift))
    return photograph(camera, rng, scene, depth), label


def draw_domains(
    folder: str | Path,
    seed: int = 1,
    counts: Mapping[str, Mapping[str, int]] = COUNTS,
    size: tuple[int, int] = SIZE,
    workers: int | None = None,
) -> None:
    """Write `folder`/toy_source and `folder`/toy_target; each appears only when it is complete.

    Args:
        seed: not negative.
        counts: images per domain and split.
        size: width, height, px.
        workers: processes; None for as many as there are cores. They do not change what is drawn.

    Raises:
        UserError: a bad seed, count or size; the folder cannot be written to or holds one of the two already.
    """
    _check(seed, counts, size)
    folder = _claim(Path(folder))
    workers = workers or os.cpu_count() or 1
    partials = {name: folder / f"{name}.partial" for name in DOMAINS}
    try:
        tasks = list(_tasks(partials, counts))
        draw = partial(_draw_file, seed=seed, size=size)
        if workers == 1:
            for task in tasks:
                draw(task)
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


def _claim(folder: Path) -> Path:
    """Make the folder unless it is there.

    Raises:
        UserError: it is a file, cannot be written to, or holds a toy domain, be it one in the making.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder")
    for name in DOMAINS:
        for made in (folder / name, folder / f"{name}.partial"):
            if made.exists():
                raise UserError(f"{made} is there already; remove it or choose another folder")
    return make_folder(folder, "OUT")


def _tasks(partials: Mapping[str, Path], counts: Mapping[str, Mapping[str, int]]) -> Iterator[tuple]:
    """(domain, split, number, image file) of everything to draw; makes the folders."""
    for domain, splits in counts.items():
        for split, count in splits.items():
            town = TOWNS[split]
            pictures = partials[domain] / "leftImg8bit" / split / town
            names = [pictures / f"{town}_{number:06d}_000019_leftImg8bit.png" for number in range(count)]
            for folder in (pictures, label_path(names[0]).parent):
                folder.mkdir(parents=True)
            yield from ((domain, split, number, name) for number, name in enumerate(names))


def _draw_in_processes(draw: Callable[[tuple], None], tasks: list[tuple], workers: int) -> None:
    # spawned, for a fork of a process in which torch has started threads may hang
    with ProcessPoolExecutor(workers, get_context("spawn"), _ignore_interrupts) as pool:
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


def _draw_file(task: tuple, seed: int, size: tuple[int, int]) -> None:
    cv2.setNumThreads(0)  # the processes are the parallelism
    domain, split, number, path = task
    image, label = draw_image(domain, split, number, seed, size)
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
    path.write_bytes(encoded.tobytes())
    write_label(label_path(path), label)


def _size(text: str) -> tuple[int, int]:
    width, height = text.lower().split("x")
    return int(width), int(height)


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m tools.toy_domains",
        description=__doc__.partition("\n")[0],
        epilog="example: python -m tools.toy_domains datasets",
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder in which toy_source and toy_target are made")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="another seed, other scenes (default 1)")
    parser.add_argument(
        "--images-per-split",
        type=int,
        metavar="N",
        help="images in each of the four splits (default: source 400 + 80, target 200 + 80)",
    )
    parser.add_argument("--size", type=_size, default=SIZE, metavar="WxH", help="size in pixels (default 512x256)")

    def draw(arguments: argparse.Namespace) -> None:
        counts = COUNTS
        if arguments.images_per_split is not None:
            counts = {name: dict.fromkeys(splits, arguments.images_per_split) for name, splits in COUNTS.items()}
        draw_domains(arguments.out, arguments.seed, counts, arguments.size)
        total = sum(sum(splits.values()) for splits in counts.values())
        print(f"{total} images with labels: {', '.join(str(arguments.out / name) for name in counts)}")

    return run_program(draw, parser, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
