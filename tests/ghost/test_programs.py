"""Every program on the ghost GPU, against the same on the CPU: in one process, as a start takes seconds."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch

from test import main as evaluate
from tests.helpers import SOURCE, contents, read_checkpoint
from tools.export import main as export
from tools.predict.__main__ import main as predict
from tools.report.__main__ import main as report
from train_src import main as train
from train_TCR_DTU import main as adapt

PROGRAMS = {
    "train_src": train,
    "train_TCR_DTU": adapt,
    "test": evaluate,
    "tools.predict.__main__": predict,
    "tools.report.__main__": report,
    "tools.export": export,
}
WATCHED_SOURCE = SOURCE | {"SOLVER.CLASS_WEIGHTS": True, "VIS.PERIOD": 2}
ADAPTATION = {  # passes before training and after 2 iterations; queries after 2 and 3
    "SOLVER.STOP_ITER": 3,
    "VIS.PERIOD": 2,
    "INPUT.INPUT_SIZE_TEST": (64, 32),
    "INPUT.TARGET_INPUT_SIZE_TRAIN": (48, 24),
}
CONTINUED = {"resume": "auto", "SOLVER.STOP_ITER": 5}
ADAPT = 2  # its position among the commands
MAY_WAIT = {  # functions of core
    "datasets/transforms.py __init__",  # before the run begins
    "runs/resume.py load_model",
    "models/backbone.py dead_channels",
    "runs/solver.py step",  # in every step: whether it was finite
    "selftraining/dynamic_teacher.py _rescore",
    "utils/devices.py wait",  # for a copy that was begun earlier
    "runs/panels.py _host",
    "runs/output.py _log_means",  # a row of a table, every 20 iterations
    "runs/states.py _plain",
    "utils/checkpoints.py <dictcomp>",
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory, make_cityscapes, make_gta5, write_config):
    """commands(folder, devices) → lists of words, the programs' names first; what they write goes below `folder`."""
    root = tmp_path_factory.mktemp("ghost_root")
    make_gta5(root, 4)
    make_cityscapes(root, train=4, val=2)
    configs = {}
    for name, options in (("source", WATCHED_SOURCE), ("adapted", ADAPTATION)):
        own = {"DATASETS.ROOT": str(root)} | options
        configs[name] = write_config(tmp_path_factory.mktemp(name), **own)

    def words(folder, devices):
        def options(name, out, device):
            return ["-cfg", configs[name], "OUTPUT_DIR", folder / out, "MODEL.DEVICE", device]

        last = ["resume", folder / "adapted/model_iter000003.pth"]
        images = root / "cityscapes/leftImg8bit/val"
        pictures = ["-o", folder / "pictures", "--save", "colour,confidence", images]
        found = [
            ["train_src", *options("source", "source", devices[0])],
            ["train_TCR_DTU", *options("adapted", "check", devices[1]), "--check"],
            ["train_TCR_DTU", *options("adapted", "adapted", devices[2])],
            ["test", *options("adapted", "test", devices[3]), "--saveres", "--flip", *last],
            ["tools.predict.__main__", *options("adapted", "none", devices[0]), *pictures, *last],
            ["tools.report.__main__", folder / "adapted", "-o", folder / "report.html", "--images", "1"],
            [
                "tools.export",
                *options("adapted", "none", devices[1]),
                "-o",
                folder / "model.pt",
                "--format",
                "torchscript",
            ],
        ]
        return [[str(word) for word in each] for each in found]

    return words


@pytest.fixture(scope="module")
def found(commands, ghost, tmp_path_factory):
    """What the ghost's run of all of them left and said."""
    folder = tmp_path_factory.mktemp("on_ghost")
    (process,), out, _ = ghost.programs(*commands(folder, ("auto", "cuda", "cuda:0", "auto")))
    return SimpleNamespace(folder=folder, reports=process["reports"], devices=process["devices"], out=out)


@pytest.fixture
def expected(commands, found, tmp_path, as_on_a_gpu, capsys):
    """What the CPU's run of all of them leaves and says."""
    for program, *argv in commands(tmp_path, ["cpu"] * 4):
        assert PROGRAMS[program](argv) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return SimpleNamespace(folder=tmp_path, out=captured.out)


def tables_and_pictures(folder):
    """The bytes of every file that only holds what was computed."""
    return {name: data for name, data in contents(folder).items() if name.endswith((".csv", ".png", "index.json"))}


def plain(page, folder):
    """A report's text without what names the run's folder and device."""
    return page.read_text().replace(str(folder), "").replace("DEVICE: cpu", "").replace("DEVICE: cuda:0", "")


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated")
def test_every_program_writes_on_the_ghost_what_it_writes_on_the_cpu(found, expected, tmp_path_factory, capsys):
    on_ghost, on_cpu = tables_and_pictures(found.folder), tables_and_pictures(expected.folder)
    assert on_ghost.keys() == on_cpu.keys()
    assert {"adapted/dtu_history.csv", "adapted/candidates.csv", "test/test_cityscapes_val_flip.csv"} <= on_ghost.keys()
    assert [name for name in on_cpu if on_ghost[name] != on_cpu[name]] == []
    losses = [re.findall("one training step: loss [0-9.]+", text) for text in (found.out, expected.out)]
    assert len(losses[0]) == 1
    assert losses[0] == losses[1]
    pages = [plain(place.folder / "report.html", place.folder) for place in (found, expected)]
    assert pages[0].count("data:image/jpeg") > 3
    made = "Made with"
    assert pages[0].partition(made)[0] == pages[1].partition(made)[0]
    models = [torch.jit.load(place.folder / "model.pt").state_dict() for place in (found, expected)]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())
    # a run of the ghost goes on here, and is the CPU's still
    for place in (found, expected):
        copy = tmp_path_factory.mktemp("continued") / "adapted"
        shutil.copytree(place.folder / "adapted", copy)
        words = [str(word) for pair in CONTINUED.items() for word in pair]
        config = place.folder / "adapted/config.yaml"
        assert adapt(["-cfg", str(config), "OUTPUT_DIR", str(copy), "MODEL.DEVICE", "cpu", "--skip-test", *words]) == 0
        place.continued = tables_and_pictures(copy)
    capsys.readouterr()
    assert found.continued == expected.continued


def test_device_and_precision_are_told(found):
    assert found.out.count("device: cuda:0 (Ghost of an H100)") == 6  # of all but the export
    assert set(found.devices) >= {"device 0 context", "device 0 launches"}
    assert not [name for name in found.devices if not name.startswith("device 0")]


def test_a_run_waits_for_the_device_where_it_has_to_and_nowhere_else(found):
    places = {wait.partition(": ")[2] for wait in found.reports[ADAPT]["waits"]}
    assert places - {"elsewhere"} <= MAY_WAIT


def test_checkpoints_of_the_ghost_are_on_the_host(found):
    saved = read_checkpoint(found.folder / "adapted/model_iter000003.pth")
    assert all(value.device.type == "cpu" for value in saved["feature_extractor"].values())
