"""An automatic adaptation (ADAPT.AUTO) for real, tiny: what it chooses, says and writes, and how it goes on."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from core.adaptation.choices import CHOSEN
from core.configs import load_config
from core.selftraining.trainer import Trainer
from test import main as evaluate
from tests.helpers import PROJECT, Killed, call, read_checkpoint, rows_of, same_weights
from tests.networks import TINY
from train_TCR_DTU import main as adapt

LENGTH = 12  # checkpoints every 3, passes after 0, 4 and 9 iterations


@pytest.fixture(scope="module")
def write_automatic(tmp_path_factory, make_cityscapes, write_png, draw_scene, tiny_checkpoint):
    """write_automatic(**overrides) → (folder, config): configs/adapt.yaml for dark frames, in a folder of its own."""

    def write(**overrides):
        folder = make_cityscapes(tmp_path_factory.mktemp("automatic"))
        for number in range(6):
            image, _ = draw_scene(number)
            write_png(folder / f"frames/{number}.png", (0.4 * image + 20).astype(np.uint8))
        options = {
            "OUTPUT_DIR": str(folder / "out"),
            "resume": str(tiny_checkpoint),
            "MODEL.NAME": TINY,
            "MODEL.NUM_CLASSES": 19,
            "MODEL.DEVICE": "cpu",
            "DATASETS.ROOT": str(folder),
            "DATASETS.SOURCE_TRAIN": "gta5_train",
            "DATASETS.TARGET_TRAIN": f"folder:{folder}/frames",
            "DATASETS.TEST": "",
            "DATALOADER.NUM_WORKERS": 0,
            "INPUT.INPUT_SIZE_TEST": [128, 64],
            "SOLVER.STOP_ITER": LENGTH,
            "VIS.PERIOD": 0,
        }
        tree = yaml.safe_load((PROJECT / "configs/adapt.yaml").read_text(encoding="utf-8"))
        for key, value in (options | overrides).items():
            section, _, name = key.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[name] = value
        (folder / "auto.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        return folder, folder / "auto.yaml"

    return write


@pytest.fixture(scope="module")
def run(write_automatic):
    """A whole run."""
    folder, config = write_automatic()
    done = call("train_TCR_DTU.py", "-cfg", config)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, config=config, out=folder / "out", done=done)


def said(line):
    """A line of the log without its time."""
    return line.split(" ", 2)[2]


def test_every_choice_is_said_with_its_reason_and_stands_in_the_saved_config(run):
    assert run.done.stderr == ""
    lines = [line for line in map(said, run.done.stdout.splitlines()) if line.startswith("chosen: ")]
    saved, given = load_config(run.out / "config.yaml"), load_config(run.config)
    assert all(line.endswith(")") for line in lines)
    named = {key for key in CHOSEN if any(f"{key} " in line for line in lines)}
    assert set(CHOSEN) - named <= {"INPUT.INPUT_SIZE_TEST", "DATALOADER.NUM_WORKERS", "TCR.PASTE", "TCR.MIX_CLASSES"}
    assert named & {"TCR.PASTE", "TCR.MIX_CLASSES"}
    for key in ("SOLVER.BASE_LR", "SOLVER.MAX_ITER", "DTU.EMA_WEIGHT", "DTU.ANCHOR", "TCR.UPDATE_FREQUENCY"):
        assert any(f"{key} {saved.find(key):g}" in line for line in lines), key
    mix = f"ADAPT.NORM_MIX [{', '.join(map(str, saved.ADAPT.NORM_MIX))}]"
    assert any(mix in line for line in lines)
    assert (saved.SOLVER.STOP_ITER, saved.SOLVER.MAX_ITER, saved.SOLVER.CHECKPOINT_PERIOD) == (LENGTH, LENGTH, 3)
    assert saved.SOLVER.BASE_LR != given.SOLVER.BASE_LR
    assert saved.ADAPT.TEACHER_LOOKS == ("larger_mirrored",)
    others = {key for key in saved.flat_keys() if saved.find(key) != given.find(key)}
    assert others <= set(CHOSEN)


def test_the_last_lines_are_the_verdict(run):
    lines = [said(line) for line in run.done.stdout.splitlines()]
    first = next(number for number, line in enumerate(lines) if line.startswith("verdict: "))
    assert f"{run.out}/model_adapted.pth" in lines[first]
    following = ["the run on one page", "source beside adapted model on its images", "what it sees"]
    assert [line.split(":")[0] for line in lines[-3:]] == [f"next, {what}" for what in following]
    lines = lines[:-3]
    assert len(lines) - first <= 3
    verdict = json.loads((run.out / "verdict.json").read_text(encoding="utf-8"))
    assert verdict.keys() == {"share", "better", "signs", "changed", "harm", "shifted"}
    if verdict["shifted"]:
        assert lines[-1].endswith(f"Use {run.out}/model_adapted.pth")


def test_the_adapted_model_lies_on_the_line_to_the_last_checkpoint_and_is_evaluated_last(run, tmp_path):
    names = [f"model_iter{n:06d}.pth" for n in (3, 6, 9, 12)]
    assert sorted(path.name for path in run.out.glob("model_iter*.pth")) == names
    adapted, last = (read_checkpoint(run.out / name) for name in ("model_adapted.pth", names[-1]))
    assert adapted["iteration"] == LENGTH
    share = json.loads((run.out / "verdict.json").read_text(encoding="utf-8"))["share"]
    begun = torch.load(run.out / "state/iter000012.pth", weights_only=True)["start"]
    for part in ("feature_extractor", "classifier"):
        for key, value in adapted[part].items():
            if value.is_floating_point():
                expected = (1 - share) * begun[f"{part}.{key}"].double() + share * last[part][key].double()
                assert torch.allclose(value.double(), expected, rtol=1e-5, atol=1e-7), key
    options = ["resume", run.out, "OUTPUT_DIR", tmp_path, "DATASETS.TEST", "cityscapes_val"]
    assert evaluate([str(word) for word in ("-cfg", run.config, *options)]) == 0
    rows = rows_of(tmp_path / "test_cityscapes_val.csv")
    assert [row["checkpoint"] for row in rows] == [*names, "model_adapted.pth"]


@pytest.mark.parametrize("iteration", [7, 11])
def test_a_killed_run_goes_on_to_the_same_models_and_the_same_verdict(run, tmp_path, iteration, capsys):
    """It chooses nothing anew: the state says what was chosen."""
    argv = ["-cfg", str(run.config), "OUTPUT_DIR", str(tmp_path / "out")]
    step = Trainer.train_step

    def killed(self, batch):
        if self.iteration == iteration:
            raise Killed
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        with pytest.raises(Killed):
            adapt(argv)
    chosen = (tmp_path / "out/config.yaml").read_bytes()
    capsys.readouterr()
    assert adapt([*argv, "resume", "auto"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "chosen: " not in captured.out
    assert (tmp_path / "out/config.yaml").read_bytes() == chosen
    assert_same_end(run.out, tmp_path / "out")
    assert adapt([*argv, "resume", "auto"]) == 0  # once more: nothing is left but the verdict
    assert_same_end(run.out, tmp_path / "out")


def assert_same_end(first, second):
    for name in ("model_iter000009.pth", "model_iter000012.pth", "model_adapted.pth"):
        assert same_weights(first / name, second / name), name
    for name in ("verdict.json", "metrics.csv", "dtu_history.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_run_that_its_guard_ends_is_whole_and_goes_on_to_nothing_more(write_automatic, monkeypatch, capsys):
    """Alarms in the passes after 4 and 9 iterations; no checkpoint is due at 9."""

    def see(watch, pixels, consistency):
        watch.count += consistency is not None
        return ["harm"] * (consistency is not None)

    monkeypatch.setattr("core.adaptation.guard.Watch.see", see)
    folder, config = write_automatic(**{"SOLVER.CHECKPOINT_PERIOD": 5})
    out, argv = folder / "out", ["-cfg", str(config)]
    assert adapt(argv) == 0
    log = capsys.readouterr().out
    assert "after iteration 4: harm; the teacher is pulled back by 40% at every move now" in log
    assert "after iteration 9: harm; the run ends here" in log
    last = log.splitlines()[-4]  # before what may follow
    assert "model_iter000009.pth" in last or "the start itself" in last
    assert sorted(path.name for path in out.glob("model_iter*.pth"))[-1] == "model_iter000009.pth"
    first = {name: (out / name).read_bytes() for name in ("verdict.json", "config.yaml", "dtu_history.csv")}
    adapted = read_checkpoint(out / "model_adapted.pth")["feature_extractor"]
    assert adapt([*argv, "resume", "auto"]) == 0
    assert "all 9 iterations are done" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in first} == first
    again = read_checkpoint(out / "model_adapted.pth")["feature_extractor"]
    assert all(torch.equal(value, again[key]) for key, value in adapted.items())


def test_a_rate_that_is_given_stays(write_automatic, capsys):
    folder, config = write_automatic(**{"SOLVER.BASE_LR": 3e-4, "SOLVER.STOP_ITER": 2})
    assert adapt(["-cfg", str(config)]) == 0
    assert "not chosen: as the config gives it: SOLVER.BASE_LR 0.0003" in capsys.readouterr().out
    assert load_config(folder / "out/config.yaml").SOLVER.BASE_LR == 3e-4


def test_where_there_is_no_shift_the_source_model_is_handed_over(write_automatic, monkeypatch, capsys, tiny_checkpoint):
    monkeypatch.setattr("core.adaptation.survey.NO_SHIFT", 0.0)
    folder, config = write_automatic(**{"SOLVER.STOP_ITER": 2})
    assert adapt(["-cfg", str(config)]) == 0
    log = capsys.readouterr().out.splitlines()
    assert any("there is no shift to mend" in line for line in log)
    adapted = Path(folder / "out/model_adapted.pth")
    end = f"the target looks like the source domain: {adapted} is the source model as it was"
    assert said(log[-4]) == f"verdict: {end}"
    assert same_weights(tiny_checkpoint, adapted)


def test_check_tries_what_was_chosen(write_automatic, capsys):
    folder, config = write_automatic()
    assert adapt(["-cfg", str(config), "--check"]) == 0
    out = capsys.readouterr().out
    assert "chosen: SOLVER.BATCH_SIZE 4" in out
    assert f"{LENGTH} iterations of 4 images" in out
    assert not (folder / "out").exists()


@pytest.mark.parametrize("auto", [True, False])
def test_shares_that_do_not_fit_the_network_are_one_line(write_automatic, capsys, auto):
    folder, config = write_automatic(**{"ADAPT.NORM_MIX": [0.5, 0.5], "ADAPT.AUTO": auto})
    assert adapt(["-cfg", str(config)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: ADAPT.NORM_MIX has 2 shares, but the network 10 batch norms with statistics: give one"
    )
    assert error.count("\n") == 1
    assert not (folder / "out").exists()


def test_batch_norm_may_be_mixed_without_the_rest(write_automatic, tiny_checkpoint):
    """The teacher that never moved has the source's weights, and other statistics."""
    options = {"ADAPT.AUTO": False, "ADAPT.NORM_MIX": [0.5], "SOLVER.STOP_ITER": 1, "SOLVER.BATCH_SIZE": 2}
    folder, config = write_automatic(**options | {"TCR.PASTE": False, "INPUT.TARGET_INPUT_SIZE_TRAIN": [64, 32]})
    assert adapt(["-cfg", str(config)]) == 0
    before, after = (read_checkpoint(path) for path in (tiny_checkpoint, folder / "out/model_iter000001.pth"))
    before, after = before["feature_extractor"], after["feature_extractor"]
    moved = {key.rpartition(".")[2] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"running_mean", "running_var"}
    assert not (folder / "out/model_adapted.pth").exists()
