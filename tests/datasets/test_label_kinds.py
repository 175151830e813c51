"""Labels of another kind under the right names: what a set's values tell, that it is refused, and how it is read."""

import importlib.util

import numpy as np
import pytest
import yaml
from PIL import Image

from core.configs import load_config
from core.datasets.catalog import find_label_values, find_source_images, find_test_images
from core.datasets.cityscapes import LABEL_IDS
from core.datasets.label_kinds import KINDS, LOOKED_AT, tell_kind
from core.datasets.taxonomy import CITYSCAPES_19, TOY_14
from core.utils.errors import UserError
from test import main as evaluate
from tests.conftest import CLASSES
from tests.helpers import PROJECT, OpenWatch, rows_of
from train_src import main as train_source

CASES = PROJECT.parent / "shared/cases/make.py"
NAMES = CITYSCAPES_19.names
TRAIN_IDS = {name: index for index, name in enumerate(NAMES)}
# percent of Cityscapes' pixels, about
SHARES = (36.9, 6.1, 22.8, 0.7, 0.9, 1.2, 0.2, 0.6, 15.9, 1.2, 4.0, 1.2, 0.1, 7.0, 0.3, 0.2, 0.2, 0.1, 0.4)
VOID = {0: 0.1, 1: 4.8, 2: 1.2, 3: 3.4, 4: 1.3, 5: 0.3, 6: 1.3, 9: 0.6, 10: 0.2, 14: 0.02, 15: 0.3, 16: 0.06, 18: 0.01}


def draw_counts(seed):
    """(pixels of each of the 19 classes, {labelId without a class: pixels}) of a set of street scenes.

    Some classes are much more or less common than in Cityscapes, some of the rare ones are missing.
    """
    rng = np.random.default_rng(seed)
    classes = np.array(SHARES) * np.exp(rng.normal(0, 0.4, 19))
    classes[(rng.random(19) < 0.3) & (np.array(SHARES) < 1)] = 0
    void = np.array([*VOID.values()]) * np.exp(rng.normal(0, 0.4, len(VOID))) * rng.uniform(0, 2)
    return (classes * 1e5).astype(int), dict(zip(VOID, (void * 1e5).astype(int), strict=True))


def as_label_ids(seed):
    classes, void = draw_counts(seed)
    counts = np.zeros(256, np.int64)
    counts[[LABEL_IDS[name] for name in NAMES]] = classes
    for value, pixels in void.items():
        counts[value] += pixels
    return counts


def as_train_ids(seed):
    classes, void = draw_counts(seed)
    counts = np.zeros(256, np.int64)
    counts[:19], counts[255] = classes, sum(void.values())
    return counts


# --- what values tell ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_the_expected_kind_are_never_taken_for_another(kind):
    make = {"labelIds": as_label_ids, "trainIds": as_train_ids}[kind]
    assert {tell_kind(make(seed), kind) for seed in range(300)} == {None}


@pytest.mark.parametrize(
    ("expected", "make", "found"),
    [
        ("labelIds", as_train_ids, "trainIds"),
        ("labelIds", lambda seed: np.roll(as_train_ids(seed), 1), "trainIds counted from 1"),  # 255 becomes 0
        ("labelIds", lambda seed: np.roll(as_label_ids(seed), 1), "labelIds plus 1"),
        ("labelIds", lambda seed: np.roll(as_label_ids(seed), -1), "labelIds minus 1"),
        ("trainIds", as_label_ids, "labelIds"),
    ],
)
def test_labels_of_another_kind_are_told(expected, make, found):
    told = [tell_kind(make(seed), expected) for seed in range(300)]
    if found == "trainIds counted from 1":  # without a bicycle, they are taken for trainIds: refused as well
        kinds = {seed: "trainIds" if not as_train_ids(seed)[18] else found for seed in range(300)}
        assert set(kinds.values()) == {found, "trainIds"}
        assert told == list(kinds.values())
    else:
        assert set(told) == {found}


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({23: 50, 7: 40, 26: 8, 17: 2}, None),
        ({10: 50, 0: 40, 13: 8, 5: 2}, "trainIds"),
        ({11: 50, 1: 40, 14: 8, 6: 2}, "trainIds counted from 1"),
        ({24: 50, 8: 40, 27: 8, 18: 2}, "labelIds plus 1"),
        ({22: 50, 6: 40, 25: 8, 16: 2}, "labelIds minus 1"),
        ({0: 50, 2: 20, 8: 20, 13: 10}, "trainIds"),  # road, building, vegetation, car
        ({0: 30, 13: 10, 255: 60}, "trainIds"),  # road and car alone
        ({0: 30, 8: 30, 10: 20, 11: 5, 13: 15}, "trainIds"),
        ({0: 40, 10: 40, 13: 10, 19: 5}, "trainIds with 19 for no class"),
        ({7: 10}, None),
        ({0: 90, 7: 10}, None),  # nothing but roads is labelled
        ({7: 30, 8: 20, 255: 50}, None),
        ({7: 80, 11: 15, 4: 5}, None),  # a narrow street
        ({0: 10, 1: 50, 3: 40}, None),  # as Cityscapes' test split has it: no class at all
        ({255: 9}, None),
        ({}, None),
        ({7: 40, 23: 50, 100: 1}, None),  # for whoever reads it: file, value, pixels
    ],
)
def test_sets_of_few_classes(values, found):
    counts = np.zeros(256, np.int64)
    counts[list(values)] = list(values.values())
    assert tell_kind(counts * 1000, "labelIds") == found


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({10: 50, 0: 40, 13: 8, 5: 2}, None),
        ({23: 50, 7: 40, 26: 8, 17: 2}, "labelIds"),
        ({11: 50, 1: 40, 14: 8, 6: 2}, "trainIds counted from 1"),  # no road anywhere, but sidewalk everywhere
        ({24: 50, 8: 40, 27: 8, 18: 2}, "labelIds plus 1"),
        ({0: 90, 1: 40, 19: 3}, "trainIds with 19 for no class"),
        ({0: 30, 1: 10, 10: 40, 13: 10, 19: 9}, "trainIds with 19 for no class"),
        ({0: 3, 1: 40, 11: 40, 14: 10, 19: 9}, "trainIds counted from 1"),
        ({1: 30, 2: 40, 5: 5, 8: 20}, None),  # a footpath
        ({11: 50, 1: 4, 255: 40}, None),
        ({10: 50, 0: 40, 19: 8, 200: 2}, None),
    ],
)
def test_sets_of_few_classes_that_should_be_train_ids(values, found):
    counts = np.zeros(256, np.int64)
    counts[list(values)] = list(values.values())
    assert tell_kind(counts * 1000, "trainIds") == found


# --- in files --------------------------------------------------------------------------------------------------------


def rewrite(root, pattern, table):
    """Give label files other values: `table` from old to new, 255 for what it does not have."""
    paths = sorted(root.glob(pattern))
    assert paths
    full = np.full(256, 255, np.uint8)
    full[list(table)] = list(table.values())
    for path in paths:
        Image.fromarray(full[np.array(Image.open(path))]).save(path)


IDS_TO_TRAIN = {LABEL_IDS[name]: index for name, index in TRAIN_IDS.items()}
LABELS = "**/*_gtFine_labelIds.png"


def with_kind(config, data_set, kind):
    """The same config file with an entry that says of which kind a built-in set's labels are."""
    tree = yaml.safe_load(config.read_text())
    tree["DATASETS"]["CUSTOM"] = {data_set: {"labels": kind}}
    config.write_text(yaml.safe_dump(tree))
    return config


def test_train_ids_as_cityscapes_label_ids_are_refused_and_read_once_the_config_says_so(
    cityscapes_root, write_config, capsys
):
    config = write_config(cityscapes_root)
    assert evaluate(["-cfg", str(config), "OUTPUT_DIR", str(cityscapes_root / "right")]) == 0
    rewrite(cityscapes_root, LABELS, IDS_TO_TRAIN)
    capsys.readouterr()
    assert evaluate(["-cfg", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    first = "aachen_000000_000019_gtFine_labelIds.png"
    for part in ("DATASETS.TEST cityscapes_val", first, "should hold labelIds", "those of trainIds"):
        assert part in line
    assert "`DATASETS: {CUSTOM: {cityscapes: {labels: trainIds}}}` in the yaml file reads them" in line
    assert not (cityscapes_root / "out").exists()
    ids = cityscapes_root / "ids"
    argv = ["-cfg", str(with_kind(config, "cityscapes", "trainIds")), "--save-label-ids", str(ids)]
    assert evaluate(argv) == 0
    scores = [rows_of(cityscapes_root / out / "test_cityscapes_val.csv") for out in ("right", "out")]
    assert scores[0] == scores[1]
    assert float(scores[0][0]["mIoU_labelled"]) > 50
    saved = {value for path in ids.rglob("*.png") for value in np.unique(np.array(Image.open(path))).tolist()}
    assert saved >= {index for index, _, _ in CLASSES.values()}  # in the numbers of the labels: trainIds
    assert max(saved) < 19


def test_labels_that_the_config_says_the_kind_of_are_taken_at_their_word(cityscapes_root, write_config):
    rewrite(cityscapes_root, LABELS, IDS_TO_TRAIN)
    config = load_config(with_kind(write_config(cityscapes_root), "cityscapes", "labelIds"))
    assert set(np.unique(find_test_images(config).read_label(0))) <= {*range(19), 255}


def test_source_training_on_gta5_finds_out_before_anything_is_counted(make_gta5, write_config, tmp_path, capsys):
    root = make_gta5(tmp_path)
    overrides = {"resume": "", "MODEL.FREEZE_BN": False, "DATASETS.TEST": "", "DATASETS.TARGET_TRAIN": ""}
    config = write_config(root, **overrides)
    rewrite(root, "gta5/labels/*.png", IDS_TO_TRAIN)
    assert train_source(["-cfg", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "DATASETS.SOURCE_TRAIN gta5_train" in line
    assert "{gta5: {labels: trainIds}}" in line
    assert not (root / "label_statistics").exists()
    images = find_source_images(load_config(with_kind(config, "gta5", "trainIds")))
    assert (images.balanced, images.skip_mismatched) == (True, True)
    held = {value for index in range(len(images)) for value in np.unique(images.read_label(index)).tolist()}
    assert held == {255} | {index for index, _, _ in CLASSES.values()}


STRIPES = ["road"] * 6 + ["sky"] * 6 + list(TOY_14.names)


def striped(table):
    """A label of 4 rows with a column of each of STRIPES."""
    return np.array([[table[name] for name in STRIPES]] * 4, np.uint8)


def test_toy_domains_and_bdd100k_are_looked_at_alike(tmp_path, options, write_png):
    stem, picture = "val/town/town_000001_000019", np.zeros((4, 26, 3), np.uint8)
    write_png(tmp_path / f"toy_target/leftImg8bit/{stem}_leftImg8bit.png", picture)
    write_png(tmp_path / f"toy_target/gtFine/{stem}_gtFine_labelIds.png", striped(TRAIN_IDS))
    config = options(14, TEST="toy_target_val")
    with pytest.raises(UserError, match=r"toy_target_val: .*labelIds, .*of trainIds: .*\{toy: \{labels: trainIds\}\}"):
        find_test_images(config)
    write_png(tmp_path / "bdd100k/images/10k/val/a.jpg", picture)
    write_png(tmp_path / "bdd100k/labels/sem_seg/masks/val/a.png", striped(LABEL_IDS))
    with pytest.raises(UserError, match=r"bdd100k_val: .*trainIds, .*of labelIds: .*\{bdd100k: \{labels: labelIds\}\}"):
        find_test_images(options(19, TEST="bdd100k_val"))
    file = tmp_path / "some.yaml"
    custom = {"toy": {"labels": "trainIds"}, "bdd100k": {"labels": "labelIds"}}
    for name, classes, table in (("toy_target_val", TOY_14, TRAIN_IDS), ("bdd100k_val", CITYSCAPES_19, LABEL_IDS)):
        datasets = {"ROOT": str(tmp_path), "TEST": name, "CUSTOM": custom}
        file.write_text(yaml.safe_dump({"MODEL": {"NUM_CLASSES": len(classes)}, "DATASETS": datasets}))
        config = load_config(file)
        label = find_test_images(config).read_label(0)
        assert label[0].tolist() == [classes.index(one) for one in STRIPES]
        values = find_label_values(config)
        assert {one: values[classes.index(one)] for one in classes.names} == {one: table[one] for one in classes.names}


def test_shifted_labels_have_no_option_that_reads_them(cityscapes_root, write_config):
    rewrite(cityscapes_root, LABELS, {value: value + 1 for value in range(34)})
    with pytest.raises(UserError, match=r"labelIds plus 1: mend them, or describe .*DATASETS\.CUSTOM set") as caught:
        find_test_images(load_config(write_config(cityscapes_root)))
    assert "{cityscapes: {labels: labelIds}}" in str(caught.value)


def test_a_few_labels_are_opened_drawn_evenly_and_none_of_the_training_split(make_cityscapes, write_config, tmp_path):
    root = make_cityscapes(tmp_path, train=2, val=2 * LOOKED_AT)
    folders = sorted(path for path in (root / "cityscapes/gtFine/val").iterdir())
    training = root / "cityscapes/gtFine/train/aachen"
    training.mkdir(parents=True)
    Image.new("L", (128, 64), 7).save(training / "aachen_000000_000019_gtFine_labelIds.png")
    images = find_test_images(load_config(write_config(root)))
    watch, unseen = OpenWatch(folders), OpenWatch([training])
    find_test_images(load_config(write_config(root)))
    names = [images.label_path(path).name for path in images.paths]
    opened = [watch_name for watch_name in watch.opened() if watch_name]
    decoded = [name for name in names if opened.count(name) > 1]  # once for the header, which all have read
    assert set(opened) == set(names)
    assert len(decoded) == LOOKED_AT
    gaps = np.diff([names.index(name) for name in decoded])
    assert set(gaps.tolist()) <= {1, 2, 3}
    assert [name for name in unseen.opened() if name] == []


# --- made by others --------------------------------------------------------------------------------------------------


@pytest.fixture
def make_case(tmp_path):
    """make_case(name): folder with that case of ../shared/cases."""
    if not CASES.is_file():
        pytest.skip("there is no ../shared/cases")
    spec = importlib.util.spec_from_file_location("cases", CASES)
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)

    def make(name):
        cases.CASES[name](tmp_path)
        return tmp_path

    return make


def test_the_case_of_train_ids(make_case, write_config, capsys):
    root = make_case("train_ids")
    config = write_config(root)
    assert evaluate(["-cfg", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "those of trainIds" in line
    assert "labels: trainIds" in line
    assert evaluate(["-cfg", str(with_kind(config, "cityscapes", "trainIds"))]) == 0
