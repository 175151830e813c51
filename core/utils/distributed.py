"""The processes of one job, as torchrun starts them: who this one is, and what they tell each other.

Started without torchrun, a program is a job of one process, for which everything here does nothing or the obvious.
Every function that exchanges something is called by all processes, in the same order.
"""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from core.utils import signals
from core.utils.errors import UserError

TIMEOUT = "DTST_TIMEOUT"  # environment variable: seconds that a process waits for the others
_DEFAULT_TIMEOUT = 900
_HEED_PERIOD = 1.0  # seconds between two looks at whether another process was asked to stop
_LAST_WORDS = 5.0  # seconds in which a process that failed says why
_STOP, _ERRORS = "dtst/stop", "dtst/errors"  # keys of the job's store

Value = TypeVar("Value")


def rank() -> int:
    """The number of this process in the job, from 0."""
    return dist.get_rank() if _joined() else 0


def count() -> int:
    """How many processes the job has."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this is process 0, which alone logs and writes."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _joined() else 0


def planned_count() -> int:
    """How many processes the environment says that the job has, joined or not."""
    try:
        return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    except ValueError:
        raise UserError(f"environment variable WORLD_SIZE is {os.environ['WORLD_SIZE']!r}, not a number") from None


def launcher() -> tuple[str, ...]:
    """What has Python start a program as this one was started: the first words of a command."""
    if count() == 1:
        return ("python",)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    machines = ("--nnodes", str(count() // here), "...") if count() > here else ()
    return ("torchrun", "--nproc-per-node", str(here), *machines)


def join() -> None:
    """Join the job that the environment describes, if there is one.

    NCCL carries what lies on CUDA devices, gloo what lies on the host.

    Raises:
        UserError: the other processes cannot be reached.
    """
    if planned_count() == 1 or _joined():
        return
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    seconds = _timeout()
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=timedelta(seconds=seconds))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the other processes of the job cannot be reached ({reason}); start it by torchrun") from None


def leave() -> None:
    """Leave the job once all processes are done; not after an error: the others may be in the middle of something."""
    if _joined():
        barrier()
        dist.destroy_process_group()


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, str(_DEFAULT_TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise UserError(f"environment variable {TIMEOUT} is {text!r}: give seconds, as 900")
    return seconds


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


# exchange


def barrier() -> None:
    """Wait until all processes are here."""
    total(torch.zeros(()))


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' tensors of one shape and device, in place."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def total_array(array: np.ndarray) -> np.ndarray:
    """:func:`total` of an array."""
    return total(torch.from_numpy(array)).numpy()


def agreed(tensor: torch.Tensor) -> torch.Tensor:
    """Process 0's tensor, in place: what all have computed from the same numbers, but perhaps on unlike devices."""
    if count() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gathered(value: Value) -> list[Value]:
    """The processes' values, in their order, in every process."""
    if count() == 1:
        return [value]
    values: list = [None] * count()
    dist.all_gather_object(values, value)
    return values


def joined(items: list[Value]) -> list[Value]:
    """The processes' lists, one after the other, in every process."""
    return [item for part in gathered(items) for item in part]


def from_main(make: Callable[[], Value]) -> Value:
    """What process 0 makes, in every process; an error of it ends the job."""
    if count() == 1:
        return make()
    values = [make() if is_main() else None]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def check_alike(value: Value, what: str) -> None:
    """Raise UserError, in every process, unless all have the same value of `what`, which is plural."""
    if len(set(gathered(value))) > 1:
        raise UserError(f"{what} are not the same in all processes: every machine needs the same files")


def share(length: int, multiple: int = 1) -> range:
    """The part of range(length) that falls to this process; parts begin at a `multiple` and are of about one length."""
    blocks = -(-length // multiple)
    first, stop = (blocks * n // count() * multiple for n in (rank(), rank() + 1))
    return range(min(first, length), min(stop, length))


class _GlobalRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        every = rows.new_zeros(count(), *rows.shape)
        every[rank()] = rows
        return total(every).flatten(0, 1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return total(gradient.contiguous().clone()).unflatten(0, (count(), -1))[rank()]


def global_rows(rows: torch.Tensor) -> torch.Tensor:
    """The processes' rows (b×… floats, of one shape), one after the other; gradients come back from all of them."""
    return rows if count() == 1 else _GlobalRows.apply(rows)


# networks


def parallel(model: nn.Module, idle: bool = False) -> nn.Module:
    """The model in the form that a training step calls: its gradients become the mean over the processes.

    Args:
        idle: some of its parameters have no part in its output; each step then looks for them.
    """
    if count() == 1:
        return model
    device = next(model.parameters()).device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)  # its successor is not in torch 2.4
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # they are equal: fixed, or moved by statistics of all processes
            gradient_as_bucket_view=True,
            find_unused_parameters=idle,
        )


def accumulating(model: nn.Module, last: bool) -> AbstractContextManager:
    """Context of the forward and backward of a part of a step: gradients are exchanged with the `last` part's."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def synchronised_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with batch norms that take their statistics from all processes.

    Raises:
        UserError: on the CPU, for which torch has none.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if count() == 1 or not norms:
        return model
    if device.type != "cuda":
        raise UserError(
            f"MODEL.FREEZE_BN False with {count()} processes needs CUDA, as batch norm across processes does: "
            "set it to True, or start one process"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


# stopping


def stop_together(number: int | None = None) -> None:
    """Raise :class:`signals.Stopped` in every process if any was asked to stop.

    Args:
        number: the signal that this process already stopped for; None: what it has received.
    """
    if count() == 1:
        return
    asked = torch.tensor([signals.received() if number is None else number])
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    if int(asked):
        raise signals.Stopped(signal.Signals(int(asked)))


@contextmanager
def own_part() -> Iterator[None]:
    """Work that every process does by itself; a signal ends it within seconds, and then all processes stop."""
    if count() == 1:
        yield
        return
    number = 0
    try:
        with signals.interruptible():
            yield
    except signals.Stopped as stopped:
        number = int(stopped.number)
        _store().set(_STOP, str(number))
    stop_together(number)


def heeding(items: Iterable[Value]) -> Iterator[Value]:
    """`items`, until another process was asked to stop: for the loops of an :func:`own_part`."""
    looked = time.monotonic()
    for item in items:
        yield item
        if count() > 1 and time.monotonic() - looked > _HEED_PERIOD:
            looked = time.monotonic()
            if _store().check([_STOP]):
                raise signals.Stopped(signal.Signals(int(_store().get(_STOP))))


# failing


def claim_error() -> bool:
    """Whether this process is the first of the job that fails: it says why, the others are silent.

    Before they have met, the first process of each machine says so.
    """
    if not _joined():
        if "RANK" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0":
            return True
        time.sleep(_LAST_WORDS)  # to leave first would have torchrun end the one that speaks
        return False
    try:
        return _store().add(_ERRORS, 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return True


def error_claimed() -> bool:
    """Whether some process of the job has failed."""
    try:
        return count() > 1 and _store().check([_ERRORS])
    except RuntimeError:
        return True


def lost_contact(error: BaseException) -> bool:
    """Whether `error` is about another process of the job that has gone, or does not answer."""
    if count() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))


def claim_lost_contact() -> bool:
    """:func:`claim_error` of a process that lost contact: whoever is the reason may speak first."""
    end = time.monotonic() + _LAST_WORDS
    while time.monotonic() < end:
        if error_claimed():
            return False
        time.sleep(0.1)
    return claim_error()


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
