"""From names in a config to files, label values and classes."""

import os
from pathlib import Path

import numpy as np
import pytest

from core.datasets.catalog import ImageSet, find_target_images, find_taxonomy, find_test_images, output_names
from core.datasets.reader import UNKNOWN
from core.datasets.taxonomy import CAMVID_11, CITYSCAPES_16, CITYSCAPES_19, TOY_14, Taxonomy
from core.utils.errors import UserError

NAMES_19 = ["road", "sidewalk", "building", "wall", "fence", "pole", "light", "sign", "vegetation", "terrain", "sky"]
NAMES_19 += ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
NAMES_16 = [name for name in NAMES_19 if name not in ("terrain", "truck", "train")]
NAMES_14 = [name for name in NAMES_19 if name not in ("wall", "terrain", "bus", "train", "motorcycle")]
NAMES_11 = ["sky", "building", "pole", "road", "sidewalk", "vegetation", "sign", "fence", "car", "person", "rider"]
PARTNERS = {"rider": {"bicycle", "motorcycle"}, "bicycle": {"rider"}, "motorcycle": {"rider"}}
PARTNERS |= {"pole": {"light", "sign"}, "light": {"pole"}, "sign": {"pole"}}


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taxonomy", "names", "paste"),
    [
        (CITYSCAPES_19, NAMES_19, "fence pole light sign rider train motorcycle bicycle"),
        (CITYSCAPES_16, NAMES_16, "wall pole light sign rider motorcycle bicycle"),
        (CAMVID_11, NAMES_11, ""),
        (TOY_14, NAMES_14, "fence pole light sign rider bicycle truck person"),
    ],
    ids=["19", "16", "11", "14"],
)
def test_class_sets(taxonomy, names, paste):
    assert list(taxonomy.names) == names
    assert len(taxonomy) == len(names)
    assert [taxonomy.names[c] for c in taxonomy.paste_classes()] == paste.split()
    for index, name in enumerate(names):
        assert taxonomy.index(name) == index
        partners = {names[c] for c in taxonomy.partners(index)}
        assert partners == PARTNERS.get(name, set()) & set(names), name


def test_paste_classes_can_be_chosen_by_name():
    assert CAMVID_11.paste_classes(("person", "pole")) == (9, 2)
    with pytest.raises(UserError, match=r"TCR\.MIX_CLASSES.*'light'.*sky, building"):
        CAMVID_11.paste_classes(("pole", "light"))


def test_the_palette_shows_classes_in_their_colours_and_the_rest_in_black():
    palette = CITYSCAPES_16.palette()
    assert (palette.shape, palette.dtype) == ((256, 3), np.uint8)
    assert palette[NAMES_16.index("sky")].tolist() == [70, 130, 180]
    assert palette[NAMES_16.index("bicycle")].tolist() == [119, 11, 32]
    assert not palette[16:].any()
    assert len(np.unique(palette[:16], axis=0)) == 16


def test_classes_without_a_colour_get_one_that_no_other_has():
    names = tuple(f"class {n}" for n in range(254))
    taken = (128, 0, 0)  # what the first would get otherwise
    palette = Taxonomy(names, colours={"class 7": taken}).palette()
    assert tuple(palette[7]) == taken
    assert len(np.unique(palette[:254], axis=0)) == 254
    assert palette[:254].any(axis=1).all()  # black is no class
    assert np.array_equal(palette, Taxonomy(names, colours={"class 7": taken}).palette())


def test_a_class_set_has_partners_of_its_own():
    taxonomy = Taxonomy(("rider", "bicycle", "pole"), partner_names={"bicycle": ("pole", "elsewhere")})
    assert [taxonomy.partners(index) for index in range(3)] == [(), (2,), ()]


@pytest.mark.parametrize(
    ("names", "target", "source", "test"),
    [
        (NAMES_19, "cityscapes_train", "", ""),
        (NAMES_16, "cityscapes_train", "synthia_train", ""),
        (NAMES_16, "bdd100k_train", "gta5_train", ""),
        (NAMES_14, "toy_target_train", "toy_source_train", ""),
        (NAMES_19, "folder:frames", "gta5_train", ""),  # which has no classes of its own
        (NAMES_11, "folder:frames", "camvid_day_train", "camvid_dusk_val"),
    ],
)
def test_the_class_set_is_found_through_the_data_sets(options, names, target, source, test):
    config = options(len(names), TARGET_TRAIN=target, SOURCE_TRAIN=source, TEST=test)
    assert list(find_taxonomy(config).names) == names


@pytest.mark.parametrize(
    ("classes", "datasets", "message"),
    [
        (19, {"TARGET_TRAIN": "folder:x", "SOURCE_TRAIN": "synthia_train"}, "NUM_CLASSES is 19.*SOURCE_TRAIN.*16"),
        (19, {"TARGET_TRAIN": "waymo_train"}, "TARGET_TRAIN 'waymo_train'.*cityscapes"),
        (16, {"TARGET_TRAIN": "cityscapes_train", "SOURCE_TRAIN": "toy_source_train"}, "16.*SOURCE_TRAIN.*toy.*14"),
        (19, {"TARGET_TRAIN": "cityscapes_train", "TEST": "waymo_val"}, "TEST 'waymo_val'.*cityscapes"),
    ],
)
def test_class_sets_that_do_not_fit(options, classes, datasets, message):
    with pytest.raises(UserError, match=message):
        find_taxonomy(options(classes, **datasets))


# --- data sets -------------------------------------------------------------------------------------------------------


def test_cityscapes_images_and_the_labels_of_its_validation_split(options, cityscapes_root):
    target = find_target_images(options(TARGET_TRAIN="cityscapes_train"))
    assert (len(target), target.label_path, target.label_table) == (6, None, None)
    images = find_test_images(options(TEST="cityscapes_val"))
    names = [f"aachen/aachen_{n:06d}_000019" for n in (0, 2)] + ["bochum/bochum_000001_000019"]
    assert list(images.names) == [f"leftImg8bit/val/{name}_leftImg8bit.png" for name in names]
    folder = cityscapes_root / "cityscapes"
    assert list(images.paths) == [folder / name for name in images.names]
    labels = [folder / f"gtFine/val/{name}_gtFine_labelIds.png" for name in names]
    assert [images.label_path(path) for path in images.paths] == labels
    assert set(images.read_label(0).ravel().tolist()) == {0, 2, 5, 7, 8, 10, 12, 18, 255}


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_data_sets_may_be_symbolic_links(options, cityscapes_root):
    (cityscapes_root / "elsewhere").mkdir()
    (cityscapes_root / "cityscapes").rename(cityscapes_root / "elsewhere/data")
    city = cityscapes_root / "elsewhere/data/leftImg8bit/train/aachen"
    city.rename(cityscapes_root / "elsewhere/aachen")
    city.symlink_to(cityscapes_root / "elsewhere/aachen")
    (cityscapes_root / "cityscapes").symlink_to(cityscapes_root / "elsewhere/data")
    assert len(find_target_images(options(TARGET_TRAIN="cityscapes_train"))) == 6


@pytest.mark.parametrize(
    ("folder", "split", "part", "names"),
    [
        ("camvid", "camvid_day_train", "train", ["0006R0_f00930", "0016E5_00390"]),
        ("camvid", "camvid_day_val", "val", ["0016E5_07959", "0016E5_07961"]),
        ("CamVid", "camvid_dusk_train", "train", ["0001TP_006690", "0001TP_006720"]),
        ("CamVid", "camvid_dusk_val", "test", ["0001TP_008550", "0001TP_008580"]),
    ],
)
def test_camvid_splits_by_sequence(options, camvid_root, folder, split, part, names):
    (camvid_root / "camvid").rename(camvid_root / folder)
    config = options(11, TARGET_TRAIN=split, TEST=split)
    for images in (find_target_images(config), find_test_images(config)):
        assert list(images.names) == [f"{part}/{name}.png" for name in names]
    path = images.label_path(images.paths[0])
    assert path == camvid_root / folder / f"{part}annot" / f"{names[0]}.png"
    assert images.read_label(0)[0, ::4].tolist() == [*range(11), 255]
    assert images.label_table[11:].tolist() == [255, *[UNKNOWN] * 243, 255]
    last = images.restricted([1])
    assert (last.names, last.paths, last.label_path) == (images.names[1:], images.paths[1:], images.label_path)
    assert last.label_table is images.label_table


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_folder_is_searched_through_and_sorted(options, tmp_path):
    touch(tmp_path / "frames", "b.png", "a.JPG", "day/2/c.jpeg", "day/1/c.WebP", "day/d.bmp", "B.PNG")
    touch(tmp_path / "frames", "notes.txt", "day/a.png.txt", "jpg", "f.tif", "raw.dng")
    (tmp_path / "frames/folder.png").mkdir()
    touch(tmp_path, "disk/e.png")
    (tmp_path / "frames/elsewhere").symlink_to(tmp_path / "disk")
    config = options(TARGET_TRAIN=f"folder:{tmp_path / 'frames'}")
    images = find_target_images(config)
    assert list(images.names) == [
        "B.PNG",
        "a.JPG",
        "b.png",
        "day/1/c.WebP",
        "day/2/c.jpeg",
        "day/d.bmp",
        "elsewhere/e.png",
        "f.tif",
    ]
    assert list(images.paths) == [tmp_path / "frames" / name for name in images.names]
    assert images.label_path is None


@pytest.mark.parametrize("between", [",", ";", ", ", " ; "])
def test_several_folders_are_one_set(options, tmp_path, between):
    touch(tmp_path, "all/day/a.png", "all/day/s/b.jpg", "all/more/night/a.png", "all/c.png")
    (tmp_path / "all/x, y").mkdir()
    touch(tmp_path, "all/x, y/d.png")
    folders = [tmp_path / "all/more/night", tmp_path / "all/day", tmp_path / "all/x, y"]
    images = find_target_images(options(TARGET_TRAIN=between.join(f"folder:{folder}" for folder in folders)))
    assert list(images.names) == ["day/a.png", "day/s/b.jpg", "more/night/a.png", "x, y/d.png"]
    assert list(images.paths) == [tmp_path / "all" / name for name in images.names]
    assert output_names(images)[0] == "day/a.png"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:{0}/a,folder:{0}/b", r"/b is not a folder$"),
        ("folder:{0}/a,{0}/c", r"/a,.*/c is not a folder; several are written folder:A,folder:B$"),
        ("folder:{0}/a;folder:{0}/c", r"no image .* below .*/c$"),
        ("folder:{0}/a,folder:{0}/a/s", r"folder .*/a/s lies in .*/a, which is named, too; leave it out$"),
        ("folder:{0}/a,folder:{0}/../{1}/a", r"folder .*/a lies in .*/a, which is named, too"),
    ],
)
def test_folders_that_do_not_go_together(options, tmp_path, name, message):
    touch(tmp_path, "a/1.png", "a/s/2.png")
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=rf"^DATASETS\.TARGET_TRAIN folder:.*{message}"):
        find_target_images(options(TARGET_TRAIN=name.format(tmp_path, tmp_path.name)))


def image_set(*names):
    return ImageSet("folder:x", tuple(map(Path, names)), names)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a.jpg", "day/b.JPEG"), ["a.png", "day/b.png"]),
        (("a.jpg", "a.png", "day/a.png"), ["a.jpg.png", "a.png.png", "day/a.png"]),
        (("a.b.jpg", "a.c.jpg"), ["a.b.png", "a.c.png"]),
        (("v1.0/a.png", "v1.1/a.png"), ["v1.0/a.png", "v1.1/a.png"]),
        (("a.jpg", "a.png", "a.jpg.png"), None),  # whatever they become
    ],
)
def test_output_names_replace_the_ending(names, expected):
    found = output_names(image_set(*names))
    assert found == (expected or found)
    assert len(set(found)) == len(names)


# --- TARGET_LIST -----------------------------------------------------------------------------------------------------

FIRST, SECOND = (f"leftImg8bit/train/aachen/aachen_00000{n}_000019_leftImg8bit.png" for n in (0, 2))


@pytest.fixture
def listed(options, cityscapes_root):
    """listed(text) → names of the images that a TARGET_LIST of this text chooses."""

    def choose(text):
        path = cityscapes_root / "list.txt"
        path.write_bytes(text.encode())
        return list(find_target_images(options(TARGET_TRAIN="cityscapes_train", TARGET_LIST=str(path))).names)

    return choose


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (FIRST, [FIRST]),
        (f"./{FIRST}", [FIRST]),
        ("{root}/cityscapes/" + FIRST, [FIRST]),  # as `find` prints them
        (FIRST.removeprefix("leftImg8bit/"), [FIRST]),
        ("aachen_000000_000019_leftImg8bit.png", [FIRST]),
        ("  aachen_000000_000019_leftImg8bit\t", [FIRST]),
        ("\ufeff" + FIRST, [FIRST]),  # saved by an editor of Windows
        # order, repetition, comments and line ends do not matter
        (f"# chosen\r\n{SECOND}\r\n\r\n{FIRST}\r\naachen_000002_000019_leftImg8bit\r\n", [FIRST, SECOND]),
    ],
)
def test_a_list_names_images_by_the_end_of_their_path(listed, cityscapes_root, text, names):
    assert listed(text.replace("{root}", str(cityscapes_root)) + "\n") == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FIRST}\nzurich_000000_000019\n", r"line 2 'zurich_000000_000019' \(0 images\)"),
        ("achen_000000_000019_leftImg8bit.png\n", "line 1"),  # only whole names, from a slash on
        ("leftImg8bit.png\n", "line 1"),
        ("", "names no image"),
    ],
)
def test_lines_that_name_no_image(listed, text, message):
    with pytest.raises(UserError, match=message):
        listed(text)


def test_a_line_that_names_two_images_is_refused(options, tmp_path):
    touch(tmp_path / "frames", "day/a.png", "night/a.png", "b.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    config = options(TARGET_TRAIN=f"folder:{tmp_path / 'frames'}", TARGET_LIST=str(tmp_path / "list.txt"))
    with pytest.raises(UserError, match=r"line 1 'a\.png' \(2 images\)"):
        find_target_images(config)
    (tmp_path / "list.txt").write_text("night/a\n")
    assert list(find_target_images(config).names) == ["night/a.png"]
