"""The training programs as a cluster treats them: killed, signalled, requeued, started twice, out of disk."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from core.configs import cfg, load_config
from core.models import build_model
from core.runs.resume import going_on
from core.selftraining.trainer import Trainer
from core.sourcetraining.trainer import SourceTrainer
from core.utils import signals
from core.utils.checkpoints import save_checkpoint
from tests.distributed.hooks import nothing
from tests.distributed.jobs import Forked
from tests.helpers import PROJECT, Killed, contents, events_of, rows_of, same_weights
from train_src import main as train
from train_TCR_DTU import main as adapt

# passes before training and after 2 and 5 iterations, states after 3 and 6
ADAPTATION = {
    "SOLVER.STOP_ITER": 7,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.BATCH_SIZE": 1,
    "INPUT.INPUT_SIZE_TEST": (64, 32),
    "INPUT.TARGET_INPUT_SIZE_TRAIN": (48, 24),
    "DTU.Query_START": 3,
    "VIS.PERIOD": 2,
}
QUICK = ADAPTATION | {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.STOP_ITER": 3, "SOLVER.CHECKPOINT_PERIOD": 1}
TABLES = ("metrics.csv", "dtu_history.csv", "evaluation.csv")
NETWORK = """
from torch import nn

def build(cfg):
    features = nn.Sequential(nn.Conv2d(3, 12, 8, stride=8), nn.BatchNorm2d(12), nn.Tanh(), nn.Dropout2d(0.2))
    classifier = nn.Conv2d(12, cfg.MODEL.NUM_CLASSES, 1)
    classifier.weight.data.mul_(6)  # sure enough of itself for pseudo-labels
    return features, classifier
"""


def same_runs(first, second):
    """Whether two folders hold the same last checkpoint, the same tables, and the same for those who watch."""
    names = sorted(path.name for path in first.glob("model_iter*.pth"))
    assert names == sorted(path.name for path in second.glob("model_iter*.pth"))
    assert same_weights(first / names[-1], second / names[-1])
    for name in TABLES:
        if (first / name).exists():
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert contents(first / "panels") == contents(second / "panels")
    assert lasting_events(first) == lasting_events(second)
    return True


def lasting_events(folder):
    """What TensorBoard shows of a run, time and memory apart."""
    events = events_of(folder / "tensorboard")
    return {
        tag: values for tag, values in events.items() if tag not in ("train/seconds_per_iteration", "train/memory_GB")
    }


@pytest.fixture(scope="module")
def quick_network(tmp_path_factory):
    """Options of a network that is quick and small, with noise and running statistics, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "quick_network.py").write_text(NETWORK)
    options = {"MODEL.NAME": "quick_network:build", "MODEL.FREEZE_BN": False, "resume": str(folder / "quick.pth")}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        config = cfg.clone()
        config.MODEL.NAME = options["MODEL.NAME"]
        torch.manual_seed(0)
        save_checkpoint(build_model(config), options["resume"], 20000)
        yield options
    sys.modules.pop("quick_network", None)


@pytest.fixture
def begin(cityscapes_root, write_config, quick_network):
    """begin(out, **overrides): the arguments of a tiny adaptation without evaluation that writes to that folder."""

    def arguments(out="out", **overrides):
        config = write_config(cityscapes_root, **quick_network | ADAPTATION | overrides)
        return ["-cfg", str(config), "--skip-test", "OUTPUT_DIR", str(cityscapes_root / out)]

    return arguments


def at_iteration(monkeypatch, iteration, action, trainer=Trainer):
    """Call `action` once, where the step of that iteration begins."""
    step, done = trainer.train_step, []

    def watched(self, batch):
        if self.iteration == iteration and not done:
            done.append(True)
            action()
        return step(self, batch)

    monkeypatch.setattr(trainer, "train_step", watched)


def run_killed(argv, iteration, program=adapt, trainer=Trainer):
    """Run a program that is killed where the step of that iteration begins."""

    def kill():
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        at_iteration(patch, iteration, kill, trainer)
        with pytest.raises(Killed):
            program(argv)


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_by_resume_auto(cityscapes_root, tiny_checkpoint, write_config, capsys):
    """With frozen batch norm, and the evaluation of every checkpoint."""
    config = str(write_config(cityscapes_root, **ADAPTATION))
    out = cityscapes_root / "out"
    assert adapt(["-cfg", config, "OUTPUT_DIR", str(cityscapes_root / "straight")]) == 0
    argv = ["-cfg", config]
    run_killed(argv, 5)
    config = (out / "config.yaml").read_bytes()
    capsys.readouterr()
    assert adapt([*argv, "resume", "auto"]) == 0
    log = capsys.readouterr()
    assert log.err == ""
    assert f"going on in {out} from {out}/state/iter000003.pth" in log.out
    assert same_runs(cityscapes_root / "straight", out)
    assert (out / "config.yaml").read_bytes() == config  # which names the source model still
    assert load_config(out / "config.yaml").resume == str(tiny_checkpoint)
    # and once more: nothing is left to do
    assert adapt([*argv, "resume", "auto"]) == 0
    assert "all 7 iterations are done" in capsys.readouterr().out
    assert same_runs(cityscapes_root / "straight", out)


def test_a_source_training_goes_on_in_a_folder_that_resume_names(
    tmp_path, make_gta5, write_config, quick_network, monkeypatch, capsys
):
    make_gta5(tmp_path, 4)
    options = quick_network | {"INPUT.SOURCE_INPUT_SIZE_TRAIN": (48, 24), "DATASETS.TEST": ""}
    options |= {"SOLVER.STOP_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 2}
    argv = ["-cfg", str(write_config(tmp_path, OUTPUT_DIR="", **options))]
    monkeypatch.chdir(tmp_path)
    assert train([*argv, "OUTPUT_DIR", "straight"]) == 0
    run_killed([*argv, "OUTPUT_DIR", "out"], 3, train, SourceTrainer)
    assert train([*argv, "resume", "out"]) == 0
    assert not Path("results").exists()
    assert same_runs(tmp_path / "straight", tmp_path / "out")
    capsys.readouterr()
    assert adapt([*argv, "DATASETS.TARGET_TRAIN", "folder:gta5/images", "resume", "out"]) == 1
    assert "train_src.py, not of train_TCR_DTU.py" in capsys.readouterr().err


def test_one_command_starts_a_run_and_goes_on_with_it(begin, cityscapes_root, quick_network, capsys):
    """Killed before its first state, it begins anew, without a trace of what was; after that, it goes on."""
    argv = [*begin(**QUICK), "resume", f"auto:{quick_network['resume']}"]
    leftover = cityscapes_root / "out/.model_iter000001.pth.77.tmp"
    for iteration in (0, 2):
        run_killed(argv, iteration)
        assert not leftover.exists()
        leftover.write_text("half a checkpoint")
        if iteration == 0:
            (cityscapes_root / "out/dtu_history.csv").write_text("iteration,decision\r\n1,forced\r\n")
    capsys.readouterr()
    assert adapt(argv) == 0
    assert not leftover.exists()
    assert [row["iteration"] for row in rows_of(cityscapes_root / "out/dtu_history.csv")] == ["3"]
    assert "from " + str(cityscapes_root / "out/state/iter000002.pth") in capsys.readouterr().out
    assert load_config(cityscapes_root / "out/config.yaml").resume == quick_network["resume"]


def test_resume_of_a_file_starts_at_0_from_its_weights(begin, cityscapes_root, capsys):
    assert adapt(begin("first", **QUICK)) == 0
    last = cityscapes_root / "first/model_iter000003.pth"
    assert adapt([*begin("second", **QUICK), "resume", str(last)]) == 0
    assert load_config(cityscapes_root / "second/config.yaml").resume == str(last)
    assert (cityscapes_root / "second/model_iter000001.pth").exists()


@pytest.fixture
def begun(begin, cityscapes_root, capsys):
    """The arguments of a short run that is complete."""
    argv = begin(**QUICK)
    assert adapt(argv) == 0
    capsys.readouterr()
    return argv


def test_another_config_is_refused_and_names_the_option(begun, cityscapes_root, capsys):
    out = cityscapes_root / "out"
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    for key, value in (
        ("SOLVER.BASE_LR", "3e-4"),
        ("SEED", "2"),
        ("TCR.MIX_CLASSES", "[pole]"),
        ("DTU.Query_START", "5"),
        ("SOLVER.STOP_ITER", "2"),
        ("DATASETS.TARGET_TRAIN", "cityscapes_val"),
    ):
        assert adapt([*begun, "resume", "auto", key, value]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {key} is "), line
    assert adapt([*begun, "resume", str(out), "OUTPUT_DIR", str(cityscapes_root / "other")]) == 1
    assert "leave OUTPUT_DIR out" in capsys.readouterr().err
    assert adapt([*begun, "--check", "resume", "auto"]) == 1
    assert "--check tries a run from its start" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


def test_other_images_are_told_and_the_old_ones_can_be_gone_on_with(begun, cityscapes_root, capsys):
    out = cityscapes_root / "out"
    names = (out / "images.txt").read_text().splitlines()
    (first,) = (cityscapes_root / "cityscapes/leftImg8bit/train").glob(f"**/{names[0].rpartition('/')[2]}")
    more, aside = first.with_name(f"new{first.name}"), cityscapes_root / "aside.png"
    longer = [*begun, "resume", "auto", "SOLVER.STOP_ITER", "4"]
    shutil.copy(first, more)
    first.rename(aside)
    assert adapt(longer) == 1
    error = capsys.readouterr().err
    new = names[0].replace(first.name, more.name)
    told = f"does not hold the images of the run to go on with: 1 missing ({names[0]}), 1 new ({new}); bring"
    assert told in error
    assert error.count("\n") == 1
    aside.rename(first)
    assert adapt(longer) == 1
    listed = f"DATASETS.TARGET_LIST {out / 'images.txt'}"
    error = capsys.readouterr().err
    assert f"1 new ({new}); take the new ones out, or go on with the old ones alone by {listed}\n" in error
    assert adapt([*longer, *listed.split()]) == 0
    listed_names = shutil.copy(out / "images.txt", cityscapes_root / "names.txt")
    (out / "images.txt").unlink()  # a run of an earlier version
    assert adapt([*begun, "resume", "auto", "SOLVER.STOP_ITER", "4"]) == 1
    assert "to go on with: bring them back" in capsys.readouterr().err
    assert adapt([*longer, "DATASETS.TARGET_LIST", str(listed_names)]) == 0
    assert (out / "images.txt").read_text().splitlines() == names  # it has them now


def test_a_run_does_not_go_on_at_rate_0(begin, cityscapes_root, capsys):
    argv, out = begin(**QUICK | {"SOLVER.MAX_ITER": 3}), cityscapes_root / "out"
    told = (
        "error: SOLVER.STOP_ITER 6 lies beyond SOLVER.MAX_ITER 3, at which the learning rate reaches 0: from there on "
        "nothing would be learned; give SOLVER.MAX_ITER 6, too\n"
    )
    for words in ([], ["--check"]):
        assert adapt([*argv, *words, "SOLVER.STOP_ITER", "6"]) == 1
        assert capsys.readouterr().err == told
        assert not out.exists()
    assert adapt(argv) == 0
    capsys.readouterr()
    assert adapt([*argv, "resume", "auto", "SOLVER.STOP_ITER", "6"]) == 1
    assert capsys.readouterr().err == told
    assert adapt([*argv, "resume", "auto", "SOLVER.STOP_ITER", "6", "SOLVER.MAX_ITER", "8"]) == 0
    grown = "SOLVER.MAX_ITER grows from 3 to 8: the learning rate follows the longer curve from here on"
    assert grown in capsys.readouterr().out
    assert grown in (out / "log.txt").read_text()
    last = float(rows_of(out / "metrics.csv")[-1]["lr"])
    assert last == pytest.approx(load_config(out / "config.yaml").SOLVER.BASE_LR * (1 - 5 / 8) ** 0.9)
    assert not same_weights(out / "model_iter000003.pth", out / "model_iter000006.pth")


def test_what_does_not_change_the_result_may_differ(begun, cityscapes_root):
    moved = cityscapes_root / "moved"
    moved.mkdir()
    (cityscapes_root / "cityscapes").rename(moved / "cityscapes")
    options = ["DATASETS.ROOT", str(moved), "DATALOADER.NUM_WORKERS", "1", "SOLVER.STOP_ITER", "4"]
    options += ["SOLVER.KEEP_STATES", "1", "SOLVER.MAX_BAD_STEPS", "3", "SOLVER.CHECKPOINT_PERIOD", "2"]
    assert adapt([*begun, "resume", "auto", *options]) == 0
    out = cityscapes_root / "out"
    assert (out / "model_iter000004.pth").exists()
    assert [path.name for path in (out / "state").iterdir()] == ["iter000004.pth"]
    assert load_config(out / "config.yaml").SOLVER.STOP_ITER == 4


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_stops_with_its_code_and_a_command_that_goes_on(begin, cityscapes_root, monkeypatch, capsys, number):
    argv = begin(**QUICK)
    handlers = [signal.getsignal(n) for n in signals.SIGNALS]
    with monkeypatch.context() as patch:
        at_iteration(patch, 1, lambda: os.kill(os.getpid(), number))
        assert adapt(argv) == 128 + number
    assert [signal.getsignal(n) for n in signals.SIGNALS] == handlers
    (line,) = capsys.readouterr().err.splitlines()
    out = cityscapes_root / "out"
    assert (out / "log.txt").read_text().splitlines()[-1].endswith(line)  # where the terminal has gone
    said, _, command = line.partition("; go on with: python train_TCR_DTU.py ")
    assert said == f"stopped by {number.name} after iteration 2, state saved as {out}/state/iter000002.pth"
    assert command == " ".join([*argv, "resume", "auto"])
    assert adapt(command.split()) == 0
    assert (out / "model_iter000003.pth").exists()


def test_a_signal_before_training_leaves_the_folder_free(begin, cityscapes_root, monkeypatch, capsys):
    monkeypatch.setattr("core.runs.loop.load_model", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert adapt(begin(**QUICK)) == 143
    assert "nothing was trained yet" in capsys.readouterr().err
    assert not (cityscapes_root / "out").exists()


def test_a_second_ctrl_c_stops_at_once(begin, cityscapes_root, monkeypatch, capsys):
    def press_twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    at_iteration(monkeypatch, 1, press_twice)
    assert adapt(begin(**QUICK)) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (cityscapes_root / "out/state/iter000002.pth").exists()


def test_main_works_outside_the_main_thread(begin, cityscapes_root):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(adapt(begin(**QUICK))))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-cfg", "a.yaml"], ["-cfg", "a.yaml", "resume", "auto"]),
        (["resume", "a.pth", "-cfg", "a.yaml"], ["resume", "auto", "-cfg", "a.yaml"]),
        (["resume", "auto:a.pth", "SEED", "3"], ["resume", "auto:a.pth", "SEED", "3"]),
        (["resume", "auto"], ["resume", "auto"]),
        (["resume", "core"], ["resume", "core"]),  # a folder
    ],
)
def test_the_command_that_goes_on(argv, expected, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert going_on(argv) == expected


def start(argv, **options):
    command = [sys.executable, "train_TCR_DTU.py", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=PROJECT, start_new_session=True, **pipes, **options)


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_real_process_with_workers_is_signalled_killed_and_goes_on(begin, cityscapes_root, capsys):
    """Ctrl-C goes to the whole group, workers included, and so do a cluster's signals; then kill -9 to the main one.

    The former needs workers of the process's own; a process that is killed may share what they are forked from.
    """
    workers = {"DATALOADER.NUM_WORKERS": 2, "SOLVER.STOP_ITER": 24, "SOLVER.CHECKPOINT_PERIOD": 4}
    workers |= {"TCR.UPDATE_FREQUENCY": 9}
    assert adapt([*begin("straight", **workers), "DATALOADER.NUM_WORKERS", "0"]) == 0
    argv, out = begin(**workers), cityscapes_root / "out"
    process = start(argv)
    wait_for(lambda: (out / "state/iter000004.pth").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.count("\n") == 1, error
    (line,) = error.splitlines()
    assert line.startswith("stopped by SIGINT after iteration ")
    job = Forked(1, "train_TCR_DTU", [*argv, "resume", "auto"], cityscapes_root / "job.log", nothing, {})
    job.wait_until((out / "state/iter000012.pth").exists)
    os.kill(job.pid(0), signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL  # in time
    assert adapt([*argv, "resume", "auto"]) == 0
    assert same_runs(cityscapes_root / "straight", out)


@pytest.mark.long
@pytest.mark.parametrize("moment", range(6))
def test_forty_iterations_killed_at_any_moment(begin, cityscapes_root, moment):
    options = {"SOLVER.STOP_ITER": 40, "SOLVER.CHECKPOINT_PERIOD": 7, "TCR.UPDATE_FREQUENCY": 15}
    options |= {"DTU.Query_START": 9, "DTU.Query_STEP": 3, "DTU.META_MAX_UPDATE": 30, "DATALOADER.NUM_WORKERS": 1}
    assert adapt(begin("straight", **options)) == 0
    argv, out = begin(**options), cityscapes_root / "out"
    process = start(argv)
    wait_for(lambda: (out / f"state/iter{(7, 7, 14, 14, 21, 28)[moment]:06d}.pth").exists(), process)
    time.sleep(0.04 * moment)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL  # in time
    assert adapt([*argv, "resume", "auto"]) == 0
    assert same_runs(cityscapes_root / "straight", out)


# --- one folder, one run; a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("iteration", [0, 2])  # before there is a state, and after
def test_a_folder_in_use_is_refused_by_the_name_of_its_holder(begin, cityscapes_root, monkeypatch, capsys, iteration):
    argv, codes = begin(**QUICK), []

    def attempts():
        codes.extend(adapt(words) for words in (argv, [*argv, "resume", "auto"]))

    at_iteration(monkeypatch, iteration, attempts)
    assert adapt(argv) == 0
    assert codes == [1, 1]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert f"in use by process {os.getpid()} on {os.uname().nodename} since " in line
    assert not (cityscapes_root / "out/run.lock").exists()


def before_writing(look):
    """os.replace and os.write, by name, that first `look` at the path which is about to change."""
    replace, write = os.replace, os.write

    def replaced(source, target):
        look(target)
        replace(source, target)

    def written(handle, data):
        look(os.readlink(f"/proc/self/fd/{handle}"))
        return write(handle, data)

    return {"replace": replaced, "write": written}


FILES = ("model_iter000002.pth", "iter000002.pth", "metrics.csv", "dtu_history.csv")


@pytest.mark.parametrize(
    ("call", "name"), [*(("replace", name) for name in FILES), *(("write", name) for name in FILES[2:])]
)
def test_a_full_disk_is_one_line_and_the_last_state_goes_on(begin, cityscapes_root, monkeypatch, capsys, call, name):
    """Where a file takes its place, and of a table where a row is written."""
    options = QUICK | {"DTU.Query_START": 2, "DTU.Query_STEP": 9}
    assert adapt(begin("straight", **options)) == 0
    argv, seen = begin(**options), []

    def no_room(path):
        if Path(path).name == name:
            seen.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, before_writing(no_room)[call])
        capsys.readouterr()
        assert adapt(argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {seen[0]} cannot be written (No space left on device)")
    assert not list((cityscapes_root / "out").rglob("*.tmp"))
    assert adapt([*argv, "resume", "auto"]) == 0
    assert same_runs(cityscapes_root / "straight", cityscapes_root / "out")


@pytest.mark.parametrize(
    ("name", "told_of"), [("events.out.tfevents", "out/tensorboard"), ("iter000002.png", "panels/iter000002.png")]
)
def test_a_disk_too_full_to_watch_is_one_line_and_the_run_goes_on(
    begin, cityscapes_root, monkeypatch, capsys, name, told_of
):
    assert adapt(begin("straight", **ADAPTATION)) == 0

    def no_room(path):
        if Path(path).name.startswith(name) and Path(path).parent.name in ("tensorboard", "panels"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, *args, **options):
        no_room(str(path))
        return open(path, *args, **options)

    monkeypatch.setattr(os, "replace", before_writing(no_room)["replace"])
    monkeypatch.setattr(io, "open", opened)  # which TensorBoard's writer calls
    capsys.readouterr()
    assert adapt(begin(**ADAPTATION)) == 0
    told = capsys.readouterr()
    assert told.err == ""
    (line,) = [line for line in told.out.splitlines() if "No space left" in line]
    assert "no more of TensorBoard and panels in this run, which goes on: " in line
    assert told_of in line
    out = cityscapes_root / "out"
    assert not list((out / "panels").glob("iter00000[4-9].png"))
    assert same_weights(cityscapes_root / "straight/model_iter000007.pth", out / "model_iter000007.pth")
