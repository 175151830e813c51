"""DATASETS.CUSTOM as a part of the config: written and read again, closed to the command line."""

import pickle
import re

import pytest
import yaml

from core.configs import cfg, load_config
from core.datasets.catalog import find_taxonomy
from core.utils.errors import UserError
from tests.datasets.warehouse import CLASSES, WAREHOUSE, changed

FULL = changed(
    colours={"floor": [128, 64, 128]},
    paste=["person", "robot"],
    partners={"person": ["robot"]},
    labels={0: "floor", 10: "shelf", 11: "person", 12: "robot"},
    ignore=[255, 4],
)


def test_a_config_is_written_and_read_again_equal(load, tmp_path):
    config = load(FULL | {"second-2": FULL["warehouse"] | {"ignore": "rest"}}, SOURCE_TRAIN="warehouse_train")
    (tmp_path / "again.yaml").write_text(config.dump(), encoding="utf-8")
    again = load_config(tmp_path / "again.yaml")
    assert again == config
    assert again.dump() == config.dump()
    assert list(again.DATASETS.CUSTOM) == ["second-2", "warehouse"]
    assert again.DATASETS.CUSTOM.warehouse.labels == {0: "floor", 10: "shelf", 11: "person", 12: "robot"}
    assert find_taxonomy(again) == find_taxonomy(config)
    assert load(FULL, SOURCE_TRAIN="warehouse_train") != config
    assert "12: robot" in str(config)


def test_the_defaults_stay_empty_and_a_config_is_frozen_throughout(load):
    config = load(FULL)
    assert cfg.DATASETS.CUSTOM == {}
    with pytest.raises(AttributeError):
        config.DATASETS.CUSTOM.warehouse.classes = ("a", "b")
    with pytest.raises(AttributeError):
        config.DATASETS.CUSTOM.other = FULL["warehouse"]
    assert config.DATASETS.CUSTOM.warehouse.classes == tuple(CLASSES)  # no list that could be added to
    for copied in (config.clone(), pickle.loads(pickle.dumps(config))):
        assert copied == config
        copied.defrost()
        copied.DATASETS.CUSTOM.warehouse.classes = ("a", "b")
        assert config.DATASETS.CUSTOM.warehouse.classes == tuple(CLASSES)


def test_a_clone_still_knows_which_file_an_entry_comes_from(load, tmp_path):
    config = load(FULL, SOURCE_TRAIN="warehouse_train").clone()
    config.defrost()
    for fields, file in (({"clases": []}, "more"), (WAREHOUSE, "most")):
        (tmp_path / f"{file}.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTOM": {"depot": fields}}}))
    config.merge_from_file(str(tmp_path / "more.yaml"))
    with pytest.raises(UserError, match=r"more\.yaml: DATASETS\.CUSTOM\.depot\.clases is unknown"):
        find_taxonomy(config)
    config.merge_from_file(str(tmp_path / "most.yaml"))
    assert find_taxonomy(config).names == tuple(CLASSES)
    assert list(config.DATASETS.CUSTOM) == ["warehouse", "depot"]


@pytest.mark.parametrize("value", ["2020-02-02", "!!set {a}", "!!binary aaaa", "[" * 40 + "]" * 40])
def test_other_values_than_text_numbers_lists_and_sections_are_refused_at_once(tmp_path, value):
    (tmp_path / "odd.yaml").write_text(f"DATASETS: {{CUSTOM: {{x: {{classes: {value}}}}}}}")
    with pytest.raises(UserError, match=r"odd\.yaml: DATASETS\.CUSTOM may hold text, numbers, lists and NAME: VALUE"):
        load_config(tmp_path / "odd.yaml")


@pytest.mark.parametrize("key", ["DATASETS.CUSTOM", "DATASETS.CUSTOM.warehouse.paste", "DATASETS.CUSTOM.depot.paste"])
def test_the_command_line_does_not_reach_it(load, tmp_path, key):
    load(FULL)
    with pytest.raises(UserError, match=rf"command line: {re.escape(key)} .*yaml file"):
        load_config(tmp_path / "some.yaml", (key, "[robot]"))


def test_other_sections_stay_closed(load, tmp_path):
    load(FULL)
    with pytest.raises(UserError, match=r"unknown option DATASETS\.CUSTM; did you mean DATASETS\.CUSTOM\?"):
        load_config(tmp_path / "some.yaml", ("DATASETS.CUSTM", "{}"))
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"DATASETS": {"CUSTM": FULL}}))
    with pytest.raises(UserError, match=r"unknown option DATASETS\.CUSTM\.warehouse"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("DATASETS:\n  CUSTOM:\n    # nothing yet\n")
    assert load_config(tmp_path / "empty.yaml").DATASETS.CUSTOM == {}
