"""Where the checks work: data made up in a temporary folder, configs, programs as processes, trainers in this one."""

import csv
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, RLock

import torch
from PIL import Image

from core.configs import load_config
from core.configs.node import Config
from core.datasets.catalog import find_target_images, find_taxonomy
from core.models import build_model
from core.runs.resume import load_model
from core.selftraining.samples import Batch, PasteRequest
from core.selftraining.trainer import Trainer
from core.utils.checkpoints import save_checkpoint
from core.utils.devices import prepare_device
from core.utils.environment import PROJECT
from tools.benchmark.data import photograph
from tools.gpu_check.network import make_sensible
from tools.toy_domains.drawing import draw_domains

SIMULATED = "DTST_SIMULATED"  # environment variable: 1 where the device is none, and cannot do what needs a real one
ADAPT, TRAIN = "train_TCR_DTU.py", "train_src.py"
TOY, TOY_SOURCE, PUBLISHED = (f"configs/{name}.yaml" for name in ("toy_dtst", "toy_src", "deeplabv2_r101_dtst"))
TINY = "tools.gpu_check.network:build"
SCENE_SIZE, SCENES = (256, 128), 6  # (width, height), images per split
PHOTOGRAPH_SIZE, PHOTOGRAPHS = (2048, 1024), 4
LIMIT = 240  # seconds for one program
SMALL = {  # over configs/toy_*.yaml
    "MODEL.FREEZE_BN": True,
    "MODEL.DEVICE": "cuda",
    "DATASETS.TEST": "",
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.INPUT_SIZE_TEST": (128, 64),
    "INPUT.TARGET_INPUT_SIZE_TRAIN": (96, 48),
    "INPUT.SOURCE_INPUT_SIZE_TRAIN": (96, 48),
    "TCR.UPDATE_FREQUENCY": 6,
    "TCR.PASTE_LAG": 3,
    "SOLVER.AMP": "off",
    "SOLVER.BATCH_SIZE": 2,
    "SOLVER.STOP_ITER": 8,
    "SOLVER.CHECKPOINT_PERIOD": 1000,
    "VIS.PERIOD": 0,
    "VIS.TENSORBOARD": False,
}


class Failed(Exception):
    """What a check looked for is not as it should be; the message says what is."""


class Skipped(Exception):
    """A check that cannot be made here; the message says why."""


class Findings:
    """What a check has measured so far, and what is wrong with it. A list or dict goes to the JSON only."""

    def __init__(self):
        self.figures: dict[str, object] = {}
        self.problems: list[str] = []

    def note(self, **figures) -> None:
        self.figures |= figures

    def require(self, fine: bool, problem: str) -> None:
        if not fine:
            self.problems.append(problem)

    def within(self, name: str, value: float, limit: float) -> None:
        """Note a figure that may be as large as `limit`, and is a number."""
        self.figures[name] = value
        self.require(value <= limit, f"{name} is {value:.3g}, above {limit:g}")


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    code: int
    out: str
    err: str

    def why(self) -> str:
        """Its exit code and the last line that it wrote."""
        lines = [*self.out.splitlines(), *self.err.splitlines()]
        return f"exit code {self.code}, {lines[-1].strip() if lines else 'and not a word'}"


class Workplace:
    """A temporary folder and what is made in it, each when it is first wanted.

    Args:
        folder: empty.
        quick: fewer iterations and timings.
    """

    def __init__(self, folder: Path, quick: bool):
        self.folder, self.quick = folder, quick
        self.simulated = os.environ.get(SIMULATED) == "1"
        self.cores = len(os.sched_getaffinity(0))
        self._slots, self._lock = BoundedSemaphore(max(self.cores // 2, 2)), RLock()

    @property
    def device(self) -> torch.device:
        """The one that is checked."""
        return torch.device("cuda", torch.cuda.current_device())

    # data

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.folder / name
        with self._lock:
            if not path.exists():
                make(path)
        return path

    def scenes(self) -> Path:
        """DATASETS.ROOT with the toy domains, a few images of each split."""
        splits = {"train": SCENES, "val": SCENES // 2}
        counts = {"toy_source": splits, "toy_target": splits}
        return self._made("scenes", lambda path: draw_domains(path, counts=counts, size=SCENE_SIZE, workers=1))

    def photographs(self) -> Path:
        """A folder of PNGs as large as Cityscapes' images."""

        def make(path: Path) -> None:
            path.mkdir()
            for number in range(PHOTOGRAPHS):
                Image.fromarray(photograph(number, PHOTOGRAPH_SIZE)).save(path / f"{number}.png", compress_level=1)

        return self._made("photographs", make)

    def checkpoint(self) -> Path:
        """A ResNet-18 for the toy domains' classes, random but sensible."""

        def make(path: Path) -> None:
            torch.manual_seed(0)
            model = build_model(self.small(MODEL__DEVICE="cpu"))
            make_sensible(model)
            save_checkpoint(model, path, 0)

        return self._made("source.pth", make)

    # configs

    def options(self, **options) -> dict:
        """SMALL with the data of this folder, and SECTION__NAME=value."""
        given = {key.replace("__", "."): value for key, value in options.items()}
        return SMALL | {"DATASETS.ROOT": self.scenes()} | given

    def small(self, **options) -> Config:
        """The config of a small adaptation."""
        return load_config(TOY, words(self.options(**options)))

    def published(self, **options) -> Config:
        """The published experiment's config, with made images."""
        given = {
            "MODEL.DEVICE": str(self.device),
            "MODEL.WEIGHTS": "",
            "DATASETS.TARGET_TRAIN": f"folder:{self.photographs()}",
            "DATASETS.TEST": "",
            "DATALOADER.NUM_WORKERS": 0,
            "TCR.PASTE": False,
            "TCR.RESAMPLE": False,
            "SOLVER.BASE_LR": 1e-6,  # weights that stay as they are
        }
        return load_config(PUBLISHED, words(given | {k.replace("__", "."): v for k, v in options.items()}))

    # programs

    def command(self, name: str, program: str = ADAPT, config: str = TOY, what: str = "", **options) -> list[str]:
        """The words that run `program` in OUTPUT_DIR `name`; `what`: see :mod:`tools.gpu_check.child`."""
        start = ["-m", "tools.gpu_check.child", what, program] if what else [program]
        given = {"OUTPUT_DIR": self.folder / name, **self.options(**options)}
        return [*start, "-cfg", config, *words(given)]

    def resnet(self, name: str, **options) -> list[str]:
        """:meth:`command` of an adaptation that begins with :meth:`checkpoint`."""
        return self.command(name, **{"resume": self.checkpoint(), **options})

    @contextmanager
    def started(self, command: Sequence[str]) -> Iterator[subprocess.Popen]:
        """A process whose output goes to pipes; it is there no more when the block ends."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen([sys.executable, *command], cwd=PROJECT, env=environment, **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *commands: Sequence[str], codes: Sequence[int] = ()) -> list[Done]:
        """Run all side by side, as far as there are cores.

        Args:
            codes: the exit code of each that is expected; none: 0.
        Raises:
            Failed: one took too long, or has another exit code.
        """
        with ThreadPoolExecutor(len(commands)) as pool:
            ended = list(pool.map(self._run, commands))
        for command, done, code in zip(commands, ended, codes or [0] * len(commands), strict=True):
            if done.code != code:
                raise Failed(f"{program_of(command)}: {done.why()} (expected {code})")
        return ended

    def _run(self, command: Sequence[str]) -> Done:
        with self._slots, self.started(command) as process:
            try:
                out, err = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                raise Failed(f"{program_of(command)} did not end within {LIMIT} s") from None
            return Done(process.returncode, out, err)

    # trainers in this process

    @staticmethod
    def tidy() -> None:
        """Give back the memory of what is needed no more."""
        gc.collect()
        torch.cuda.empty_cache()

    def trainer(self, name: str, config: Config) -> Trainer:
        """A trainer that writes to the folder `name`."""
        self.tidy()
        device = prepare_device(config)
        taxonomy, images = find_taxonomy(config), find_target_images(config)
        model = load_model(config, device)
        make_sensible(model)
        config = config.changed({"OUTPUT_DIR": str(self.folder / name)})
        (self.folder / name).mkdir()
        return Trainer(config, model, images, taxonomy)


def words(options: Mapping[str, object]) -> list[str]:
    """KEY VALUE pairs, as a program takes them."""
    return [str(word) for pair in options.items() for word in pair]


def program_of(command: Sequence[str]) -> str:
    """Which program a command runs, for a message."""
    return next((word for word in command if word in (ADAPT, TRAIN)), "the process")


def rows_of(table: Path) -> list[dict[str, str]]:
    """Of a CSV file; none where there is no such file."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def first_batch(trainer: Trainer) -> Batch:
    """A batch in page-locked memory."""
    images = len(trainer.samples.images)
    requests = [PasteRequest(n % images, n) for n in range(trainer.config.SOLVER.BATCH_SIZE)]
    return trainer.samples.collate([trainer.samples[request] for request in requests]).pin_memory()
