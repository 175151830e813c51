"""Jobs of two processes as a cluster treats them: signalled, killed, with a bad file, with the wrong options."""

import os
import signal
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from core.configs import cfg
from core.datasets.catalog import ImageSet
from core.evaluation.evaluator import Evaluator
from core.evaluation.predictor import Predictor
from core.models.dsu import DSU
from core.runs.loop import check_division, check_whole_batches
from core.selftraining.dynamic_teacher import DynamicTeacher, entropy_score
from core.utils import distributed
from core.utils.errors import UserError
from tests.distributed.hooks import signal_second
from tests.helpers import read_checkpoint, rows_of
from tests.networks import TINY

LONG = {"SOLVER.STOP_ITER": 100_000, "SOLVER.MAX_ITER": 100_001, "SOLVER.CHECKPOINT_PERIOD": 10}


def last_state(folder):
    return read_checkpoint(max((folder / "state").glob("iter*.pth")))


def near(first, second):
    one, other = (torch.cat([t.flatten() for t in state["teacher"].values()]) for state in (first, second))
    return torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_a_signal_to_the_launcher_saves_a_state_that_any_number_of_processes_continues(
    start, alone, config, cityscapes_root
):
    """Two processes, stopped; one process, to the end; the same as one process alone."""
    alone("train_TCR_DTU", "-cfg", config("straight", **{"SOLVER.STOP_ITER": 24}))
    file = config("stopped", **{"SOLVER.STOP_ITER": 24, "DATALOADER.NUM_WORKERS": 1})
    job = start(2, "train_TCR_DTU", "-cfg", file, launched=True, seconds=0.3)
    job.wait_for("candidate pass g0000")
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert job.workers_block(number)  # which torchrun sends to them, too
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() != 0
    (line,) = job.errors
    assert line.startswith("stopped by SIGTERM after iteration ")
    assert line.endswith(f"go on with: torchrun --nproc-per-node 2 train_TCR_DTU.py -cfg {file} resume auto")
    assert "Traceback (most recent call last)" not in job.text.split("stopped by")[0]
    stopped = last_state(cityscapes_root / "stopped")
    assert stopped["iteration"] < 24
    assert [len(batch["names"]) for batch in stopped["dynamic_teacher"]["buffer"]] == [4] * min(stopped["iteration"], 4)
    again = alone("train_TCR_DTU", "-cfg", file, "DATALOADER.NUM_WORKERS", 0, "resume", "auto")
    assert f"iter{stopped['iteration']:06d}.pth" in again
    assert near(last_state(cityscapes_root / "stopped"), last_state(cityscapes_root / "straight"))
    assert rows_of(cityscapes_root / "stopped/dtu_history.csv") == rows_of(cityscapes_root / "straight/dtu_history.csv")


def test_a_signal_to_one_process_stops_both_in_the_middle_of_a_pass(start, config, cityscapes_root, make_cityscapes):
    """Its own part of the pass would take the other one several seconds more."""
    make_cityscapes(cityscapes_root, train=100)
    job = start(2, "train_TCR_DTU", "-cfg", config("out"), seconds=0.5)
    job.wait_for("writing to")
    partial = cityscapes_root / "out/candidates/g0000.partial/labels"
    job.wait_until(lambda: partial.is_dir() and len(list(partial.iterdir())) >= 4)
    os.kill(job.pid(1), signal.SIGUSR1)
    job.wait(20)  # of 25 that the 50 images of each share take
    assert len(job.errors) == 1
    assert job.errors[0].startswith("stopped by SIGUSR1 after iteration 0")
    assert not partial.exists()
    assert last_state(cityscapes_root / "out")["iteration"] == 0


def test_a_signal_to_one_process_while_it_starts_is_one_line(start, config, cityscapes_root):
    job = start(2, "train_TCR_DTU", "-cfg", config("out"), hook=partial(signal_second, "load"))
    assert job.wait(60) != 0
    assert job.errors == ["stopped by SIGUSR1: nothing was trained yet; start again with the same command"]
    assert not (cityscapes_root / "out/config.yaml").exists()


def test_a_signal_to_one_process_in_the_middle_of_a_step_stops_both_after_it(start, config, cityscapes_root):
    job = start(2, "train_TCR_DTU", "-cfg", config("out"), hook=partial(signal_second, "step"))
    assert job.wait(50) != 0
    (line,) = job.errors
    assert line.startswith("stopped by SIGUSR1 after iteration 1, state saved as ")
    assert last_state(cityscapes_root / "out")["iteration"] == 1


def test_a_signal_to_one_process_after_the_last_iteration_is_none_to_the_others(start, config, cityscapes_root):
    job = start(
        2, "train_TCR_DTU", "-cfg", config("out", **{"SOLVER.STOP_ITER": 4}), hook=partial(signal_second, "end")
    )
    assert job.wait(50) == 0, job.text  # the timeout is a minute
    assert job.errors == []
    assert (cityscapes_root / "out/model_iter000004.pth").exists()


def test_a_killed_process_ends_the_job_which_goes_on(start, config, cityscapes_root):
    job = start(2, "train_TCR_DTU", "-cfg", config("out", **LONG))
    job.wait_for("model_iter000010.pth")
    os.kill(job.pid(1), signal.SIGKILL)
    assert job.wait(30) != 0  # the timeout is a minute
    (line,) = job.errors
    assert line.startswith("error: another process of the job has gone")
    assert line.endswith("[process 0 of 2]")
    begun = last_state(cityscapes_root / "out")["iteration"]
    assert begun >= 10
    job = start(2, "train_TCR_DTU", "-cfg", cityscapes_root / "out.yaml", "resume", "auto")
    job.wait_for(f"model_iter{begun // 10 * 10 + 10:06d}.pth")


def test_a_forgotten_source_model_is_one_line_with_the_command_of_the_job(start, config):
    file = config("out", **{"MODEL.NAME": TINY, "MODEL.FREEZE_BN": True})
    job = start(2, "train_TCR_DTU", "-cfg", file, "SEED", 3)
    assert job.wait(60) != 0
    (line,) = job.errors
    assert line.startswith("error: no source model: ")
    command = f"torchrun --nproc-per-node 2 train_TCR_DTU.py -cfg {file} SEED 3 resume FILE"
    assert line.endswith(f"of 2]; the whole command: {command}")


def test_an_error_of_one_process_is_its_one_line(start, config, cityscapes_root):
    """The last of six images lies in the second process's share of the candidate pass."""
    broken = max((cityscapes_root / "cityscapes/leftImg8bit/train").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:300])
    job = start(2, "train_TCR_DTU", "-cfg", config("out"))
    assert job.wait(60) != 0
    (line,) = job.errors
    assert line.startswith("error: ")
    assert broken.name in line
    assert line.endswith("[process 1 of 2]")


def test_an_error_of_all_processes_is_one_line(start, config, cityscapes_root):
    job = start(2, "train_TCR_DTU", "-cfg", config("out", **{"SOLVER.BATCH_SIZE": 3}))
    assert job.wait(60) != 0
    (line,) = job.errors
    assert line.startswith(
        "error: SOLVER.BATCH_SIZE 3 is the images of an iteration, which do not divide by 2 processes"
    )
    assert not (cityscapes_root / "out").exists()


def test_an_error_before_the_processes_have_met_is_one_line(start, config):
    job = start(2, "train_TCR_DTU", "-cfg", config("out"), timeout="soon")
    assert job.wait(60) != 0
    assert job.errors == ["error: environment variable DTST_TIMEOUT is 'soon': give seconds, as 900"]


def test_bad_images_are_counted_over_all_processes(alone, finish, config, cityscapes_root):
    broken = max((cityscapes_root / "cityscapes/leftImg8bit/train").rglob("*.png"))
    broken.write_bytes(b"")
    options = {"DATALOADER.SKIP_BAD_IMAGES": 1, "SOLVER.STOP_ITER": 6, "TCR.RESAMPLE": False, "TCR.PASTE": False}
    alone("train_TCR_DTU", "-cfg", config("one", **options))
    job = finish(2, "train_TCR_DTU", "-cfg", config("two", **options))
    assert job.text.count("skipped a bad image, 1 of at most 1: ") == 1
    one, two = (last_state(cityscapes_root / name) for name in ("one", "two"))
    assert one["skipped"] == two["skipped"] == [str(broken)]
    assert near(one, two)


def test_bad_images_of_all_processes_count_against_the_limit(start, config, cityscapes_root):
    """Each of the two meets one, in its share of the first pass, which ends there."""
    images = sorted((cityscapes_root / "cityscapes/leftImg8bit/train").rglob("*.png"))
    for path in (images[0], images[-1]):
        path.write_bytes(b"")
    job = start(2, "train_TCR_DTU", "-cfg", config("out", **{"DATALOADER.SKIP_BAD_IMAGES": 1}))
    assert job.wait(60) != 0
    (line,) = job.errors
    assert images[-1].name in line
    assert "(1 bad image skipped before it: DATALOADER.SKIP_BAD_IMAGES 1)" in line
    assert "candidate pass g0000" not in job.text


def test_programs_of_one_process_say_so(start, config, cityscapes_root):
    job = start(2, "tools.predict.__main__", "-cfg", config("out"), "x.png", "-o", cityscapes_root / "predicted")
    assert job.wait(60) != 0
    assert job.errors == ["error: python -m tools.predict is one process: start it by python, not by torchrun"]


@pytest.fixture
def two(monkeypatch):
    """As in a job of two."""
    monkeypatch.setattr(distributed, "count", lambda: 2)


@pytest.mark.usefixtures("two")
def test_batch_norm_across_processes():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    keys = list(model.state_dict())
    with pytest.raises(UserError, match=r"^MODEL.FREEZE_BN False with 2 processes needs CUDA"):
        distributed.synchronised_norms(model, torch.device("cpu"))
    converted = distributed.synchronised_norms(model, torch.device("cuda"))
    assert [type(m).__name__ for m in converted.modules() if "Norm" in type(m).__name__] == ["SyncBatchNorm"] * 2
    assert list(converted.state_dict()) == keys
    frozen = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert distributed.synchronised_norms(frozen, torch.device("cpu")) is frozen


@pytest.mark.usefixtures("two")
def test_machines_with_other_images_are_refused(monkeypatch, tmp_path):
    images = ImageSet("folder:frames", (tmp_path / "a.png",), ("a.png",))
    others = ImageSet("folder:frames", (tmp_path / "a.png", tmp_path / "b.png"), ("a.png", "b.png"))
    seen = [images]
    monkeypatch.setattr(distributed, "gathered", lambda value: [value, seen[0].names])
    evaluator = partial(Evaluator, images, 19, Predictor(cfg, torch.device("cpu")))
    evaluator()
    seen[0] = others
    with pytest.raises(UserError, match=r"^the images of folder:frames are not the same in all processes: "):
        evaluator()


@pytest.mark.parametrize(("size", "parts", "fits"), [(4, 2, True), (4, 1, True), (6, 2, False), (2, 2, False)])
@pytest.mark.usefixtures("two")
def test_batches_divide_evenly(size, parts, fits):
    config = cfg.clone()
    config.SOLVER.BATCH_SIZE, config.SOLVER.ACCUMULATE = size, parts
    if fits:
        check_division(config.SOLVER)
    else:
        with pytest.raises(
            UserError, match=f"^SOLVER.BATCH_SIZE {size} .* by 2 processes × SOLVER.ACCUMULATE {parts}: "
        ):
            check_division(config.SOLVER)


@pytest.mark.parametrize(("module", "hint"), [(nn.BatchNorm2d(4), "MODEL.FREEZE_BN True"), (DSU(0.5), "UNCERTAINTY 0")])
def test_parts_of_a_batch_have_no_statistics_of_the_whole(module, hint):
    config = cfg.clone()
    check_whole_batches(nn.Sequential(module), config)
    config.SOLVER.ACCUMULATE = 2
    with pytest.raises(UserError, match=f"^SOLVER.ACCUMULATE 2 would change .*: give 1, or .*{hint}$"):
        check_whole_batches(nn.Sequential(module), config)
    with pytest.raises(UserError, match=r"give 1, or MODEL\.FREEZE_BN True and MODEL\.UNCERTAINTY 0$"):
        check_whole_batches(nn.Sequential(nn.BatchNorm2d(4), DSU(0.5)), config)
    check_whole_batches(nn.Sequential(nn.LayerNorm(4)), config)  # a transformer, say, has none to freeze


def buffer_of(metric):
    """A DynamicTeacher that decides nothing."""
    options = SimpleNamespace(DYNAMIC=True, PROXY_METRIC=metric, ANCHOR=0.0)
    network = nn.Linear(1, 1)
    return DynamicTeacher(network, network, options, None, 1, None, seed=1)


@pytest.mark.usefixtures("two")
def test_the_entropy_score_is_that_of_both_processes_pixels(monkeypatch):
    probs = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    other = entropy_score(probs[5:])
    monkeypatch.setattr(distributed, "total", lambda tensor: tensor + other)
    monkeypatch.setattr(distributed, "agreed", lambda tensor: tensor)
    teacher = buffer_of("ENT")
    teacher.before_step(0, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["a"], probs[:5])
    monkeypatch.setattr(distributed, "gathered", lambda value: [value, value])
    (batch,) = teacher.state_dict()["buffer"]
    assert float(batch["score"]) == pytest.approx(float(entropy_score(probs)), rel=1e-12)


@pytest.mark.usefixtures("two")
def test_a_stored_batch_that_the_other_process_cannot_load_is_dropped_here(monkeypatch):
    """Else the two would score different batches, and wait for each other."""
    batches = [{"names": [f"a{n}", f"b{n}"], "points": None, "score": torch.tensor(float(n))} for n in range(3)]
    monkeypatch.setattr(distributed, "gathered", lambda value: [value, [False, True, False]])
    teacher = buffer_of("ENT")
    teacher.load_state_dict({"buffer": batches}, lambda names: torch.zeros(len(names), 3, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr(distributed, "gathered", lambda value: [value])
    kept = teacher.state_dict()["buffer"]
    assert [(batch["names"], float(batch["score"])) for batch in kept] == [(["a0"], 0), (["a2"], 2)]


def test_of_two_processes_the_main_one_takes_a_videos_frames(finish, config, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (128, 64))
    for level in range(0, 240, 20):
        writer.write(np.full((64, 128, 3), level, np.uint8))
    writer.release()
    target = {"DATASETS.TARGET_TRAIN": f"video:{tmp_path / 'drive.avi'}", "SOLVER.STOP_ITER": 2}
    job = finish(2, "train_TCR_DTU", "-cfg", config("out", **target))
    assert job.text.count("is taken to") == 1
    assert "target images: 12 of video:" in job.text
    assert (tmp_path / "out/model_iter000002.pth").is_file()
