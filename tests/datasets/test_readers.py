"""Each data set in its published layout, as tiny files: what is found, what labels mean, what they must not hold."""

import json
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from core.datasets.catalog import ENTRIES, find_source_images, find_submission, find_target_images, find_test_images
from core.datasets.taxonomy import CITYSCAPES_16, CITYSCAPES_19, COMMA_5, COMMA_6, TOY_14
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
SEG = ("seg/images/val/a1-b2.jpg", "seg/labels/val/a1-b2_train_id.png", *BDD[2:])
IDS, TRAIN = (write_grey, LABEL_IDS, range(34)), BDD[2:]
ACDC = ("fog/{}/GOPR0475/GOPR0475_frame_000041", "{}/GOPR0475/GOPR0475_frame_000041")  # as published; without condition
ZURICH = "val/night/GOPR0356/GOPR0356_frame_000321"
FOGGY = "val/town/town_000001_000019"
IDD_3 = {"road": 0, "sidewalk": 2, "terrain": 3, "person": 4, "rider": 5, "motorcycle": 6, "bicycle": 7, "car": 9}
IDD_3 |= {"truck": 10, "bus": 11, "wall": 14, "fence": 15, "sign": 18, "light": 19, "pole": 20, "building": 22}
IDD_3 |= {"vegetation": 24, "sky": 25}
IDD_IDS = {"road": 0, "sidewalk": 3, "terrain": 5, "person": 6, "rider": 8, "motorcycle": 9, "bicycle": 10, "car": 12}
IDD_IDS |= {"truck": 13, "bus": 14, "train": 17, "wall": 20, "fence": 21, "sign": 24, "light": 25, "pole": 26}
IDD_IDS |= {"building": 29, "vegetation": 32, "sky": 33}


def anonymous(stem, label):
    """An image and its label as ACDC and Dark Zurich name them."""
    return f"rgb_anon/{stem}_rgb_anon.png", f"gt/{stem}_gt_{label}.png"


def fog(beta, folder="gtFine"):
    return f"leftImg8bit_foggy/{FOGGY}_leftImg8bit_foggy_beta_{beta}.png", f"{folder}/{FOGGY}_gtFine_labelIds.png"


def idd(ending, label, part=""):
    return (
        f"{part}leftImg8bit/val/7/frame0029_leftImg8bit.{ending}",
        f"{part}gtFine/val/7/frame0029_gtFine_label{label}.png",
    )


NIGHT_CITY = "NightCity-images/val/Austin_00001.png", "NightCity-label/label/val/Austin_00001_labelIds.png"
NESTED = "NightCity-images/images/train/A_1.png", "NightCity-label/NightCity-label/{}/train/A_1_{}.png"
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
    (CITYSCAPES_19, "bdd_val", "BDD/bdd-100k/bdd100k", *BDD),
    (CITYSCAPES_19, "bdd_val", "bdd100k", *BDD),
    (CITYSCAPES_19, "bdd100k_val", "bdd100k", *SEG),
    (CITYSCAPES_16, "synthia_train", "RAND_CITYSCAPES", *SYN),
    (CITYSCAPES_19, "acdc_val", "acdc", *anonymous(ACDC[0].format("val"), "labelIds"), *IDS),
    (CITYSCAPES_16, "acdc_fog_train", "ACDC", *anonymous(ACDC[0].format("train"), "labelIds"), *IDS),
    (CITYSCAPES_19, "acdc_fog_val", "acdc", *anonymous(ACDC[0].format("val"), "labelTrainIds"), *TRAIN),
    (CITYSCAPES_19, "acdc_train", "acdc", *anonymous(ACDC[1].format("train"), "labelTrainIds"), *TRAIN),
    (CITYSCAPES_19, "acdc_val", "acdc", *anonymous(ACDC[1].format("val"), "labelIds"), *IDS),
    (CITYSCAPES_19, "darkzurich_val", "dark_zurich", *anonymous(ZURICH, "labelIds"), *IDS),
    (CITYSCAPES_19, "darkzurich_val", "DarkZurich", *anonymous(ZURICH, "labelTrainIds"), *TRAIN),
    (CITYSCAPES_19, "foggycityscapes_val", "foggycityscapes", *fog("0.02"), *IDS),
    (CITYSCAPES_19, "foggycityscapes_beta-0.02_val", "cityscapes", *fog("0.02"), *IDS),
    (CITYSCAPES_16, "foggycityscapes_beta-0.01_val", "Cityscapes_Foggy", *fog("0.01"), *IDS),
    (CITYSCAPES_19, "foggycityscapes_beta-0.005_val", "foggycityscapes", *fog("0.005", "../cityscapes/gtFine"), *IDS),
    (CITYSCAPES_19, "idd_val", "idd", *idd("png", "csTrainIds"), *TRAIN),
    (CITYSCAPES_19, "idd_val", "IDD", *idd("jpg", "csTrainIds", "idd20kII/"), *TRAIN),
    (CITYSCAPES_19, "idd_val", "idd", *idd("jpg", "level3Ids"), write_grey, IDD_3, range(26)),
    (CITYSCAPES_16, "idd_val", "idd", *idd("png", "ids", "IDD_Segmentation/"), write_grey, IDD_IDS, range(40)),
    (CITYSCAPES_19, "kitti_train", "kitti", "training/image_2/3_10.png", "training/semantic/3_10.png", *IDS),
    (
        CITYSCAPES_19,
        "kitti_train",
        "data_semantics",
        *(f"training/{x}/1_10.png" for x in ("image_2", "semantic")),
        *IDS,
    ),
    (CITYSCAPES_19, "nightcity_val", "nightcity", *NIGHT_CITY, *IDS),
    (CITYSCAPES_16, "nightcity_val", "", *NIGHT_CITY, *IDS),
    (CITYSCAPES_19, "nightcity_train", "NightCity", NESTED[0], NESTED[1].format("label", "labelIds"), *IDS),
    (CITYSCAPES_19, "nightcity_train", "NightCity", NESTED[0], NESTED[1].format("trainid", "trainIds"), *TRAIN),
    (CITYSCAPES_19, "nightcity_train", "NightCity-fine", "train/img/a.png", "train/lbl/a.png", *TRAIN),
    *(
        (TOY_14, f"toy_{domain}_{split}", f"toy_{domain}", *(p.format(split) for p in CITY), write_grey, LABEL_IDS, [7])
        for domain in ("source", "target")
        for split in ("train", "val")
    ),
]


@pytest.mark.parametrize(
    ("taxonomy", "name", "folder", "image", "label", "write_label", "ids", "values"),
    CASES,
    ids=[f"{case[1]} {len(case[0])} {case[2]} {case[4]}" for case in CASES],
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
        assert images.label_path(images.paths[0]) == (folder / label).resolve()
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


# --- what is special -------------------------------------------------------------------------------------------------

MAPILLARY = {  # some positions of each version, and what they mean
    "mapillary": {0: "", 2: "sidewalk", 3: "fence", 6: "wall", 7: "road", 10: "", 13: "road", 15: "sidewalk"}
    | {17: "building", 18: "", 19: "person", 20: "rider", 21: "rider", 24: "road", 27: "sky", 29: "terrain", 44: ""}
    | {30: "vegetation", 45: "pole", 47: "pole", 48: "light", 49: "", 50: "sign", 52: "bicycle", 54: "bus", 55: "car"}
    | {57: "motorcycle", 58: "train", 61: "truck", 65: ""},
    "mapillary-v2": {0: "", 4: "sidewalk", 5: "fence", 12: "wall", 17: "", 21: "road", 24: "sidewalk", 25: "sidewalk"}
    | {27: "building", 30: "person", 31: "person", 32: "rider", 36: "road", 58: "road", 61: "sky", 63: "terrain"}
    | {64: "vegetation", 78: "", 84: "", 85: "pole", 88: "pole", 90: "light", 95: "light", 97: "", 100: "sign"}
    | {105: "bicycle", 107: "bus", 108: "car", 110: "motorcycle", 111: "train", 114: "truck", 123: ""},
}
LABELS = {"mapillary": "v1.2/labels", "mapillary-v2": "v2.0/labels"}


def make_mapillary(root, labels, values):
    write_image(root / "mapillary/validation/images/a.jpg")
    write_palette(root / f"mapillary/validation/{labels}/a.png", row_of(values))


@pytest.mark.parametrize(("name", "labels"), [*LABELS.items(), ("mapillary", "labels")])
def test_mapillarys_positions_mean_cityscapes_classes(options, tmp_path, name, labels):
    meant = MAPILLARY[name]
    make_mapillary(tmp_path, labels, [*meant])
    images = find_test_images(options(TEST=f"{name}_val"))
    expected = [CITYSCAPES_19.names.index(label) if label else IGNORE for label in meant.values()]
    assert images.read_label(0)[0, : len(meant)].tolist() == expected
    assert {*meant.values()} == {"", *CITYSCAPES_19.names}  # every class was looked at
    make_mapillary(tmp_path, labels, [0, {"mapillary": 66, "mapillary-v2": 124}[name]])
    with pytest.raises(UserError, match="holds values that"):
        images.read_label(0)
    assert (images.label_table != 254).sum() == {"mapillary": 66, "mapillary-v2": 124}[name] + 1


@pytest.mark.parametrize("name", MAPILLARY)
def test_the_names_in_mapillarys_own_list_go_before_positions(options, tmp_path, name):
    """A list in another order, as if a later release had changed it."""
    table = ENTRIES[name].reader.classes_in.keywords["table"]
    order = [*reversed(table), "object--of-tomorrow"]
    values = [order.index(entry) for entry in table]
    make_mapillary(tmp_path, LABELS[name], range(30))
    path = tmp_path / f"mapillary/config_{LABELS[name].split('/')[0]}.json"
    path.write_text(json.dumps({"labels": [{"name": entry, "readable": entry.title()} for entry in order]}))
    config = options(TEST=f"{name}_val")
    found = find_test_images(config).label_table
    assert [found[value] for value in values] == [
        CITYSCAPES_19.names.index(label) if label else IGNORE for label in table.values()
    ]
    for text in ("[]", "{", '{"labels": [1]}', '{"labels": [{"name": "construction--flat--road"}]}'):
        path.write_text(text)
        with pytest.raises(
            UserError, match=r"config_v.*\.json is (no configuration|of another version) of Mapillary Vis"
        ):
            find_test_images(config)


def test_comma10k_has_colours_classes_and_a_split_of_its_own(options, tmp_path):
    names = ("0000_a_11_864", "0001_b_9_129", "0002_c_1_1200")
    colours = [(64, 32, 32), (255, 0, 0), (128, 128, 96), (0, 255, 102), (204, 0, 255), (0, 204, 255)]
    for name in names:
        write_image(tmp_path / f"comma10k/imgs/{name}.png", (6, 2))
        (tmp_path / "comma10k/masks").mkdir(exist_ok=True)
        Image.fromarray(np.array([colours] * 2, np.uint8)).save(tmp_path / f"comma10k/masks/{name}.png")
    found = [find_test_images(options(5, TEST=f"comma10k_{split}")) for split in ("train", "val")]
    assert [[path.stem for path in images.paths] for images in found] == [[names[0], names[2]], [names[1]]]
    assert found[1].read_label(0).tolist() == [[0, 1, 2, 3, 4, IGNORE]] * 2
    images = pickle.loads(pickle.dumps(find_source_images(options(6, SOURCE_TRAIN="comma10k_train"))))
    assert images.read_label(1).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert COMMA_6.palette()[:6].tolist() == [list(colour) for colour in colours]
    assert COMMA_5.names == COMMA_6.names[:5]
    path = images.label_path(images.paths[0])
    Image.fromarray(np.array([[(65, 32, 32)] * 3 + colours[:3]], np.uint8)).save(path)
    with pytest.raises(UserError, match=r"\(65, 32, 32\) \(3 pixels; nearest is road \(64, 32, 32\)\)"):
        images.read_label(0)


def test_splits_by_condition_and_time(options, tmp_path):
    for condition in ("fog", "night", "rain", "snow"):
        for split in ("train", "val", "test", "train_ref"):
            write_image(tmp_path / f"acdc/rgb_anon/{condition}/{split}/G1/{condition}_rgb_anon.png")
    for time in ("day", "twilight", "night"):
        write_image(tmp_path / f"dark_zurich/rgb_anon/train/{time}/G1/{time}_rgb_anon.png")

    def found(name):
        images = find_target_images(options(TARGET_TRAIN=name))
        return [path.name.removesuffix("_rgb_anon.png") for path in images.paths]

    assert found("acdc_train") == ["fog", "night", "rain", "snow"] == found("acdc_test")
    assert found("acdc_rain_val") == found("acdc_rain_train") == found("acdc_rain_test") == ["rain"]
    assert found("darkzurich_train") == ["night"]
    assert found("darkzurich_twilight_train") == ["twilight"]
    assert found("darkzurich_day_train") == ["day"]


UNLABELLED = {
    "cityscapes_test": "cityscapes/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png",
    "bdd100k_test": "bdd100k/images/10k/test/a1-b2.jpg",
    "acdc_test": "acdc/rgb_anon/snow/test/G1/G1_frame_000001_rgb_anon.png",
    "darkzurich_test": "dark_zurich/rgb_anon/test/night/G1/G1_frame_000001_rgb_anon.png",
    "darkzurich_train": "dark_zurich/rgb_anon/train/night/G1/G1_frame_000001_rgb_anon.png",
    "kitti_test": "kitti/testing/image_2/000000_10.png",
    "idd_test": "idd/leftImg8bit/test/3/frame1_leftImg8bit.jpg",
    "mapillary_test": "mapillary/testing/images/x.jpg",
    "mapillary-v2_test": "mapillary/testing/images/x.jpg",
}


@pytest.mark.parametrize("name", UNLABELLED)
def test_splits_that_are_published_without_labels(options, tmp_path, name):
    write_image(tmp_path / UNLABELLED[name])
    images = find_test_images(options(TEST=name))
    assert (images.paths, images.label_path) == ((tmp_path / UNLABELLED[name],), None)
    with pytest.raises(UserError, match=rf"DATASETS\.SOURCE_TRAIN {name} has no labels"):
        find_source_images(options(SOURCE_TRAIN=name))


# what the documentation of each server asks for: the file's name, and the numbers of road, person, bicycle
SUBMITTED = {
    "cityscapes_test": ("berlin_000000_000019_pred.png", [7, 24, 33]),
    "bdd100k_test": ("a1-b2.png", [0, 11, 18]),
    "acdc_test": ("G1_frame_000001_rgb_anon.png", [0, 11, 18]),
    "darkzurich_test": ("G1_frame_000001_rgb_anon.png", [0, 11, 18]),
    "kitti_test": ("semantic/000000_10.png", [7, 24, 33]),
    "idd_test": ("leftImg8bit/test/3/frame1_leftImg8bit.png", [0, 11, 18]),  # no server: its own name and labels
    "mapillary_test": ("testing/images/x.png", [13, 19, 52]),
    "mapillary-v2_test": ("testing/images/x.png", [21, 30, 105]),
}


@pytest.mark.parametrize("name", SUBMITTED)
def test_predictions_are_written_as_the_test_server_wants_them(options, tmp_path, name):
    write_image(tmp_path / UNLABELLED[name])
    config = options(TEST=name, TARGET_TRAIN="cityscapes_train")  # the numbers are those of TEST all the same
    names, values = find_submission(config, find_test_images(config))
    assert names == [SUBMITTED[name][0]]
    assert [values[CITYSCAPES_19.names.index(label)] for label in ("road", "person", "bicycle")] == SUBMITTED[name][1]
    assert (values[19:] == IGNORE).all()


def test_predictions_never_share_a_file(options, tmp_path):
    """Two images of one name, which no published split has: their paths are kept."""
    for condition in ("fog", "snow"):
        write_image(tmp_path / f"acdc/rgb_anon/{condition}/test/G1/a_rgb_anon.png")
    config = options(TEST="acdc_test")
    names, values = find_submission(config, find_test_images(config))
    assert names == [f"rgb_anon/{condition}/test/G1/a_rgb_anon.png" for condition in ("fog", "snow")]
    assert values[18] == 18


def test_a_form_that_lacks_the_labels_gives_way_to_one_that_has_them(options, tmp_path):
    """The same images: labelIds if there, else trainIds; images alone will do where no label is needed."""
    image, ids = anonymous(ACDC[0].format("val"), "labelIds")
    write_image(tmp_path / "acdc" / image)
    assert len(find_target_images(options(TARGET_TRAIN="acdc_val"))) == 1
    with pytest.raises(UserError, match=r"TEST acdc_val: 1 of 1 label files are missing, .*_gt_labelIds\.png$"):
        find_test_images(options(TEST="acdc_val"))
    train_ids = tmp_path / "acdc" / ids.replace("labelIds", "labelTrainIds")
    write_grey(train_ids, row_of([0, 13]))
    images = find_test_images(options(TEST="acdc_val"))
    assert (images.label_path(images.paths[0]), images.kind) == (train_ids, "trainIds")
    write_grey(tmp_path / "acdc" / ids, row_of([7, 26]))
    assert find_test_images(options(TEST="acdc_val")).kind == "labelIds"


@pytest.mark.parametrize("name", ["acdc_val", "darkzurich_val", "nightcity_val", "foggycityscapes_val", "kitti_train"])
def test_trainids_under_the_names_of_labelids_are_told(options, tmp_path, name):
    case = next(case for case in CASES if case[1] == name and case[6] is LABEL_IDS)
    write_image(tmp_path / case[2] / case[3])
    write_grey(tmp_path / case[2] / case[4], row_of([*[0] * 11, *[10] * 10, *range(19)]))
    config, data_set = options(TEST=name), name.partition("_")[0]
    line = rf"{name}: .* hold labelIds, .* trainIds: `DATASETS: {{CUSTOM: {{{data_set}: {{labels: trainIds}}}}}}`"
    with pytest.raises(UserError, match=line):
        find_test_images(config)
    config.DATASETS.CUSTOM[data_set] = {"labels": "trainIds"}
    assert find_test_images(config).read_label(0)[0, 21:].tolist() == [*range(19)]


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
        ("bdd_train", 19, r"BDD/bdd-100k/bdd100k does not exist"),
        ("acdc_mist_train", 19, r"acdc has no split 'mist_train'; known are acdc_train, .*, acdc_snow_test$"),
        ("acdc_fog_train", 19, r"acdc does not exist"),
        ("nightcity_train", 19, r"no image found as .*NightCity-images/train/\*\.png; datasets/README"),
        ("darkzurich_val", 19, r"dark_zurich does not exist"),
        ("foggycityscapes_train", 19, r"foggycityscapes does not exist"),
        ("idd_train", 19, r"idd does not exist"),
        ("kitti_val", 19, r"kitti has no split 'val'; known are kitti_train, kitti_test"),
        ("comma10k_val", 5, r"comma10k does not exist"),
        ("mapillary-v2_val", 19, r"mapillary does not exist"),
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
