"""What checkpoints say of their models, and what becomes of a config that one is used with."""

import re

import pytest
import torch

from core.configs import cfg, load_config
from core.datasets.catalog import find_label_values, find_taxonomy
from core.datasets.taxonomy import CITYSCAPES_19, TOY_14
from core.runs.known import describe_model, handed_on, with_known, with_network
from core.runs.resume import continued_config, find_start
from core.runs.states import flat_config
from core.utils.errors import UserError

MEAN, STD = [104.0, 116.5, 122.5], [1.0, 1.0, 1.0]
SAYS = {
    "network": "deeplab_resnet18",
    "args": {},
    "mean": MEAN,
    "std": STD,
    "bgr255": True,
    "align_corners": False,
    "classes": list(TOY_14.names),
    "colours": TOY_14.palette()[:14].tolist(),
}
OPTIONS = {
    "MODEL.NAME": "deeplab_resnet18",
    "MODEL.NUM_CLASSES": 14,
    "MODEL.ALIGN_CORNERS": False,
    "INPUT.PIXEL_MEAN": tuple(MEAN),
    "INPUT.PIXEL_STD": tuple(STD),
    "INPUT.TO_BGR255": True,
}


@pytest.fixture
def file(tmp_path):
    """file(**about): a checkpoint that says SAYS, or other things; what is None it does not say. It has no weights."""

    def write(**about):
        path = tmp_path / "source.pth"
        about = {key: value for key, value in (SAYS | about).items() if value is not None}
        torch.save({"iteration": 0, "about": about, "feature_extractor": {}, "classifier": {}}, path)
        return path

    return write


@pytest.fixture
def load(tmp_path):
    """load(*options, text=""): the config of a yaml text and KEY VALUE options."""

    def load_text(*options, text=""):
        (tmp_path / "some.yaml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "some.yaml", [str(word) for word in options])

    return load_text


def test_a_checkpoint_says_what_its_weights_need(load):
    text = "MODEL: {NAME: 'my:build', ARGS: {depth: 3, widths: [1, 2]}, CLASSES_OUT: [2, 3, 4], NUM_CLASSES: 3}"
    classes = ("MODEL.CLASSES", "[cat, dog, rest]", "MODEL.CLASS_COLOURS", "((1, 2, 3), (4, 5, 6), (7, 8, 9))")
    images = ("INPUT.PIXEL_MEAN", MEAN, "INPUT.PIXEL_STD", STD, "INPUT.TO_BGR255", True, "MODEL.ALIGN_CORNERS", False)
    about = describe_model(load(*images, *classes, "INPUT.INPUT_SIZE_TEST", "(64, 32)", text=text))
    assert about == {
        "network": "my:build",
        "args": {"depth": 3, "widths": [1, 2]},
        "classes_out": [2, 3, 4],
        "align_corners": False,
        "mean": MEAN,
        "std": STD,
        "bgr255": True,
        "classes": ["cat", "dog", "rest"],
        "colours": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
        "size": [64, 32],
    }
    plain = describe_model(load("DATASETS.SOURCE_TRAIN", "gta5_train"))
    assert plain["classes"] == list(CITYSCAPES_19.names)
    assert plain["align_corners"] is True
    assert {"classes_out", "size", "depth"}.isdisjoint(plain)
    assert "colours" not in describe_model(cfg)


def test_what_is_not_given_is_the_checkpoints_and_the_log_says_so(load, file, log_lines):
    config = with_network(load(), file(classes_out=None))
    assert {key: config.find(key) for key in OPTIONS} == OPTIONS
    taxonomy = find_taxonomy(config)
    assert (taxonomy.names, taxonomy.paste, taxonomy.partner_names) == (
        TOY_14.names,
        TOY_14.paste,
        TOY_14.partner_names,
    )
    assert (taxonomy.palette() == TOY_14.palette()).all()
    assert find_label_values(config)[:15].tolist() == [*range(14), 255]
    classes, network, images = log_lines
    assert re.fullmatch(r"class names are not given: 14, as .*source\.pth says", classes)
    said = "MODEL.NAME deeplab_resnet18, MODEL.ALIGN_CORNERS False, MODEL.NUM_CLASSES 14"
    assert network.endswith(f"source.pth says: {said}")
    assert images.endswith("INPUT.PIXEL_STD [1.0, 1.0, 1.0], INPUT.TO_BGR255 True")
    del log_lines[:]
    again = with_network(config, file())
    assert flat_config(again) == flat_config(config)
    assert log_lines == []


def test_a_config_of_what_was_found_has_it_itself(load, file, tmp_path):
    """As a run writes it, for other programs to read, beside the checkpoints that it wrote."""
    own = {"classes": ["cat", "dog"], "colours": [[1, 2, 3], [250, 5, 6]], "args": {"a": 1}}
    config = with_known(load(), file(**own, size=[64, 48]))
    (tmp_path / "config.yaml").write_text(config.dump(), encoding="utf-8")
    saved = load_config(tmp_path / "config.yaml")
    assert saved.MODEL.ARGS.a == 1
    assert saved.INPUT.INPUT_SIZE_TEST == (64, 48)
    assert find_taxonomy(saved).palette()[:2].tolist() == own["colours"]
    assert find_taxonomy(saved).partners(0) == ()
    assert flat_config(with_known(saved, file(**own))) == flat_config(saved)
    assert describe_model(saved) == SAYS | own | {"size": [64, 48]}


@pytest.mark.parametrize(
    ("key", "value", "theirs"),
    [
        ("MODEL.NAME", "deeplab_resnet101", "deeplab_resnet18"),
        ("MODEL.NUM_CLASSES", 19, "14"),
        ("MODEL.ALIGN_CORNERS", True, "False"),
        ("MODEL.CLASSES_OUT", "(0, 1)", "[3, 4]"),
        ("INPUT.PIXEL_MEAN", (0.485, 0.456, 0.406), "[104.0, 116.5, 122.5]"),
        ("INPUT.PIXEL_STD", (0.229, 0.224, 0.225), "[1.0, 1.0, 1.0]"),
        ("INPUT.TO_BGR255", False, "True"),
    ],
)
def test_what_is_given_must_not_contradict_be_it_the_default(load, file, key, value, theirs):
    path = file(classes_out=[3, 4])
    with pytest.raises(UserError, match=rf"^{re.escape(key)} is .*, but {re.escape(theirs)} in .*: leave {key} out, "):
        with_network(load(key, value), path)
    assert with_network(load(*(word for item in OPTIONS.items() for word in item)), path).MODEL.CLASSES_OUT == (3, 4)


def test_arguments_of_a_network_are_held_against_the_checkpoints(load, file):
    path = file(args={"eps": "nvlabs", "widths": [8, 16]})
    assert with_network(load(), path).MODEL.ARGS.widths == (8, 16)
    assert with_network(load(text="MODEL: {ARGS: {eps: nvlabs, widths: [8, 16]}}"), path).MODEL.ARGS.eps == "nvlabs"
    with pytest.raises(UserError, match=r"^MODEL\.ARGS is \{'eps': '1e-5'\}, but \{'eps': 'nvlabs', .*leave MODEL\.AR"):
        with_network(load(text="MODEL: {ARGS: {eps: '1e-5'}}"), path)


def test_no_function_that_a_file_names_is_run_unasked(load, file):
    """A file from anywhere could name any module."""
    path = file(network="my_networks:build", args={"depth": 3})
    with pytest.raises(
        UserError, match=r"holds my_networks:build, a network of one's own: give it as MODEL\.NAME if it is yours"
    ):
        with_network(load(), path)
    assert with_network(load("MODEL.NAME", "my_networks:build"), path).MODEL.ARGS.depth == 3
    moved = with_network(load("MODEL.NAME", "moved.networks:build"), path)  # its weights tell whether it fits
    assert (moved.MODEL.NAME, dict(moved.MODEL.ARGS)) == ("moved.networks:build", {})


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"network": "resnext"}, "its network must be one of "),
        ({"network": "a:\n" + "b" * 999}, r"holds 'a:\\nb{20,99}…, a network of one's own"),
        (
            {"classes": ["a", "b\nerror:"], "colours": None},
            "the names of its classes must be a list of different names",
        ),
        ({"network": ["deeplab_resnet18"]}, "its network must be text"),
        ({"mean": [1, 2]}, "its mean must be three numbers"),
        ({"std": [0, 1, 1]}, "its std must be three numbers other than 0"),
        ({"bgr255": 3}, "its bgr255 must be True or False"),
        ({"args": 3}, "its args must hold NAME: VALUE"),
        ({"classes": ["a"], "colours": None}, "the number of its classes must be at least 2"),
        ({"classes": ["a", 3], "colours": None}, "the names of its classes must be a list of different names"),
        ({"colours": [1, 2]}, r"its colours must be a list of \[red, green, blue\]"),
        ({"colours": [[1, 2, 3]]}, "MODEL.CLASS_COLOURS has 1 colours, but MODEL.CLASSES 14 names"),
    ],
)
def test_what_cannot_be_is_one_line(load, file, about, message):
    with pytest.raises(UserError, match=message):
        find_taxonomy(with_network(load(), file(**about)))


def test_a_checkpoint_that_says_nothing_leaves_a_config_as_it_is_or_is_told_what_lacks(load, file, tmp_path):
    torch.save({"iteration": 0, "feature_extractor": {}, "classifier": {}}, tmp_path / "old.pth")
    config = load("DATASETS.SOURCE_TRAIN", "gta5_train")
    assert flat_config(with_network(config, tmp_path / "old.pth")) == flat_config(config)
    give = r"give MODEL\.NAME, MODEL\.NUM_CLASSES and DATASETS\.SOURCE_TRAIN \(a data set with its class names\)$"
    with pytest.raises(UserError, match=rf"old\.pth does not say what network and classes it holds: {give}"):
        with_network(load(), tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"does not say what network it holds: give MODEL\.NAME$"):
        with_network(load(), file(network=None))
    assert with_network(load("MODEL.NAME", "deeplab_resnet50"), file(network=None)).MODEL.NUM_CLASSES == 14


def test_class_names_of_data_sets_come_first(load, file):
    given = with_network(load("DATASETS.SOURCE_TRAIN", "toy_source_train"), file())
    assert given.MODEL.CLASSES == ()
    other = load("DATASETS.TARGET_TRAIN", "camvid_dusk_train", "DATASETS.TEST", "toy_target_val")
    assert with_network(other, file()).MODEL.CLASSES == ()  # the test set has the model's
    alone = with_network(load("DATASETS.TARGET_TRAIN", "camvid_dusk_train"), file())  # of other classes
    assert find_taxonomy(alone).names == TOY_14.names
    with pytest.raises(UserError, match=r"MODEL\.CLASSES names 2 classes, but MODEL\.NUM_CLASSES is 14"):
        find_taxonomy(load("MODEL.CLASSES", "[a, b]", "MODEL.NUM_CLASSES", 14))


def test_a_run_starts_with_its_source_models_network_and_goes_on_with_it(load, file):
    path = file(args={"a": [1]})
    for word in (path, f"auto:{path}"):
        begun = find_start(load("resume", word, "OUTPUT_DIR", path.parent / "new"), "").config
        assert {key: begun.find(key) for key in OPTIONS} == OPTIONS
    state = {"program": "train.py", "config": flat_config(begun)}
    config = continued_config(state, load("resume", "auto", "OUTPUT_DIR", path.parent / "new"), "train.py")
    assert flat_config(config) == flat_config(begun)
    assert config.MODEL.ARGS.a == (1,)
    with pytest.raises(UserError, match=r"^MODEL\.NAME is 'deeplab_resnet50', but the run to go on with has 'deeplab_"):
        continued_config(state, load("MODEL.NAME", "deeplab_resnet50", "resume", "auto"), "train.py")


def test_where_weights_come_from_is_handed_on(file):
    more = {"family": "a", "origin": "b", "licence": "c", "bn_eps": 1e-5}
    assert handed_on(file(**more)) == more
    assert handed_on(file(family=b"a", origin=["b"], licence={}, bn_eps="much")) == {}
