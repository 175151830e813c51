"""Errors of NCCL that torch raises end in one line, as those of gloo do."""

import argparse

import pytest
import torch.distributed as dist

from core.programs.frame import run_program
from core.utils import distributed


@pytest.fixture
def of_two(monkeypatch):
    """As if this were one of two processes, neither of which has said why it ends."""
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "error_claimed", lambda: False)
    monkeypatch.setattr(distributed, "claim_error", lambda: True)
    monkeypatch.setattr(distributed, "_LAST_WORDS", 0.0)


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError(
            "NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was a network error"
        ),
        dist.DistBackendError("NCCL communicator was aborted on rank 1."),
        RuntimeError("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 900000 ms"),
    ],
    ids=["remote process gone", "aborted", "time-out"],
)
def test_an_nccl_failure_is_one_line(of_two, capsys, error):
    def body(args):
        raise error

    assert run_program(body, argparse.ArgumentParser(prog="train.py"), []) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: another process of the job has gone (killed, out of memory) or does not answer")
    assert line.endswith("[process 1 of 2]\n")
    assert line.count("\n") == 1


def test_other_errors_are_not_taken_for_it(of_two):
    def body(args):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_program(body, argparse.ArgumentParser(prog="train.py"), [])
