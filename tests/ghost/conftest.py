"""The simulated GPU, built once for a whole run of the tests."""

import os

import pytest
import torch

import core.evaluation.predictor as predictor
import core.selftraining.candidate_pass as candidates
from core.models.deeplab import resize_logits
from tests.ghost.ghosts import Ghost, build, why_not


@pytest.fixture(scope="session")
def ghost_folder(tmp_path_factory):
    """Where the ghost lies; the tests that want it are skipped where it cannot be built."""
    reason = why_not()
    if reason:
        pytest.skip(f"no ghost GPU: {reason}")
    base = tmp_path_factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ghost"
    build(out)
    return out


@pytest.fixture(scope="module")
def ghost(ghost_folder, tmp_path_factory):
    return Ghost(ghost_folder, tmp_path_factory.mktemp("reports"))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Have the CPU find labels and confidences of a pass by the operators that a GPU takes: all bits are then alike."""

    def labels(logits, size, align_corners):
        return resize_logits(logits[None], size, align_corners)[0].argmax(dim=0).to(torch.uint8).numpy

    def confidence(logits, size, grid, align_corners):
        rows, columns = (
            torch.from_numpy(candidates.nearest_index(n, count)) for n, count in zip(size, grid, strict=True)
        )
        values = resize_logits(logits[None], size, align_corners)[0].index_select(1, rows).index_select(2, columns)
        return values.softmax(dim=0).amax(dim=0).float().numpy

    monkeypatch.setattr(candidates, "label_map", labels)
    monkeypatch.setattr(predictor, "label_map", labels)
    monkeypatch.setattr(candidates, "sampled_confidence", confidence)
