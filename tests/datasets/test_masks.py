"""Label files among images: what is left out of a target, and what is not."""

import cv2
import numpy as np
import pytest

from core.configs import cfg
from core.datasets.catalog import find_images
from core.datasets.masks import split_masks
from core.datasets.reader import walk_files
from tests.helpers import changed


@pytest.fixture
def write(tmp_path):
    """write(name, few): a picture of many values, or of few."""
    rng = np.random.default_rng(0)

    def write(name, few=False, channels=3):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (24, 32) if channels == 1 else (24, 32, channels)
        picture = rng.integers(0, 256, shape, dtype=np.uint8)
        cv2.imwrite(str(path), picture // 64 if few and channels == 1 else picture)

    return write


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["1.jpg", "2.jpg"], ["1_mask.png", "2_mask.png"]),
        (["a/1.png", "b/1.png"], []),  # two cameras
        (["x_leftImg8bit.png"], ["x_gtFine_labelIds.png", "x_gtFine_color.png", "x_gtFine_instanceIds.png"]),
        (["leftImg8bit/x_leftImg8bit.png"], ["gtFine/x_gtFine_labelTrainIds.png"]),
        (["images/1.jpg", "images/2.jpg"], ["labels/1.png"]),
        (["JPEGImages/1.jpg"], ["Annotations/1.png"]),
        (["color/1.png", "depth/1.png"], []),  # of a depth camera
        (["labels/1.png", "labels/2.png"], []),  # a folder's name alone says nothing
        (["only_mask.png"], []),
        (["train/1.label.jpg"], []),
        (["1-img.png"], ["1-seg.png"]),
    ],
    ids=lambda names: " ".join(names) if names else "-",
)
def test_names_tell(write, tmp_path, images, masks):
    for name in [*images, *masks]:
        write(name)
    kept, left_out = split_masks(sorted(walk_files(tmp_path)), tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in kept] == sorted(images)
    assert [path.relative_to(tmp_path).as_posix() for path in left_out] == sorted(masks)


@pytest.mark.parametrize(("few", "channels", "left_out"), [(True, 1, 3), (False, 1, 0), (False, 3, 0)])
def test_values_tell_where_names_are_the_same(write, tmp_path, few, channels, left_out):
    for number in range(3):
        write(f"{number}.jpg")
        write(f"{number}.png", few, channels)
    (tmp_path / "3.png").write_bytes(b"broken")  # beside no other file
    kept, masks = split_masks(sorted(walk_files(tmp_path)), tmp_path)
    assert [path.name for path in masks] == [f"{number}.png" for number in range(left_out)]
    assert len(kept) == 7 - left_out


def test_a_target_goes_without_them_and_says_so(write, tmp_path, log_lines):
    for number in range(2):
        write(f"{number}.jpg")
        write(f"{number}_mask.png", True, 1)
    name = f"folder:{tmp_path}"
    images = find_images(changed(cfg, DATASETS__TARGET_TRAIN=name), "TARGET_TRAIN")
    assert images.names == ("0.jpg", "1.jpg")
    told = "2 label files of these images are left out: 0_mask.png, 1_mask.png"
    assert log_lines == [f"DATASETS.TARGET_TRAIN {name}: {told}"]


def test_folders_of_tools_and_what_is_hidden_hold_no_images(write, tmp_path, make_cityscapes):
    for folder in (".", ".ipynb_checkpoints", "a/@eaDir", "a/.thumbnails", ".Trash-1000/files", "__MACOSX", "a"):
        write(f"{folder}/1.png")
    write("a/._2.png")
    assert [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path)] == ["1.png", "a/1.png"]


def test_a_built_in_layout_leaves_them_out_too(tmp_path, make_cityscapes, write):
    options = {"ROOT": str(make_cityscapes(tmp_path)), "TEST": "cityscapes_val", "SOURCE_TRAIN": "gta5_train"}
    config = changed(cfg, **{f"DATASETS__{key}": value for key, value in options.items()})
    before = find_images(config, "TEST").names
    town = find_images(config, "TEST").paths[0].parent
    relative = town.relative_to(tmp_path)
    write(f"{relative}/._x_000000_000019_leftImg8bit.png")
    write(f"{relative.parent}/.ipynb_checkpoints/x_000000_000019_leftImg8bit.png")
    write(f"{relative.parent}/@eaDir/x_000000_000019_leftImg8bit.png")
    assert find_images(config, "TEST").names == before
