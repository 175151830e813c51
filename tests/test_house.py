"""The house keeps its order: what may import what, what stands in one file, and the public names of the method."""

import ast
import importlib

import pytest

from tests import house

PUBLIC = {  # of the method's page
    "core.configs": ("cfg",),
    "core.models": ("build_classifier", "build_feature_extractor", "build_model"),
    "core.solver": ("poly_lr",),
    "core.selftraining.views": ("View", "warp_to_view"),
    "core.selftraining.pseudo_labels": ("select_pseudo_labels", "update_running_confidence"),
    "core.selftraining.losses": ("negative_loss", "positive_loss"),
    "core.selftraining.dynamic_teacher": ("entropy_score", "majority_improved", "snd_score"),
    "core.selftraining.resampling": ("confidence_thresholds", "consistency", "consistency_thresholds", "draw_images"),
    "core.evaluation.metrics": ("confusion_matrix", "iou"),
}
TABLES = ("metrics.csv", "evaluation.csv", "dtu_history.csv", "candidates.csv")


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_where_the_method_says(module):
    assert all(callable(getattr(importlib.import_module(module), name)) or name == "cfg" for name in PUBLIC[module])
    assert hasattr(importlib.import_module("core.selftraining.views").View, "valid")


def test_imports_go_one_way_on_at_most_eight_levels():
    modules = house.imports()
    packages = house.between_packages(modules)
    assert not house.upward(packages)
    assert not house.circle(packages)
    assert not house.circle(modules)
    assert house.depth(packages) <= 8


def test_an_upward_import_and_a_circle_are_found():
    assert house.upward({"core.utils": {"core.models"}, "core.models": {"core.utils"}}) == ["core.utils -> core.models"]
    assert house.circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert house.depth({"a": {"b"}, "b": {"c"}}) == 3


def test_an_image_meets_at_most_fifteen_files():
    met, _ = house.path_of_an_image()
    assert len(met) <= 15
    assert {"core/datasets/images.py", "core/selftraining/copy_paste.py", "core/runs/solver.py"} <= set(met)


def nodes(kind):
    """(file, node) of every node of a kind in core and tools."""
    for path in house.modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield path.relative_to(house.PROJECT).as_posix(), node


def test_what_resume_means_stands_in_one_file():
    assert {file for file, node in nodes(ast.Attribute) if node.attr == "resume"} == {"core/runs/resume.py"}


def test_the_name_of_a_table_stands_in_one_file():
    assert {file for file, node in nodes(ast.Constant) if node.value in TABLES} == {"core/runs/folder.py"}
