"""Colours of classes in pictures: the data set's own, clear ones, ones for readers with any colour blindness.

Colour blindness is simulated as Machado et al. (IEEE TVCG 2009, table 1, severity 1.0) do it, on linear RGB; distances
are those of Oklab (Ottosson, 2020), times 100.
"""

from collections.abc import Callable

import numpy as np

from core.datasets.taxonomy import COLOURS, Taxonomy

# of the classes whose usual colours are hardly told from others' once they lie half transparent upon an image
CLEAR = {
    "wall": (150, 100, 60),
    "fence": (255, 200, 190),
    "terrain": (170, 255, 210),
    "rider": (255, 115, 50),
    "truck": (160, 100, 255),
    "bus": (0, 125, 100),
    "train": (0, 220, 220),
    "motorcycle": (40, 40, 255),
}
OPACITY = 0.5  # of the colours in an overlay
_GROUNDS = (40, 128, 215)  # greys of a dark, a middling and a bright image

_VISIONS = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)  # normal, protanopia, deuteranopia, tritanopia
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_LEVELS = np.arange(0, 256, 17)  # of each channel of the colours that there are to choose from
_DARKEST = 30.0  # Oklab lightness × 100: what is darker is hard to see in an overlay
_SWAPS = 50


def as_seen(colours: np.ndarray) -> np.ndarray:
    """N×3 uint8 RGB → 4×N×3 Oklab coordinates × 100: seen normally, with protanopia, deuteranopia, tritanopia."""
    values = np.asarray(colours) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.einsum("vij,nj->vni", _VISIONS, linear).clip(0, 1)
    return 100 * np.cbrt(seen @ _TO_CONES.T) @ _TO_OKLAB.T


def distances(first: np.ndarray, second: np.ndarray, normal: bool = False) -> np.ndarray:
    """N×3 and M×3 uint8 RGB → N×M: how far apart two colours are for those who tell them apart worst.

    As they are, and upon a dark, a middling and a bright image, where they are half transparent: that counts twice.

    Args:
        normal: for those who see normally.
    """
    return _apart(*(_looks(colours, slice(normal or None)) for colours in (first, second)))


def _looks(colours: np.ndarray, visions: slice) -> np.ndarray:
    """N×3 uint8 RGB → V×N×3, what :func:`distances` compares."""
    overlays = [OPACITY * np.asarray(colours) + (1 - OPACITY) * ground for ground in _GROUNDS]
    return np.concatenate([as_seen(colours)[visions], *(as_seen(one)[visions] / OPACITY for one in overlays)])


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """V×N×3, V×M×3 → N×M."""
    return np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).min(axis=0)


def clear_palette(taxonomy: Taxonomy) -> np.ndarray:
    """256×3 uint8 RGB: the usual colours, but for street scenes' those of :data:`CLEAR`; black elsewhere."""
    palette = taxonomy.palette()
    for index, name in enumerate(taxonomy.names):
        if name in CLEAR and tuple(palette[index]) == COLOURS[name]:
            palette[index] = CLEAR[name]
    return palette


def colour_blind_palette(taxonomy: Taxonomy) -> np.ndarray:
    """256×3 uint8 RGB: for each class a colour far from all others and from black, black elsewhere.

    Each class in turn gets the one of them that is nearest to its usual colour.
    """
    usual, count = taxonomy.palette(), len(taxonomy)
    chosen = _far_apart(count)
    gaps = np.linalg.norm(as_seen(usual[:count])[0][:, None] - as_seen(chosen)[0][None], axis=-1)
    palette = np.zeros((256, 3), np.uint8)
    for index in range(count):
        nearest = gaps[index].argmin()
        palette[index], gaps[:, nearest] = chosen[nearest], np.inf
    return palette


def _far_apart(count: int) -> np.ndarray:
    """`count`×3 uint8 whose smallest distance, to each other and to black, is large.

    Farthest-point selection; then, while that helps, one of the closest pair makes way for the best colour there is.
    """
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8)
    light = as_seen(grid)[0, :, 0] >= _DARKEST
    grid = np.concatenate([grid[:1], grid[light]])
    looks = _looks(grid, slice(None))

    def apart_from(place: int) -> np.ndarray:
        return _apart(looks[:, [place]], looks)[0]

    apart = np.stack([apart_from(0)])  # one row per chosen colour; the first is black, which stays
    chosen = [0]
    for _ in range(count):
        chosen.append(int(apart.min(axis=0).argmax()))
        apart = np.vstack([apart, apart_from(chosen[-1])])
    for _ in range(_SWAPS):
        between = apart[:, chosen] + np.diag(np.full(len(chosen), np.inf))
        closest = between.min()
        for place in {int(n) for n in np.unravel_index(between.argmin(), between.shape)} - {0}:
            others = np.delete(apart, place, axis=0).min(axis=0)
            best = int(others.argmax())
            if others[best] > closest:
                chosen[place], apart[place] = best, apart_from(best)
                break
        else:
            break
    return grid[chosen[1:]]


PALETTES: dict[str, Callable[[Taxonomy], np.ndarray]] = {  # of VIS.COLOURS
    "clear": clear_palette,
    "data_set": Taxonomy.palette,
    "colour_blind": colour_blind_palette,
}
