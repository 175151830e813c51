"""What a run finds for itself: options, as if they had been given, and why each has the value that it has."""

from collections.abc import Mapping, Sequence
from typing import Any

from core.configs.node import Config
from core.utils.environment import available_cores

MOST_WORKERS = 4
CHECKPOINTS = 4


class Choices:
    """The config of a run as it fills up; `lines` says of every choice why it was made.

    Attributes:
        config: with what was chosen so far.
    """

    def __init__(self, config: Config):
        self.config, self.lines = config, []

    def choose(self, why: str, options: Mapping[str, Any]) -> None:
        """Take options, by full name, unless they are given."""
        free = {key: value for key, value in options.items() if not self.config.gives(key)}
        left = [f"{key} {self.config.find(key)}" for key in options if key not in free]
        self.config = self.config.changed(free)
        self.config.freeze()
        words = [f"{key} {_short(value)}" for key, value in free.items()]
        if left:
            words.append(f"as the config gives it: {', '.join(left)}")
        self.lines.append(f"chosen: {', '.join(words)} ({why})" if free else f"not chosen: {words[0]}")

    def choose_workers(self) -> None:
        """DATALOADER.NUM_WORKERS, by the cores that the network leaves."""
        cores = available_cores()
        workers = min(max(cores - 2, 0), MOST_WORKERS)
        self.choose(f"of {cores} cores the network has two; they change no result", {"DATALOADER.NUM_WORKERS": workers})

    def choose_length(self, why: str, length: int, batch: int, parts: int) -> int:
        """Iterations, what follows from them, and the batch; returns the iterations, which may be given.

        Args:
            why: so many.
            batch: images, at least.
            parts: by which a batch must divide.
        """
        self.choose(why, {"SOLVER.BATCH_SIZE": -(-batch // parts) * parts, "SOLVER.STOP_ITER": length})
        length = self.config.SOLVER.STOP_ITER
        self.choose("as long as the run", {"SOLVER.MAX_ITER": length})
        self.choose(f"{CHECKPOINTS} in the run", {"SOLVER.CHECKPOINT_PERIOD": max(-(-length // CHECKPOINTS), 1)})
        return length


def with_chosen(config: Config, chosen: Config, keys: Sequence[str]) -> Config:
    """`config`, with what an earlier run of it has chosen of some options where it gives nothing itself."""
    values = {key: chosen.find(key) for key in keys if not config.gives(key)}
    return config.changed({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
