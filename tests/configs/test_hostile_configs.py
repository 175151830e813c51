"""Config files and options made to do harm: one line each, at once. What fuzzing found stands here by itself."""

import pytest

from core.configs import load_config
from core.configs.node import MAX_CHARACTERS
from core.utils.errors import UserError


@pytest.fixture
def refused(tmp_path):
    """refused(yaml text, *options): the message."""

    def load(text="", *options):
        path = tmp_path / "bad.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            load_config(path, options)
        message = str(caught.value)
        assert message.isprintable()
        assert len(message) < 1000
        return message

    return load


LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'lol'}]\n" for n in range(12))
MERGES = "".join(f"a{n}: &a{n} {{{f'<<: [*a{n - 1}, *a{n - 1}]' if n else 'x: 1'}}}\n" for n in range(40))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (LAUGHS + "DATASETS: {CUSTOM: {x: *a11}}\n", "100000 values"),
        ("TCR: {MIX_CLASSES: &a [*a]}\n", "holds itself"),
        ("SOLVER: &a {SOLVER: *a}\n", "holds itself"),
        ("&a {<<: *a}\n", "holds itself"),
        (MERGES, "100000 values"),
        ("SEED: 2001-02-31\n", "day is out of range"),
        ("SEED: !!bool maybe\n", "not valid yaml"),
        ("SEED: !!int many\n", "not valid yaml"),
        ("SEED: 0b_\n", "not valid yaml"),
        ("SEED: " + "[" * 5000 + "\n", "not valid yaml"),
        ("SEED: " + "9" * 5000 + "\n", "not valid yaml"),
        ("SEED: 0x" + "f" * 5000 + "\n", "SEED must be a whole number"),
        ("OUTPUT_DIR: 0x" + "f" * 5000 + "\n", "OUTPUT_DIR must be text"),
        ("OUTPUT_DIR: !!set {a, b}\n", "OUTPUT_DIR must be text"),
        ("SOLVER: {BASE_LR: 1" + "0" * 400 + "}\n", "SOLVER.BASE_LR must be a number"),
        ("#" * (MAX_CHARACTERS + 1), "characters"),
        ('"SOL\\nVER": 1\n', r"SOL\nVER"),
        ("? " + "x" * 5000 + "\n: 1\n", "unknown option xxx"),
    ],
    ids=lambda value: value[:24],
)
def test_files(refused, text, part):
    assert part in refused(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "{[1]: 2}"),
        ("SOLVER.BASE_LR", "1" + "0" * 400),
        ("SOLVER.STOP_ITER", "0x" + "f" * 400),
        ("SOLVER.STOP_ITER", "1e300"),
        ("SOLVER.STOP_ITER", "(" * 10_000),
        ("SOLVER.STOP_ITER", "-" * 100_000 + "1"),
        ("SOLVER.BASE_LR", "9" * 5000),
        ("INPUT.PIXEL_MEAN", "(1" + "0" * 400 + ", 0, 0)"),
        ("INPUT.INPUT_SIZE_TEST", "(0x" + "f" * 5000 + ", 2)"),
        ("INPUT.INPUT_SIZE_TEST", "2001-02-31"),
        ("INPUT.INPUT_SIZE_TEST", "&a [*a]"),
        ("TCR.PASTE", "'\\d'"),
        ("SEED", "\n\x1b[31m"),
        ("SE\x1bED", "1"),
        ("", "1"),
        ("...", "1"),
        ("DATASETS.CUSTOM.", "1"),
        ("K" * 100_000, "1"),
    ],
    ids=lambda value: value[:24],
)
@pytest.mark.filterwarnings("error")
def test_options(refused, key, value):
    refused("", key, value)


def test_a_device_that_never_ends_is_no_config(tmp_path):
    with pytest.raises(UserError, match="characters"):
        load_config("/dev/zero")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / ("x" * 5000))
