"""Config files and options that are wrong, odd, or made to do harm: a config comes out, or one line, at once.

What fuzzing found stands in the tables.
"""

import re
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.configs import cfg, load_config
from core.configs.node import MAX_CHARACTERS, Config
from core.datasets.custom import CustomReader, parse_data_set
from core.datasets.taxonomy import Taxonomy
from core.utils.errors import UserError
from tests.helpers import PROJECT, outcome


def config_or_line(path, options=()):
    """What load_config makes of a file and options: (a config, None), or (None, one line that may be shown)."""
    config, line = outcome(load_config, path, options)
    if line is None:
        assert isinstance(config, Config)
        assert isinstance(config.dump(), str)
    else:
        assert line.isprintable()
        assert len(line) < 3000
    return config, line


@pytest.fixture
def refused(tmp_path):
    """refused(content, *options): why a file of that text, or those bytes, is refused."""

    def load(content, *options):
        path = tmp_path / "bad.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        config, line = config_or_line(path, options)
        assert config is None
        assert len(line) < 1000
        return line

    return load


def start_of(value):
    """An id for a case."""
    return repr(value)[:40] if isinstance(value, str | bytes) else None


LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'lol'}]\n" for n in range(12))
MERGES = "".join(f"a{n}: &a{n} {{{f'<<: [*a{n - 1}, *a{n - 1}]' if n else 'x: 1'}}}\n" for n in range(40))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("SOLVER: [unclosed\nSEED: 1\n", ["bad.yaml", "not valid yaml", "line 2"]),
        ("SOLVER:\n\tSEED: 1\n", ["not valid yaml", "line 2"]),
        ("- a\n- b\n", ["bad.yaml", "KEY: VALUE", "list"]),
        (b"\xff\xfe\x00\x81", ["bad.yaml", "cannot be read"]),
        ("SOLVER:\n  BASE_RL: 1\n", ["bad.yaml", "SOLVER.BASE_RL", "did you mean SOLVER.BASE_LR?"]),
        ("SOLVRE:\n  BASE_LR: 1\n", ["SOLVRE.BASE_LR", "did you mean SOLVER.BASE_LR?"]),
        ("SOLVER: 3\n", ["SOLVER is a section"]),
        ("OUTPUT_DIR: {'': 1}\n", ["unknown option OUTPUT_DIR."]),
        ("SEED:\n  X: 3\n", ["SEED.X", "did you mean SEED?"]),
        ("SOLVER:\n  BATCH_SIZE: four\n", ["bad.yaml", "SOLVER.BATCH_SIZE", "whole number", "'four'"]),
        ("SOLVER:\n  BATCH_SIZE: true\n", ["SOLVER.BATCH_SIZE", "whole number", "True"]),
        ("SOLVER:\n  BASE_LR: .nan\n", ["SOLVER.BASE_LR", "nan"]),
        ("DATASETS:\n  TEST: [a, b]\n", ["DATASETS.TEST", "text"]),
        ("SEED: !!python/object/apply:os.system ['echo ran']\n", ["not valid yaml", "python/object"]),
        (LAUGHS + "DATASETS: {CUSTOM: {x: *a11}}\n", ["100000 values"]),
        (MERGES, ["100000 values"]),
        ("TCR: {MIX_CLASSES: &a [*a]}\n", ["holds itself"]),
        ("SOLVER: &a {SOLVER: *a}\n", ["holds itself"]),
        ("&a {<<: *a}\n", ["holds itself"]),
        ("SEED: 2001-02-31\n", ["day is out of range"]),
        ("SEED: !!bool maybe\n", ["not valid yaml"]),
        ("SEED: !!int many\n", ["not valid yaml"]),
        ("SEED: 0b_\n", ["not valid yaml"]),
        ("SEED: " + "[" * 5000 + "\n", ["not valid yaml"]),
        ("SEED: " + "9" * 5000 + "\n", ["not valid yaml"]),
        ("SEED: 0x" + "f" * 5000 + "\n", ["SEED must be a whole number"]),
        ("OUTPUT_DIR: 0x" + "f" * 5000 + "\n", ["OUTPUT_DIR must be text"]),
        ("OUTPUT_DIR: !!set {a, b}\n", ["OUTPUT_DIR must be text"]),
        ("SOLVER: {BASE_LR: 1" + "0" * 400 + "}\n", ["SOLVER.BASE_LR must be a number"]),
        ("#" * (MAX_CHARACTERS + 1), ["characters"]),
        ('"SOL\\nVER": 1\n', [r"SOL\nVER"]),
        ("SEED: 1\nVIS: {PERIOD: 0}\nSEED: 1\n", ["bad.yaml: SEED stands in line 1 and again in line 3"]),
        ("SOLVER:\n  MAX_ITER: 9\nVIS: {}\nSOLVER:\n  STOP_ITER: 9\n", ["SOLVER stands in line 1 and again in line 4"]),
        ("SOLVER:\n  BASE_LR: 1\n  AMP: off\n  BASE_LR: 2\n", ["SOLVER.BASE_LR stands in line 2 and again in line 4"]),
        ("A: &a {X: 1}\nSOLVER: {<<: *a, <<: *a}\n", ["unknown option A.X"]),
        ("SOLVER: {BASE_LR: 1, BASE_LR: 1}\n", ["SOLVER.BASE_LR stands in line 1 and again in line 1"]),
        (
            "DATASETS:\n  CUSTOM:\n    own:\n      labels:\n        car: 1\n        'car': 2\n",
            ["DATASETS.CUSTOM.own.labels.car stands in line 5 and again in line 6"],
        ),
        ("DATASETS:\n  CUSTOM: {own: {splits: [{a: 1, a: 2}]}}\n", ["DATASETS.CUSTOM.own.splits.a stands"]),
        ("? " + "x" * 5000 + "\n: 1\n", ["unknown option xxx"]),
    ],
    ids=start_of,
)
def test_files(refused, content, parts):
    line = refused(content)
    assert not [part for part in parts if part not in line], line


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("SOLVER.BASE_RL", "1e-4", ["command line", "did you mean SOLVER.BASE_LR?"]),
        ("DTU.QUERY_START", "9", ["did you mean DTU.Query_START?"]),
        ("OUTPUT_DRI", "x", ["did you mean OUTPUT_DIR?"]),
        ("STOP_ITER", "5", ["did you mean SOLVER.STOP_ITER?"]),
        ("solver.stop_iter", "5", ["did you mean SOLVER.STOP_ITER?"]),
        ("SOLVER", "5", ["SOLVER is a section", "SOLVER.BASE_LR"]),
        ("SEED.X", "5", ["did you mean SEED?"]),
        ("SOLVER.STOP_ITER", "many", ["whole number", "'many'"]),
        ("SOLVER.STOP_ITER", "1.5", ["whole number", "1.5"]),
        ("SOLVER.STOP_ITER", "0", ["at least 1", "0"]),
        ("SOLVER.STOP_ITER", "-5", ["at least 1", "-5"]),
        ("SOLVER.STOP_ITER", "0x" + "f" * 400, []),
        ("SOLVER.STOP_ITER", "1e300", []),
        ("SOLVER.STOP_ITER", "(" * 10_000, []),
        ("SOLVER.STOP_ITER", "-" * 100_000 + "1", []),
        ("SOLVER.BASE_LR", "fast", ["number", "'fast'"]),
        ("SOLVER.BASE_LR", "0", ["above 0"]),
        ("SOLVER.BASE_LR", "1e999", ["inf"]),
        ("SOLVER.BASE_LR", "{[1]: 2}", []),
        ("SOLVER.BASE_LR", "1" + "0" * 400, []),
        ("SOLVER.BASE_LR", "9" * 5000, []),
        ("SOLVER.MOMENTUM", "-0.5", ["-0.5"]),
        ("SOLVER.WEIGHT_DECAY", "-1", ["-1"]),
        ("SOLVER.CLIP_GRAD", "-1", ["at least 0", "-1"]),
        ("SOLVER.AMP", "fp8", ["off, bf16, fp16", "'fp8'"]),
        ("SEED", "18446744073709551616", ["18446744073709551616"]),
        ("SEED", "\n\x1b[31m", []),
        ("TCR.PASTE", "maybe", ["True or False", "'maybe'"]),
        ("TCR.PASTE", "1", ["True or False", "1"]),
        ("TCR.PASTE", "'\\d'", []),
        ("TCR.MIX_CLASSES", "rider", ["list", "'rider'"]),
        ("INPUT.INPUT_SIZE_TEST", "512", ["512"]),
        ("INPUT.INPUT_SIZE_TEST", "(512,)", ["(width, height)"]),
        ("INPUT.INPUT_SIZE_TEST", "(512, 256.5)", ["(width, height)"]),
        ("INPUT.INPUT_SIZE_TEST", "(True, 2)", ["True"]),
        ("INPUT.INPUT_SIZE_TEST", "(0x" + "f" * 5000 + ", 2)", []),
        ("INPUT.INPUT_SIZE_TEST", "2001-02-31", []),
        ("INPUT.INPUT_SIZE_TEST", "&a [*a]", []),
        ("INPUT.INPUT_SCALES_TRAIN", "(1.5, 0.5)", ["smallest", "largest"]),
        ("INPUT.PIXEL_STD", "(0.2, 0, 0.2)", ["0"]),
        ("INPUT.PIXEL_MEAN", "(1e999, 0, 0)", ["inf"]),
        ("INPUT.PIXEL_MEAN", "(1" + "0" * 400 + ", 0, 0)", []),
        ("INPUT.HUE", "0.6", ["at most 0.5"]),
        ("INPUT.GRAYSCALE_PROB", "2", ["at most 1"]),
        ("INPUT.IGNORE_LABEL", "250", ["255"]),
        ("MODEL.NAME", "deeplab_resnet19", ["deeplab_resnet18", "'deeplab_resnet19'"]),
        ("MODEL.UNCERTAINTY", "1.5", ["at most 1", "1.5"]),
        ("MODEL.POS", "(7,)", ["0 to 5", "(7,)"]),
        ("MODEL.POS", "(0, 0)", ["different", "(0, 0)"]),
        ("DTU.PROXY_METRIC", "SDN", ["SND, ENT", "'SDN'"]),
        ("VIS.COLOURS", "colourful", ["clear, data_set, colour_blind", "'colourful'"]),
        ("DATASETS.SOURCE_SAMPLING", "balance", ["auto, balanced, uniform", "'balance'"]),
        ("SE\x1bED", "1", []),
        ("", "1", []),
        ("...", "1", []),
        ("DATASETS.CUSTOM.", "1", []),
        ("K" * 100_000, "1", []),
    ],
    ids=start_of,
)
@pytest.mark.filterwarnings("error")
def test_options(refused, key, value, parts):
    line = refused("", key, value)
    parts = [key, *parts] if parts else ()
    assert not [part for part in parts if part not in line], line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["resume", "my", "models/a", "b.pth", "SEED", "3"],
            "'models/a' is no option: a value with spaces wants quotes, as resume 'my models/a b.pth'",
        ),
        (["OUTPUT_DIR", "my", "run"], "'run' is no option: a value with spaces wants quotes, as OUTPUT_DIR 'my run'"),
        (
            ["TCR.MIX_CLASSES", "[car,", "rider]"],
            "'rider]' is no option: a value with spaces wants quotes, as TCR.MIX_CLA",
        ),
        (["SEED", "resume", "a.pth"], "SEED has no value: give one, as SEED 1"),
        (["SEED", "3", "resume"], "resume has no value: give one, as resume VALUE"),
        (["SEED", "3", "SOLVER.AMP"], "SOLVER.AMP has no value: give one, as SOLVER.AMP off"),
        (["SEED", "3", "sede", "4"], "unknown option sede; did you mean SEED?"),
        (["resume", "a.pth", "sede", "4"], "unknown option sede; did you mean SEED?"),
        (["resume", "a.pth", "solver.base_lr", "1"], "unknown option solver.base_lr; did you mean SOLVER.BASE_LR?"),
    ],
    ids=start_of,
)
def test_words_that_are_no_pairs_show_the_right_command(tmp_path, words, told):
    (tmp_path / "a.yaml").touch()
    with pytest.raises(UserError, match=re.escape(told)):
        load_config(tmp_path / "a.yaml", words)


def test_what_is_no_file_is_no_config(tmp_path):
    for path, part in (("/dev/zero", "characters"), (tmp_path / ("x" * 5000), "cannot be read")):
        with pytest.raises(UserError, match=part):
            load_config(path)


# --- fuzzing ---------------------------------------------------------------------------------------------------------

TEXTS = [path.read_text(encoding="utf-8") for path in sorted((PROJECT / "configs").glob("*.yaml"))]
ODD = (
    *("", "1e999", "-0", "nan", "0x10", "[1, 2", "(1, 2)", "{1: 2}", "true", "None", "'", '"', "\\", "\0", "1:30"),
    *("=", "~"),
)
ODD_YAML = (
    *("[[1, 2], 3]", "&a", "*a", "!!python/name:os.system", "2020-13-45", "12:99:99", "<<", "? x", "- x", "- - -"),
    "%x",
)
odd_values = st.sampled_from(ODD)
words = st.one_of(
    st.sampled_from(ODD + ODD_YAML), st.text(max_size=12), st.text(string.printable, max_size=20), st.floats().map(str)
)
keys = st.one_of(
    st.sampled_from(cfg.flat_keys()),
    st.sampled_from(["SOLVER", "DATASETS.CUSTOM", "SEED.X", ""]),
    st.text(max_size=8),
)
scalars = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), odd_values),
    *(st.text(max_size=10), st.binary(max_size=4)),
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(keys, st.integers(), st.none()), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "fuzz.yaml"


@st.composite
def mutated_files(draw):
    """A real file, some of its lines cut, doubled, moved or written over."""
    lines = draw(st.sampled_from(TEXTS)).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        what = draw(st.sampled_from(["drop", "double", "indent", "overwrite", "value"]))
        line = lines[place]
        if what == "drop":
            lines[place] = ""
        elif what == "double":
            lines[place] = line + line
        elif what == "indent":
            lines[place] = draw(st.sampled_from([" ", "\t", "  - "])) + line.lstrip() * draw(st.integers(0, 1))
        elif what == "overwrite":
            start = draw(st.integers(0, len(line)))
            lines[place] = line[:start] + draw(words) + line[start + draw(st.integers(0, 5)) :]
        else:
            lines[place] = f"{line.partition(':')[0]}: {draw(words)}\n"
    return "".join(lines)


@st.composite
def custom_sets(draw):
    """A sound description of a data set, or one with a field or two made odd."""
    names = st.lists(st.sampled_from(["road", "person", "shelf", "robot", "x"]), max_size=5)
    tree = {
        "classes": draw(names),
        "splits": {draw(words): draw(st.one_of(trees, st.just({"images": "a", "pattern": "*.png"})))},
        "paste": draw(names),
        "labels": draw(st.dictionaries(st.integers(-1, 70_000), st.sampled_from(["road", "person"]), max_size=3)),
        "ignore": draw(st.one_of(st.lists(st.integers(-1, 70_000), max_size=3), st.just("rest"))),
        "partners": draw(st.dictionaries(st.sampled_from(["road", "robot"]), names, max_size=2)),
        "colours": draw(st.dictionaries(st.sampled_from(["road", "robot"]), trees, max_size=2)),
    }
    for key in draw(st.lists(st.sampled_from(sorted(tree)), max_size=4)):
        tree.pop(key, None)
    decoding = {"by_colour": draw(st.booleans()), "palette": draw(words), "label_channel": "red"}
    tree |= {key: decoding[key] for key in draw(st.lists(st.sampled_from(sorted(decoding)), max_size=2))}
    if draw(st.booleans()):
        tree[draw(st.sampled_from(["classes", "splits", "labels", "ignore", "y", *decoding]))] = draw(trees)
    return tree


OPTION_PAIRS = st.lists(st.tuples(keys, words), max_size=3)
YAML_TEXTS = st.one_of(st.text(max_size=40), st.text("[]{}:,-&*!|>'\"#%@` \n\tab1.", max_size=60), mutated_files())
SET_NAMES = st.one_of(st.just("mine"), words)


def load_text(file, text):
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    return config_or_line(file)[0]


@given(pairs=OPTION_PAIRS)
def test_any_options_load_or_are_one_line(file, pairs):
    file.write_text("", encoding="utf-8")
    config_or_line(file, [word for pair in pairs for word in pair])


@given(text=YAML_TEXTS)
def test_any_text_loads_or_is_one_line(file, text):
    load_text(file, text)


@given(tree=trees)
def test_any_tree_loads_or_is_one_line(file, tree):
    config = load_text(file, yaml.safe_dump(tree, allow_unicode=True))
    if config is not None:  # what it dumps is what it means
        assert load_text(file, config.dump()).dump() == config.dump()


@given(name=SET_NAMES, tree=st.one_of(custom_sets(), trees))
def test_custom_sets(name, tree):
    parsed, line = outcome(parse_data_set, name, tree, "here")
    if parsed is None:
        assert line.isprintable()
        return
    taxonomy, reader = parsed
    assert isinstance(taxonomy, Taxonomy)
    assert isinstance(reader, CustomReader)
    assert set(reader.classes.values()) <= set(taxonomy.names)
