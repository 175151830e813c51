"""Before a run of `ADAPT.AUTO`: look at the target with the source model, and settle what follows from that."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from core.adaptation.choices import choose_classes
from core.adaptation.looks import Looks, look_at
from core.adaptation.norm_mix import mix_statistics, movable_norms
from core.configs.choices import Choices
from core.datasets.reader import ImageSet
from core.datasets.sampling import even_subsample
from core.datasets.taxonomy import Taxonomy
from core.evaluation.predictor import Predictor
from core.utils.errors import UserError

LOOKED_AT = 32  # images
_SUBSAMPLE = 0x4C4B  # key of the random stream that picks them
MEASURED = 256  # images, at most, that the target's statistics are taken of
SOURCE_IMAGES = 4  # as many images are the source's statistics taken to be worth (Schneider et al., 2020)
TRIED = (1.0, 0.3)  # × the target's share by that: in this order
NO_SHIFT = 0.97  # where source and mixed model agree on so many pixels, the statistics have not moved


@dataclass(frozen=True)
class Survey:
    """What was seen before the first iteration, of the same images.

    Attributes:
        source: as the source model sees them.
        start: as the model does from which the run starts.
        shifted: the target is another domain, as far as that can be told.
    """

    source: Looks
    start: Looks
    shifted: bool


def few_images(images: ImageSet, seed: int) -> ImageSet:
    """At most LOOKED_AT of them, spread evenly."""
    return images.restricted(even_subsample(len(images), LOOKED_AT, np.random.default_rng([seed, _SUBSAMPLE])))


def looking(predictor: Predictor) -> Predictor:
    """The same with batches as training has them, of which a norm's mixture is taken."""
    config = predictor.config
    size = max(config.TEST.BATCH_SIZE, config.SOLVER.BATCH_SIZE)
    return Predictor(config.changed({"TEST.BATCH_SIZE": size}), predictor.device)


def settle(choices: Choices, model: nn.Module, images: ImageSet, taxonomy: Taxonomy, device) -> Survey:
    """Choose by what the target shows; the model's batch norms are moved in place to where the run starts.

    Args:
        model: the source model, on its device.
    Raises:
        UserError: an image that cannot be read.
    """
    predictor = looking(Predictor(choices.config, device))
    few = few_images(images, choices.config.SEED)

    def look(network: nn.Module, what: str) -> Looks:
        return look_at(network, few, len(taxonomy), predictor, f"looking at the target with {what}")

    source = start = look(model, "the source model")
    shifted = True
    if not movable_norms(model):
        choices.choose("the network has no batch norm to mix", {"ADAPT.NORM_MIX": ()})
    elif choices.config.gives("ADAPT.NORM_MIX"):
        if choices.config.ADAPT.NORM_MIX:
            mix_norms(model, choices.config.ADAPT.NORM_MIX, images, predictor)
            start = look(model, "mixed batch norm")
    else:
        start, shifted = _choose_mix(choices, model, source, images, predictor, look)
    choose_classes(choices, taxonomy, start)
    return Survey(source, start, shifted)


def mix_norms(model: nn.Module, shares: Sequence[float], images: ImageSet, predictor: Predictor) -> None:
    """:func:`mix_statistics` with the statistics of at most MEASURED of the images, in eval mode.

    Raises:
        UserError: another number of shares than the network has batch norms.
    """
    norms = len(movable_norms(model))
    if len(shares) not in (1, norms):
        raise UserError(
            f"ADAPT.NORM_MIX has {len(shares)} shares, but the network {norms} batch norms with statistics: give one "
            "number for all, or one for each"
        )
    chosen = even_subsample(len(images), MEASURED, np.random.default_rng([predictor.config.SEED, _SUBSAMPLE, 1]))

    def read(batch: dict) -> None:
        predictor.logits(model, predictor.prepare(batch["views"][0]))

    def look() -> None:
        predictor.sweep(model, images.restricted(chosen), "statistics of the target", read, lambda made: None)

    mix_statistics(model, shares, look)


def _choose_mix(choices: Choices, model, source: Looks, images: ImageSet, predictor: Predictor, look):
    """Try the mixes on copies of the model, and take over the first that is accepted; whether there is a shift, too."""
    count = min(len(images), MEASURED)
    for share in (round(times * count / (count + SOURCE_IMAGES), 3) for times in TRIED):
        mixed = copy.deepcopy(model)
        mix_norms(mixed, (share,), images, predictor)
        found = look(mixed, f"batch norm mixed by {share}")
        agreed = found.agreement(source)
        same = agreed.trace() / max(agreed.sum(), 1)
        if same >= NO_SHIFT:
            why = f"with the target's statistics {same:.1%} of the pixels keep their class: there is no shift to mend"
            choices.choose(why, {"ADAPT.NORM_MIX": ()})
            return source, False
        better, why = improved(source, found)
        if better:
            model.load_state_dict(mixed.state_dict())
            choices.choose(f"{why}; {same:.1%} of the pixels keep their class", {"ADAPT.NORM_MIX": (share,)})
            return found, True
    choices.choose(f"the target's statistics do not help: {why}", {"ADAPT.NORM_MIX": ()})
    return source, True


def improved(before: Looks, after: Looks) -> tuple[bool, str]:
    """Whether a model sees the images better than another, as far as that can be told without labels; and by what.

    It does where pixels and classes have more information of each other: predictions are sure, and the classes many.
    Where they have less, it still does where its predictions are both steadier in other looks and surer.
    """
    signs = {
        "information": (before.information, after.information),
        "steadiness": (before.steadiness, after.steadiness),
        "confidence": (before.confidence, after.confidence),
    }
    risen = {name: after > before for name, (before, after) in signs.items()}
    words = ", ".join(f"{name} {before:.3f} → {after:.3f}" for name, (before, after) in signs.items())
    return risen["information"] or (risen["steadiness"] and risen["confidence"]), words
