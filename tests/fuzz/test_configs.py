"""Whatever a config file or an option holds: a config comes out, or one line."""

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.configs import cfg, load_config
from core.configs.node import Config
from core.datasets.catalog import ENTRIES
from core.datasets.custom import CustomReader, parse_data_set
from core.datasets.taxonomy import Taxonomy
from tests.fuzz.cases import few_and_many, outcome

FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
TEXTS = [path.read_text(encoding="utf-8") for path in FILES]
KEYS = cfg.flat_keys()

odd_values = st.sampled_from(
    [
        "",
        "1e999",
        "-0",
        "nan",
        "0x10",
        "[1, 2",
        "(1, 2)",
        "{1: 2}",
        "true",
        "None",
        "'",
        '"',
        "\\",
        "\0",
        "1:30",
        "=",
        "~",
    ]
)
odd_yaml = st.sampled_from(
    ["[[1, 2], 3]", "&a", "*a", "!!python/name:os.system", "2020-13-45", "12:99:99", "<<", "? x", "- x", "- - -", "%x"]
)
words = st.one_of(
    odd_values, odd_yaml, st.text(max_size=12), st.text(string.printable, max_size=20), st.floats().map(str)
)
keys = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(["SOLVER", "DATASETS.CUSTOM", "SEED.X", ""]), st.text(max_size=8)
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.binary(max_size=4),
    st.dates(),
    odd_values,
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(keys, st.integers(), st.none()), inner, max_size=4)
    ),
    max_leaves=12,
)


def config_or_line(path, options=()):
    config, line = outcome(load_config, path, options)
    if line is not None:
        assert line.isprintable()
        assert len(line) < 3000
        return None
    assert isinstance(config, Config)
    assert isinstance(config.dump(), str)
    return config


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
        "labels": draw(st.dictionaries(st.integers(-1, 300), st.sampled_from(["road", "person"]), max_size=3)),
        "ignore": draw(st.one_of(st.lists(st.integers(-1, 300), max_size=3), st.just("rest"))),
        "partners": draw(st.dictionaries(st.sampled_from(["road", "robot"]), names, max_size=2)),
        "colours": draw(st.dictionaries(st.sampled_from(["road", "robot"]), trees, max_size=2)),
    }
    for key in draw(st.lists(st.sampled_from(sorted(tree)), max_size=4)):
        tree.pop(key, None)
    if draw(st.booleans()):
        tree[draw(st.sampled_from(["classes", "splits", "labels", "ignore", "y"]))] = draw(trees)
    return tree


CASES = few_and_many(100, 3000)
OPTION_PAIRS = st.lists(st.tuples(keys, words), max_size=3)
YAML_TEXTS = st.one_of(st.text(max_size=40), st.text("[]{}:,-&*!|>'\"#%@` \n\tab1.", max_size=60), mutated_files())
SET_NAMES = st.one_of(st.just("mine"), words)


@CASES
def test_options(file, examples):
    @examples
    @given(pairs=OPTION_PAIRS)
    def check(pairs):
        file.write_text("", encoding="utf-8")
        config_or_line(file, [word for pair in pairs for word in pair])

    check()


@CASES
def test_texts(file, examples):
    @examples
    @given(text=YAML_TEXTS)
    def check(text):
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        config_or_line(file)

    check()


@CASES
def test_trees(file, examples):
    @examples
    @given(tree=trees)
    def check(tree):
        file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
        config = config_or_line(file)
        if config is not None:  # what it dumps is what it means
            file.write_text(config.dump(), encoding="utf-8", errors="surrogatepass")
            again = config_or_line(file)
            assert again is not None
            assert again.dump() == config.dump()

    check()


@CASES
def test_custom_sets(examples):
    @examples
    @given(name=SET_NAMES, tree=st.one_of(custom_sets(), trees))
    def check(name, tree):
        parsed, line = outcome(parse_data_set, name, tree, "here", tuple(ENTRIES))
        if parsed is None:
            assert line.isprintable()
            return
        taxonomy, reader = parsed
        assert isinstance(taxonomy, Taxonomy)
        assert isinstance(reader, CustomReader)
        assert set(reader.classes.values()) <= set(taxonomy.names)

    check()
