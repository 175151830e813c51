"""comma10k (comma.ai, 2020): `comma10k/{imgs,masks}/*.png`; masks show classes in colours."""

from functools import partial

from core.datasets.colours import ColourLabels
from core.datasets.reader import Reader, beside
from core.datasets.taxonomy import COMMA_6

VALUES = {name: index for index, name in enumerate(COMMA_6.names)}

READER = Reader(
    folders=("comma10k",),
    splits={"train": ("imgs/*[!9].png",), "val": ("imgs/*9.png",)},  # its own split
    label_path=partial(beside, folders={"imgs": "masks"}),
    values=VALUES,
    read_values=ColourLabels(
        colours=tuple(int.from_bytes(bytes(COMMA_6.colours[name]), "big") for name in VALUES),
        values=tuple(VALUES.values()),
        names=COMMA_6.names,
        rest=False,
        table="comma10k's colours",
    ),
)
