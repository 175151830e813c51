"""A data set of one's own, as a config describes it, for several test modules."""

import copy

CLASSES = ["floor", "shelf", "person", "robot"]
TRAIN = {
    "images": "warehouse/photos",
    "pattern": "train/*_rgb.jpg",
    "labels": "warehouse/masks",
    "label_pattern": "train/*_mask.png",
}
WAREHOUSE = {"classes": CLASSES, "splits": {"train": TRAIN, "val": {"images": "warehouse/val"}}}


def changed(**fields):
    """{"warehouse": …} with some of its fields others; None takes one out."""
    tree = copy.deepcopy(WAREHOUSE) | fields
    return {"warehouse": {name: value for name, value in tree.items() if value is not None}}
