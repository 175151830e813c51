"""The programs from any folder: installed, under their names, and by their paths."""

import importlib
import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from core.programs.adapt import main as adapt
from core.utils import environment
from core.utils.environment import INSTALLED, start_of, started_as
from tests.helpers import PROJECT, TOOLS

if sys.version_info >= (3, 11):
    import tomllib

TINY_RUN = {
    "MODEL.NAME": "mine:tiny",  # from the current folder
    "DATASETS.TEST": "",
    "INPUT.INPUT_SIZE_TEST": (64, 32),
    "INPUT.TARGET_INPUT_SIZE_TRAIN": (48, 24),
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.STOP_ITER": 1,
    "SOLVER.BATCH_SIZE": 1,
    "VIS.PERIOD": 0,
}


def run_in(folder, *command):
    """A program's completed process, without what PYTHONPATH would give it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml by Python 3.11's tomllib")
@pytest.mark.parametrize("program", INSTALLED)
def test_every_installed_name_is_an_entry_point_that_says_so(program, monkeypatch, capsys):
    name = INSTALLED[program]
    module, _, function = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"][name].partition(
        ":"
    )
    monkeypatch.setattr(sys, "argv", [f"/some/bin/{name}", "--help"])
    assert getattr(importlib.import_module(module), function)() == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: /some/bin/{name} ")
    assert f"example: /some/bin/{name} " in said


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml by Python 3.11's tomllib")
def test_there_are_no_other_entry_points():
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(scripts) == sorted(INSTALLED.values())


def test_an_editable_install_adapts_from_another_folder(cityscapes_root, write_config):
    """pip install -e into a new environment; a network, a config and a folder of the user's own."""
    if find_spec("pip") is None or find_spec("setuptools") is None or int(version("setuptools").split(".")[0]) < 67:
        pytest.skip("needs pip, and setuptools 67 or newer, in the tests' own environment")
    folder, venv = cityscapes_root, cityscapes_root / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = {"base": venv, "platbase": venv}
    site = Path(sysconfig.get_path("purelib", vars=packages))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch and the like are there already
    python = venv / "bin/python"
    done = run_in(folder, python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "-e", PROJECT)
    assert done.returncode == 0, done.stderr
    (folder / "mine.py").write_text((PROJECT / "tests/networks.py").read_text())
    write_config(folder, **TINY_RUN)
    done = run_in(folder, venv / "bin/dtst-adapt", "-cfg", "tiny.yaml", "--skip-test")
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out/model_iter000001.pth").is_file()
    command = json.loads((folder / "out/environment.json").read_text())["command"]
    assert command == f"{venv}/bin/dtst-adapt -cfg tiny.yaml --skip-test"


@pytest.mark.parametrize("tool", ["predict.py", "gpu_check"])  # the latter has modules named as Python's own
def test_a_tool_starts_by_its_path_from_another_folder(tool, tmp_path):
    """So do tools/predict and tools/export.py in tests/tools."""
    path = PROJECT / "tools" / tool
    done = run_in(tmp_path, sys.executable, path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python {path} ")


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_finds_the_project(name):
    path = PROJECT.joinpath(*name.split("."))
    main = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert f"sys.path[0] = str(Path(__file__).resolve().parents[{1 + path.is_dir()}])" in main.read_text("utf-8")


def test_a_program_is_named_as_it_was_started(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert started_as("test.py") == ("python", "test.py")
    assert started_as("tools.report") == ("python", "-m", "tools.report")
    monkeypatch.chdir(PROJECT)
    assert start_of("test.py") == ("python", "test.py")
    assert start_of("tools.report") == ("python", "-m", "tools.report")
    monkeypatch.chdir(tmp_path)
    assert start_of("test.py") == ("python", str(PROJECT / "test.py"))
    assert start_of("tools.report") == ("python", str(PROJECT / "tools/report"))
    monkeypatch.setattr(sys, "argv", [str(PROJECT / "test.py")])
    assert started_as("test.py") == ("python", str(PROJECT / "test.py"))
    for name in ("dtst-adapt", "dtst-test"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "dtst-adapt")])
    assert started_as("train_TCR_DTU.py") == (str(tmp_path / "dtst-adapt"),)
    assert start_of("test.py") == (str(tmp_path / "dtst-test"),)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (started_as("train_TCR_DTU.py"), start_of("test.py")) == (("dtst-adapt",), ("dtst-test",))
    monkeypatch.setattr(environment.distributed, "count", lambda: 2)
    assert started_as("train_TCR_DTU.py") == ("torchrun", "--nproc-per-node", "2", str(tmp_path / "dtst-adapt"))


def test_the_projects_configs_are_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert adapt(["-cfg", "configs/toy_dtst.yaml", "resume", "random"]) == 1
    said = capsys.readouterr()
    assert f"config configs/toy_dtst.yaml: not in this folder, taken from {PROJECT}/configs/toy_dtst.yaml" in said.out
    assert "folder datasets does not exist" in said.err  # of this folder
    assert adapt(["-cfg", "configs/toy_dsts.yaml"]) == 1
    assert f"did you mean {PROJECT}/configs/toy_dtst.yaml?" in capsys.readouterr().err
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/toy_dtst.yaml").write_text("SOLVER: {BATCH_SIZES: 1}")
    assert adapt(["-cfg", "configs/toy_dtst.yaml"]) == 1
    assert "BATCH_SIZES" in capsys.readouterr().err
    assert adapt(["-cfg", "configs/toy_src.yaml"]) == 1  # beside a config of one's own, too
    assert "BATCH_SIZES" not in capsys.readouterr().err
