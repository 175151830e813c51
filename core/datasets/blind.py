"""Where every image shows the same, the own bonnet or robot: such pixels have no label (INPUT.MASK, INPUT.MARGINS)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from core.datasets.images import read_pixels
from core.utils.errors import UserError

_LOSSY = (".jpg", ".jpeg", ".webp")
_OTHER_SHAPE = 0.01  # by which the aspect of an image may differ from the mask's


@dataclass(frozen=True)
class BlindSpots:
    """The blind pixels of images.

    Attributes:
        margins: (left, top, right, bottom), pixels of an image at its own size; empty: none.
        mask: path of a picture that is 0 where an image is blind; empty: none. An image of another size, but the same
            aspect, has it scaled.
    """

    margins: tuple[int, int, int, int] | tuple[()]
    mask: str

    @classmethod
    def given(cls, options) -> "BlindSpots | None":
        """Those of the config node INPUT; None: images have none."""
        margins = options.MARGINS if any(options.MARGINS) else ()
        return cls(margins, options.MASK) if margins or options.MASK else None

    def share(self, sizes: Iterable[tuple[int, int]]) -> float:
        """The largest share of images of these sizes (width, height) that is blind. Raises UserError as :meth:`of`."""
        if self.mask:
            _read_mask(self.mask)
        return max((float(self.of(size, size[::-1]).mean()) for size in sizes), default=0.0)

    def of(self, size: tuple[int, int], seen_at: tuple[int, int]) -> np.ndarray:
        """h×w bool, True where blind, as an image of `size` (width, height) shows when it is resized to `seen_at`.

        Args:
            seen_at: (h, w).
        Raises:
            UserError: nothing of such an image would be left, or it has another aspect than the mask.
        """
        return _blind(self, size, seen_at)


@lru_cache(maxsize=16)
def _blind(spots: BlindSpots, size: tuple[int, int], seen_at: tuple[int, int]) -> np.ndarray:
    width, height = size
    blind = np.zeros((height, width), np.uint8)
    if spots.mask:
        sighted = _read_mask(spots.mask)
        if abs(sighted.shape[1] / sighted.shape[0] * height / width - 1) > _OTHER_SHAPE:
            raise UserError(
                f"INPUT.MASK {spots.mask} is {sighted.shape[1]}×{sighted.shape[0]}, but there is an image of "
                f"{width}×{height}: a mask must have the images' size"
            )
        blind[cv2.resize(sighted, size, interpolation=cv2.INTER_NEAREST) == 0] = 1
    if spots.margins:
        left, top, right, bottom = spots.margins
        blind[:, :left] = blind[:top] = blind[height - min(bottom, height) :] = 1
        blind[:, width - min(right, width) :] = 1
    if blind.all():
        which = f"INPUT.MARGINS {spots.margins}" if spots.margins else f"INPUT.MASK {spots.mask}"
        raise UserError(f"{which} leaves nothing of an image of {width}×{height}")
    blind = cv2.resize(blind, seen_at[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)
    blind.flags.writeable = False  # several have it
    return blind


@lru_cache(maxsize=1)
def _read_mask(path: str) -> np.ndarray:
    """H×W uint8, not 0 where an image is to be looked at."""
    if path.lower().endswith(_LOSSY):
        raise UserError(f"INPUT.MASK {path} is stored with loss, so that 0 is not 0 everywhere: give it as PNG")
    try:
        sighted = read_pixels(path).any(axis=2).astype(np.uint8)
    except UserError as error:
        raise UserError(f"INPUT.MASK: {error}") from None
    if not sighted.any():
        raise UserError(f"INPUT.MASK {path} masks everything: its colours are 0 everywhere (alpha plays no part)")
    if sighted.all():
        raise UserError(f"INPUT.MASK {path} masks nothing: none of its pixels is 0")
    return sighted
