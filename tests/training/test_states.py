"""Which states and candidate generations are kept, and which are refused."""

import pytest
import torch

from core.states import FORMAT, StateFolder
from core.utils.errors import UserError
from tests.training.runs import KINDS, adaptation, assert_same_run, go_on, make_config, run_until, source


@pytest.mark.parametrize(("keep", "states", "generations"), [(1, [40], [2]), (3, [24, 32, 40], [1, 2])])
def test_a_generation_stays_while_the_run_or_a_kept_state_needs_it(tmp_path, pictures, keep, states, generations):
    trainer = adaptation(tmp_path / "out", pictures, make_config(SOLVER__KEEP_STATES=keep))
    trainer.run()
    assert [path.name for path in StateFolder(tmp_path / "out").paths()] == [f"iter{n:06d}.pth" for n in states]
    found = sorted(path.name for path in (tmp_path / "out/candidates").iterdir())
    assert found == [f"g{n:04d}" for n in generations]


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, pictures, straight):
    run_until(adaptation(tmp_path / "out", pictures, make_config()), 33)
    newest = StateFolder(tmp_path / "out").paths()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    trainer, begun = go_on(adaptation, tmp_path / "out", pictures, make_config())
    assert begun == 24
    assert_same_run(trainer, straight("adaptation"))


def test_no_state_is_left_but_damaged_ones(tmp_path):
    folder = StateFolder(tmp_path)
    with pytest.raises(UserError, match="holds no state"):
        folder.newest()
    folder.folder.mkdir()
    (folder.folder / "iter000008.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"iter000008\.pth is not a checkpoint"):
        folder.newest()


def test_bad_images_that_were_done_without_stay_counted(tmp_path, pictures):
    trainer = source(tmp_path / "out", pictures, make_config())
    trainer._images.skipped.paths.append("bad.png")
    run_until(trainer, 9)
    again = source(tmp_path / "out", pictures, make_config())
    again.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    assert again._images.skipped.paths == again.samples.skipped.paths == ["bad.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_other_images_are_refused(tmp_path, pictures, kind):
    run_until(KINDS[kind](tmp_path / "out", pictures, make_config()), 9)
    trainer = KINDS[kind](tmp_path / "out", pictures[:4], make_config())
    with pytest.raises(UserError, match="images of the run"):
        trainer.load_state_dict(StateFolder(tmp_path / "out").newest()[1])


@pytest.mark.parametrize("generation", ["..", "g0001/../..", "/etc", "", 7])
def test_a_state_cannot_lead_out_of_its_run(tmp_path, generation):
    (tmp_path / "state").mkdir()
    (tmp_path / "candidates").mkdir()
    torch.save({"format": FORMAT, "iteration": 1, "generation": generation}, tmp_path / "state/iter000001.pth")
    with pytest.raises(UserError, match="no run makes"):
        StateFolder(tmp_path).newest()
