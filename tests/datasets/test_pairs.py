"""A model evaluated on a set of other classes: what is scored is what both can say, and several may count as one."""

import numpy as np
import pytest
import torch
from PIL import Image

from core.datasets.catalog import (
    find_images,
    find_label_values,
    find_pairing,
    find_submission,
    find_target_images,
    find_taxonomy,
    find_test_images,
)
from core.datasets.images import write_png
from core.datasets.pairs import pair
from core.datasets.taxonomy import CAMVID_11, CITYSCAPES_16, CITYSCAPES_19, IGNORE, Taxonomy
from core.evaluation.evaluator import Evaluator, report_lines, table_row
from core.evaluation.predictor import Predictor
from core.programs.selection import find_labelled_images
from core.utils.errors import UserError

MODEL = Taxonomy(("road", "car", "truck", "person", "tree"))
CLASSES = len(MODEL)


def test_what_both_can_say_is_scored_in_the_test_sets_order():
    pairing = pair(CITYSCAPES_19, CAMVID_11, {}, "DATASETS.TEST camvid_dusk_val")
    assert pairing.taxonomy.names == CAMVID_11.names
    for index, name in enumerate(CITYSCAPES_19.names):
        expected = CAMVID_11.names.index(name) if name in CAMVID_11.names else 11
        assert pairing.scored[index] == expected
    assert [CITYSCAPES_19.names[i] for i in pairing.shown[:11]] == list(CAMVID_11.names)
    assert pairing.shown[11] == pairing.shown[IGNORE] == IGNORE
    assert "11 classes are scored" in pairing.words
    assert "of the model are none of the set's: wrong wherever there is a label" in pairing.words


def test_the_same_classes_need_no_pairing():
    assert pair(CAMVID_11, CAMVID_11, {}, "") is None


def test_several_classes_count_as_one_with_that_of_its_own_name():
    test = Taxonomy(("ground", "car", "dog", "person"))
    pairing = pair(MODEL, test, {"ground": ["road"], "car": ["truck"]}, "")
    assert pairing.taxonomy.names == ("ground", "car", "person")
    assert pairing.scored[:CLASSES].tolist() == [0, 1, 1, 2, 3]
    assert pairing.shown[:4].tolist() == [0, 1, 3, IGNORE]
    words = pairing.words.split("; ")
    assert words[0] == "3 classes are scored (ground, car, person)"
    assert words[1] == "of the model count road as ground, truck as car"
    assert words[2] == "the model does not have dog: pixels of these have no label"
    assert words[3:] == ["tree of the model are none of the set's: wrong wherever there is a label"]


def test_labels_of_a_class_that_counts_as_another_count_as_that_too():
    pairing = pair(MODEL, Taxonomy(("car", "truck", "road", "dog")), {"car": ["car", "truck"]}, "")
    assert pairing.taxonomy.names == ("car", "road")
    assert pairing.scored[:CLASSES].tolist() == [1, 0, 0, 2, 2]
    assert pairing.labels[:4].tolist() == [0, 0, 1, IGNORE]
    assert pairing.labels[[254, 255]].tolist() == [254, 255]
    assert "so do labels: truck as car" in pairing.words
    assert "the model does not have dog: pixels" in pairing.words


def test_the_same_classes_may_be_scored_coarser(options, cityscapes_root):
    config = options(SOURCE_TRAIN="gta5_train", TEST="cityscapes_val")
    plain = find_test_images(config).read_label(0)
    config.DATASETS.CUSTOM.merge({"cityscapes": {"merge": {"rider": ["bicycle"], "pole": ["sign"]}}}, "some.yaml: C")
    images = find_test_images(config)
    names = images.scored_of(CITYSCAPES_19).names
    assert len(names) == 17
    assert cityscapes_root.is_dir()
    merged = {"bicycle": "rider", "sign": "pole"}
    expected = np.full(256, IGNORE, np.uint8)
    expected[:19] = [names.index(merged.get(name, name)) for name in CITYSCAPES_19.names]
    assert np.array_equal(images.read_label(0), expected[plain])


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"car": ["trunk"]}, r"^x: merge\.car: 'trunk' is not one of the model's classes; did you mean 'truck'\?$"),
        ({"car": ["truck"], "dog": ["truck"]}, r"^x: merge names 'truck' under 'car' and under 'dog'$"),
    ],
)
def test_what_cannot_be_merged_is_one_line(merge, message):
    with pytest.raises(UserError, match=message):
        pair(MODEL, Taxonomy(("car", "dog")), merge, "x")


def test_sets_that_share_nothing_are_one_line():
    with pytest.raises(
        UserError, match=r"^x: its classes \(dog, cat\) are none of the model's \(road, .*`merge` of its"
    ):
        pair(MODEL, Taxonomy(("dog", "cat")), {}, "x")


# --- a config --------------------------------------------------------------------------------------------------------

TEST_CLASSES = ["vehicle", "person", "dog", "road"]


@pytest.fixture
def place(options, tmp_path):
    """place(fields of the test set): a config of a model of MODEL's classes, and a test set of TEST_CLASSES."""
    rng = np.random.default_rng(0)
    for number in range(3):
        for folder, array in (("images", rng.integers(0, 256, (32, 64, 3))), ("masks", rng.integers(0, 4, (32, 64)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / folder / f"{number}.png")

    def make(**fields):
        source = {"classes": list(MODEL.names), "splits": {"all": {"images": "images"}}}
        splits = {"all": {"images": "images", "labels": "masks"}}
        town = {"classes": TEST_CLASSES, "merge": {"vehicle": ["car", "truck"]}, "splits": splits} | fields
        config = options(CLASSES, SOURCE_TRAIN="made_all", TARGET_TRAIN="town_all", TEST="town_all")
        config.DATASETS.CUSTOM.merge({"made": source, "town": town}, "some.yaml: C")
        return config.changed({"INPUT.INPUT_SIZE_TEST": (64, 32), "DATALOADER.NUM_WORKERS": 0})

    return make


class Stripes(torch.nn.Module):
    """Stride-8 logits: the columns are MODEL's classes in turn."""

    def forward(self, image):
        winners = torch.arange(8) % CLASSES
        logits = torch.nn.functional.one_hot(winners, CLASSES).T[None, :, None].float()
        return logits.expand(len(image), -1, 4, -1).contiguous()


def test_the_scores_are_those_of_a_plain_count(place):
    config = place()
    images, taxonomy = find_test_images(config), find_taxonomy(config)
    assert taxonomy.names == MODEL.names
    assert images.scored_of(taxonomy).names == ("vehicle", "person", "road")
    predictions = {}
    evaluator = Evaluator(images, CLASSES, Predictor(config, torch.device("cpu")))
    scores = evaluator.run(Stripes(), predictions.__setitem__)
    as_test = np.array([3, 0, 0, 1, -1])  # of MODEL's classes, as TEST_CLASSES number them
    hits, either = np.zeros(4), np.zeros(4)
    for index, path in enumerate(images.paths):
        truth = np.asarray(Image.open(path.parents[1] / "masks" / path.name))
        said = as_test[predictions[index]]
        for y, x in np.ndindex(truth.shape):
            if truth[y, x] == 2:  # a dog, which the model does not have
                continue
            hits[truth[y, x]] += truth[y, x] == said[y, x]
            either[truth[y, x]] += 1
            if said[y, x] not in (-1, truth[y, x]):
                either[said[y, x]] += 1
    expected = 100 * hits[[0, 1, 3]] / either[[0, 1, 3]]
    assert scores.iou == pytest.approx(expected)
    assert scores.mean_iou == pytest.approx(expected.mean())
    assert scores.mean_iou_labelled == scores.mean_iou_occurring == pytest.approx(expected.mean())
    assert evaluator.matrices(Stripes()).sum(0).tolist() == scores.confusion.tolist()
    row = table_row(scores, images.scored_of(taxonomy))
    assert [column for column in row if column.startswith("IoU_")] == ["IoU_vehicle", "IoU_person", "IoU_road"]
    assert "(3 classes)" in "\n".join(report_lines(scores, images.scored_of(taxonomy), images.name))


def test_every_reader_of_the_labels_has_them_so(place):
    config = place()
    stored = np.asarray(Image.open(find_test_images(config).paths[0].parents[1] / "masks/0.png"))
    expected = np.array([0, 1, IGNORE, 2])[stored]
    for images in (find_test_images(config), find_labelled_images(config), find_images(config, "TEST")):
        assert np.array_equal(images.read_label(0), expected)
        assert images.note.startswith("3 classes are scored (vehicle, person, road); of the model count car as vehicle")
    assert find_target_images(config).pairing is None


def test_written_numbers_are_the_test_sets_own(place):
    config = place(labels={10: "vehicle", 20: "person", 30: "dog", 40: "road"})
    (_, values), images = find_submission(config, find_test_images(config)), find_test_images(config)
    assert values[:CLASSES].tolist() == [40, 10, 10, 20, IGNORE]
    assert len(images) == 3
    assert find_label_values(config)[:CLASSES].tolist() == [0, 1, 2, 3, 4]  # of the source, whose the classes are


def test_written_numbers_of_16_bits_are_not_cut_off(place, tmp_path):
    config = place(labels={300: "vehicle", 1000: "person", 20000: "dog", 65000: "road"})
    _, values = find_submission(config, find_images(config, "TEST"))
    assert values.dtype == np.uint16
    write_png(tmp_path / "a.png", values[np.arange(CLASSES, dtype=np.uint8)[None]])
    stored = np.asarray(Image.open(tmp_path / "a.png"))
    assert stored[0].tolist() == [65000, 300, 300, 1000, IGNORE]
    with pytest.raises(ValueError, match="no PNG holds int64"):
        write_png(tmp_path / "b.png", values.astype(np.int64)[None])


def test_19_classes_on_a_built_in_set_of_11(options, camvid_root):
    config = options(SOURCE_TRAIN="gta5_train", TARGET_TRAIN="camvid_dusk_train", TEST="camvid_dusk_val")
    assert find_taxonomy(config) == CITYSCAPES_19
    assert len(find_target_images(config)) > 0
    images = find_test_images(config)
    assert images.scored_of(CITYSCAPES_19).names == CAMVID_11.names
    assert images.read_label(0)[0, ::4].tolist() == [*range(11), IGNORE]  # its twelve stripes
    assert find_pairing(config).scored[CITYSCAPES_19.names.index("truck")] == 11
    config.DATASETS.CUSTOM.merge({"camvid": {"merge": {"car": ["truck", "bus"]}}}, "some.yaml: C")
    assert find_pairing(config).scored[[13, 14, 15]].tolist() == [CAMVID_11.names.index("car")] * 3


def test_a_built_in_set_has_as_many_classes_as_the_model_where_it_can(options, cityscapes_root):
    config = options(16, SOURCE_TRAIN="synthia_train", TEST="cityscapes_val")
    assert find_taxonomy(config) == CITYSCAPES_16
    assert find_pairing(config) is None
    assert cityscapes_root.is_dir()


@pytest.mark.parametrize(
    ("classes", "sets", "message"),
    [
        (
            11,
            {"SOURCE_TRAIN": "gta5_train", "TEST": "camvid_day_val"},
            r"is 11, but DATASETS\.SOURCE_TRAIN gta5_train has",
        ),
        (19, {"TARGET_TRAIN": "camvid_dusk_train"}, r"is 19, but DATASETS\.TARGET_TRAIN camvid_dusk_train has 11$"),
        (7, {"TEST": "cityscapes_val"}, r"is 7, but DATASETS\.TEST cityscapes_val has 19 or 16$"),
    ],
)
def test_a_model_must_have_the_classes_of_some_set_and_of_the_source(options, classes, sets, message):
    with pytest.raises(UserError, match=rf"^MODEL\.NUM_CLASSES {message}"):
        find_taxonomy(options(classes, **sets))


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"lorry": ["truck"]}, r"^some\.yaml: C\.town\.merge: 'lorry' is not one of the classes"),
        (
            {"vehicle": ["lorry"]},
            r"^DATASETS\.TEST town_all: merge\.vehicle: 'lorry' is not one of the model's classes",
        ),
        ({"vehicle": 3}, r"C\.town\.merge\.vehicle must be a list of names, not 3$"),
        (["vehicle"], r"C\.town\.merge must hold NAME: VALUE pairs"),
    ],
)
def test_a_wrong_merge_is_one_line(place, merge, message):
    with pytest.raises(UserError, match=message):
        find_test_images(place(merge=merge))


def test_a_single_name_will_do(place):
    assert find_pairing(place(merge={"vehicle": "car"})).scored[:3].tolist() == [2, 0, 3]


def test_as_many_other_classes_are_other_classes_where_the_source_gives_the_models(place):
    config = place(classes=["vehicle", "person", "dog", "road", "tree"])
    assert find_taxonomy(config).names == MODEL.names
    assert find_test_images(config).scored_of(MODEL).names == ("vehicle", "person", "road", "tree")
    assert find_label_values(config)[:CLASSES].tolist() == [0, 1, 2, 3, 4]
    config.DATASETS.SOURCE_TRAIN = ""
    assert find_taxonomy(config).names[0] == "vehicle"
