"""DATASETS.CUSTOM: own classes and files, described in the config alone."""

import pickle
import re

import numpy as np
import pytest
from PIL import Image

from core.datasets.catalog import find_images, find_source_images, find_target_images, find_taxonomy, find_test_images
from core.datasets.taxonomy import CITYSCAPES_19
from core.utils.errors import UserError
from tests.datasets.warehouse import CLASSES, TRAIN, WAREHOUSE, changed


def with_split(**fields):
    """{"warehouse": …} whose one split, train, has some fields others; None takes one out."""
    split = {name: value for name, value in (TRAIN | fields).items() if value is not None}
    return changed(splits={"train": split})


def write(path, array=None):
    """A picture of 8×4 pixels, or a label file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 8, 3), 90, np.uint8) if array is None else array.astype(np.uint8)).save(path)


def write_files(root, *names):
    for name in names:
        write(root / name)


@pytest.fixture
def warehouse(tmp_path):
    """tmp_path, which now holds two labelled pictures, a third without a fitting name, and two of split val."""
    photos, masks = tmp_path / "warehouse/photos", tmp_path / "warehouse/masks"
    write_files(photos, "train/a_rgb.jpg", "train/hall/2/b_rgb.jpg", "train/a_depth.jpg", "test/c_rgb.jpg")
    write(masks / "train/a_mask.png", np.array([[0, 1, 2, 3], [255, 0, 0, 0]]).repeat(2, 0).repeat(2, 1))
    write(masks / "train/hall/2/b_mask.png", np.full((4, 8), 2))
    write_files(tmp_path / "warehouse/val", "one.PNG", "night/two.webp", "night/notes.bmp")
    return tmp_path


# --- files and labels ------------------------------------------------------------------------------------------------


def test_images_and_labels_are_found_by_their_patterns(load, warehouse):
    config = load(changed(), SOURCE_TRAIN="warehouse_train", TEST="warehouse_train")
    for images in (find_source_images(config), find_test_images(config)):
        assert images.name == "warehouse_train"
        assert images.names == ("train/a_rgb.jpg", "train/hall/2/b_rgb.jpg")
        assert images.paths == tuple(warehouse / "warehouse/photos" / name for name in images.names)
        assert images.label_path(images.paths[1]) == warehouse / "warehouse/masks/train/hall/2/b_mask.png"
        assert images.read_label(0).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2 + [[255, 255] + [0] * 6] * 2
        assert (images.read_label(1) == 2).all()
        assert (images.skip_mismatched, images.balanced) == (False, False)
    assert find_taxonomy(config).names == tuple(CLASSES)
    again = pickle.loads(pickle.dumps(images))  # for loader processes that are not forked
    assert np.array_equal(again.read_label(0), images.read_label(0))


def test_a_split_without_labels_takes_every_image(load, warehouse):
    config = load(changed(), TEST="warehouse_val", SOURCE_TRAIN="warehouse_val")
    images = find_test_images(config)
    assert images.names == ("night/notes.bmp", "night/two.webp", "one.PNG")
    assert images.label_path is None
    with pytest.raises(UserError, match=r"DATASETS\.SOURCE_TRAIN warehouse_val has no labels"):
        find_source_images(config)


@pytest.mark.parametrize("ending", ["png", "tif", "tiff", "bmp"])
def test_labels_of_any_lossless_kind_are_found_by_their_images_names(load, tmp_path, ending):
    for name in ("a.tif", "b.jpg"):
        write(tmp_path / "photos" / name)
        write(tmp_path / f"masks/{name[0]}.{ending}", np.zeros((4, 8), np.uint8))
    splits = {"all": {"images": "photos", "labels": "masks"}}
    images = find_test_images(load({"town": {"classes": CLASSES, "splits": splits}}, TEST="town_all"))
    assert [images.label_path(path).name for path in images.paths] == [f"a.{ending}", f"b.{ending}"]


def test_labels_missing_and_values_unknown_are_named(load, warehouse):
    mask = warehouse / "warehouse/masks/train/a_mask.png"
    config = load(changed(), SOURCE_TRAIN="warehouse_train", TARGET_TRAIN="warehouse_train")
    write(mask, np.array([[0, 4, 4, 9]]).repeat(4, 0))
    with pytest.raises(UserError, match=r"a_mask\.png holds values that .*: 4 \(8 pixels\), 9 \(4 pixels\)"):
        find_source_images(config).read_label(0)
    mask.unlink()
    with pytest.raises(UserError, match=r"SOURCE_TRAIN warehouse_train: 1 of 2 label files .* first is .*a_mask\.png"):
        find_source_images(config)
    images = find_target_images(config)  # which needs none
    assert (len(images), images.label_path, images.label_table) == (2, None, None)


@pytest.mark.parametrize(
    ("labels", "ignore", "values", "indices"),
    [
        (None, None, [0, 1, 2, 3, 255], [0, 1, 2, 3, 255]),
        (None, [4, 255], [0, 1, 2, 3, 4], [0, 1, 2, 3, 255]),
        (None, "rest", [0, 3, 4, 99, 254], [0, 3, 255, 255, 255]),
        ({7: "robot", 20: "floor", 21: "floor", 254: "shelf"}, [0], [7, 20, 21, 254, 0, 255], [3, 0, 0, 1, 255, 255]),
        ({0: "floor", 255: "shelf"}, None, [0, 255], [0, 1]),
        ({0: "floor", 255: "shelf"}, "rest", [0, 255, 9], [0, 1, 255]),
    ],
)
def test_label_values(load, warehouse, labels, ignore, values, indices):
    config = load(changed(labels=labels, ignore=ignore), SOURCE_TRAIN="warehouse_train")
    write(warehouse / "warehouse/masks/train/a_mask.png", np.array([values]))
    assert find_source_images(config).read_label(0).tolist() == [indices]


@pytest.mark.parametrize(
    ("split", "files", "pairs"),
    [
        # no pattern: the image's path with the ending .png
        ({"images": "x", "labels": "y"}, ["x/a.jpg", "x/s/b.c.png"], {"a.jpg": "y/a.png", "s/b.c.png": "y/s/b.c.png"}),
        ({"images": "x", "labels": "y", "label_pattern": "m/*.bmp"}, ["x/s/a.jpg"], {"s/a.jpg": "y/m/s/a.bmp"}),
        ({"images": "x", "labels": "y", "pattern": "*_c.jpg"}, ["x/a_c.jpg", "x/a_d.jpg"], {"a_c.jpg": "y/a_c.png"}),
        ({"images": "x", "labels": "y", "pattern": "t/*", "label_pattern": "*"}, ["x/t/a.jpg"], {"t/a.jpg": "y/a.jpg"}),
        # images and labels in one folder: what is a label is no image
        ({"images": "x", "labels": "x"}, ["x/a.jpg", "x/a.png"], {"a.jpg": "x/a.png"}),
        (
            {"images": "x", "labels": "x", "label_pattern": "*_mask.png"},
            ["x/a.png", "x/a_mask.png", "x/s/b.png", "x/s/b_mask.png"],
            {"a.png": "x/a_mask.png", "s/b.png": "x/s/b_mask.png"},
        ),
        ({"images": "x", "labels": "x/masks"}, ["x/a.png", "x/masks/a.png"], {"a.png": "x/masks/a.png"}),
        # characters that mean something to globs, and hidden files
        ({"images": "x", "pattern": "[1]/*?.png"}, ["x/[1]/a?.png", "x/1/a?.png", "x/[1]/b.png"], {"[1]/a?.png": None}),
        ({"images": "x"}, ["x/a.png", "x/.a.png"], {"a.png": None}),
        # several *: the n-th of a label is the n-th of its image
        (
            {"images": "x", "labels": "y", "pattern": "*/cam/*_rgb.jpg", "label_pattern": "seg/*/ids/*.png"},
            ["x/a/cam/1_rgb.jpg", "x/b/c/cam/d/2_rgb.jpg", "x/a/cam/_rgb.jpg", "x/cam/3_rgb.jpg", "x/a/map/4_rgb.jpg"],
            {"a/cam/1_rgb.jpg": "y/seg/a/ids/1.png", "b/c/cam/d/2_rgb.jpg": "y/seg/b/c/ids/d/2.png"},
        ),
        (
            {"images": "x", "labels": "x", "pattern": "img/*/*/*_i.png", "label_pattern": "gt/*/*/*_l.png"},
            ["x/img/val/town/town_i_1_i.png", "x/gt/val/town/town_i_1_l.png", "x/img/val/town_i.png"],
            {"img/val/town/town_i_1_i.png": "x/gt/val/town/town_i_1_l.png"},
        ),
        # several folders: their names count from the folder that they share
        ({"images": ["x/a", "x/s/b"]}, ["x/a/1.png", "x/s/b/1.png", "x/2.png"], {"a/1.png": None, "s/b/1.png": None}),
        (
            {"images": ["x/a", "y"], "labels": ["m", "y"], "pattern": "*_i.png", "label_pattern": "*_l.png"},
            ["x/a/1_i.png", "y/1_i.png", "y/1_l.png"],
            {"x/a/1_i.png": "m/1_l.png", "y/1_i.png": "y/1_l.png"},
        ),
    ],
)
def test_layouts(load, tmp_path, split, files, pairs):
    write_files(tmp_path, *files)
    images = find_images(load(changed(splits={"all": split}), TEST="warehouse_all"), "TEST")
    assert set(images.names) == pairs.keys()
    for path, name in zip(images.paths, images.names, strict=True):
        expected = None if pairs[name] is None else tmp_path / pairs[name]
        assert (images.label_path and images.label_path(path)) == expected


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["x", "y"], r"its folder of images .*/y does not exist$"),
        (["x", "z"], r"no image \(\.jpg, .*\) below .*/z$"),
        (["x", "x/s"], r"folder .*/x/s lies in .*/x, which is named, too; leave it out$"),
        (["x", "./x"], r"folder .*/x lies in .*/x, which is named, too"),
        (["x/s", "link"], r"folder .*/link lies in .*/x/s, which is named|folder .*/x/s lies in .*/link, which"),
    ],
)
def test_several_folders_that_do_not_go_together(load, tmp_path, images, message):
    write_files(tmp_path, "x/a.png", "x/s/b.png")
    (tmp_path / "z").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "x/s")
    with pytest.raises(UserError, match=rf"^DATASETS\.TARGET_TRAIN warehouse_all: {message}"):
        find_target_images(load(changed(splits={"all": {"images": images}}), TARGET_TRAIN="warehouse_all"))


def test_folders_may_be_absolute(load, tmp_path):
    write_files(tmp_path / "elsewhere", "x/a.png", "y/a.png")
    split = {"images": str(tmp_path / "elsewhere/x"), "labels": str(tmp_path / "elsewhere/y")}
    config = load(changed(splits={"all_of_it": split}), TEST="warehouse_all_of_it")
    images = find_test_images(config)
    assert (images.names, len(images)) == (("a.png",), 1)


@pytest.mark.parametrize(
    ("name", "photos", "message"),
    [
        ("warehouse_test", [], r"warehouse has no split 'test'; known are warehouse_train, warehouse_val$"),
        ("warehouse_train", [], r"folder of images .*warehouse/photos does not exist$"),
        ("warehouse_val", [], r"no image \(\.jpg, .*\) below .*warehouse/val$"),
        ("depot_train", [], r"'depot_train' is not a data set.*cityscapes, .*, warehouse, or folder:PATH"),
        ("warehouse_train", ["train/_rgb.jpg", "train/a.jpg", "b_rgb.jpg"], r"no train/\*_rgb\.jpg below .*/photos"),
    ],
)
def test_what_is_not_there(load, tmp_path, name, photos, message):
    (tmp_path / "warehouse/val").mkdir(parents=True)
    write_files(tmp_path / "warehouse/photos", *photos)
    with pytest.raises(UserError, match=rf"^DATASETS\.TARGET_TRAIN .*{message}"):
        find_target_images(load(changed(), TARGET_TRAIN=name))


# --- classes ---------------------------------------------------------------------------------------------------------


def test_a_class_set_with_everything_given(load):
    custom = changed(
        colours={"floor": [128, 64, 128], "robot": [220, 20, 60]},
        paste=["robot", "person"],
        partners={"person": ["robot", "shelf"]},
    )
    taxonomy = find_taxonomy(load(custom, SOURCE_TRAIN="warehouse_train"))
    assert taxonomy.paste_classes() == (3, 2)
    assert [taxonomy.partners(index) for index in range(4)] == [(), (), (3, 1), ()]
    palette = taxonomy.palette()
    assert (palette[0].tolist(), palette[3].tolist()) == ([128, 64, 128], [220, 20, 60])
    assert len(np.unique(palette[:4], axis=0)) == 4  # not the usual colour of a person, which the robot has
    assert not palette[4:].any()


def test_a_class_set_with_names_only(load):
    taxonomy = find_taxonomy(load(changed(classes=["pole", "sign", "person", "x"]), TARGET_TRAIN="warehouse_train"))
    assert taxonomy.paste_classes() == ()
    assert taxonomy.partners(0) == ()
    palette = taxonomy.palette()
    assert palette[2].tolist() == [220, 20, 60]  # as everywhere
    assert len(np.unique(palette[:5], axis=0)) == 5  # and none is black


def test_the_classes_of_cityscapes_bring_what_belongs_to_them(load):
    custom = {"town": {"classes": list(CITYSCAPES_19.names), "splits": {"all": {"images": "town"}}}}
    config = load(custom, 19, TARGET_TRAIN="town_all", SOURCE_TRAIN="gta5_train")
    assert find_taxonomy(config) == CITYSCAPES_19
    custom["town"] |= {"paste": ["train"], "partners": {}}
    taxonomy = find_taxonomy(load(custom, 19, TARGET_TRAIN="town_all", SOURCE_TRAIN="gta5_train"))
    assert [taxonomy.names[index] for index in taxonomy.paste_classes()] == ["train"]
    assert not any(taxonomy.partners(index) for index in range(19))


def test_all_data_sets_of_a_config_must_have_the_same_classes(load):
    other = {"classes": ["floor", "person", "shelf", "robot"], "splits": {"all": {"images": "x"}}}
    custom = changed() | {"depot": other}
    message = (
        r"^DATASETS\.TARGET_TRAIN warehouse_train and DATASETS\.SOURCE_TRAIN depot_all must have the same classes, "
        r"but class 1 is 'shelf' in the first, 'person' in the second$"
    )
    with pytest.raises(UserError, match=message):
        find_taxonomy(load(custom, TARGET_TRAIN="warehouse_train", SOURCE_TRAIN="depot_all"))
    with pytest.raises(UserError, match=r"TEST depot_all and DATASETS\.SOURCE_TRAIN warehouse_val"):
        find_taxonomy(load(custom, TARGET_TRAIN="folder:x", SOURCE_TRAIN="warehouse_val", TEST="depot_all"))
    with pytest.raises(UserError, match=r"NUM_CLASSES is 19, but DATASETS\.SOURCE_TRAIN depot_all has 4"):
        find_taxonomy(load(custom, 19, TARGET_TRAIN="cityscapes_train", SOURCE_TRAIN="depot_all"))
    custom["depot"]["classes"] = CLASSES
    config = load(custom, TARGET_TRAIN="warehouse_train", SOURCE_TRAIN="depot_all", TEST="depot_all")
    assert find_taxonomy(config).names == tuple(CLASSES)


# --- mistakes --------------------------------------------------------------------------------------------------------

W = r"DATASETS\.CUSTOM\.warehouse"
MISTAKES = {
    # the section and its names
    "no section": ([1], r"DATASETS\.CUSTOM must hold NAME: VALUE pairs"),
    "text": ("warehouse", r"DATASETS\.CUSTOM must hold NAME: VALUE pairs, not 'warehouse'"),
    "underscore": ({"ware_house": WAREHOUSE}, r"DATASETS\.CUSTOM\.ware_house: .*letters, digits and hyphens"),
    "number": ({7: WAREHOUSE}, r"DATASETS\.CUSTOM\.7: .*letters, digits and hyphens.*not 7"),
    "slash": ({"a/b": WAREHOUSE}, r"DATASETS\.CUSTOM\.a/b: "),
    "built in": ({"gta5": WAREHOUSE}, r"DATASETS\.CUSTOM\.gta5: .*built-in"),
    "another kind": ({"gta5": {"labels": "color"}}, r"CUSTOM\.gta5\.labels must be labelIds or trainIds, not 'color'"),
    "a table": ({"toy": {"labels": {0: "road"}}}, r"CUSTOM\.toy\.labels must be labelIds or trainIds, not \{0: "),
    "kind and more": (
        {"gta5": {"labels": "trainIds", "ignore": [3]}},
        r"CUSTOM\.gta5: .*only `labels: labelIds or tra",
    ),
    "kind of one kind": ({"camvid": {"labels": "trainIds"}}, r"CUSTOM\.camvid: camvid is a built-in data set; nothing"),
    "built in, empty": ({"gta5": None}, r"CUSTOM\.gta5 must hold NAME: VALUE pairs, not None"),
    "no fields": ({"warehouse": None}, rf"{W} must hold NAME: VALUE pairs, not None"),
    "list": ({"warehouse": ["a"]}, rf"{W} must hold NAME: VALUE pairs"),
    "unknown field": (changed(colors={}), rf"{W}\.colors is unknown; did you mean colours\?"),
    "number as field": ({"warehouse": WAREHOUSE | {3: 4}}, rf"{W}\.3 is unknown"),
    # classes
    "no classes": (changed(classes=None), rf"{W}\.classes is missing"),
    "empty classes": ({"warehouse": WAREHOUSE | {"classes": None}}, rf"{W}\.classes is missing"),
    "classes as text": (changed(classes="floor, shelf"), rf"{W}\.classes must be a list of names"),
    "one class": (changed(classes=["floor"]), rf"{W}\.classes must be 2 to 254 names, not 1"),
    "too many": (changed(classes=[f"c{n}" for n in range(9_000)]), rf"{W}\.classes must be 2 to 254 names, not 9000"),
    "many classes": (changed(classes=[f"c{n}" for n in range(9_000)]), rf"{W}\.classes must be .* 254 names, not 9000"),
    "class twice": (changed(classes=["a", "b", "a"]), rf"{W}\.classes names 'a' twice"),
    "class on": (changed(classes=["a", True]), rf"{W}\.classes: a name is text, in quotes .*not True"),
    "class without a name": (changed(classes=["a", " "]), rf"{W}\.classes: a name is text"),
    # colours, paste, partners
    "colour of none": (changed(colours={"flor": [1, 2, 3]}), rf"{W}\.colours: 'flor' is not .*did you mean 'floor'\?"),
    **{
        f"colour {value}": (
            changed(colours={"floor": value}),
            rf"{W}\.colours\.floor .*255, not {re.escape(repr(value))}",
        )
        for value in ([0, 256, 0], [0, -1, 0], [0, 0.5, 0], [0, True, 0], [0, 0], "red")
    },
    "colours in a row": (changed(colours=[[0, 0, 0]]), rf"{W}\.colours must hold"),
    "paste of none": (changed(paste=["person", "robots"]), rf"{W}\.paste: 'robots' is not .*did you mean 'robot'\?"),
    "paste as text": (changed(paste="person"), rf"{W}\.paste must be a list"),
    "paste twice": (changed(paste=["person", "person"]), rf"{W}\.paste names 'person' twice"),
    "partners of none": (changed(partners={"dog": ["robot"]}), rf"{W}\.partners: 'dog' is not one of the classes$"),
    "no such partner": (changed(partners={"person": ["dog"]}), rf"{W}\.partners\.person: 'dog' is not"),
    "partner as text": (changed(partners={"person": "robot"}), rf"{W}\.partners\.person must be a list"),
    "its own partner": (changed(partners={"person": ["person"]}), rf"{W}\.partners\.person names the class itself"),
    # label values
    "label of none": (changed(labels={0: "flor"}), rf"{W}\.labels\.0: 'flor' is not .*did you mean 'floor'\?"),
    "label of a list": (changed(labels={0: ["floor"]}), rf"{W}\.labels\.0: \['floor'\] is not"),
    **{
        f"label {value!r}": (changed(labels={value: "floor"}), rf"{W}\.labels\.{value}: .*whole number from 0 to 65535")
        for value in (65536, -1, "0", True, "floor")  # the last: the wrong way round
    },
    "label 255": (changed(labels={255: "floor"}, ignore=[255]), rf"{W}\.ignore: 255 is the label value of 'floor'"),
    "labels in a row": (changed(labels=["floor"]), rf"{W}\.labels must hold"),
    "no label": (changed(labels={}), rf"{W}\.labels must give the class"),
    **{
        f"ignore {value}": (
            changed(ignore=value),
            rf"{W}\.ignore must be a list .*or rest, not {re.escape(repr(value))}",
        )
        for value in ([65536], 4, "others", ["void"], [[0, 0, 0]])
    },
    "ignore a class": (changed(ignore=[255, 3]), rf"{W}\.ignore: 3 is the label value of 'robot'"),
    # labels by colour, in one channel
    "by colour perhaps": (changed(by_colour="yes"), rf"{W}\.by_colour must be true or false, not 'yes'"),
    "palette without": (changed(by_colour=False, palette="p.txt"), rf"{W}\.palette gives .* by_colour is false"),
    **{
        f"palette {value!r}": (changed(palette=value), rf"{W}\.palette must be a file .*, or camvid, cityscapes, not ")
        for value in ("", 3, ["p.txt"])
    },
    "numbers by colour": (changed(by_colour=True, labels={0: "floor"}), rf"{W}\.labels gives classes of numbers"),
    "numbers of a palette": (changed(palette="p", labels={0: "floor"}), rf"{W}\.labels\.0: .* one of its names"),
    "palette of none": (changed(palette="p", labels={"x": "flor"}), rf"{W}\.labels\.x: 'flor' is not .*'floor'"),
    "names without a palette": (
        changed(by_colour=True, ignore=["void"]),
        rf"{W}\.ignore must be .* \[red, green, blue\],",
    ),
    "ignore by value": (changed(palette="p", ignore=[0]), rf"{W}\.ignore must be .*names of the palette, or rest"),
    "ignore a name": (changed(palette="p", labels={"x": "floor"}, ignore=["x"]), rf"{W}\.ignore: 'x' is 'floor'"),
    **{
        f"channel {value!r}": (
            changed(label_channel=value),
            rf"{W}\.label_channel must be one of red, green, blue, alpha",
        )
        for value in ("r", 0, ["red"], {})
    },
    "channel by colour": (changed(label_channel="red", by_colour=True), rf"{W}\.label_channel has class numbers"),
    # splits
    "no splits": (changed(splits=None), rf"{W}\.splits is missing"),
    "empty splits": (changed(splits={}), rf"{W}\.splits must name at least one"),
    "splits in a row": (changed(splits=["train"]), rf"{W}\.splits must hold"),
    "split as text": (changed(splits={"train": "photos"}), rf"{W}\.splits\.train must hold .*not 'photos'"),
    "split on": (changed(splits={True: TRAIN}), rf"{W}\.splits\.True: a split's name"),
    "split a/b": (changed(splits={"a/b": TRAIN}), rf"{W}\.splits\.a/b: a split's name"),
    "no images": (with_split(images=None), rf"{W}\.splits\.train\.images is missing"),
    **{
        f"images {value!r}": (
            with_split(images=value),
            rf"{W}\.splits\.train\.images must be text, or a list of folders, not {re.escape(repr(value))}",
        )
        for value in (3, "", [], ["a", 3], ["a", ""])
    },
    "fewer folders of labels": (
        with_split(images=["a", "b"]),
        rf"{W}\.splits\.train\.labels must name a folder for each of 2 folders of images, not 1",
    ),
    "fewer stars": (
        with_split(pattern="*/a/*.jpg"),
        rf"{W}\.splits\.train\.label_pattern has 1 \*, but pattern has 2",
    ),
    "stars without a pattern": (
        with_split(pattern=None, label_pattern="*/*.png"),
        rf"{W}\.splits\.train\.label_pattern has 2 \*, but without a pattern there is one",
    ),
    "list a number": (with_split(list=3), rf"{W}\.splits\.train\.list must be text, not 3"),
    "list and folders": (with_split(list="x", images=["a", "b"]), rf"{W}\.splits\.train\.images must be text, not \["),
    "unknown part": (with_split(label="x"), rf"{W}\.splits\.train\.label is unknown; did you mean labels\?"),
    **{
        f"{key} {value}": (with_split(**{key: value}), rf"{W}\.splits\.train\.{key} {message}")
        for key in ("pattern", "label_pattern")
        for message, values in (
            ("must hold a \\*, which stands for any path, or several apart", ("a.jpg", "**/a.jpg", "a/**")),
            ("must be a path", ("/*", "../*")),
        )
        for value in values
    },
    "labels left out": (with_split(labels=None), rf"{W}\.splits\.train\.label_pattern needs `labels`"),
    "labels are images": (
        with_split(labels="warehouse/photos", label_pattern="train/*_rgb.jpg"),
        rf"{W}\.splits\.train\.label_pattern is the images' own",
    ),
}


@pytest.mark.parametrize(("custom", "message"), MISTAKES.values(), ids=MISTAKES)
def test_every_mistake_is_one_line_with_file_and_key(load, custom, message):
    with pytest.raises(UserError, match=message) as caught:
        find_taxonomy(load(custom, SOURCE_TRAIN="cityscapes_train"))  # although the run has no use for it
    assert "\n" not in str(caught.value)
    assert str(caught.value).split(": ")[0].endswith("some.yaml")
    assert len(str(caught.value)) < 400
