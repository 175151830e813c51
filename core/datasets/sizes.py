"""The sizes of many images, from the headers of some of them: what to say of them, and what they cost."""

import numpy as np

from core.datasets.images import image_size
from core.datasets.reader import ImageSet
from core.utils.logging import LOGGER

ASPECT_TOLERANCE = 0.10
LOOKED_AT = 200  # headers that are read


def warn_of_aspect(images: ImageSet, options) -> None:
    """Say once if an image's aspect is more than 10 % off INPUT_SIZE_TEST, with sizes that would fit it.

    Args:
        options: the config node INPUT.
    """
    width, height = options.INPUT_SIZE_TEST
    for index in _spread(len(images)):
        size = image_size(images.paths[index])
        if size is None or abs(size[0] / size[1] / (width / height) - 1) <= ASPECT_TOLERANCE:
            continue
        given = (options.INPUT_SIZE_TEST, options.TARGET_INPUT_SIZE_TRAIN)
        fitting = [fitting_size(each, size[0] / size[1]) for each in given]
        words = (
            "aspect: %s is %d×%d, but INPUT.INPUT_SIZE_TEST %d×%d has another aspect, so images are squeezed; "
            "INPUT_SIZE_TEST %s and TARGET_INPUT_SIZE_TRAIN %s would fit it"
        )
        LOGGER.info(words, images.names[index], *size, width, height, *fitting)
        return


def fitting_size(size: tuple[int, int], aspect: float, multiple: int = 8) -> tuple[int, int]:
    """(width, height) of about the area of `size` with width / height = `aspect`, in multiples of the stride."""
    height = (size[0] * size[1] / aspect) ** 0.5
    return tuple(max(round(n / multiple), 1) * multiple for n in (height * aspect, height))


def mean_pixels(images: ImageSet) -> float:
    """Mean pixel count of the images; 0 where no header says a size."""
    sizes = [image_size(images.paths[index]) for index in _spread(len(images))]
    known = [width * height for width, height in filter(None, sizes)]
    return float(np.mean(known)) if known else 0.0


def _spread(count: int) -> np.ndarray:
    """At most :data:`LOOKED_AT` of `count` indices, evenly."""
    return np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)
