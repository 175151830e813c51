"""What tools share that start the project's own programs: runs made once and used again, and a folder for them."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from core.adaptation.choices import CHOSEN
from core.configs import load_config
from core.configs.choices import with_chosen
from core.configs.node import Config
from core.runs.folder import ADAPTED, CONFIG, VERDICT
from core.runs.known import FOUND, SPAN_KEY
from core.utils.devices import autocast, choose_device
from core.utils.errors import UserError
from core.utils.files import make_folder, write_json


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        program, config_file, options: its command.
        folder: OUTPUT_DIR.
    """

    program: str
    config_file: str
    folder: Path
    options: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        return [*self.options, "OUTPUT_DIR", str(self.folder)]

    @property
    def config(self) -> Config:
        """With what the run has found and chosen (ADAPT.AUTO) itself, once it has begun."""
        config, saved = load_config(self.config_file, self.words), self.folder / CONFIG
        keys = (*CHOSEN, *FOUND, SPAN_KEY) if config.ADAPT.AUTO else FOUND
        return with_chosen(config, load_config(saved), keys) if saved.is_file() else config

    @property
    def checkpoint(self) -> Path:
        """The one that an automatic run hands over, of others the last one."""
        config = self.config
        return self.folder / (ADAPTED if config.ADAPT.AUTO else f"model_iter{config.SOLVER.STOP_ITER:06d}.pth")

    def is_begun(self) -> bool:
        """Whether the folder holds this very run, be it unfinished."""
        saved = self.folder / CONFIG
        return saved.is_file() and load_config(saved).dump() == self.config.dump()  # options new since have defaults

    def is_complete(self) -> bool:
        """Whether the folder holds this very run, to its end."""
        ended = self.checkpoint if not self.config.ADAPT.AUTO else self.folder / VERDICT  # written after the model
        return ended.is_file() and self.checkpoint.is_file() and self.is_begun()


def claim_folder(folder: Path, mark_name: str, owner: str) -> str:
    """Mark a folder as the tool's own; returns the precision to work in (SOLVER.AMP), decided once.

    Args:
        folder: new, empty, or marked before.
        mark_name: of the file that marks it.
        owner: the tool, for the message.
    Raises:
        UserError: the folder holds something else, or cannot be written to.
    """
    mark = folder / mark_name
    if not mark.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} holds something else: give {owner} a folder of its own")
        make_folder(folder, "--folder")
        write_json(mark, {"amp": faster_precision()})
    return json.loads(mark.read_text(encoding="utf-8"))["amp"]


def faster_precision() -> str:
    """`bf16` where this machine convolves faster in bfloat16 than in float32, else `off`."""
    device = choose_device("auto")
    conv = torch.nn.Conv2d(128, 128, 3, padding=1).to(device, memory_format=torch.channels_last)
    image = torch.randn(4, 128, 32, 64, device=device).contiguous(memory_format=torch.channels_last)
    seconds = {}
    for amp in ("off", "bf16"):
        times = []
        for _ in range(6):
            start = time.perf_counter()
            with torch.no_grad(), autocast(device, amp):
                float(conv(image).sum())  # waits for the device
            times.append(time.perf_counter() - start)
        seconds[amp] = min(times)
    return min(seconds, key=seconds.get)
