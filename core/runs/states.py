"""Saved states: what a run goes on from exactly, and which run `resume` means."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from core.configs.defaults import OPTIONS
from core.configs.defaults import cfg as defaults
from core.configs.node import Config
from core.utils import distributed
from core.utils.checkpoints import read_tensors
from core.utils.errors import UserError
from core.utils.files import remove_leftovers, replacing
from core.utils.locks import check_unlocked
from core.utils.logging import LOGGER

FORMAT = 2  # 2: since 2026-11 pasted objects have rounded sizes; a run begun before cannot be gone on with
FOLDER = "state"  # below OUTPUT_DIR
AUTO = "auto"


class StateFolder:
    """The states of one run, `iter000123.pth` each: dicts of tensors, numbers, strings, lists and dicts.

    Args:
        run: OUTPUT_DIR.
        keep: how many of the newest are kept.
    """

    def __init__(self, run: str | Path, keep: int = 2):
        self.folder, self._keep = Path(run) / FOLDER, keep

    def paths(self) -> list[Path]:
        """The states' files, oldest first."""
        found = self.folder.glob("iter*.pth") if self.folder.is_dir() else ()
        return sorted((p for p in found if re.fullmatch(r"iter\d+\.pth", p.name)), key=_iteration)

    def write(self, state: Mapping) -> Path:
        """Write a state, then remove the oldest ones, and newer ones, which are of a course of the run given up."""
        path = self.folder / f"iter{state['iteration']:06d}.pth"
        self.folder.mkdir(parents=True, exist_ok=True)
        content = _plain(state)
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
        kept = [p for p in self.paths() if _iteration(p) <= _iteration(path)][-self._keep :]
        for old in set(self.paths()) - set(kept):
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path, dict]:
        """The newest complete state, (its file, its content), the same in all processes.

        Raises:
            UserError: there is none, or none that can be read.
        """
        found = self._newest() if distributed.is_main() else None
        path = distributed.from_main(lambda: found[0])
        return found or (path, self._read(path))

    def _newest(self) -> tuple[Path, dict]:
        if self.folder.is_dir():
            remove_leftovers(self.folder)
        problem = f"{self.folder} holds no state"
        for path in reversed(self.paths()):
            try:
                return path, self._read(path)
            except UserError as error:
                problem = str(error)
                LOGGER.info("left out a state that cannot be used: %s", error)
        raise UserError(f"no state to go on from: {problem}")

    def generations(self) -> set[str]:
        """Names of the candidate generations that the states need."""
        named = set()
        for path in self.paths():
            try:  # mapped, not read: the names are wanted, not the weights
                named.add(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["generation"])
            except Exception:  # a damaged state needs nothing any more
                continue
        return named - {None}

    def _read(self, path: Path) -> dict:
        state = read_tensors(path)
        if not isinstance(state.get("format"), int):
            raise UserError(f"{path} is not a state of this program")
        if state["format"] != FORMAT:
            raise UserError(
                f"{path} is a state of format {state['format']}, but this version goes on from format {FORMAT} "
                "alone: finish the run with the version that began it, or begin a new one with `resume CHECKPOINT`"
            )
        generation = state["generation"]
        if generation is not None and not re.fullmatch(r"g\d+", str(generation)):
            raise UserError(f"{path} names candidates that no run makes: {generation!r}")
        if generation is not None and not (self.folder.parent / "candidates" / generation).is_dir():
            raise UserError(f"{path} needs the candidates {generation}, which are gone")
        return state


def find_start(config: Config, default_output: str) -> tuple[Config, bool]:
    """What `resume` means for a training run: (the config with OUTPUT_DIR and `resume` made plain, to be continued?).

    A new run's `resume` is then a checkpoint or empty; a continued one goes on in OUTPUT_DIR.

    Args:
        default_output: OUTPUT_DIR where none is given.
    Raises:
        UserError: a run is to be continued that does not exist, or has no state yet and is running.
    """
    word, auto, file = config.resume.partition(":") if config.resume.startswith(f"{AUTO}:") else (config.resume, "", "")
    if word == AUTO:
        if StateFolder(config.OUTPUT_DIR).paths():
            return config, True
        if not auto:
            check_unlocked(config.OUTPUT_DIR, "OUTPUT_DIR")  # its first state may be to come
            raise UserError(
                f"resume auto: OUTPUT_DIR {config.OUTPUT_DIR} holds no state to go on from; start the run with "
                "`resume FILE`, or give `resume auto:FILE`, which starts from FILE where there is no state yet"
            )
        return _with(config, resume=file), False
    if not config.resume or not Path(config.resume).is_dir():
        return config, False
    folder = config.resume
    if not StateFolder(folder).paths():
        raise UserError(f"resume {folder}: the folder holds no state ({FOLDER}/iter*.pth); give a checkpoint's file")
    output = config.OUTPUT_DIR
    if output != default_output and Path(output).resolve() != Path(folder).resolve():
        raise UserError(
            f"resume {folder} goes on in that folder, but OUTPUT_DIR is {output}: leave OUTPUT_DIR out, or "
            "give a checkpoint's file to start from"
        )
    return _with(config, OUTPUT_DIR=folder), True


def continued_config(state: dict, config: Config, program: str) -> Config:
    """The config of a continued run: the one given, with the `resume` that the run began with.

    Raises:
        UserError: the state is another program's, or an option differs that would make it another run.
    """
    if state["program"] != program:
        raise UserError(f"the state is one of {state['program']}, not of {program}")
    saved = state["config"]
    for key in config.flat_keys():
        now, then = _plain(_value(config, key)), saved.get(key, _plain(_value(defaults, key)))
        if key == "DATASETS.TARGET_TRAIN" and all(name.startswith("folder:") for name in (now, then)):
            continue  # the folder may have moved
        if not OPTIONS[key].free and now != then:
            raise UserError(
                f"{key} is {now!r}, but the run to go on with has {then!r}: give that, or start another run"
            )
    stop, old_stop = config.SOLVER.STOP_ITER, saved["SOLVER.STOP_ITER"]
    if stop < old_stop:
        raise UserError(f"SOLVER.STOP_ITER is {stop}, but {old_stop} in the run to go on with: it may only grow")
    return _with(config, resume=saved["resume"])


def flat_config(config: Config) -> dict:
    """Every option by its full name, as a state keeps them."""
    return {key: _plain(_value(config, key)) for key in config.flat_keys()}


def fingerprint(names: Sequence[str]) -> str:
    """Changes with the names of the images or their order."""
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def _with(config: Config, **options) -> Config:
    config = config.clone()
    config.defrost()
    config.update(options)
    config.freeze()
    return config


def _value(config: Config, key: str):
    for name in key.split("."):
        config = config[name]
    return config


def _iteration(path: Path) -> int:
    return int(path.stem.removeprefix("iter"))


def _plain(value):
    """The same of tensors on the host, numbers, strings, lists and dicts only."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # numpy's float64 is a float, too, but would be refused on reading
    if value is None:
        return None
    raise TypeError(f"a state cannot hold a {type(value).__name__}")
