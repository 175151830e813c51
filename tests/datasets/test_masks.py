"""Label files among images: what is left out of a target, and what is not."""

import cv2
import numpy as np
import pytest

from core.configs import cfg
from core.datasets.catalog import find_images, find_target_images
from core.datasets.masks import split_masks
from core.datasets.reader import walk_files
from tests.helpers import changed


@pytest.fixture
def write(tmp_path):
    """write(name, few, channels): a picture of many values, or of few."""
    rng = np.random.default_rng(0)

    def write(name, few=False, channels=3):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (24, 32) if channels == 1 else (24, 32, channels)
        picture = rng.integers(0, 256, shape, dtype=np.uint8)
        cv2.imwrite(str(path), picture // 64 * 64 if few else picture)

    return write


def split(folder):
    """Names of what is kept and left out of all files below a folder."""
    found = split_masks(sorted(walk_files(folder)), folder)
    return [[path.relative_to(folder).as_posix() for path in paths] for paths in found]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["1.jpg", "2.jpg"], ["1_mask.png", "2_mask.png"]),
        (["x_leftImg8bit.png"], ["x_gtFine_labelIds.png", "x_gtFine_color.png", "x_gtFine_instanceIds.png"]),
        (["leftImg8bit/x_leftImg8bit.png"], ["gtFine/x_gtFine_labelTrainIds.png"]),
        (["images/1.jpg", "images/2.jpg"], ["labels/1.png"]),
        (["images/1.jpg"], ["labels/1_train_id.png"]),
        (["image_2/1.png"], ["semantic/1.png", "instance/1.png"]),
        (["JPEGImages/1.jpg"], ["Annotations/1.png"]),
        (["1-img.png"], ["1-seg.png"]),
        (["train/1.png", "val/2.png"], ["trainannot/1.png", "valannot/2.png"]),
        (["1.png"], ["1_lbl.png"]),
        (["1.jpg"], ["1.png"]),
    ],
    ids=lambda names: " ".join(names),
)
@pytest.mark.parametrize("channels", [1, 3])
def test_names_and_values_tell(write, tmp_path, images, masks, channels):
    for name in images:
        write(name)
    for name in masks:
        write(name, True, channels)
    assert split(tmp_path) == [sorted(images), sorted(masks)]
    for name in masks:
        write(name)  # pictures, after all
    assert split(tmp_path) == [sorted([*images, *masks]), []]


@pytest.mark.parametrize(
    "images",
    [
        ["a/1.png", "b/1.png"],  # two cameras
        ["color/1.png", "depth/1.png"],  # of one with depth
        ["labels/1.png", "labels/2.png"],  # a folder's name alone says nothing
        ["only_mask.png"],
        ["drive/1.jpg", "drive_seg/1.jpg"],  # no label is stored so
        ["mask/1.jpg", "no_mask/1.jpg"],
        ["1_mask.png", "2_mask.png"],
    ],
    ids=" ".join,
)
def test_images_are_not_left_out(write, tmp_path, images):
    for name in images:
        write(name, True)
    assert split(tmp_path) == [sorted(images), []]


def test_one_picture_of_many_values_among_them_says_that_they_are_images(write, tmp_path):
    for number in range(3):
        write(f"{number}.jpg")
        write(f"{number}.png", number < 2, 1)
    (tmp_path / "3.png").write_bytes(b"broken")
    assert split(tmp_path)[1] == []


def test_a_target_goes_without_them_and_keeps_their_names(write, tmp_path):
    for number in range(2):
        write(f"{number}.jpg")
        write(f"{number}_mask.png", True, 1)
    images = find_target_images(changed(cfg, DATASETS__TARGET_TRAIN=f"folder:{tmp_path}"))
    assert images.names == ("0.jpg", "1.jpg")
    assert images.left_out == ("0_mask.png", "1_mask.png")


def test_label_files_with_names_of_their_own_are_images_but_named(write, tmp_path):
    for number in range(3):
        write(f"frame_{number}.jpg")
        write(f"mask_{number}.png", True, 1)
        write(f"night_{number}.png", channels=1)  # a grey image
        write(f"comic_{number}.png", True)
    (tmp_path / "broken.png").write_bytes(b"broken")
    images = find_target_images(changed(cfg, DATASETS__TARGET_TRAIN=f"folder:{tmp_path}"))
    assert len(images) == 13
    assert images.note.endswith("take these out, if they are: mask_0.png, mask_1.png, mask_2.png")


def test_images_that_all_hold_few_values_are_not_doubted(write, tmp_path):
    for number in range(3):
        write(f"{number}.png", True, 1)
    assert find_target_images(changed(cfg, DATASETS__TARGET_TRAIN=f"folder:{tmp_path}")).note == ""


def test_folders_of_tools_and_what_is_hidden_hold_no_images(write, tmp_path):
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
