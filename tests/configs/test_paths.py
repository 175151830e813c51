"""`~` and variables in the paths of a config: what a shell would make of them, in every option that is a path."""

import re

import pytest
import yaml

from core.configs import load_config
from core.configs.defaults import OPTIONS
from core.datasets.catalog import find_images
from core.utils.errors import UserError
from core.utils.files import expanded
from test import main as evaluate
from tests.helpers import contents, rows_of
from train_TCR_DTU import main as adapt

PREFIXES = {
    "DATASETS.TARGET_TRAIN": ("folder:", "video:"),
    "DATASETS.TEST": ("folder:", "video:"),
    "resume": ("", "auto:"),
}
PATHS = [
    "OUTPUT_DIR",
    "resume",
    "MODEL.WEIGHTS",
    "DATASETS.ROOT",
    "DATASETS.TARGET_TRAIN",
    "DATASETS.TEST",
    "DATASETS.TARGET_LIST",
    "VIDEO.FOLDER",
    "DATALOADER.CACHE",
    "INPUT.MASK",
]
CASES = [(key, prefix) for key in PATHS for prefix in PREFIXES.get(key, ("",))]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """tmp_path, which is also ~ and $PLACE; $NOWHERE is not set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path


@pytest.fixture
def config(home):
    """config(text of yaml, *options): loaded."""

    def load(text, *options):
        (home / "some.yaml").write_text(text, encoding="utf-8")
        return load_config(home / "some.yaml", options)

    return load


def as_yaml(key, value):
    section, _, name = key.rpartition(".")
    return yaml.safe_dump({section: {name: value}} if section else {name: value})


def test_these_options_are_paths():
    assert [key for key, facts in OPTIONS.items() if facts.path] == PATHS


@pytest.mark.parametrize(("key", "prefix"), CASES)
def test_a_path_is_expanded_wherever_it_is_given(config, home, key, prefix):
    for path in ("~/a b", "$PLACE/a b", "${PLACE}/a b", f"{home}/a b"):
        for loaded in (config(as_yaml(key, prefix + path)), config("", key, prefix + path)):
            assert loaded.find(key) == f"{prefix}{home}/a b"
            assert loaded.gives(key)
    assert config("", key, f"{prefix}a/~b").find(key) == f"{prefix}a/~b"
    assert config("", key, f"{prefix}~nobody-of-that-name/b").find(key) == f"{prefix}~nobody-of-that-name/b"


@pytest.mark.parametrize("key", ["DATASETS.TARGET_TRAIN", "DATASETS.TEST"])
def test_each_of_several_folders_is_expanded(config, home, key):
    loaded = config("", key, "folder:~/a, b,folder:$PLACE/c; folder:d")
    assert loaded.find(key) == f"folder:{home}/a, b,folder:{home}/c; folder:d"


@pytest.mark.parametrize(("key", "prefix"), CASES)
def test_a_variable_that_is_not_set_is_one_line_with_key_and_name(config, key, prefix):
    for text, options in ((as_yaml(key, f"{prefix}$NOWHERE/x"), ()), ("", (key, f"{prefix}$NOWHERE/x"))):
        with pytest.raises(UserError, match=rf"^{re.escape(key)} \$NOWHERE/x: the variable \$NOWHERE is not set; "):
            config(text, *options)


def test_own_data_sets(config, home, write_png, draw_scene):
    for name in ("0.png", "1.png"):
        write_png(home / "frames" / name, draw_scene(0)[0])
        write_png(home / "masks" / name, draw_scene(0)[1])
    split = {"images": "$PLACE/frames", "labels": "~/masks"}
    mine = {"classes": ["a", "b"], "labels": {7: "a", 11: "b"}, "ignore": "rest", "splits": {"train": split}}
    custom = {"DATASETS": {"CUSTOM": {"mine": mine}, "TEST": "mine_train"}, "MODEL": {"NUM_CLASSES": 2}}
    loaded = config(yaml.safe_dump(custom))
    images = find_images(loaded, "TEST")
    assert images.paths == (home / "frames/0.png", home / "frames/1.png")
    assert images.label_path(images.paths[1]) == home / "masks/1.png"
    assert set(images.read_label(0).flat) >= {0, 1}
    (home / "list.txt").write_text("frames/1.png\n")
    mine["splits"]["train"] = {"list": "~/list.txt", "images": "$PLACE", "labels": "~/masks", "pattern": "frames/*.png"}
    mine["splits"]["train"]["label_pattern"] = "*.png"
    images = find_images(config(yaml.safe_dump(custom)), "TEST")
    assert (images.names, images.label_path(images.paths[0])) == (("frames/1.png",), home / "masks/1.png")
    mine["splits"]["train"] = {"images": ["~/frames", "$PLACE/masks"]}
    assert len(find_images(config(yaml.safe_dump(custom)), "TEST")) == 4
    mine["splits"]["train"] = split
    split["labels"] = "${NOWHERE}/masks"
    with pytest.raises(UserError, match=r"^DATASETS\.CUSTOM\.mine\.splits\.train\.labels .*\$\{NOWHERE\} is not set"):
        config(yaml.safe_dump(custom))


def test_what_is_written_of_a_config_is_read_alike_where_the_variables_are_gone(config, home, monkeypatch):
    custom = {"mine": {"classes": ["a", "b"], "splits": {"all": {"images": "$PLACE/frames"}}}}
    tree = {"DATASETS": {"CUSTOM": custom, "TARGET_TRAIN": "folder:~/x"}, "OUTPUT_DIR": "$PLACE/out"}
    loaded = config(yaml.safe_dump(tree))
    monkeypatch.delenv("PLACE")
    monkeypatch.setenv("HOME", "/nowhere")
    assert config(loaded.dump()) == loaded


def test_what_has_a_dollar_in_its_name_can_be_named(config, home):
    folder = home / "a$NOWHERE"
    folder.mkdir()
    for given in (str(folder), "~/a$NOWHERE"):
        loaded = config("", "DATASETS.ROOT", given)
        assert loaded.find("DATASETS.ROOT") == str(folder)
    assert config("", "DATASETS.ROOT", "a$").DATASETS.ROOT == "a$"


@pytest.mark.parametrize("path", ["~\0/x", "${\ud800}", "~\ud800", "$\0", "${", "$", "", "a$ b"])
def test_names_that_no_user_and_no_variable_can_have_stay(path):
    assert expanded(path, "OUTPUT_DIR") == path


def test_a_run_is_begun_and_gone_on_with(home, make_cityscapes, write_config, tiny_checkpoint, capfd, monkeypatch):
    """Of `resume auto` the variables may have gone: the run has what they stood for."""
    make_cityscapes(home)
    (home / "source.pth").write_bytes(tiny_checkpoint.read_bytes())
    given = {"OUTPUT_DIR": "$PLACE/out", "resume": "auto:~/source.pth", "DATASETS.ROOT": "${PLACE}"}
    given |= {"DATASETS.TARGET_TRAIN": "folder:~/cityscapes/leftImg8bit/train", "SOLVER.BATCH_SIZE": 1}
    config = write_config(home, **given, **{"TCR.RESAMPLE": False, "TCR.PASTE": False, "VIS.PERIOD": 0})
    assert adapt(["-cfg", "~/tiny.yaml", "--skip-test"]) == 0
    assert (home / "out/model_iter000002.pth").is_file()
    written = (home / "out/config.yaml").read_text(encoding="utf-8")
    assert "$" not in written
    assert "~" not in written
    assert adapt(["-cfg", str(config), "--skip-test", "SOLVER.STOP_ITER", "3"]) == 0
    assert [row["iteration"] for row in rows_of(home / "out/metrics.csv")][-1] == "3"
    monkeypatch.delenv("PLACE")
    words = ["resume", "auto", "OUTPUT_DIR", "~/out", "SOLVER.STOP_ITER", "4", "--skip-test"]
    assert adapt(["-cfg", f"{home}/out/config.yaml", *words]) == 0
    capfd.readouterr()
    before = contents(home)
    assert adapt(["-cfg", str(config), *words]) == 1
    line = capfd.readouterr().err
    assert line.startswith("error: DATASETS.ROOT ${PLACE}: the variable ${PLACE} is not set")
    assert (line.count("\n"), contents(home)) == (1, before)


def test_arguments_that_are_paths(home, make_cityscapes, write_config, capfd):
    """As in --save-label-ids=~/ids, which a shell leaves as it is."""
    config = write_config(make_cityscapes(home))
    assert evaluate(["-cfg", str(config), "--save-label-ids=~/ids"]) == 0
    assert len(list((home / "ids").rglob("*.png"))) == 3
    capfd.readouterr()
    assert evaluate(["-cfg", str(config), "--save-label-ids=$NOWHERE/ids"]) == 1
    line = capfd.readouterr().err
    assert "--save-label-ids: $NOWHERE/ids: the variable $NOWHERE is not set" in line
    assert line.count("\n") == 1


def test_a_variable_that_is_not_set_matters_in_data_sets_that_are_used(tmp_path, monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    sets = "{a: {splits: {all: {images: $NOWHERE/x}}}, b: {splits: {all: {images: y}}}}"
    (tmp_path / "a.yaml").write_text(f"DATASETS: {{CUSTOM: {sets}}}\n")
    config = load_config(tmp_path / "a.yaml", ["DATASETS.TEST", "b_all"])
    assert config.DATASETS.CUSTOM.a.splits.all.images == "$NOWHERE/x"
    with pytest.raises(UserError, match=r"CUSTOM\.a\.splits\.all\.images .*the variable \$NOWHERE is not set"):
        load_config(tmp_path / "a.yaml", ["DATASETS.TEST", "a_all"])
