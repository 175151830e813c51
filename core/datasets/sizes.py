"""The sizes of many images, from the headers of some of them: what to say of them, and what they cost."""

from collections import Counter

import numpy as np

from core.datasets.images import image_size, stored_size, turned_size
from core.datasets.reader import ImageSet
from core.utils.errors import UserError, shorten
from core.utils.logging import LOGGER

ASPECT_TOLERANCE = 0.10
LARGE = 4.0  # times the pixels of INPUT_SIZE_TEST
LOOKED_AT = 200  # headers that are read


def warn_of_sizes(images: ImageSet, config, training: bool = False) -> None:
    """Say of images that INPUT_SIZE_TEST squeezes how many there are, and what would fit if they are the most; and say
    what is lost of images of more than four times its pixels.

    Args:
        training: the images are trained on, whose views are of that size with TEST.WINDOW, too.
    """
    options = config.INPUT
    if config.TEST.WINDOW and not training:
        return
    looked_at = [(images.names[index], image_size(images.paths[index])) for index in spread(len(images))]
    sizes = {name: size for name, size in looked_at if size is not None}
    width, height = options.INPUT_SIZE_TEST
    squeezed = {
        name: size for name, size in sizes.items() if abs(size[0] / size[1] / (width / height) - 1) > ASPECT_TOLERANCE
    }
    if squeezed:
        words = f"{len(squeezed)} of {len(sizes)} images, as {_with_size(next(iter(squeezed.items())))},"
        fit = "the others fit, and so it is left"
        if 2 * len(squeezed) > len(sizes):
            most = Counter(squeezed.values()).most_common(1)[0][0]
            given = (options.INPUT_SIZE_TEST, options.TARGET_INPUT_SIZE_TRAIN)
            fitting = [fitting_size(each, most[0] / most[1]) for each in given]
            fit = f"INPUT_SIZE_TEST {fitting[0]} and TARGET_INPUT_SIZE_TRAIN {fitting[1]} would fit {most[0]}×{most[1]}"
        LOGGER.info(
            "aspect: %s have another aspect than INPUT.INPUT_SIZE_TEST %d×%d and are squeezed; %s",
            words, width, height, fit,
        )  # fmt: skip
    name, size = max(sizes.items(), key=lambda item: item[1][0] * item[1][1], default=("", (0, 0)))
    times = size[0] * size[1] / (width * height)
    if times > LARGE and not config.TEST.WINDOW:
        lost = round(8 * max(size[0] / width, size[1] / height))  # the networks' stride
        LOGGER.info(
            "size: %s has %.0f times the pixels of INPUT.INPUT_SIZE_TEST %d×%d: what is smaller than some %d pixels in "
            "it, the network hardly sees; a larger INPUT_SIZE_TEST, for more time and memory, would keep it; so would "
            'TEST.WINDOW "(%d, %d)", for more time, but not in the views that are trained on',
            _with_size((name, size)), times, width, height, lost, *(max(n // 8 * 8, 32) for n in (width, height)),
        )  # fmt: skip


def check_label_sizes(images: ImageSet, where: str) -> None:
    """Raise UserError if labels have another size than their image; opens the headers of all files.

    Args:
        where: what messages call the set.
    """
    found = [words for index in range(len(images)) if (words := other_label_size(images, index))]
    if found:
        raise UserError(f"{where}: image and label differ in size for {shorten(found)}: mend or remove these pairs")


def other_label_size(images: ImageSet, index: int) -> str:
    """The files of an image and its label with their sizes, where these differ by the headers; else empty."""
    path, label_path = images.files(index, label=True)
    image, label = stored_size(path), stored_size(label_path)
    # a label of an image that EXIF turns may lie as that is stored
    if image is None or label is None or label[0] in (image[0], turned_size(*image)):
        return ""
    size, label_size = turned_size(*image), label[0]
    return f"{path} ({size[0]}×{size[1]}) and {label_path} ({label_size[0]}×{label_size[1]})"


def _with_size(item: tuple[str, tuple[int, int]]) -> str:
    return "{0} ({1[0]}×{1[1]})".format(*item)


def fitting_size(size: tuple[int, int], aspect: float, multiple: int = 8) -> tuple[int, int]:
    """(width, height) of about the area of `size` with width / height = `aspect`, in multiples of the stride."""
    height = (size[0] * size[1] / aspect) ** 0.5
    return tuple(max(round(n / multiple), 1) * multiple for n in (height * aspect, height))


def view_size(size: tuple[int, int], most: int) -> tuple[int, int]:
    """(width, height) in multiples of the stride, as near to `size` as `most` pixels allow."""
    scale = min((most / (size[0] * size[1])) ** 0.5, 1)
    return fitting_size((round(size[0] * scale), round(size[1] * scale)), size[0] / size[1])


def common_size(images: ImageSet) -> tuple[int, int] | None:
    """The (width, height) that most images have; None where no header says a size."""
    sizes = [image_size(images.paths[index]) for index in spread(len(images))]
    known = Counter(filter(None, sizes))
    return known.most_common(1)[0][0] if known else None


def mean_pixels(images: ImageSet) -> float:
    """Mean pixel count of the images; 0 where no header says a size."""
    sizes = [image_size(images.paths[index]) for index in spread(len(images))]
    known = [width * height for width, height in filter(None, sizes)]
    return float(np.mean(known)) if known else 0.0


def spread(count: int, most: int = LOOKED_AT) -> np.ndarray:
    """At most so many of `count` indices, evenly."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)
