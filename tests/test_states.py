"""Saved states come from files, so what they name is checked before it is used."""

import pytest
import torch

from core.states import FORMAT, StateFolder
from core.utils.errors import UserError


@pytest.mark.parametrize("generation", ["..", "g0001/../..", "/etc", "", 7])
def test_a_state_cannot_lead_out_of_its_run(tmp_path, generation):
    (tmp_path / "state").mkdir()
    (tmp_path / "candidates").mkdir()
    torch.save({"format": FORMAT, "iteration": 1, "generation": generation}, tmp_path / "state/iter000001.pth")
    with pytest.raises(UserError, match="no run makes"):
        StateFolder(tmp_path).newest()
