"""Names and colours of an imported model's classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.configs.loading import as_option
from core.datasets.taxonomy import CITYSCAPES_16, CITYSCAPES_19, Taxonomy
from core.utils.errors import UserError, shorten

VOC_21 = Taxonomy(
    (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    colours={"background": (0, 0, 0)},  # the others are given those of VOC, in its order
    partner_names={},
)  # fmt: skip
SETS = {"cityscapes": CITYSCAPES_19, "synthia16": CITYSCAPES_16, "voc": VOC_21}
_OTHERWISE = {"traffic light": "light", "traffic sign": "sign"}  # as Cityscapes and OpenMMLab call them


@dataclass(frozen=True)
class Classes:
    """Those that an imported model is to have.

    Attributes:
        names, colours: of each.
        outputs: which channels of the file's network they are; empty: all.
        why: where the names come from, for the log.
    """

    names: tuple[str, ...]
    colours: list[list[int]]
    outputs: tuple[int, ...]
    why: str


def choose(given: str, outputs: int, named: Sequence[str] = (), colours: Sequence[Sequence[int]] = ()) -> Classes:
    """The classes of a network with so many outputs.

    Args:
        given: of --classes: a name of :data:`SETS`, or names with commas between them; empty: none. Those of fewer
            classes than outputs say which are kept, by their names.
        named, colours: by the file.
    Raises:
        UserError: nothing says their names, or `given` is not of this network.
    """
    own, why = (tuple(named), "by the file") if len(named) == outputs else ((), "")
    ours = tuple(_OTHERWISE.get(name.lower(), name.lower()) for name in own)
    if any(ours == one.names for one in SETS.values()):
        own, colours = ours, ()
    alike = next((one for one in SETS.values() if len(one) == outputs), None)
    if not own and alike is not None:
        own, why = alike.names, f"by their number, {outputs}: --classes names others"
    names = SETS[given].names if given in SETS else tuple(name.strip() for name in given.split(",") if name.strip())
    if len(set(names)) < len(names):
        raise UserError(f"--classes names a class twice: {', '.join(names)}")
    if not names and not own:
        known = ", ".join(f"{name} ({len(one)})" for name, one in SETS.items())
        raise UserError(f"it gives {outputs} classes: name them by --classes a,b,c, …; sets are {known}")
    as_option("MODEL.NUM_CLASSES", len(names or own), "the number of its classes")
    try:
        as_option("MODEL.CLASSES", [*(names or own)], "the names of its classes")
    except UserError as error:
        raise UserError(f"{error}: --classes a,b,c, … names others") from None
    chosen = ()
    if names and len(names) != outputs:
        if unknown := [name for name in names if name not in own]:
            which = shorten(own) if own else "not known"
            raise UserError(
                f"--classes {given} has {len(names)} classes, but the network {outputs} ({which}), without "
                f"{shorten(unknown)}: name them all, or some of these"
            )
        chosen = tuple(own.index(name) for name in names)
    names, why = (names, "by --classes") if names else (own, why)
    same = next((one for one in SETS.values() if one.names == names), None)
    palette = (same or Taxonomy(names)).palette()[: len(names)].tolist()
    by_file = [[*map(int, colour)] for colour in colours] if why == "by the file" and len(colours) == outputs else []
    return Classes(names, by_file or palette, chosen, why)
