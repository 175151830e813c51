"""Jobs of several processes on this machine."""

import pytest

from test import main as evaluate
from tests.distributed.double_network import SECONDS
from tests.distributed.hooks import nothing
from tests.distributed.jobs import Forked, Launched
from train_src import main as train
from train_TCR_DTU import main as adapt

PROGRAMS = {"train_TCR_DTU": adapt, "train_src": train, "test": evaluate}
NETWORK = "tests.distributed.double_network:build"
OPTIONS = {
    "MODEL.NAME": NETWORK,
    "MODEL.FREEZE_BN": False,  # the network has no batch norm
    "resume": "",
    "DATASETS.TEST": "",
    "INPUT.SOURCE_INPUT_SIZE_TRAIN": [96, 48],
    "DTU.Query_START": 4,
    "DTU.Query_STEP": 2,
    "DTU.META_MAX_UPDATE": 9,
    "TCR.UPDATE_FREQUENCY": 15,
    "TCR.PASTE_LAG": 3,
    "SOLVER.BASE_LR": 1e-2,
    "SOLVER.STOP_ITER": 30,
    "SOLVER.BATCH_SIZE": 4,
    "SOLVER.CHECKPOINT_PERIOD": 30,
}


@pytest.fixture
def start(tmp_path):
    """start(processes, program, *argv, launched=False, hook=…, seconds=0, timeout="60") → Job.

    Forked unless it is to be `launched` by torchrun; a forward without gradient takes so many `seconds` at least;
    `timeout` is DTST_TIMEOUT. `hook` is called in each process of a forked job.
    """
    jobs = []

    def begin(processes, program, *argv, launched=False, hook=nothing, seconds=0, timeout="60"):
        log, argv = tmp_path / f"job{len(jobs)}.log", list(map(str, argv))
        environment = {"DTST_TIMEOUT": timeout, SECONDS: str(seconds)}
        if launched:
            jobs.append(Launched(processes, program, argv, log, environment))
        else:
            jobs.append(Forked(processes, program, argv, log, hook, environment))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.end()


@pytest.fixture
def finish(start):
    """finish(processes, program, *argv, …) → Job that has ended well."""

    def run(*args, **options):
        job = start(*args, **options)
        assert job.wait() == 0, job.text
        return job

    return run


@pytest.fixture
def alone(capfd):
    """alone(program, *argv) → what it wrote: one process, this one, to a good end."""

    def run(program, *argv):
        assert PROGRAMS[program]([*map(str, argv)]) == 0
        return capfd.readouterr().out

    return run


@pytest.fixture
def config(tmp_path, write_config):
    """config(name, **overrides) → a yaml whose runs go to tmp_path/name."""

    def write(name, **overrides):
        path = write_config(tmp_path, **{**OPTIONS, "OUTPUT_DIR": str(tmp_path / name), **overrides})
        return path.rename(tmp_path / f"{name}.yaml")

    return write
