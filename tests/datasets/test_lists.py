"""Splits of DATASETS.CUSTOM whose images a list file names."""

import importlib.util
import pickle

import numpy as np
import pytest
import yaml
from PIL import Image

from core.configs import load_config
from core.datasets.catalog import find_source_images, find_target_images, find_test_images
from core.utils.errors import UserError
from tests.helpers import PROJECT

MAKE_CASES = PROJECT.parent / "shared/cases/make.py"
CLASSES = ["sky", "road", "car", "pole"]


@pytest.fixture
def town(tmp_path):
    """town(text of list.txt, **fields of the split): a config whose sets are all this split; data in tmp_path.

    Images are JPEGImages/{a,b c,d}.jpg, labels Masks/*.png of value 0, 1, 2, in voc/.
    """
    for value, name in enumerate(("a", "b c", "d")):
        for folder in ("JPEGImages", "Masks"):
            (tmp_path / "voc" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / f"voc/JPEGImages/{name}.jpg")
        Image.new("L", (6, 4), value).save(tmp_path / f"voc/Masks/{name}.png")

    def make(text, **fields):
        (tmp_path / "voc/list.txt").write_bytes(text.encode() if isinstance(text, str) else text)
        split = {"list": "voc/list.txt", **fields}
        datasets = {"ROOT": str(tmp_path), "TEST": "town_all", "TARGET_TRAIN": "town_all", "SOURCE_TRAIN": "town_all"}
        datasets["CUSTOM"] = {"town": {"classes": CLASSES, "splits": {"all": split}}}
        (tmp_path / "town.yaml").write_text(yaml.safe_dump({"MODEL": {"NUM_CLASSES": 4}, "DATASETS": datasets}))
        return load_config(tmp_path / "town.yaml")

    return make


BOTH = {"images": "voc/JPEGImages", "labels": "voc/Masks"}


@pytest.mark.parametrize(
    ("text", "fields", "names"),
    [
        # one column
        ("a.jpg\nd.jpg\n", BOTH, ["a.jpg", "d.jpg"]),
        ("d.jpg\nb c.jpg", BOTH, ["b c.jpg", "d.jpg"]),  # sorted, as any set; blanks in names
        ("a\nb c\n", BOTH, ["a.jpg", "b c.jpg"]),  # as VOC's own
        ("a.jpg  # at night\nd # and\n", BOTH, ["a.jpg", "d.jpg"]),
        ('"a.jpg"\n"b c.jpg"\n', BOTH, ["a.jpg", "b c.jpg"]),
        ("\ufeff# chosen\r\n\r\n  /a.jpg \r\n./d.jpg\r\n\r\n", BOTH, ["a.jpg", "d.jpg"]),
        ("{root}/voc/JPEGImages/a.jpg\n", BOTH, ["a.jpg"]),  # as `find` prints it
        ("JPEGImages/a.jpg\n", {"labels": "voc", "pattern": "JPEGImages/*.jpg", "label_pattern": "Masks/*.png"}, None),
        # two
        ('"JPEGImages/b c.jpg","Masks/b c.png"\n', {}, ["JPEGImages/b c.jpg"]),
        ('"JPEGImages/b c.jpg";"Masks/b c.png"\n', {}, ["JPEGImages/b c.jpg"]),
        (
            "JPEGImages/a.jpg Masks/a.png\nJPEGImages/b c.jpg Masks/b c.png\n",
            {},
            ["JPEGImages/a.jpg", "JPEGImages/b c.jpg"],
        ),
        (
            "/JPEGImages/a.jpg\tMasks\\a.png\r\n\r\nJPEGImages\\d.jpg\tMasks\\d.png",
            {},
            ["JPEGImages/a.jpg", "JPEGImages/d.jpg"],
        ),
        ("voc/JPEGImages/a.jpg,voc/Masks/a.png", {"images": "."}, ["voc/JPEGImages/a.jpg"]),
        ("voc/JPEGImages/b c.jpg ; /voc/Masks/b c.png", {}, ["voc/JPEGImages/b c.jpg"]),
        ("a.jpg a.png\nd.jpg d.png", BOTH, ["a.jpg", "d.jpg"]),
        ("a.jpg Masks/a.png", {"images": "voc/JPEGImages"}, ["a.jpg"]),
        ("{root}/voc/JPEGImages/a.jpg {root}/voc/Masks/a.png", {}, ["voc/JPEGImages/a.jpg"]),
    ],
)
def test_lines_and_what_they_name(town, tmp_path, text, fields, names):
    config = town(text.replace("{root}", str(tmp_path)), **fields)
    images = find_test_images(config)
    assert list(images.names) == (names or ["JPEGImages/a.jpg"])
    for index, path in enumerate(images.paths):
        assert path.parent == tmp_path / "voc/JPEGImages"
        assert images.label_path(path) == tmp_path / f"voc/Masks/{path.stem}.png"
        assert (images.read_label(index) == ["a", "b c", "d"].index(path.stem)).all()
    target = find_target_images(config)
    assert (target.names, target.label_path) == (images.names, None)
    assert pickle.loads(pickle.dumps(images)).label_path(images.paths[-1]) == images.label_path(images.paths[-1])


def test_an_ending_may_be_left_out_in_upper_case_too(town, tmp_path):
    (tmp_path / "voc/JPEGImages/d.jpg").rename(tmp_path / "voc/JPEGImages/d.JPG")
    assert find_test_images(town("d\n", **BOTH)).names == ("d.JPG",)


def test_one_column_without_labels_is_a_split_without_labels(town):
    config = town("JPEGImages/a.jpg\n")
    assert find_test_images(config).label_path is None
    with pytest.raises(UserError, match=r"SOURCE_TRAIN town_all has no labels"):
        find_source_images(config)


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("a.jpg\n\nx.jpg\n", BOTH, r"list\.txt line 3: image .*/voc/JPEGImages/x\.jpg is missing$"),
        ("a.jpg\n./a.jpg\n", BOTH, r"line 2: image .*JPEGImages/a\.jpg stands in line 1 already$"),
        ("a\nd\nJPEGImages/a.jpg\n", BOTH, r"line 3: image .*JPEGImages/a\.jpg stands in line 1 already$"),
        (
            "JPEGImages/x.jpg Masks/x.png\n",
            {},
            r"line 1: image .*/JPEGImages/x\.jpg, of the line 'JPEGI.*', is missing$",
        ),
        ("im 9.jpg\n", BOTH, r"line 1: image .*/JPEGImages/im, of the line 'im 9\.jpg', is missing$"),
        ("JPEGImages/a.jpg Masks/a.png\nJPEGImages/d.jpg\n", {}, r"line 2 names no label, but line 1 has one$"),
        ("JPEGImages/a.jpg\n\nJPEGImages/d.jpg Masks/d.png\n", {}, r"line 3 names a label, but line 1 has none$"),
        ("x\0\x1b[2Jy.jpg\n", BOTH, r"line 1: image \S*voc/JPEGImages/x\S*y\.jpg is missing$"),
        ("\n# nothing\n", {}, r"list .*list\.txt names no image$"),
        (b"\xff\xfea\0.\0j\0p\0g\0", BOTH, r"list .*list\.txt cannot be read: it is UTF-16; save it"),
        (b"\xe9a.jpg", BOTH, r"list .*list\.txt cannot be read: .*utf-8.* can't decode"),
        ("a.jpg\n", BOTH | {"list": "voc/lost.txt"}, r"list .*voc/lost\.txt cannot be read: No such file"),
        ("a.jpg\n", BOTH | {"list": "voc"}, r"list .*voc cannot be read: "),
        (
            "a.jpg\nd.jpg",
            BOTH | {"pattern": "a*", "label_pattern": "a*"},
            r"line 2: image d\.jpg does not fit the pattern a",
        ),
        (
            "JPEGImages/a.jpg Masks/a.png\n",
            {"labels": "voc", "label_pattern": "*"},
            r"line 1 names a label: leave label_p",
        ),
    ],
)
def test_a_mistake_is_one_line_with_file_and_number(town, text, fields, message):
    config = town(text, **fields)
    for find, key in ((find_target_images, "TARGET_TRAIN"), (find_test_images, "TEST")):
        with pytest.raises(UserError, match=rf"^DATASETS\.{key} town_all: .*{message}") as caught:
            find(config)
        assert len(str(caught.value).splitlines()) == 1


def test_a_label_that_is_missing_is_named_with_its_line_where_labels_are_needed(town, tmp_path):
    (tmp_path / "voc/Masks/d.png").unlink()
    for text, fields in (("JPEGImages/a.jpg Masks/a.png\n\nJPEGImages/d.jpg Masks/d.png\n", {}), ("d\n#\na\n", BOTH)):
        config = town(text, **fields)
        line = 3 if not fields else 1
        with pytest.raises(
            UserError, match=rf"1 of 2 label files are missing.*Masks/d\.png \(.*list\.txt line {line}\)"
        ):
            find_test_images(config)
        assert len(find_target_images(config)) == 2


def test_the_made_case_of_lists(tmp_path):
    if not MAKE_CASES.is_file():
        pytest.skip("the made cases are not at hand")
    spec = importlib.util.spec_from_file_location("cases", MAKE_CASES)
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    cases.CASES["voc_lists"](tmp_path / "voc_lists")
    splits = {split: {"list": f"voc_lists/{split}.txt"} for split in ("train", "val")}
    datasets = {"ROOT": str(tmp_path), "CUSTOM": {"town": {"classes": CLASSES, "splits": splits}}}
    for split, count in (("train", 4), ("val", 2)):
        tree = {"MODEL": {"NUM_CLASSES": 4}, "DATASETS": {**datasets, "TEST": f"town_{split}"}}
        (tmp_path / "some.yaml").write_text(yaml.safe_dump(tree))
        images = find_test_images(load_config(tmp_path / "some.yaml"))
        assert len(images) == count
        assert set(np.unique(images.read_label(0))) == {0, 1, 2, 3}
