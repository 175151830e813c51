"""What a family of public checkpoints is to the importer: how it is known, and what is made of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from core.utils.checkpoints import BGR255, MEAN, STD

IMAGENET_INPUT = {MEAN: [0.485, 0.456, 0.406], STD: [0.229, 0.224, 0.225], BGR255: False}
# of 19 outputs whose source may be SYNTHIA, as DAFormer's and SAC's
SYNTHIA_NOTE = (
    "if it was trained on SYNTHIA, its outputs of terrain, truck and train never were: --classes synthia16 drops them"
)


@dataclass(frozen=True)
class Imported:
    """What a family's `convert` makes of a state.

    Attributes:
        network: MODEL.NAME.
        outputs: channels that it gives.
        feature_extractor, classifier: tensors by the names of that network's parts.
        left_out: of each input tensor that is not needed, why.
        about: what the checkpoint will say of its weights (core.utils.checkpoints), but for the classes and the
            network, which the program adds.
        args: MODEL.ARGS that the network needs.
        notes: what the log is to say, loudly: what was decided by looking at the weights.
    """

    network: str
    outputs: int
    feature_extractor: dict[str, torch.Tensor]
    classifier: dict[str, torch.Tensor]
    left_out: dict[str, str]
    about: dict
    args: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Checkpoints that one program or several write alike.

    Attributes:
        name: of --family.
        words: what it is, for the log and --list.
        fits: whether a state is of it, by names and shapes. Wrappers' prefixes are gone (module., model., net., …), and
            so are the other networks of a file, as DAFormer's ema_model. and imnet_model. beside model.
        convert: of a state that fits; raises UserError where it cannot be had exactly.
        likely: whether the weights of a state that fits point to this family; asked where several fit. None: they do.
    """

    name: str
    words: str
    fits: Callable[[Mapping[str, torch.Tensor]], bool]
    convert: Callable[[Mapping[str, torch.Tensor]], Imported]
    likely: Callable[[Mapping[str, torch.Tensor]], bool] | None = None


class Taker(Mapping):
    """A state that remembers which of its tensors were taken (`state[name]`, `items()`, `values()`); names alone and
    `in` take none. The program hands it to `convert`, so that no tensor is forgotten.
    """

    def __init__(self, state: Mapping[str, torch.Tensor]):
        self._state, self.taken = dict(state), set()

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._state[name]
        self.taken.add(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._state

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)

    def forgotten(self, left_out: Mapping[str, str]) -> list[str]:
        """Names that were neither taken nor left out."""
        return [name for name in self if name not in self.taken and name not in left_out]
