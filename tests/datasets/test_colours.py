"""Labels by colour, in one channel of several, as masks of 0 and 255, and of images that EXIF turns."""

import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core.datasets.catalog import find_label_values, find_source_images, find_target_images, find_test_images
from core.datasets.colours import OFFICIAL
from core.datasets.images import read_label, write_png
from core.datasets.taxonomy import CAMVID_11, CITYSCAPES_19
from core.programs.selection import find_labelled_images
from core.sourcetraining.statistics import label_statistics
from core.utils.errors import UserError

MAKE_CASES = Path(__file__).resolve().parents[2].parent / "shared/cases/make.py"
COLOURS = {"sky": [70, 130, 180], "road": [128, 64, 128], "car": [0, 0, 142], "pole": [153, 153, 153]}
NAMES = list(COLOURS)
LABEL = np.random.default_rng(0).integers(0, 4, (24, 32), dtype=np.uint8)  # class indices
PALETTE = np.array(list(COLOURS.values()), np.uint8)


@pytest.fixture
def town(options, tmp_path):
    """town(pictures of labels, classes=…, **fields): the labelled set of one image each, of class set NAMES."""

    def make(*pictures, ending="png", classes=NAMES, split=None, **fields):
        for number, picture in enumerate(pictures):
            for folder, array in (("images", np.full((24, 32, 3), 90, np.uint8)), ("masks", picture)):
                path = tmp_path / folder / f"{number}.{'png' if folder == 'images' else ending}"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(array).save(path)
        files = {"images": "images", "labels": "masks", "pattern": "*.png", "label_pattern": f"*.{ending}"}
        custom = {"town": {"classes": classes, "splits": {"all": split or files}} | fields}
        config = options(len(classes), SOURCE_TRAIN="town_all", TEST="town_all", TARGET_TRAIN="town_all")
        config.DATASETS.CUSTOM.merge(custom, "some.yaml: DATASETS.CUSTOM")
        return config

    return make


# --- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_colours_of_the_config_are_the_classes(town, ending):
    config = town(PALETTE[LABEL], ending=ending, by_colour=True, colours=COLOURS)
    for images in (find_source_images(config), find_test_images(config), find_labelled_images(config)):
        assert np.array_equal(images.read_label(0), LABEL)
    again = pickle.loads(pickle.dumps(images))  # for loader processes that are not forked
    assert np.array_equal(again.read_label(0), LABEL)
    assert find_label_values(config)[:4].tolist() == [0, 1, 2, 3]  # predictions are no pictures


def test_alpha_and_palette_files_change_nothing(town, tmp_path):
    config = town(PALETTE[LABEL], by_colour=True, colours=COLOURS)
    images = find_test_images(config)
    file = tmp_path / "masks/0.png"
    with Image.open(file) as image:
        picture = image.convert("RGB")
    for changed in (picture.convert("RGBA"), picture.quantize(8)):
        changed.save(file)
        assert np.array_equal(images.read_label(0), LABEL)


def test_colours_that_are_no_class(town):
    painted = np.vstack([PALETTE, [[0, 0, 0], [9, 9, 9]]]).astype(np.uint8)
    picture = painted[np.arange(6).repeat(128).reshape(24, 32)]
    config = town(picture, by_colour=True, colours=COLOURS, ignore=[[0, 0, 0], [9, 9, 9]])
    assert find_test_images(config).read_label(0)[::4, 0].tolist() == [0, 1, 2, 3, 255, 255]
    config = town(by_colour=True, colours=COLOURS, ignore="rest")
    assert find_test_images(config).read_label(0)[::4, 0].tolist() == [0, 1, 2, 3, 255, 255]
    message = r"0\.png holds .* not in `colours`: \(9, 9, 9\) \(128 pixels; nearest is no class \(0, 0, 0\)\)"
    with pytest.raises(UserError, match=message):
        find_test_images(town(by_colour=True, colours=COLOURS, ignore=[[0, 0, 0]])).read_label(0)


def test_an_unknown_colour_is_named_with_file_pixels_and_the_nearest(town):
    picture = PALETTE[LABEL]
    picture[0, :7], picture[1, :3] = (71, 130, 180), (0, 0, 140)
    with pytest.raises(UserError) as caught:
        find_test_images(town(picture, by_colour=True, colours=COLOURS)).read_label(0)
    message = str(caught.value)
    assert "masks/0.png" in message
    assert "(71, 130, 180) (7 pixels; nearest is sky (70, 130, 180))" in message
    assert "(0, 0, 140) (3 pixels; nearest is car (0, 0, 142))" in message
    assert message.index("(71,") < message.index("(0, 0, 140)")  # the most come first


@pytest.mark.parametrize("blur", ["resized", "jpeg"])
def test_a_blurred_label_is_told_by_its_many_colours(town, tmp_path, blur):
    picture = PALETTE[cv2.resize(LABEL[:8, :8], (32, 24), interpolation=cv2.INTER_NEAREST)]
    if blur == "resized":
        picture = cv2.resize(cv2.resize(picture, (21, 17), interpolation=cv2.INTER_LINEAR), (32, 24))
    config = town(picture, ending="png" if blur == "resized" else "jpg", by_colour=True, colours=COLOURS)
    with pytest.raises(UserError, match=r"masks/0\.\w+ is blurred: \d+ of its colours .*nearest neighbour") as caught:
        find_test_images(config).read_label(0)
    assert len(str(caught.value)) < 400


# --- palettes --------------------------------------------------------------------------------------------------------

LINES = "".join(f"{r} {g} {b} {name}\n" for name, (r, g, b) in COLOURS.items())


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "\ufeff# a comment\r\n\r\n" + LINES.replace("\n", "\r\n").replace(" ", "\t"),
        "name,r,g,b\n" + "".join(f"{name}, {r}, {g}, {b}\n" for name, (r, g, b) in COLOURS.items()),
    ],
    ids=["plain", "tabs, comment, Windows", "a table with a head"],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_palette_file(town, tmp_path, text, absolute):
    (tmp_path / "palette.txt").write_text(text, encoding="utf-8", newline="")
    config = town(PALETTE[LABEL], palette=str(tmp_path / "palette.txt") if absolute else "palette.txt")
    assert np.array_equal(find_test_images(config).read_label(0), LABEL)


def test_several_names_of_a_palette_make_one_class_and_some_none(town, tmp_path):
    (tmp_path / "p.txt").write_text(LINES + "1 1 1 traffic light\n2 2 2 void\n3 3 3 pole\n")
    picture = np.vstack([PALETTE, [[1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]]).astype(np.uint8)
    picture = picture[np.arange(8).repeat(96).reshape(24, 32)]
    fields = {"palette": "p.txt", "labels": {"traffic light": "pole"}, "ignore": ["void", [4, 4, 4]]}
    config = town(picture, **fields)
    assert find_test_images(config).read_label(0)[::3, 0].tolist() == [0, 1, 2, 3, 3, 255, 3, 255]
    config = town(palette="p.txt", labels={"traffic light": "pole"}, ignore="rest")
    assert find_test_images(config).read_label(0)[::3, 0].tolist() == [0, 1, 2, 3, 3, 255, 3, 255]


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        (None, {}, r"palette: .*p\.txt cannot be read: No such file.*known by name are camvid, cityscapes"),
        ("", {}, r"p\.txt names no colour"),
        ("1 2 sky\n", {}, r"p\.txt line 1 must be `red green blue name`"),
        (LINES + "1 2 256 x\n", {}, r"p\.txt line 5 must be .*0 to 255, not '1 2 256 x'"),
        (LINES + "1 2 3 raod\n", {}, r"p\.txt: 'raod' is not one of the classes; did you mean 'road'\?; name it under"),
        (LINES[: LINES.index("0 0 142")], {}, r"labels by colour, but palette p\.txt has no colour of car, pole"),
        (LINES + "128 64 128 car\n", {}, r"labels by colour, but \(128, 64, 128\) is 'road' and 'car'"),
        (LINES, {"labels": {"roads": "road"}}, r"town\.labels: palette p\.txt has no 'roads'; did you mean 'road'"),
        (LINES, {"ignore": ["void"]}, r"town\.ignore: palette p\.txt has no 'void'"),
    ],
)
def test_mistakes_of_a_palette(town, tmp_path, text, fields, message):
    if text is not None:
        (tmp_path / "p.txt").write_text(text)
    config = town(PALETTE[LABEL], palette="p.txt", **fields)
    with pytest.raises(UserError, match=message) as caught:
        find_test_images(config)
    assert "some.yaml: DATASETS.CUSTOM.town" in str(caught.value)


def test_a_class_without_a_colour_and_two_of_one(town):
    fewer = {name: COLOURS[name] for name in NAMES[:3]}
    with pytest.raises(UserError, match=r"town: labels by colour, but colours has no colour of pole"):
        find_test_images(town(PALETTE[LABEL], by_colour=True, colours=fewer))
    with pytest.raises(UserError, match=r"town: .* \(0, 0, 142\) is 'car' and 'pole'"):
        find_test_images(town(by_colour=True, colours=COLOURS | {"pole": [0, 0, 142]}))


def test_the_official_colours_of_cityscapes(town):
    names = list(CITYSCAPES_19.names)
    colours = [CITYSCAPES_19.colours[name] for name in names] + [(0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160)]
    index = np.arange(23).repeat(32).reshape(23, 32)
    picture = np.array(colours, np.uint8)[np.vstack([index, index[-1:]])]
    found = find_test_images(town(picture, classes=names, palette="cityscapes")).read_label(0)
    assert found[:, 0].tolist() == [*range(19), *[255] * 5]
    official = [name.replace("light", "traffic light").replace("sign", "traffic sign") for name in names]
    assert np.array_equal(find_test_images(town(classes=official, palette="cityscapes")).read_label(0), found)


def test_the_official_colours_of_camvid(town):
    """32 colours, 11 classes: what the published label_colors.txt says, and how these are grouped."""
    entries = OFFICIAL["camvid"]
    assert len({entry.colour for entry in entries}) == len({entry.name for entry in entries}) == 32
    picture = np.array([entry.colour for entry in entries], np.uint8)[np.tile(np.arange(32), (24, 1))]
    found = find_test_images(town(picture, classes=list(CAMVID_11.names), palette="CamVid")).read_label(0)[0]
    groups = dict(zip((entry.name for entry in entries), found.tolist(), strict=True))
    expected = {"Sky": "sky", "Tunnel": "building", "LaneMkgsDriv": "road", "Tree": "vegetation", "Bicyclist": "rider"}
    expected |= {"SUVPickupTruck": "car", "RoadShoulder": "sidewalk", "Column_Pole": "pole", "Child": "person"}
    assert {name: CAMVID_11.names[groups[name]] for name in expected} == expected
    assert groups["Void"] == 255
    assert set(groups.values()) == {*range(11), 255}
    # classes of one's own, by the official names
    fields = {"classes": ["lane", "vehicle"], "labels": {"LaneMkgsDriv": "lane", "Car": "vehicle", "Train": "vehicle"}}
    own = find_test_images(town(palette="camvid", **fields)).read_label(0)[0]
    assert {name: int(value) for name, value in zip(groups, own, strict=True) if value != 255} == {
        "LaneMkgsDriv": 0,
        "Car": 1,
        "Train": 1,
    }


def test_a_palette_is_not_needed_where_labels_are_not(town, tmp_path):
    config = town(PALETTE[LABEL], palette="nowhere.txt", split={"images": "images"})
    assert len(find_target_images(config)) == 1


# --- counted once ----------------------------------------------------------------------------------------------------


def test_kept_counts_are_not_those_of_other_colours_or_channels(town, tmp_path):
    """Two classes that exchange their colours, and the same file by another channel."""

    def counted(**fields):
        images = find_source_images(town(**fields))
        return label_statistics(images, 4, tmp_path, 0).pixels[0].tolist()

    picture = PALETTE[LABEL]
    picture[..., 0] = LABEL
    town(picture)
    as_read = [dict(zip(NAMES, colour, strict=True)) for colour in ([0, 1, 2, 3], [0, 2, 1, 3])]
    for turn in as_read:
        order = list(turn.values())
        colours = {name: [order[i], *COLOURS[NAMES[order[i]]][1:]] for i, name in enumerate(NAMES)}
        expected = np.bincount(LABEL.ravel(), minlength=4)[order].tolist()
        assert counted(by_colour=True, colours=colours) == expected
    red, blue = (dict.fromkeys(map(int, np.unique(picture[..., index])), "sky") for index in (0, 2))
    red |= {1: "road"}
    blue |= {1: "road"}
    assert counted(label_channel="red", labels=red | blue) != counted(label_channel="blue", labels=red | blue)


# --- one channel, masks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["red", "green", "blue", "alpha"])
def test_the_class_in_one_channel(town, channel):
    picture = np.random.default_rng(1).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    picture[..., ["red", "green", "blue", "alpha"].index(channel)] = LABEL
    assert np.array_equal(find_test_images(town(picture, label_channel=channel)).read_label(0), LABEL)


def test_masks_of_0_and_255(town):
    mask = np.where(LABEL > 1, 255, 0).astype(np.uint8)
    two = ["ground", "car"]
    config = town(mask, mask, classes=two, labels={0: "ground", 255: "car"})
    assert np.array_equal(find_test_images(config).read_label(0), LABEL > 1)
    for find in (find_test_images, find_source_images, find_labelled_images):
        with pytest.raises(UserError, match=r"town_all: its labels hold 0 and 255 only.*`ignore: \[255\]`"):
            find(town(classes=two))
    assert len(find_target_images(town(classes=two))) == 2  # whose labels are not opened
    known = find_test_images(town(classes=two, ignore=[255])).read_label(0)
    assert set(np.unique(known)) == {0, 255}
    town(mask, np.where(LABEL > 1, 255, 1).astype(np.uint8))
    assert len(find_source_images(town(classes=two))) == 2  # a value that is neither: 255 is void, as ever
    config = town(mask, classes=two, labels={0: "ground", 255: "car"}, ignore=[1])
    assert find_source_images(config).read_label(1).tolist() == np.where(LABEL > 1, 1, 255).tolist()


def test_values_of_16_bits(town, tmp_path):
    deep = (LABEL.astype(np.uint16) * 1000) + 7
    deep[0, 0] = 65535
    values = {7: "sky", 1007: "road", 2007: "car", 3007: "pole"}
    expected = LABEL.copy()
    expected[0, 0] = 255
    for ignore in ([65535], "rest"):
        assert np.array_equal(find_test_images(town(deep, labels=values, ignore=ignore)).read_label(0), expected)
    predicted = find_label_values(town(labels=values, ignore="rest"))[LABEL]
    write_png(tmp_path / "predicted.png", predicted)
    assert np.array_equal(read_label(tmp_path / "predicted.png"), LABEL.astype(np.uint16) * 1000 + 7)
    with pytest.raises(UserError, match=r"0\.png holds values that .*: 65535 \(1 pixel\)"):
        find_test_images(town(labels=values)).read_label(0)
    with pytest.raises(UserError, match=r"0\.png holds values that .*1007"):
        find_test_images(town()).read_label(0)


# --- turned by EXIF --------------------------------------------------------------------------------------------------


def turn(array, orientation):
    """A stored array as EXIF shows it, by PIL."""
    methods = [None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE"]
    methods.append("ROTATE_90")
    method = methods[orientation - 1]
    return array if method is None else np.asarray(Image.fromarray(array).transpose(Image.Transpose[method]))


def set_orientation(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.copy().save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_are_turned_as_their_images_are(town, tmp_path, orientation):
    images = find_test_images(town(LABEL))
    set_orientation(tmp_path / "images/0.png", orientation)
    assert np.array_equal(images.read_label(0), turn(LABEL, orientation))
    assert not label_statistics(images, 4, tmp_path, 0).mismatched


@pytest.mark.parametrize("orientation", range(5, 9))
def test_labels_that_are_upright_stay(town, tmp_path, orientation):
    config = town(turn(LABEL, orientation))
    set_orientation(tmp_path / "images/0.png", orientation)
    images = find_test_images(config)
    assert np.array_equal(images.read_label(0), turn(LABEL, orientation))


def test_other_pairs_say_how_labels_lie_where_their_size_does_not(town, tmp_path):
    """An image upside down has one size, stored or upright: upright where labels of lying images are."""
    for second, expected in ((turn(LABEL, 6), LABEL), (LABEL, LABEL[::-1, ::-1])):
        config = town(LABEL, second)
        for number, orientation in enumerate((3, 6)):
            set_orientation(tmp_path / f"images/{number}.png", orientation)
        images = find_test_images(config)
        assert np.array_equal(images.read_label(0), expected)
        assert np.array_equal(images.read_label(1), turn(LABEL, 6))


def test_a_label_that_fits_neither_is_refused(town, tmp_path):
    images = find_source_images(town(LABEL[::2]))
    set_orientation(tmp_path / "images/0.png", 6)
    with pytest.raises(UserError, match=r"masks/0\.png is 32×12, but .*0\.png is 32×24 as stored and 24×32 as EXIF"):
        images.read_label(0)


# --- files as people have them ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    if not MAKE_CASES.exists():
        pytest.skip("the made cases are not at hand")
    out = tmp_path_factory.mktemp("cases")
    names = ("colour_labels", "unknown_colour", "resized_colours", "red_channel", "mask_255", "exif")
    subprocess.run([sys.executable, MAKE_CASES, out, *names], check=True)
    return out


def found(options, root, classes, image_ending=".png", **fields):
    config = options(len(classes), TEST="case_all", SOURCE_TRAIN="case_all", ROOT=str(root))
    split = {"images": "images", "labels": "masks", "pattern": f"*{image_ending}", "label_pattern": "*.png"}
    custom = {"case": {"classes": classes, "splits": {"all": split}} | fields}
    config.DATASETS.CUSTOM.merge(custom, "some.yaml: DATASETS.CUSTOM")
    return find_test_images(config)


def test_the_made_cases_do_as_they_say(options, cases):
    by_colour = {"by_colour": True, "colours": COLOURS}
    plain = [found(options, cases / "red_channel", NAMES, label_channel="red").read_label(i) for i in range(6)]
    assert set(np.unique(plain)) == {0, 1, 2, 3}
    for fields in (by_colour, {"palette": "palette.txt"}):
        images = found(options, cases / "colour_labels", NAMES, ".jpg", **fields)
        assert np.array_equal([images.read_label(i) for i in range(6)], plain)
    with pytest.raises(UserError, match=r"3\.png .*\(71, 130, 180\) \(40 pixels; nearest is sky"):
        found(options, cases / "unknown_colour", NAMES, ".jpg", **by_colour).read_label(3)
    with pytest.raises(UserError, match=r"\.png is blurred: \d{3,} of its colours"):
        found(options, cases / "resized_colours", NAMES, ".jpg", **by_colour).read_label(0)
    masks = found(options, cases / "mask_255", ["ground", "car"], labels={0: "ground", 255: "car"})
    assert np.array_equal([masks.read_label(i) for i in range(6)], np.array(plain) == 2)
    with pytest.raises(UserError, match="0 and 255 only"):
        found(options, cases / "mask_255", ["ground", "car"])
    lying = found(options, cases / "exif", NAMES, ".jpg")
    assert np.array_equal([lying.read_label(i) for i in range(6)], [turn(label, 6) for label in plain])
