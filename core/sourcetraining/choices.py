"""`SOLVER.AUTO`: what a source training finds for itself, from how many images there are, their size, and the weights
that it starts from.

Every choice is an option; what a user's config gives is left as it is. The published source trainings are the measure:
20 000 iterations of 4 images for GTA5's 25 000, from ImageNet weights at a rate of 5e-4.
"""

from core.configs.choices import Choices
from core.datasets.reader import ImageSet
from core.datasets.sizes import common_size, fitting_size, view_size

CHOSEN = (
    "DATALOADER.NUM_WORKERS",
    "INPUT.INPUT_SIZE_TEST",
    "INPUT.SOURCE_INPUT_SIZE_TRAIN",
    "INPUT.INPUT_SCALES_TRAIN",
    "INPUT.HORIZONTAL_FLIP_PROB_TRAIN",
    "TEST.BATCH_SIZE",
    "SOLVER.BATCH_SIZE",
    "SOLVER.STOP_ITER",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.BASE_LR",
    "SOLVER.CLIP_GRAD",
)
VIEW = 1024 * 512  # pixels of the size that the network sees whole images at, at most
CROP = 2 / 3  # of that size's width and height
SCALES = (0.7, 1.4)  # × that size, before the crop
BATCH_SIZE = 4  # as published
LENGTH, LEAST_LENGTH, MOST_LENGTH = 120, 600, 40_000  # iterations = LENGTH · √images
RANDOM_TIMES = 1.5  # × the length, from random weights
RATES = {  # by what they start from; AdamW's: of Adam's paper, and of SegFormer
    "SGD": {"random": 0.02, "trained": 5e-4},
    "AdamW": {"random": 1e-3, "trained": 6e-5},
}
CLIP = 5.0  # norm of the gradient


def choose_all(choices: Choices, images: ImageSet, random: bool, parts: int = 1) -> None:
    """Make all choices.

    Args:
        random: the weights to start from are random ones.
        parts: by which a batch must divide.
    """
    choices.choose_workers()
    size = common_size(images)
    if size is not None:
        most = f"most images have {size[0]}×{size[1]}"
        choices.choose(most, {"INPUT.INPUT_SIZE_TEST": view_size(size, VIEW)})
        view = choices.config.INPUT.INPUT_SIZE_TEST
        crop = fitting_size((round(view[0] * CROP), round(view[1] * CROP)), view[0] / view[1])
        scale = (view[0] * view[1] / (size[0] * size[1])) ** 0.5
        scales = tuple(float(f"{scale * times:.3g}") for times in SCALES)
        choices.choose(
            f"crops of two thirds of {view[0]}×{view[1]}, out of images at {SCALES[0]} to {SCALES[1]} times that size",
            {"INPUT.SOURCE_INPUT_SIZE_TRAIN": crop, "INPUT.INPUT_SCALES_TRAIN": scales},
        )
    choices.choose("left and right are alike in most scenes", {"INPUT.HORIZONTAL_FLIP_PROB_TRAIN": 0.5})
    length = round(min(max(LENGTH * len(images) ** 0.5, LEAST_LENGTH), MOST_LENGTH) * (RANDOM_TIMES if random else 1))
    weights = "random" if random else "trained"
    why = f"{len(images)} images, from {weights} weights; the rate reaches 0 with the end"
    choices.choose_length(why, length, BATCH_SIZE, parts)
    choices.choose("a full view takes little memory without gradient", {"TEST.BATCH_SIZE": BATCH_SIZE})
    why = "from random weights" if random else "trained weights would be lost at a higher one"
    choices.choose(why, {"SOLVER.BASE_LR": RATES[choices.config.SOLVER.OPTIMIZER][weights]})
    choices.choose("no single batch may throw the weights far", {"SOLVER.CLIP_GRAD": CLIP})
