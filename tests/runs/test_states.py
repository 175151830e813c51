"""Which states and candidate generations are kept, and which are refused."""

import re
import shutil

import numpy as np
import pytest
import torch

from core.configs import cfg
from core.runs.resume import continued_config
from core.runs.states import FORMAT, StateFolder, flat_config
from core.utils.errors import UserError
from tests.runs.runs import KINDS, adaptation, assert_same_run, go_on, make_config, run_until, source


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


def test_a_state_from_before_pasted_sizes_were_rounded_is_refused(tmp_path, pictures):
    run_until(adaptation(tmp_path / "out", pictures, make_config()), 9)
    (path,) = StateFolder(tmp_path / "out").paths()
    torch.save(torch.load(path, weights_only=True) | {"format": 1}, path)
    with pytest.raises(
        UserError, match="is a state of format 1, but this version goes on from format 2 alone"
    ) as caught:
        StateFolder(tmp_path / "out").newest()
    assert "\n" not in str(caught.value)


def test_bad_images_that_were_done_without_stay_counted(tmp_path, pictures):
    trainer = source(tmp_path / "out", pictures, make_config())
    trainer.images.skipped.paths.append("bad.png")
    run_until(trainer, 9)
    again = source(tmp_path / "out", pictures, make_config())
    again.load_state_dict(StateFolder(tmp_path / "out").newest()[1])
    assert again.images.skipped.paths == again.samples.skipped.paths == ["bad.png"]


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


def state_of(iteration, **content):
    return {"format": FORMAT, "iteration": iteration, "generation": None} | content


def test_the_newest_states_are_kept_and_those_of_a_course_given_up_are_not(tmp_path):
    folder = StateFolder(tmp_path, keep=2)
    written = ((8, [8]), (16, [8, 16]), (24, [16, 24]), (200_000, [24, 200_000]), (1_000_000, [200_000, 1_000_000]))
    for iteration, kept in (*written, (32, [32])):
        assert folder.write(state_of(iteration)) == folder.folder / f"iter{iteration:06d}.pth"
        assert [int(path.stem[4:]) for path in folder.paths()] == kept


def test_a_state_is_of_plain_things_only_whatever_it_is_made_of(tmp_path):
    odd = {"float": np.float64(0.5), "int": np.True_.astype(int).item(), "tuple": (1, (2.5, "x")), "none": None}
    odd["tensor"] = torch.nn.Parameter(torch.ones(2))
    folder = StateFolder(tmp_path)
    folder.write(state_of(1, odd=odd))
    found = folder.newest()[1]["odd"]  # which lets nothing else in
    tensor = found.pop("tensor")
    assert (type(tensor), tensor.tolist()) == (torch.Tensor, [1, 1])
    assert found == {"float": 0.5, "int": 1, "tuple": [1, [2.5, "x"]], "none": None}
    with pytest.raises(TypeError, match="cannot hold a Generator"):
        folder.write(state_of(2, generator=torch.Generator()))
    assert [path.name for path in folder.folder.iterdir()] == ["iter000001.pth"]


def test_a_state_of_another_format_or_without_its_candidates_is_passed_over(tmp_path, log_lines):
    folder = StateFolder(tmp_path, keep=9)
    (tmp_path / "candidates/g0001").mkdir(parents=True)
    folder.write(state_of(8, generation="g0001"))
    folder.write(state_of(16, generation="g0002"))
    folder.write(state_of(24, format=FORMAT + 1))
    assert folder.newest()[0].name == "iter000008.pth"
    newest, gone = log_lines
    assert f"iter000024.pth is a state of format {FORMAT + 1}" in newest
    assert "iter000016.pth needs the candidates g0002, which are gone" in gone
    shutil.rmtree(tmp_path / "candidates")
    with pytest.raises(UserError, match=r"no state to go on from: .*iter000008\.pth needs the candidates g0001"):
        folder.newest()


def test_what_a_crash_left_behind_is_cleared_away(tmp_path, pictures):
    """Of a state and of a pass; what a crash leaves in OUTPUT_DIR itself is the programs' to clear away."""
    run_until(adaptation(tmp_path / "out", pictures, make_config()), 9)
    half_state = tmp_path / "out/state/.iter000016.pth.77.tmp"
    half_pass = tmp_path / "out/candidates/g0001.partial"
    half_state.write_bytes(b"half")
    (half_pass / "labels").mkdir(parents=True)
    state = StateFolder(tmp_path / "out").newest()[1]
    assert not half_state.exists()
    adaptation(tmp_path / "out", pictures, make_config()).load_state_dict(state)
    assert not half_pass.exists()


@pytest.fixture
def continued():
    """continued(given={}, saved={}, unknown=()): the config of a run that goes on; `unknown` were no options then."""

    def merged(given=None, saved=None, unknown=()):
        configs = [cfg.clone(), cfg.clone()]
        for config, options in zip(configs, (given, saved), strict=True):
            for key, value in (options or {}).items():
                *section, name = key.split(".")
                (config[section[0]] if section else config)[name] = value
        flat = {key: value for key, value in flat_config(configs[1]).items() if key not in unknown}
        return continued_config({"program": "train.py", "config": flat}, configs[0], "train.py")

    return merged


def test_options_that_came_later_are_compared_by_their_defaults(continued):
    continued(unknown=["SOLVER.CLIP_GRAD"])
    with pytest.raises(UserError, match=r"^SOLVER\.CLIP_GRAD is 3"):
        continued({"SOLVER.CLIP_GRAD": 3.0}, unknown=["SOLVER.CLIP_GRAD"])


@pytest.mark.parametrize(
    "key", [key for key in cfg.flat_keys() if key.startswith(("SOLVER.", "TCR.", "DTU.", "INPUT."))]
)
def test_every_option_that_shapes_a_run_is_compared(continued, key):
    value = flat_config(cfg)[key]
    other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else value * 2 or "x"
    free = {
        "SOLVER.STOP_ITER",
        "SOLVER.CHECKPOINT_PERIOD",
        "SOLVER.KEEP_STATES",
        "SOLVER.MAX_BAD_STEPS",
        "SOLVER.ACCUMULATE",
        "SOLVER.TF32",
        "SOLVER.CUDNN_BENCHMARK",
        "SOLVER.DETERMINISTIC",
    }
    if key in free:
        continued({key: other})
    else:
        with pytest.raises(UserError, match=f"^{re.escape(key)} is "):
            continued({key: other})


def test_a_folder_of_images_may_move_but_not_become_another_data_set(continued):
    continued({"DATASETS.TARGET_TRAIN": "folder:/new"}, {"DATASETS.TARGET_TRAIN": "folder:/old"})
    with pytest.raises(UserError, match=r"^DATASETS\.TARGET_TRAIN is "):
        continued({"DATASETS.TARGET_TRAIN": "folder:/new"}, {"DATASETS.TARGET_TRAIN": "cityscapes_train"})


def test_a_continued_run_remembers_what_it_began_with(continued):
    assert continued({"resume": "auto"}, {"resume": "source.pth"}).resume == "source.pth"


def with_sets(**sets):
    """DATASETS.CUSTOM and the option that uses `town`."""
    described = {name: {"classes": classes} for name, classes in sets.items()}
    return {"DATASETS.TARGET_TRAIN": "town_all", "DATASETS.CUSTOM": described}


def test_data_sets_that_a_run_does_not_use_may_come_and_go(continued):
    continued(with_sets(town=["a", "b"], other=["c", "d"]), with_sets(town=["a", "b"]))
    continued(with_sets(town=["a", "b"]), with_sets(town=["a", "b"], other=["c", "d"]))
    with pytest.raises(UserError, match=r"CUSTOM\.town\.classes is \['a', 'x'\], but the run .* has \['a', 'b'\]:"):
        continued(with_sets(town=["a", "x"]), with_sets(town=["a", "b"]))
    with pytest.raises(UserError, match=r"^DATASETS\.CUSTOM\.town\.classes is None, but the run .* has \['a', 'b'\]:"):
        continued(with_sets(), with_sets(town=["a", "b"]))
