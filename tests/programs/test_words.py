"""Forgotten and unquoted words: one line that shows the command put right, and that command works."""

import os
import re
import shlex
import shutil

import pytest

from core.configs import load_config
from core.runs.resume import find_run_source
from core.utils.errors import UserError
from test import main as evaluate
from tests.helpers import contents, rows_of
from tools.export import main as export
from tools.predict.__main__ import main as predict
from tools.report.__main__ import main as report
from train_src import main as train
from train_TCR_DTU import main as adapt

PROGRAMS = {
    "train_TCR_DTU.py": adapt,
    "train_src.py": train,
    "test.py": evaluate,
    "-m tools.predict": predict,
    "-m tools.export": export,
    "-m tools.report": report,
}


@pytest.fixture
def refused(capsys):
    """refused(main, *words) → (what is wrong, the words of the command that is shown): one line, exit code 1."""

    def run(main, *words):
        assert main([*map(str, words)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        error, _, command = re.fullmatch(r"error: (.*); (the whole command|a path with .* quotes): (.*)", line).groups()
        first, *shown = shlex.split(command)
        assert first == "python"
        name = " ".join(shown[: 1 + (shown[0] == "-m")])
        assert PROGRAMS[name] is main
        return error, shown[len(name.split()) :]

    return run


@pytest.fixture
def spaced(cityscapes_root, tiny_checkpoint, monkeypatch):
    """The current folder, in which all that can be named has spaces in its name."""
    monkeypatch.chdir(cityscapes_root)
    os.mkdir("my models")
    shutil.copy(tiny_checkpoint, "my models/a b.pth")
    shutil.copytree("cityscapes/leftImg8bit/val/aachen", "my frames")
    return cityscapes_root


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["OUTPUT_DIR", "my run", "--skip-test"], ["OUTPUT_DIR", "my run", "--skip-test", "resume", "FILE"]),
        (["resume", "", "OUTPUT_DIR", "$(a)"], ["resume", "FILE", "OUTPUT_DIR", "$(a)"]),
        (["resume", "b", "SEED", "3", "resume", ""], ["resume", "b", "SEED", "3", "resume", "FILE"]),  # the last counts
        (["resume", "auto:", "SEED", "3"], ["resume", "auto:FILE", "SEED", "3"]),
        (["--check"], ["--check", "resume", "FILE"]),
    ],
)
def test_adaptation_asks_for_its_source_model_before_anything_is_written(
    cityscapes_root, write_config, refused, monkeypatch, tiny_checkpoint, words, meant
):
    monkeypatch.chdir(cityscapes_root)
    config = write_config(cityscapes_root, resume="", **{"SOLVER.STOP_ITER": 1, "VIS.TENSORBOARD": False})
    before = contents(cityscapes_root)
    error, shown = refused(adapt, "-cfg", config, *words)
    assert error.startswith("no source model: ")
    assert "`resume random`" in error
    assert shown == ["-cfg", str(config), *meant]
    assert contents(cityscapes_root) == before
    assert adapt([word.replace("FILE", str(tiny_checkpoint)) for word in shown]) == 0


def test_imagenet_weights_are_no_source_model(cityscapes_root, write_config, refused):
    error, _ = refused(adapt, "-cfg", write_config(cityscapes_root, resume="", **{"MODEL.WEIGHTS": "resnet18.pth"}))
    assert "MODEL.WEIGHTS is the backbone alone" in error


@pytest.mark.parametrize("word", ["random", "auto:random"])
def test_random_weights_are_adapted_where_the_user_says_so(cityscapes_root, write_config, capsys, monkeypatch, word):
    monkeypatch.chdir(cityscapes_root)
    (cityscapes_root / "random").mkdir()  # the word is no path
    config = write_config(cityscapes_root, resume="", **{"SOLVER.STOP_ITER": 1})
    assert adapt(["-cfg", str(config), "resume", word, "--check"]) == 0
    assert adapt(["-cfg", str(config), "resume", word]) == 0
    out = capsys.readouterr().out
    assert len(re.findall("model: .*, from its own function, .* tensors random$", out, re.MULTILINE)) == 2
    saved = load_config("out/config.yaml")
    assert saved.resume == "random"  # so that it can be run again
    with pytest.raises(UserError, match="began without a source model"):
        find_run_source(saved.changed({"resume": "out"}))
    assert adapt(["-cfg", "out/config.yaml", "resume", "auto", "SOLVER.STOP_ITER", "2"]) == 0
    assert evaluate(["-cfg", "out/config.yaml"]) == 1
    assert "nothing to evaluate" in capsys.readouterr().err


def test_source_training_needs_no_word(cityscapes_root, make_gta5, write_config):
    make_gta5(cityscapes_root)
    options = {"resume": "", "MODEL.FREEZE_BN": False, "DATASETS.TARGET_TRAIN": "", "SOLVER.STOP_ITER": 1}
    options |= {"INPUT.SOURCE_INPUT_SIZE_TRAIN": (48, 24), "DATASETS.TEST": ""}
    config = str(write_config(cityscapes_root, **options))
    assert train(["-cfg", config]) == 0
    assert train(["-cfg", config, "resume", "random", "OUTPUT_DIR", str(cityscapes_root / "again")]) == 0
    first, second = (rows_of(cityscapes_root / name / "metrics.csv") for name in ("out", "again"))
    assert first == second


@pytest.mark.parametrize("main", [adapt, train, evaluate, export], ids=["adapt", "train", "evaluate", "export"])
def test_an_option_without_a_value_is_shown_with_one(spaced, write_config, refused, main):
    config = str(write_config(spaced))
    error, shown = refused(main, "-cfg", config, "SEED", "resume", "a.pth")
    assert error == "SEED has no value: give one, as SEED 1"
    assert shown == ["-cfg", config, "SEED", "1", "resume", "a.pth"]
    _, shown = refused(main, "SEED", "-cfg", config, "resume", "a.pth")
    assert shown == ["SEED", "1", "-cfg", config, "resume", "a.pth"]
    _, shown = refused(main, "-cfg", config, "SEED", "2", "DATASETS.ROOT")
    assert shown[-2:] == ["DATASETS.ROOT", "datasets"]


@pytest.mark.parametrize("main", [adapt, train, evaluate, export], ids=["adapt", "train", "evaluate", "export"])
def test_a_value_with_spaces_is_shown_in_quotes(spaced, write_config, refused, main):
    config = str(write_config(spaced))
    for words in (["resume", "my", "models/a", "b.pth"], ["OUTPUT_DIR", "a", "new", "folder"]):
        error, shown = refused(main, "-cfg", config, *words, "SEED", "3")
        assert "a value with spaces wants quotes" in error
        assert shown == ["-cfg", config, words[0], " ".join(words[1:]), "SEED", "3"]


def test_the_command_with_quotes_works(spaced, write_config, refused):
    config = str(write_config(spaced))
    _, shown = refused(evaluate, "-cfg", config, "resume", "my", "models/a", "b.pth", "OUTPUT_DIR", "the test's")
    assert evaluate(shown) == 0
    assert (spaced / "the test's/test_cityscapes_val.csv").is_file()


def test_a_config_and_inputs_of_tools_with_spaces_are_shown_in_quotes(spaced, write_config, refused):
    os.rename(write_config(spaced, resume=""), "my config.yaml")
    model = ["resume", "my models/a b.pth"]
    for main in (adapt, evaluate, export):
        error, shown = refused(main, "-cfg", "my", "config.yaml", *model)
        assert "config my does not exist" in error
        assert shown == ["-cfg", "my config.yaml", *model]
    unquoted = " ".join(model).split()
    for words in ([*model, "my", "frames"], [*unquoted, "cityscapes"], ["my frames", *unquoted]):
        _, shown = refused(predict, "-cfg", "my config.yaml", *words, "-o", "out")
        assert {"my models/a b.pth"} < {*shown}
        assert {"my frames", "cityscapes"} & {*shown}
        assert predict([*shown, "--overwrite"]) == 0
    assert adapt(["-cfg", "my config.yaml", *model, "OUTPUT_DIR", "my run", "--skip-test", "TCR.PASTE", "False"]) == 0
    error, shown = refused(report, "my", "run", "--no-images")
    assert "give one run's folder" in error
    assert report(shown) == 0


def test_evaluation_and_tools_ask_for_a_checkpoint(spaced, write_config, refused):
    config = write_config(spaced, resume="")
    for main, words in ((evaluate, []), (export, []), (predict, ["my frames", "-o", "out"])):
        _, shown = refused(main, "-cfg", config, *words)
        assert shown == ["-cfg", str(config), *words, "resume", "FILE"]
