"""What is said of images' sizes: advice follows the majority, and large images lose what is small in them."""

import numpy as np
import pytest
from PIL import Image

from core.configs import cfg
from core.datasets.reader import ImageSet
from core.datasets.sizes import check_label_sizes, warn_of_sizes
from core.utils.errors import UserError
from tests.helpers import changed


@pytest.fixture
def say(tmp_path, log_lines):
    """say(sizes, window, training): the lines about images of these sizes, for an INPUT_SIZE_TEST of 160×90."""

    def lines(sizes, window=(), training=False):
        names = [f"{number}.png" for number in range(len(sizes))]
        for name, (width, height) in zip(names, sizes, strict=True):
            Image.fromarray(np.zeros((height, width), np.uint8)).save(tmp_path / name)
        images = ImageSet("folder:x", tuple(tmp_path / name for name in names), tuple(names))
        log_lines.clear()
        warn_of_sizes(images, changed(cfg, INPUT__INPUT_SIZE_TEST=(160, 90), TEST__WINDOW=window), training)
        return list(log_lines)

    return lines


def test_images_that_fit_need_no_word(say):
    assert say([(160, 90), (320, 180), (170, 90)]) == []


def test_a_few_misfits_change_no_advice(say):
    (line,) = say([(80, 60)] * 3 + [(160, 90)] * 9)
    assert line == (
        "aspect: 3 of 12 images, as 0.png (80×60), have another aspect than INPUT.INPUT_SIZE_TEST 160×90 and are "
        "squeezed; the others fit, and so it is left"
    )


def test_of_many_misfits_the_most_frequent_size_is_advised_for(say):
    (line,) = say([(90, 90), *[(80, 60)] * 8, *[(160, 90)] * 3])
    assert line.startswith("aspect: 9 of 12 images, as 0.png (90×90), have another aspect")
    # area 14400 at 4:3 is 139×104
    assert "INPUT_SIZE_TEST (136, 104) and TARGET_INPUT_SIZE_TRAIN" in line
    assert line.endswith("would fit 80×60")


def test_large_images_lose_what_is_small(say):
    assert say([(320, 180)]) == []  # four times
    (line,) = say([(160, 90), (1600, 900)])
    assert "size: 1.png (1600×900) has 100 times the pixels of INPUT.INPUT_SIZE_TEST 160×90" in line
    assert "smaller than some 80 pixels" in line  # a cell of 8 by 8 of 160×90
    assert "a larger INPUT_SIZE_TEST" in line
    assert 'TEST.WINDOW "(160, 88)"' in line


def test_with_windows_nothing_is_lost_and_only_what_is_trained_on_is_squeezed(say):
    sizes = [(1600, 900), *[(800, 600)] * 3]
    assert len(say(sizes)) == len(say(sizes, training=True)) == 2
    assert say(sizes, window=(160, 88)) == []
    (line,) = say(sizes, window=(160, 88), training=True)
    assert line.startswith("aspect: 3 of 4 images")


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """pairs([(size, label's size, EXIF orientation), …]): labelled images of these (width, height)."""

    def make(sizes):
        names = [f"{number:03d}.jpg" for number in range(len(sizes))]
        for name, (size, label_size, orientation) in zip(names, sizes, strict=True):
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.new("RGB", size).save(tmp_path / name, exif=exif)
            Image.new("L", label_size).save(tmp_path / f"{name}.png")
        paths = tuple(tmp_path / name for name in names)
        return ImageSet("town_val", paths, tuple(names), label_path=lambda path: path.with_name(f"{path.name}.png"))

    return make


def test_every_label_of_another_size_is_found_by_its_header(pairs, tmp_path):
    fitting = ((96, 64), (96, 64), 1)
    images = pairs([fitting] * 230 + [((96, 64), (48, 32), 1)])
    label = tmp_path / "230.jpg.png"
    label.write_bytes(label.read_bytes()[:45])  # of the file there is nothing but the header
    with pytest.raises(UserError) as caught:
        check_label_sizes(images, "DATASETS.TEST town_val")
    assert str(caught.value) == (
        f"DATASETS.TEST town_val: image and label differ in size for {tmp_path}/230.jpg (96×64) and {label} (48×32): "
        "mend or remove these pairs"
    )
    check_label_sizes(images.restricted(range(230)), "DATASETS.TEST town_val")


def test_the_size_that_counts_is_the_upright_image_s(pairs):
    """Labels of photographs that lie in their files: upright, or as they lie."""
    check_label_sizes(pairs([((96, 64), (64, 96), 6), ((96, 64), (96, 64), 8), ((96, 64), (96, 64), 3)]), "x")
    with pytest.raises(UserError, match=r"000\.jpg \(96×64\) and .* \(64×96\)"):
        check_label_sizes(pairs([((96, 64), (64, 96), 3)]), "x")


def test_files_whose_header_says_no_size_are_left_to_whoever_reads_them(pairs, tmp_path):
    images = pairs([((96, 64), (96, 64), 1)] * 2)
    (tmp_path / "000.jpg").write_bytes(b"no image")
    (tmp_path / "001.jpg.png").write_bytes(b"")
    check_label_sizes(images, "x")
