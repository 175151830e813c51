"""Adaptation and source training on the ghost GPU by many ways, against the CPU by the same way."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from test import main as evaluate
from tests.ghost.ghosts import tables
from tests.helpers import PROJECT, SOURCE, contents, rows_of
from train_src import main as train
from train_TCR_DTU import main as adapt

pytestmark = pytest.mark.long

ADAPTATION = {"SOLVER.STOP_ITER": 4}  # passes before training and after 2 iterations; queries after 2, 3 and 4
DSU_ON = {"MODEL.UNCERTAINTY": 0.5, "MODEL.POS": (0, 1, 2, 3, 4, 5)}
PROGRAMS = {"train_TCR_DTU": adapt, "train_src": train, "test": evaluate}
# of values of bf16 (8 bits) and fp16 (11 bits) that hundreds of roundings lie behind, which CPU and GPU make elsewhere
TOLERANCE = {"bf16": 0.03, "fp16": 0.01}


@pytest.fixture(scope="module")
def root(tmp_path_factory, make_cityscapes, make_gta5):
    """DATASETS.ROOT."""
    folder = tmp_path_factory.mktemp("ghost_root")
    make_gta5(folder, 4)
    return make_cityscapes(folder, train=4, val=2)


@pytest.fixture
def case(root, tmp_path, write_config, ghost, capsys, resnet18):
    """The same run in several places: case.on_ghost(name, …), case.on_cpu(name, …), each into a folder of that name."""

    def words(name, device, program, options):
        base = SOURCE if program == "train_src" else ADAPTATION
        folder = tmp_path / name
        given = {"DATASETS.ROOT": str(root), "OUTPUT_DIR": str(folder), "MODEL.DEVICE": device}
        path = write_config(tmp_path, **resnet18 | base | options | given)
        return folder, ["-cfg", path.rename(tmp_path / f"{name}.yaml")]

    def on_ghost(name, *argv, device="cuda", program="train_TCR_DTU", options=(), code=0, **how):
        folder, config = words(name, device, program, dict(options))
        found, out, err = ghost.programs([program, *config, *argv], codes=[code], **how)
        return SimpleNamespace(folder=folder, processes=found, out=out, err=err, tables=tables(folder))

    def on_cpu(name, *argv, program="train_TCR_DTU", options=(), processes=1):
        folder, config = words(name, "cpu", program, dict(options))
        argv = [str(word) for word in (*config, *argv)]
        if processes == 1:
            assert PROGRAMS[program](argv) == 0
            assert capsys.readouterr().err == ""
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command = [sys.executable, *launcher, f"{program}.py", *argv]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        return SimpleNamespace(folder=folder, tables=tables(folder))

    return SimpleNamespace(on_ghost=on_ghost, on_cpu=on_cpu)


def numbers(folder, table):
    """The numbers of a table's rows, by column."""
    return [{key: float(value) for key, value in row.items() if value} for row in rows_of(folder / table)]


def assert_close(found, expected, table, tolerance):
    """Of two runs' rows."""
    pairs = list(zip(numbers(found.folder, table), numbers(expected.folder, table), strict=True))
    assert pairs
    for one, other in pairs:
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


# --- the same bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"DTU.PROXY_METRIC": "ENT"},
        {"DTU.DYNAMIC": False, "DTU.FIX_ITERATION": 2},
        {"SOLVER.ACCUMULATE": 2, "VIS.PERIOD": 2},
        {"DATALOADER.NUM_WORKERS": 2},
        {"DATALOADER.CACHE": "{root}"},
        {"TEST.BATCH_SIZE": 2, "INPUT.INPUT_SIZE_TEST": (96, 48)},
        {"TEST.BATCH_SIZE": 2, "TEST.WINDOW": (64, 48), "TEST.STRIDE": (40, 40)},
        {"TCR.RESAMPLE": False, "TCR.PASTE": False, "SOLVER.CLIP_GRAD": 0.1},
        {"SOLVER.TF32": False, "SOLVER.CUDNN_BENCHMARK": True},
    ],
    ids=lambda options: " ".join(options),
)
def test_adaptation_gives_the_tables_of_the_cpu(case, tmp_path, as_on_a_gpu, options):
    options = {key: str(tmp_path / "cache") if value == "{root}" else value for key, value in options.items()}
    found, expected = case.on_ghost("cuda", options=options), case.on_cpu("cpu", options=options)
    assert len(found.tables) >= 3
    assert found.tables == expected.tables


@pytest.mark.parametrize(
    "options",
    [
        DSU_ON,
        {"MODEL.FREEZE_BN": True, "SOLVER.ACCUMULATE": 2, "resume": "{tiny}"},
        {"DATALOADER.NUM_WORKERS": 2},
        {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.WARMUP": 1},
    ],
    ids=["DSU", "frozen, in parts", "workers", "AdamW"],
)
def test_source_training_gives_the_tables_of_the_cpu(case, resnet18, options):
    if "resume" in options:
        options = options | {"resume": resnet18["resume"]}
    found = case.on_ghost("cuda", program="train_src", options=options)
    expected = case.on_cpu("cpu", program="train_src", options=options)
    if options == DSU_ON:  # whose noise another generator makes
        assert_close(found, expected, "metrics.csv", 0.2)
        return
    assert set(found.tables) == {"metrics.csv", "evaluation.csv"}
    assert found.tables == expected.tables


@pytest.mark.parametrize("argv", [["--rank-without-labels"], ["--multi-scale", "--flip", "--saveres"]], ids=" ".join)
def test_checkpoints_are_judged_as_on_the_cpu(case, tmp_path, resnet18, as_on_a_gpu, argv):
    models = tmp_path / "models"
    models.mkdir()
    for number in range(2):
        shutil.copy(resnet18["resume"], models / f"model_iter{number:06d}.pth")
    found = case.on_ghost("cuda", *argv, "resume", models, program="test")
    expected = case.on_cpu("cpu", *argv, "resume", models, program="test")
    on_ghost, on_cpu = (
        {name: data for name, data in contents(run.folder).items() if name.endswith((".csv", ".png"))}
        for run in (found, expected)
    )
    assert on_ghost
    assert on_ghost == on_cpu
    places = {wait.partition(": ")[2] for wait in found.processes[0]["reports"][0]["waits"]}
    assert "selftraining/ranking.py _readings" not in places
    assert "evaluation/predictor.py _read" not in places


def test_thresholds_of_the_cpus_own_way_differ_in_last_digits(case):
    """Whereas labels, and all that follows from them, are the same."""
    found, expected = case.on_ghost("cuda"), case.on_cpu("cpu")
    del found.tables["candidates.csv"], expected.tables["candidates.csv"]
    assert found.tables == expected.tables
    assert_close(found, expected, "candidates.csv", 1e-5)


# --- the second of two devices ---------------------------------------------------------------------------------------


def test_the_second_of_two_devices_is_used_alone(case, as_on_a_gpu):
    options = {"DATALOADER.NUM_WORKERS": 2, "VIS.PERIOD": 2}
    found = case.on_ghost("cuda", device="cuda:1", options=options, devices=2)
    assert "device: cuda:1 (Ghost of an H100)" in found.out
    touched = {name.split()[1] for name in found.processes[0]["devices"]}
    assert touched == {"1"}
    assert found.tables == case.on_cpu("cpu", options=options).tables


# --- runs that go on elsewhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "continued"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")], ids=lambda device: device
)
def test_a_run_goes_on_exactly_whatever_the_device(case, as_on_a_gpu, begun, continued):
    longer = {"SOLVER.STOP_ITER": 6}
    case.on_cpu("reference")
    expected = case.on_cpu("reference", "resume", "auto", options=longer)
    run = {"cuda": case.on_ghost, "cpu": case.on_cpu}
    run[begun]("other")
    found = run[continued]("other", "resume", "auto", options=longer)
    assert len(rows_of(found.folder / "dtu_history.csv")) == 4
    assert found.tables == expected.tables


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_is_the_cpus_to_its_digits(case, amp):
    options = {"SOLVER.AMP": amp, "SOLVER.STOP_ITER": 2, "TCR.UPDATE_FREQUENCY": 2}
    if amp == "fp16":  # in which a CPU is slow
        options |= {"INPUT.INPUT_SIZE_TEST": (64, 32), "INPUT.TARGET_INPUT_SIZE_TRAIN": (64, 32)}
    found, expected = case.on_ghost("cuda", options=options), case.on_cpu("cpu", options=options)
    assert_close(found, expected, "metrics.csv", TOLERANCE[amp])
    assert_close(found, expected, "evaluation.csv", 100 * TOLERANCE[amp])
    assert [row["iteration"] for row in rows_of(found.folder / "dtu_history.csv")] == [
        row["iteration"] for row in rows_of(expected.folder / "dtu_history.csv")
    ]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_source_training_in_mixed_precision(case, amp):
    options = {"SOLVER.AMP": amp}
    found = case.on_ghost("cuda", program="train_src", options=options)
    expected = case.on_cpu("cpu", program="train_src", options=options)
    assert_close(found, expected, "metrics.csv", TOLERANCE[amp])


# --- the same bits in every run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["train_TCR_DTU", "train_src"])
def test_no_operator_lacks_a_deterministic_form(case, program):
    """torch itself refuses those that do, before it would launch them."""
    options = {"SOLVER.DETERMINISTIC": True, "VIS.PERIOD": 2}
    if program == "train_src":
        options |= {"SOLVER.CLASS_WEIGHTS": True, **DSU_ON}
    found = case.on_ghost("cuda", program=program, options=options)
    again = case.on_ghost("again", program=program, options=options)
    assert found.tables == again.tables
    if program == "train_TCR_DTU":
        assert_close(found, case.on_cpu("cpu", options=options), "metrics.csv", 1e-4)


# --- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_adapt_as_on_the_cpu(case):
    found = case.on_ghost("cuda", device="auto", processes=2, devices=2)
    expected = case.on_cpu("cpu", processes=2)
    assert "device: cuda:0 (Ghost of an H100) in each of 2 processes" in found.out
    for rank, process in enumerate(found.processes):
        launched = [name for name in process["devices"] if name.endswith("launches")]
        assert launched == [f"device {rank} launches"], process["devices"]
    del found.tables["candidates.csv"], expected.tables["candidates.csv"]
    assert found.tables == expected.tables


def test_two_processes_train_a_source_model_with_batch_norm_across_both(case):
    found = case.on_ghost("two", program="train_src", processes=2, devices=2)
    alone = case.on_ghost("one", program="train_src")
    assert_close(found, alone, "metrics.csv", 1e-4)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["train_TCR_DTU", "train_src"])
def test_memory_that_runs_out_is_one_line(case, program):
    found = case.on_ghost("cuda", program=program, options={"SOLVER.BATCH_SIZE": 4}, code=1, GHOST_LIMIT_MB="140")
    (line,) = [line for line in found.err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: cuda:0 ran out of memory: of ")
    assert "raise SOLVER.ACCUMULATE (now 1, of SOLVER.BATCH_SIZE 4), set SOLVER.AMP bf16 (now off)" in line
