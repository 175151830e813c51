"""Counts of label pixels against plain loops, how long they are kept, and which pairs are left out."""

import errno
import json
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest

from core.datasets import bdd100k, camvid, cityscapes, gta5, synthia, toy
from core.datasets.gta5 import label_path
from core.datasets.reader import ImageSet, label_table
from core.datasets.taxonomy import Taxonomy
from core.sourcetraining import statistics as statistics_module
from core.sourcetraining.statistics import LabelStatistics, label_statistics, usable_pairs
from core.utils.errors import UserError

TAXONOMY = Taxonomy(("road", "sky", "car"))
VALUES = {7: "road", 23: "sky", 26: "car"}
INDEX_OF = {7: 0, 23: 1, 26: 2}
VOID = (0, 255)


def draw_labels(count, values=(*VALUES, *VOID), seed=0):
    """Noise of these values, in sizes of all kinds, an odd one among them."""
    rng = np.random.default_rng(seed)
    sizes = ((5, 7), (8, 16), (1, 3))
    return [rng.choice(values, sizes[number % 3]).astype(np.uint8) for number in range(count)]


@pytest.fixture
def make_set(tmp_path, write_png):
    """make_set(labels, sizes={}, **fields): an ImageSet of these label values; `sizes` (h, w) of images that differ."""

    def make(labels, sizes=None, **fields):
        paths = []
        for number, label in enumerate(labels):
            size = (sizes or {}).get(number, label.shape)
            paths.append(write_png(tmp_path / f"images/{number:03d}.png", np.zeros((*size, 3), np.uint8)))
            write_png(tmp_path / f"labels/{number:03d}.png", label)
        names = tuple(path.name for path in paths)
        return ImageSet("things_train", tuple(paths), names, label_path, label_table(TAXONOMY, VALUES, VOID), **fields)

    return make


@pytest.fixture
def root(tmp_path):
    """DATASETS.ROOT, where nothing was counted so far."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def counted_plainly(labels, classes=3):
    counts = np.zeros((len(labels), classes), int)
    for row, label in zip(counts, labels, strict=True):
        for value in label.ravel().tolist():
            if value in INDEX_OF:
                row[INDEX_OF[value]] += 1
    return counts


def undecodable(path):
    raise AssertionError(f"{path} was opened")


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_are_those_of_a_plain_loop(make_set, root, workers):
    labels = draw_labels(37)  # three batches of what the loader hands out at once
    found = label_statistics(make_set(labels), 3, root, workers)
    assert (found.pixels == counted_plainly(labels)).all()
    assert (found.pixels.dtype, found.mismatched) == (np.int64, ())


def test_one_pixel_makes_a_class_present(make_set, root):
    labels = [np.full((8, 8), 7, np.uint8), np.full((8, 8), 255, np.uint8)]
    labels[0][3, 4] = 26
    assert label_statistics(make_set(labels), 3, root, 0).presence.tolist() == [[True, False, True], [False] * 3]


def test_class_weights_by_hand():
    """Shares 0.64 and 0.36: 1/√ gives 1.25 and 1.6667, whose mean over the pixels is 0.8 + 0.6 = 1.4."""
    pixels = np.array([[60, 0, 6], [4, 0, 30]])
    weights = LabelStatistics(pixels, ()).class_weights()
    assert weights == pytest.approx([1.25 / 1.4, 0, 1.6666667 / 1.4])
    assert LabelStatistics(pixels * 10**12, ()).class_weights() == pytest.approx(weights)
    assert LabelStatistics(np.zeros((2, 3), int), ()).class_weights().tolist() == [0, 0, 0]


# --- kept for the next run -------------------------------------------------------------------------------------------


def test_a_second_call_opens_no_label(make_set, root):
    images = make_set(draw_labels(5), {2: (9, 9)})
    first = label_statistics(images, 3, root, 0)
    (kept,) = root.rglob("*.*")
    assert kept.parent == root / "label_statistics"
    assert json.loads(kept.read_text(encoding="utf-8"))["pixels"] == first.pixels.tolist()
    second = label_statistics(replace(images, read_values=undecodable), 3, root, 0)
    assert (second.pixels == first.pixels).all()
    assert (second.pixels.dtype, second.mismatched, first.mismatched) == (np.int64, (2,), (2,))
    with pytest.raises(AssertionError, match="was opened"):
        label_statistics(replace(images, read_values=undecodable), 3, root.parent, 0)


def store(label, path):
    """As a PNG whose number of bytes depends on the size of the label only."""
    path.write_bytes(cv2.imencode(".png", label, (cv2.IMWRITE_PNG_COMPRESSION, 0))[1].tobytes())


def change_label(images):
    path = label_path(images.paths[1])
    before = path.stat()
    store(draw_labels(6, seed=1)[1], path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))  # the clock may be coarser than the test is fast
    return images


def change_label_size(images):
    path = label_path(images.paths[1])
    before = path.stat()
    store(np.full((9, 9), 7, np.uint8), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a restored copy has it
    return images


def change_image(images):
    path = images.paths[1]
    path.write_bytes(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    return images


def change_table(images):
    return replace(images, label_table=label_table(TAXONOMY, {7: "sky", 23: "road", 26: "car"}, VOID))


@pytest.mark.parametrize(
    "change",
    [
        change_label,
        change_label_size,
        change_image,
        change_table,
        lambda images: images.restricted([0, 1, 2, 4, 5]),
        lambda images: images.restricted([1, 0, 2, 3, 4, 5]),
        lambda images: replace(images, names=tuple(f"new_{name}" for name in images.names)),
    ],
    ids=["label", "label size", "image", "table", "fewer images", "other order", "names"],
)
def test_whatever_changed_is_counted_anew(make_set, root, change):
    images, decoded = make_set(draw_labels(6)), []
    store(draw_labels(6)[1], label_path(images.paths[1]))
    before = label_statistics(images, 3, root, 0)
    read_values = images.read_values
    changed = replace(change(images), read_values=lambda path: decoded.append(path) or read_values(path))
    after = label_statistics(changed, 3, root, 0)
    assert len(decoded) == len(changed)
    expected = label_statistics(changed, 3, root.parent, 0)  # where nothing is kept
    assert (after.pixels == expected.pixels).all()
    assert after.mismatched == expected.mismatched
    if change in (change_label, change_table):
        assert (after.pixels != before.pixels).any()
    if change in (change_label_size, change_image):
        assert after.mismatched == (1,)


def test_class_sets_of_one_data_set_do_not_share_their_counts(make_set, root):
    images = make_set(draw_labels(4))
    three = label_statistics(images, 3, root, 0)
    smaller = replace(images, label_table=label_table(Taxonomy(("sky", "car")), VALUES, VOID))
    assert (label_statistics(smaller, 2, root, 0).pixels == three.pixels[:, 1:]).all()
    assert (label_statistics(replace(images, read_values=undecodable), 3, root, 0).pixels == three.pixels).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: json.dumps(content).encode()[:-9],
        lambda content: b"\xff\xfe\x00",
        lambda content: b"[]",
        lambda content: b"null",
        lambda content: b'"format"',
        lambda content: json.dumps({"format": content["format"], "files": content["files"]}).encode(),
        lambda content: json.dumps(content | {"format": content["format"] + 1}).encode(),
        lambda content: json.dumps(content | {"files": "0" * 64}).encode(),
        lambda content: json.dumps(content | {"pixels": content["pixels"][1:]}).encode(),
        lambda content: json.dumps(content | {"pixels": [[1, 2], [3]]}).encode(),
        lambda content: json.dumps(content | {"pixels": "many"}).encode(),
        lambda content: json.dumps(content | {"mismatched": None}).encode(),
        lambda content: json.dumps(content | {"mismatched": ["a"]}).encode(),
        lambda content: json.dumps(content | {"mismatched": [99]}).encode(),
        lambda content: json.dumps(content | {"pixels": [[10**30] * 3] * 4}).encode(),
    ],
)
def test_a_file_that_is_no_count_of_these_labels_is_ignored_and_replaced(make_set, root, spoil):
    images = make_set(draw_labels(4))
    right = label_statistics(images, 3, root, 0)
    (kept,) = root.rglob("*.json")
    content = json.loads(kept.read_text(encoding="utf-8"))
    wrong = content | {"pixels": [[1, 2, 3]] * 4}
    kept.write_bytes(json.dumps(wrong).encode())
    assert label_statistics(images, 3, root, 0).pixels.tolist() == wrong["pixels"]  # the file is what is read
    kept.write_bytes(spoil(wrong))
    found = label_statistics(images, 3, root, 0)
    assert (found.pixels == right.pixels).all()
    assert found.mismatched == ()
    assert json.loads(kept.read_text(encoding="utf-8")) == content


@pytest.mark.parametrize("obstacle", ["a file", "no root", "read-only"])
def test_a_root_that_cannot_be_written_to_costs_one_log_line(make_set, root, log_lines, monkeypatch, obstacle):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    if obstacle == "a file":
        (root / "label_statistics").write_text("mine")
    elif obstacle == "no root":
        root.rmdir()
    else:
        monkeypatch.setattr(statistics_module, "write_json", refuse)
    labels = draw_labels(4)
    assert (label_statistics(make_set(labels), 3, root, 0).pixels == counted_plainly(labels)).all()
    (line,) = log_lines
    assert "label_statistics" in line
    assert {"a file": "File exists", "no root": "No such file", "read-only": "Read-only"}[obstacle] in line
    assert not list(root.rglob("*.json"))


# --- which pairs can be trained on -----------------------------------------------------------------------------------


def test_pairs_of_different_size_are_left_out_in_one_line(make_set, root):
    labels = draw_labels(9)
    images = make_set(labels, {1: (9, 9), 3: (16, 8), 4: (8, 15), 8: (1, 4)}, skip_mismatched=True)
    for reader in (images.read_values, undecodable):  # counted, then from what is kept
        usable, statistics, notes = usable_pairs(replace(images, read_values=reader), TAXONOMY, root, 0)
        assert usable.names == tuple(f"{number:03d}.png" for number in (0, 2, 5, 6, 7))
        assert [path.name for path in usable.paths] == list(usable.names)
        assert (statistics.pixels == counted_plainly(labels)[[0, 2, 5, 6, 7]]).all()
        assert statistics.mismatched == ()
        (line,) = notes
        for part in ("4 pairs", "things_train", "001.png, 003.png, 004.png", "4 in all"):
            assert part in line


def test_a_set_that_is_not_known_for_such_pairs_is_refused(make_set, root):
    with pytest.raises(UserError) as caught:
        usable_pairs(make_set(draw_labels(4), {2: (2, 2)}), TAXONOMY, root, 0)
    message = str(caught.value)
    assert "\n" not in message
    assert "DATASETS.SOURCE_TRAIN things_train" in message
    assert f"{root.parent}/images/002.png (2×2) and {root.parent}/labels/002.png (3×1)" in message


def test_gta5_alone_is_known_for_such_pairs_and_drawn_balanced():
    modules = (gta5, bdd100k, camvid, cityscapes, synthia, toy)
    assert [module.READER.skip_mismatched for module in modules] == [True, *[False] * 5]
    assert [module.READER.balanced for module in modules] == [True, *[False] * 5]


def test_classes_without_a_pixel_are_named_in_one_line(make_set, root):
    images = make_set(draw_labels(4, values=(26, 255)))
    usable, _, notes = usable_pairs(images, TAXONOMY, root, 0)
    assert usable is images
    (line,) = notes
    assert "no pixel of road, sky in things_train" in line
    assert usable_pairs(make_set(draw_labels(4)), TAXONOMY, root, 0)[2] == []


@pytest.mark.parametrize("sizes", [{}, {0: (2, 2)}])
def test_labels_without_any_class_are_refused(make_set, root, sizes):
    images = make_set([np.full((4, 6), 255, np.uint8)], sizes, skip_mismatched=True)
    with pytest.raises(UserError, match=r"DATASETS\.SOURCE_TRAIN things_train: no label holds a pixel of any class"):
        usable_pairs(images, TAXONOMY, root, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_value_that_the_set_does_not_have_is_named_with_its_file_and_count(make_set, root, workers):
    labels = draw_labels(20)
    labels[17] = np.full((8, 8), 7, np.uint8)
    labels[17][2, 1:6], labels[17][0, 0] = 99, 5
    with pytest.raises(UserError) as caught:
        usable_pairs(make_set(labels), TAXONOMY, root, workers)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(root.parent / "labels/017.png"), "things_train", "99 (5 pixels)", "5 (1 pixel)"):
        assert part in message
    assert not list(root.iterdir())
