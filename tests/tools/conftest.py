"""Fixtures of the tools' tests."""

import json
from types import SimpleNamespace

import pytest

from tests.tools.places import tiny_config, write
from tools.shifts import __main__ as program
from tools.shifts import workplace


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two shifts and one whose source model is missing, a config, and a folder with domains: what main takes."""
    shifts = tmp_path / "declared"
    shifts.mkdir()
    config = tiny_config(tmp_path / "tiny.yaml", "toy_dtst.yaml")
    source = {"CONFIG": tiny_config(tmp_path / "source.yaml", "toy_src.yaml", CHECKPOINT_PERIOD=2), "OPTIONS": []}
    data = {"DATASETS.TARGET_TRAIN": "toy_target_train", "DATASETS.TEST": "toy_target_val"}
    write(shifts / "dusk.yaml", {"SOURCE": source, "OPTIONS": data})
    write(shifts / "lost.yaml", {"SOURCE": {"CHECKPOINT": str(tmp_path / "lost.pth")}, "OPTIONS": data})
    write(shifts / "same.yaml", {"SOURCE": source, "OPTIONS": data | {"DATASETS.TEST": "toy_source_val"}})
    monkeypatch.setattr(program, "FOLDER", shifts)
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / workplace.MARK).write_text(json.dumps({"amp": "off"}))
    return SimpleNamespace(
        folder=folder, config=config, shifts=shifts, argv=["--config", config, "--folder", str(folder)]
    )
