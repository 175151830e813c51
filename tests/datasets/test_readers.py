"""Each data set in its published layout, as tiny files: what is found, what labels mean, what they must not hold."""

import cv2
import numpy as np
import pytest
from PIL import Image

from core.datasets.catalog import find_source_images, find_target_images, find_test_images
from core.datasets.taxonomy import CITYSCAPES_16, CITYSCAPES_19, TOY_14
from core.utils.errors import UserError

IGNORE = 255
LABEL_IDS = {"road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "light": 19, "sign": 20}
LABEL_IDS |= {"vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28}
LABEL_IDS |= {"train": 31, "motorcycle": 32, "bicycle": 33}
SYNTHIA_VALUES = (3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11)
SYNTHIA_IDS = dict(zip(CITYSCAPES_16.names, SYNTHIA_VALUES, strict=True))


def write_image(path, size=(40, 4)):
    """Any image of (width, height) pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (10, 90, 200)).save(path)


def write_grey(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def write_palette(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)


def write_red(path, values):
    """16-bit RGB, the values in the red channel, instance numbers in the green one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red = values.astype(np.uint16)
    assert cv2.imwrite(str(path), np.dstack([np.zeros_like(red), red * 300, red]))  # OpenCV writes BGR


def row_of(values, width=40):
    """A label of 4×width pixels, its top row the values and then 255."""
    label = np.full((4, width), IGNORE)
    label[0, : len(values)] = values
    return label


def meaning(ids, taxonomy, values):
    """The class index of every value, by name."""
    names = {value: name for name, value in ids.items()}
    return [taxonomy.names.index(names[v]) if names.get(v) in taxonomy.names else IGNORE for v in values]


# data set, its class set, split, folder, image, label, writer of labels, value of every class, all values it may hold
CITY = (
    "leftImg8bit/{0}/town/town_000001_000019_leftImg8bit.png",
    "gtFine/{0}/town/town_000001_000019_gtFine_labelIds.png",
)
BDD_IDS = {name: index for index, name in enumerate(CITYSCAPES_19.names)}
GTA = ("images/00001.png", "labels/00001.png", write_palette, LABEL_IDS, range(35))
SYN = ("RGB/0000000.png", "GT/LABELS/0000000.png", write_red, SYNTHIA_IDS, range(23))
BDD = ("images/10k/val/a1-b2.jpg", "labels/sem_seg/masks/val/a1-b2.png", write_grey, BDD_IDS, range(19))
CASES = [
    (CITYSCAPES_19, "cityscapes_val", "cityscapes", *(p.format("val") for p in CITY), write_grey, LABEL_IDS, range(34)),
    (
        CITYSCAPES_16,
        "cityscapes_train",
        "Cityscapes",
        *(p.format("train") for p in CITY),
        write_grey,
        LABEL_IDS,
        [*range(34)],
    ),
    (CITYSCAPES_19, "gta5_train", "gta5", *GTA),
    (CITYSCAPES_16, "gta5_train", "gta5", *GTA),
    (CITYSCAPES_19, "gta5_train", "gta5/GTAV", *GTA),
    (CITYSCAPES_16, "synthia_train", "synthia/RAND_CITYSCAPES", *SYN),
    (CITYSCAPES_16, "synthia_train", "synthia/synthia/SYNTHIA_RAND_CITYSCAPES", *SYN),
    (CITYSCAPES_16, "synthia_train", "synthia", *SYN),
    (CITYSCAPES_16, "synthia_train", "SYNTHIA/rand_cityscapes", *SYN),
    (CITYSCAPES_19, "bdd100k_val", "bdd100k", *BDD),
    (CITYSCAPES_16, "bdd100k_val", "bdd100k", *BDD),
    (CITYSCAPES_19, "bdd100k_val", "BDD/bdd-100k", *BDD),
    *(
        (TOY_14, f"toy_{domain}_{split}", f"toy_{domain}", *(p.format(split) for p in CITY), write_grey, LABEL_IDS, [7])
        for domain in ("source", "target")
        for split in ("train", "val")
    ),
]


@pytest.mark.parametrize(
    ("taxonomy", "name", "folder", "image", "label", "write_label", "ids", "values"),
    CASES,
    ids=[f"{case[1]} {len(case[0])} {case[2]}" for case in CASES],
)
def test_a_set_is_found_and_its_labels_read(
    options, tmp_path, taxonomy, name, folder, image, label, write_label, ids, values
):
    folder = tmp_path / folder
    write_image(folder / image)
    write_label(folder / label, row_of(values))
    for key, find in (("SOURCE_TRAIN", find_source_images), ("TEST", find_test_images)):
        images = find(options(len(taxonomy), **{key: name}))
        assert (images.name, images.paths) == (name, (folder / image,))
        assert images.names[0].endswith(image)
        found = images.read_label(0)
        assert (found.dtype, found.shape) == (np.uint8, (4, 40))
        assert found[0, : len(values)].tolist() == meaning(ids, taxonomy, values)
        assert (found[1:] == IGNORE).all()
    gta5 = name.startswith("gta5")
    assert (images.skip_mismatched, images.balanced) == (gta5, gta5)
    assert images.restricted([0]).skip_mismatched == gta5
    target = find_target_images(options(len(taxonomy), TARGET_TRAIN=name))
    assert (target.paths, target.label_path, target.label_table) == (images.paths, None, None)
    assert (target.skip_mismatched, target.balanced) == (False, False)


@pytest.mark.parametrize(
    ("classes", "name", "image", "label", "write_label", "values", "message"),
    [
        (19, "cityscapes_val", *CITY, write_grey, [7, 34, 7, 34, 100], r"34 \(2 pixels\), 100 \(1 pixel\)"),
        (19, "gta5_train", *GTA[:3], [34, 35, 35, 254], r"35 \(2 pixels\), 254 \(1 pixel\)"),
        (16, "synthia_train", *SYN[:3], [22, 23, 300, 300, 65535], r"23 \(1 pixel\), 300 \(2 pixels\), 65535 \(1 p"),
        (19, "bdd100k_val", *BDD[:3], [18, 19, 254, 19], r"19 \(2 pixels\), 254 \(1 pixel\)"),
        (11, "camvid_day_val", "val/a.png", "valannot/a.png", write_grey, [11, 12, 12, 12], r"12 \(3 pixels\);"),
        (14, "toy_source_val", *CITY, write_grey, [12, 35], r"35 \(1 pixel\);"),
        (19, "gta5_train", *GTA[:3], range(35, 40), r"35 \(1 pixel\), .*, … \(5 in all\);"),
    ],
)
def test_values_that_a_set_does_not_have(options, tmp_path, classes, name, image, label, write_label, values, message):
    dataset = name.partition("_")[0]
    folder = tmp_path / {"toy": "toy_source", "synthia": "synthia/RAND_CITYSCAPES"}.get(dataset, dataset)
    write_image(folder / image.format("val"))
    path = folder / label.format("val")
    write_label(path, row_of(values))
    images = find_source_images(options(classes, SOURCE_TRAIN=name))
    with pytest.raises(UserError, match=message) as caught:
        images.read_label(0)
    assert f"{path} holds values that {name} does not have" in str(caught.value)


def test_files_of_another_set_are_refused(options, tmp_path):
    """SYNTHIA's labels under GTA5's names, and the other way round."""
    write_image(tmp_path / "gta5/images/1.png")
    write_red(tmp_path / "gta5/labels/1.png", row_of([1]))
    write_image(tmp_path / "synthia/RGB/1.png")
    write_palette(tmp_path / "synthia/GT/LABELS/1.png", row_of([1]))
    with pytest.raises(UserError, match=r"labels/1\.png is 16-bit with 3 channels"):
        find_source_images(options(19, SOURCE_TRAIN="gta5_train")).read_label(0)
    with pytest.raises(UserError, match=r"LABELS/1\.png is 8-bit.*red channel"):
        find_source_images(options(16, SOURCE_TRAIN="synthia_train")).read_label(0)


def make_gta5(root, numbers=(1, 2, 3)):
    for number in numbers:
        write_image(root / f"gta5/images/{number:05d}.png")
        write_palette(root / f"gta5/labels/{number:05d}.png", row_of([7]))


def test_source_images_need_their_labels(options, tmp_path):
    make_gta5(tmp_path)
    config = options(19, SOURCE_TRAIN="gta5_train")
    assert find_source_images(config).names == tuple(f"images/{n:05d}.png" for n in (1, 2, 3))
    for number in (2, 3):
        (tmp_path / f"gta5/labels/{number:05d}.png").unlink()
    missing = r"SOURCE_TRAIN gta5_train: 2 of 3 label files are missing, the first is .*gta5/labels/00002\.png$"
    with pytest.raises(UserError, match=missing):
        find_source_images(config)
    with pytest.raises(UserError, match=missing.replace("SOURCE_TRAIN", "TEST")):
        find_test_images(options(19, TEST="gta5_train"))
    assert len(find_target_images(options(19, TARGET_TRAIN="gta5_train"))) == 3


def test_a_folder_is_no_source(options, tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"DATASETS\.SOURCE_TRAIN folder:.*no labels"):
        find_source_images(options(19, SOURCE_TRAIN=f"folder:{tmp_path}", TEST="cityscapes_val"))


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("gta5_train", 19, r"gta5 does not exist"),
        ("synthia_train", 16, r"synthia/RAND_CITYSCAPES does not exist"),
        ("bdd100k_train", 19, r"bdd100k does not exist"),
        ("toy_target_val", 14, r"no image found as .*toy_target/leftImg8bit/val/"),
        ("gta5_val", 19, r"gta5 has no split 'val'; known are gta5_train$"),
        (
            "toy_train",
            14,
            r"'train'; known are toy_source_train, toy_source_val, toy_target_train, .*toy_snow_small_val$",
        ),
    ],
)
def test_sets_that_are_not_there(options, name, classes, message):
    with pytest.raises(UserError, match=rf"DATASETS\.TARGET_TRAIN {name}: .*{message}"):
        find_target_images(options(classes, TARGET_TRAIN=name))
