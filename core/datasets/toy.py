"""The demonstration's two domains, drawn by tools/toy_domains and laid out as Cityscapes: `toy_{source,target}/…`."""

from dataclasses import replace

from core.datasets import cityscapes

READER = replace(
    cityscapes.READER,
    folders=("",),
    splits={
        f"{domain}_{split}": (f"toy_{domain}/{cityscapes.IMAGES.format(split=split)}",)
        for domain in ("source", "target")
        for split in ("train", "val")
    },
)
