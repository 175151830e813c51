"""`ADAPT.AUTO`: what a run finds for itself, from how many images there are, the network, and what the target shows.

Every choice is an option: it stands in the run's config.yaml as if it had been given. What a user's config gives is
left as it is. The constants were chosen on the shifts for development (docs/adapting.md), by their labels, for all of
them at once; no choice sees a label or the name of a data set.
"""

import numpy as np

from core.adaptation.looks import Looks, reliability
from core.configs.choices import Choices
from core.datasets.reader import ImageSet
from core.datasets.sizes import common_size, view_size
from core.datasets.taxonomy import Taxonomy
from core.utils.errors import shorten

PUBLISHED = {  # what the published experiments have in common
    "MODEL.FREEZE_BN": True,
    "INPUT.INPUT_SCALES_TRAIN": (0.75, 1.25),
    "INPUT.HORIZONTAL_FLIP_PROB_TRAIN": 0.5,
    "INPUT.BRIGHTNESS": 0.5,
    "INPUT.CONTRAST": 0.5,
    "INPUT.SATURATION": 0.5,
    "INPUT.HUE": 0.2,
}
CHOSEN = (
    *PUBLISHED,
    "TEST.BATCH_SIZE",
    "DATALOADER.NUM_WORKERS",
    "INPUT.INPUT_SIZE_TEST",
    "INPUT.TARGET_INPUT_SIZE_TRAIN",
    "SOLVER.BATCH_SIZE",
    "SOLVER.STOP_ITER",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.BASE_LR",
    "DTU.META_MAX_UPDATE",
    "DTU.Query_START",
    "DTU.Query_STEP",
    "DTU.FIX_ITERATION",
    "DTU.EMA_WEIGHT",
    "DTU.ANCHOR",
    "TCR.UPDATE_FREQUENCY",
    "TCR.MIX_CLASSES",
    "TCR.PASTE",
    "ADAPT.NORM_MIX",
    "ADAPT.TEACHER_LOOKS",
)
CROP = 2 / 3  # of the full view's width and height, as published
BATCH_SIZE = 4  # as published
VIEW = 1024 * 512  # pixels of the full view, at most
LENGTH, LEAST_LENGTH = 3.0, 60  # iterations = LENGTH · images^¾
# for first steps as large as the weights; AdamW's by single runs (docs/adapting.md)
RATES = {"SGD": 5.2e-5, "AdamW": 1.5e-3}
LEAST_RATE, MOST_RATE = 1e-6, 2.5e-4
PASSES = 3
FOLLOWED = 0.9  # of the way that the teacher goes towards the student in the whole run
ANCHOR = 0.1
PASTED_RELIABILITY, UNKNOWN_RELIABILITY = 0.9, 0.2  # estimated precision


def choose_sizes(choices: Choices, images: ImageSet, known: tuple[int, int] | None) -> None:
    """What is the same in all published experiments, and the size of the full view.

    Args:
        known: the size that the source model saw, where its file says so.
    """
    choices.choose("as in the published experiments", PUBLISHED)
    choices.choose("a full view takes little memory without gradient", {"TEST.BATCH_SIZE": BATCH_SIZE})
    if known is not None:
        choices.choose("the size that the source model is used to", {"INPUT.INPUT_SIZE_TEST": known})
    elif (size := common_size(images)) is not None:
        why = f"most images have {size[0]}×{size[1]}; the source model's file does not say what it is used to"
        choices.choose(why, {"INPUT.INPUT_SIZE_TEST": view_size(size, VIEW)})


def choose_schedule(choices: Choices, images: int, parts: int = 1) -> None:
    """Crop, length, batches, and what follows from the length: checkpoints, passes, the teacher's pace.

    Args:
        images: how many the target has.
        parts: by which a batch must divide.
    """
    choices.choose_workers()
    view = choices.config.INPUT.INPUT_SIZE_TEST
    crop = tuple(min(max(8 * round(n * CROP / 8), 8), n) for n in view)
    choices.choose(f"two thirds of the full view {view[0]}×{view[1]}", {"INPUT.TARGET_INPUT_SIZE_TRAIN": crop})
    length = max(round(LENGTH * images**0.75), LEAST_LENGTH)
    why = f"{images} images; the rate reaches 0 with the end"
    length = choices.choose_length(why, length, BATCH_SIZE, parts)
    longest = int(np.clip(length // 20, 5, 30))
    choices.choose(
        f"the teacher may move some {max(length // longest, 1)} times at least",
        {
            "DTU.META_MAX_UPDATE": longest,
            "DTU.Query_START": max(round(0.3 * longest), 2),
            "DTU.Query_STEP": max(longest // 10, 1),
            "DTU.FIX_ITERATION": max(round(0.4 * longest), 1),
        },
    )
    moves = max(length / (choices.config.DTU.META_MAX_UPDATE + 1), 1)
    weight = round(float((1 - FOLLOWED) ** (1 / moves)), 4)
    choices.choose(f"these moves take the teacher {FOLLOWED:.0%} of the way", {"DTU.EMA_WEIGHT": weight})
    choices.choose("two looks are right more often than one", {"ADAPT.TEACHER_LOOKS": ("larger_mirrored",)})
    choices.choose("holds the teacher near the model it started as", {"DTU.ANCHOR": ANCHOR})
    choices.choose(f"{PASSES} passes", {"TCR.UPDATE_FREQUENCY": max(length // PASSES + 1, 2)})


def choose_rate(choices: Choices, speed: float) -> None:
    """The learning rate, so that a step of any network moves its weights equally far.

    Args:
        speed: |step| / |weights|, of :meth:`core.runs.solver.Solver.speed`.
    """
    optimizer = choices.config.SOLVER.OPTIMIZER
    rate = float(f"{np.clip(RATES[optimizer] / speed, LEAST_RATE, MOST_RATE):.2g}") if speed > 0 else LEAST_RATE
    first = "gradients are" if optimizer == "SGD" else f"step of {optimizer} at a rate of 1 would be"
    choices.choose(f"the first {first} {speed:.3g} of the weights", {"SOLVER.BASE_LR": rate})


def choose_classes(choices: Choices, taxonomy: Taxonomy, looks: Looks) -> None:
    """What may be pasted: rarer classes whose candidates hold in independent looks. Warns of those that hold nowhere.

    Args:
        looks: of the model that the run starts as.
    """
    names, held, shares = taxonomy.names, reliability(looks.joint), looks.shares
    candidates = reliability(looks.sure)
    rarer = 1 / np.count_nonzero(shares)
    pasted = [n for n, own, x in zip(names, candidates, shares, strict=True) if own >= PASTED_RELIABILITY and x < rarer]
    table = ", ".join(f"{n} {r:.2f} ({own:.2f})" for n, r, own in zip(names, held, candidates, strict=True))
    choices.lines.append(f"estimated precision of each class's labels, and of its candidates: {table}")
    sure = f"{PASTED_RELIABILITY:.0%} or more of its candidates likely to be right"
    why = f"rarer than {rarer:.1%} of the pixels, {sure}"
    if pasted:
        choices.choose(f"each is {why}", {"TCR.MIX_CLASSES": tuple(pasted)})
    else:
        choices.choose(f"no class is {why}", {"TCR.PASTE": False})
    unknown = [name for name, own in zip(names, held, strict=True) if own < UNKNOWN_RELIABILITY]
    if unknown:
        choices.lines.append(
            f"the source model hardly knows {shorten(unknown, len(unknown))} in these images: less than "
            f"{UNKNOWN_RELIABILITY:.0%} of their labels are likely to be right (or there is none)"
        )
