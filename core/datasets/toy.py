"""The toy domains, drawn by tools/toy_domains and laid out as Cityscapes: `toy_<name>/…`."""

from dataclasses import replace

from core.datasets import cityscapes

NAMES = (
    *("source", "target", "night", "fog", "rain", "camera", "city", "same", "rare", "small"),
    *("low_sun", "snow", "dust", "dashcam", "village", "snow_small"),
)
READER = replace(
    cityscapes.READER,
    folders=("",),
    splits={
        f"{domain}_{split}": (f"toy_{domain}/{cityscapes.IMAGES.format(split=split)}",)
        for domain in NAMES
        for split in ("train", "val")
    },
)
