"""A test set whose classes are others than the model's: which are scored, and what of the model counts as each."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.datasets.taxonomy import IGNORE, Taxonomy
from core.utils.errors import UserError, shorten


@dataclass(frozen=True)
class Pairing:
    """What a model and a test set of other classes can both say.

    Attributes:
        taxonomy: the scored classes, in the test set's order.
        test: all of the test set's.
        labels: 256 uint8, from the test set's class to the scored one, IGNORE where the model does not have it.
        scored: 256 uint8, from the model's class to the scored one; len(taxonomy), where it is none: predicted, it is
            wrong wherever the truth has a class.
        shown: 256 uint8, from the scored class to the model's (of several the first), IGNORE elsewhere.
        words: what is scored, for the log.
    """

    taxonomy: Taxonomy
    test: Taxonomy
    labels: np.ndarray
    scored: np.ndarray
    shown: np.ndarray
    words: str


def pair(model: Taxonomy, test: Taxonomy, merge: Mapping[str, Sequence[str]], where: str) -> Pairing | None:
    """What is scored of a model's classes on a test set; None where the class sets are the same, and nothing is merged.

    Args:
        merge: by class of the test set, the model's classes that count as it, beside the one of its own name.
        where: the test set's option; begins every message.
    Raises:
        UserError: `merge` names a class that the model does not have, or one twice; or nothing can be scored.
    """
    if model.names == test.names and not merge:
        return None
    owner: dict[str, str] = {}
    for name, members in merge.items():
        for member in members:
            if member not in model.names:
                near = difflib.get_close_matches(member, model.names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{where}: merge.{name}: {member!r} is not one of the model's classes{hint}")
            if owner.setdefault(member, name) != name:
                raise UserError(f"{where}: merge names {member!r} under {owner[member]!r} and under {name!r}")
    for name in test.names:
        if name in model.names:
            owner.setdefault(name, name)
    own = {name: name if name in merge else owner.get(name, name) for name in test.names}  # what its labels count as
    names = tuple(name for name in test.names if own[name] == name and name in owner.values())
    if not names:
        raise UserError(
            f"{where}: its classes ({shorten(test.names)}) are none of the model's ({shorten(model.names)}); `merge` "
            "of its DATASETS.CUSTOM entry says which of these count as which of them"
        )
    scored, shown = np.full(256, len(names), np.uint8), np.full(256, IGNORE, np.uint8)
    for index, name in reversed([*enumerate(model.names)]):
        if name in owner:
            scored[index] = names.index(owner[name])
            shown[scored[index]] = index
    subsets = tuple((title, some) for title, some in test.subsets if set(some) <= set(names))
    taxonomy = Taxonomy(names, subsets=subsets, colours=test.colours)
    labels = np.arange(256, dtype=np.uint8)  # what is no class stays what it is
    labels[: len(test)] = [names.index(own[name]) if own[name] in names else IGNORE for name in test.names]
    return Pairing(taxonomy, test, labels, scored, shown, _in_words(model, names, owner, own))


def _in_words(model: Taxonomy, names: Sequence[str], owner: Mapping[str, str], own: Mapping[str, str]) -> str:
    words = [f"{len(names)} class{'es are' if len(names) > 1 else ' is'} scored ({shorten(names, 5)})"]
    if merged := [f"{member} as {name}" for member, name in owner.items() if member != name]:
        words.append(f"of the model count {shorten(merged, 5)}")
    if coarser := [f"{name} as {scored}" for name, scored in own.items() if name != scored]:
        words.append(f"so do labels: {shorten(coarser, 5)}")
    if unsaid := [name for name, scored in own.items() if scored not in names]:
        words.append(f"the model does not have {shorten(unsaid, 5)}: pixels of these have no label")
    if others := [name for name in model.names if name not in owner]:
        words.append(f"{shorten(others, 5)} of the model are none of the set's: wrong wherever there is a label")
    return "; ".join(words)
