"""A guard over self-training: signs of harm while it lasts, and which model to hand over in the end, without labels.

A run that ruins a model loses classes, and its predictions become unsure or unsteady; a good run shows neither. Its
signs are read off the candidate passes, which every run makes, and off independent looks at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from core.adaptation.looks import Looks, entropy_of
from core.adaptation.survey import improved
from core.models.interpolation import interpolate

KEPT_SHARE = 0.2  # of a class's share of the pixels: with less, the class is being lost
LEAST_SHARE = 5e-4  # of the pixels: smaller classes come and go
DIVERSITY_LOSS = 0.15  # of the entropy of the class shares
CONSISTENCY_LOSS = 0.25  # of the mean consistency of the classes from pass to pass
STRONGER, WEAKEST = 4.0, 0.05  # × the pull of the teacher, if only that, after the first alarm; the second ends the run
SHARES = (0.75, 0.5, 0.25)  # of the adapted model, in the order in which they are tried


class Watch:
    """Looks for signs of harm from candidate pass to candidate pass.

    Args:
        names: of the C classes.

    Attributes:
        count: of the passes that showed any.
        shifted: whether the target is another domain at all.
    """

    def __init__(self, names: Sequence[str]):
        self._names, self.count, self.shifted = names, 0, True
        self._first: list[float] = []  # shares of the classes in the first pass
        self._consistency = 0.0  # mean over the classes, in the pass before

    def see(self, pixels: Sequence[int], consistency: Sequence[float] | None) -> list[str]:
        """Signs of harm in a pass, in words; empty where there is none.

        Args:
            pixels: C counts.
            consistency: C floats with the pass before; None in the first one.
        """
        shares, consistent = shares_of(pixels), mean_positive(consistency or ())
        if not self._first:
            self._first = shares.tolist()
        signs, first = [], np.array(self._first)
        if lost := lost_classes(self._names, first, shares):
            signs.append(f"{', '.join(lost)} lost {1 - KEPT_SHARE:.0%} or more of the pixels they had")
        before, now = entropy_of(first), entropy_of(shares)
        if now < (1 - DIVERSITY_LOSS) * before:
            signs.append(f"the classes grow fewer (entropy of their shares {before:.2f} → {now:.2f} nats)")
        if consistency and consistent < self._consistency - CONSISTENCY_LOSS:
            signs.append(f"passes disagree more than before (consistency {self._consistency:.2f} → {consistent:.2f})")
        self._consistency = consistent
        self.count += bool(signs)
        return signs

    def state_dict(self) -> dict:
        """What later passes are compared with."""
        return {"count": self.count, "shifted": self.shifted, "first": self._first, "consistency": self._consistency}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` gave."""
        if state:
            self.count, self.shifted = state["count"], state["shifted"]
            self._first, self._consistency = state["first"], state["consistency"]


def shares_of(pixels: Sequence[float]) -> np.ndarray:
    """C counts → C shares of all."""
    pixels = np.asarray(pixels, np.float64)
    return pixels / max(pixels.sum(), 1)


def mean_positive(values: Sequence[float]) -> float:
    """Over the classes that have any."""
    positive = [value for value in values if value > 0]
    return float(np.mean(positive)) if positive else 0.0


def lost_classes(names: Sequence[str], before: np.ndarray, now: np.ndarray) -> list[str]:
    """Names of the classes that keep less than KEPT_SHARE of their share of the pixels."""
    return [n for n, a, b in zip(names, before, now, strict=True) if a >= LEAST_SHARE and b < KEPT_SHARE * a]


@dataclass(frozen=True)
class Verdict:
    """What the guard stands for at the end of a run.

    Attributes:
        share: of the adapted model on the way from the one that the run started as.
        better: it is believed to be better than the source model.
        signs: by which, in words.
        changed: names of the classes whose share of the pixels changed most, with their shares.
        harm: signs of harm for which a larger share was refused.
    """

    share: float
    better: bool
    signs: str
    changed: str
    harm: tuple[str, ...] = ()
    shifted: bool = True

    def lines(self, file: str, last: str) -> list[str]:
        """In plain words.

        Args:
            file: of the model that it is about.
            last: of the last checkpoint.
        """
        belief = "better than the source model" if self.better else "not surely better than the source model"
        lines = [f"verdict: {file} is believed to be {belief}: {self.signs}; most changed: {self.changed}"]
        if self.harm:
            lines.append(f"refused of the adapted model: {'; '.join(self.harm)}")
        if not self.shifted:
            lines = [f"verdict: the target looks like the source domain: {file} is the source model as it was"]
            return lines
        what = f"{self.share:.0%} of the way from the start of the run to {last}" if self.share else "the start itself"
        lines.append(f"it is {what}. Use {file}")
        return lines


def conclude(
    names: Sequence[str], source: Looks, start: Looks, model: nn.Module, first: dict, last: dict, look, shifted: bool
) -> Verdict:
    """Find the share of the adapted model to hand over, and put that model into `model`.

    Args:
        source, start: looks of the source model, and of the one that the run started as.
        first, last: state dicts of the latter and of the teacher at the end.
        look: model → Looks at the same images.
        shifted: the target is another domain; False: the source model is left as it is.
    """
    harm: list[str] = []
    for share in SHARES if shifted else ():
        interpolate(model, first, last, share)
        found = look(model)
        signs = lost_classes(names, start.shares, found.shares)
        if signs:
            harm.append(f"{', '.join(signs)} would be lost")
            continue
        if found.information < start.information and found.steadiness < start.steadiness:
            harm.append("less steady and less sure")
            continue
        break
    else:
        share, found = 0.0, start
        interpolate(model, first, last, share)
    better, words = improved(source, found)
    return Verdict(share, better, words, changed_classes(names, source.shares, found.shares), tuple(harm), shifted)


def changed_classes(names: Sequence[str], before: np.ndarray, now: np.ndarray, count: int = 3) -> str:
    """The classes whose share of the pixels changed most, as `car 3.1 → 4.0 %`."""
    order = np.argsort(-np.abs(now - before), kind="stable")[:count]
    return ", ".join(f"{names[c]} {100 * before[c]:.1f} → {100 * now[c]:.1f} %" for c in order)
