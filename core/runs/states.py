"""Saved states: what a run goes on from exactly."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from core.configs.node import Config
from core.utils import distributed
from core.utils.checkpoints import read_tensors
from core.utils.errors import UserError
from core.utils.files import remove_leftovers, replacing
from core.utils.logging import LOGGER

FORMAT = 2  # 2: since 2026-11 pasted objects have rounded sizes; a run begun before cannot be gone on with
FOLDER, GENERATIONS = "state", "candidates"  # below OUTPUT_DIR; a state may need one of the latter


class StateFolder:
    """The states of one run (its OUTPUT_DIR), of which the newest are kept.

    They are files `iter000123.pth` of dicts of tensors, numbers, strings, lists and dicts.
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
        if generation is not None and not (self.folder.parent / GENERATIONS / generation).is_dir():
            raise UserError(f"{path} needs the candidates {generation}, which are gone")
        return state


def flat_config(config: Config) -> dict:
    """Every option by its full name, as a state keeps them."""
    return {key: _plain(config.find(key)) for key in config.flat_keys()}


def fingerprint(names: Sequence[str]) -> str:
    """Changes with the names of the images or their order."""
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


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
