"""The one place that knows about devices: choice, precision, memory, copies to the host."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import torch

from core.utils import distributed
from core.utils.errors import UserError


def choose_device(wanted: str) -> torch.device:
    """The device of MODEL.DEVICE: `auto`, or any name torch knows; of several processes on a machine each has its GPU.

    Raises:
        UserError: the name is unknown or the device is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.count() > 1 and wanted.startswith("cuda"):
        if wanted != "cuda":
            raise UserError(f"MODEL.DEVICE is {wanted!r}, but of several processes each has its own: give auto or cuda")
        wanted = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"MODEL.DEVICE {wanted!r} is not a device; use auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"MODEL.DEVICE {wanted!r} is not supported; use auto, cpu, cuda or cuda:0")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"MODEL.DEVICE {wanted} is not available here ({reason}); use auto or cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams, events and page-locked memory of this process belong to it
    return device


def describe_device(device: torch.device, wanted: str) -> str:
    """One line for the log."""
    several = f" in each of {distributed.count()} processes" if distributed.count() > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}){several}"
    note = ", because there is no CUDA device" if wanted == "auto" else ""
    return f"{device.type} ({torch.get_num_threads()} threads{note}){several}"


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """Mixed precision as SOLVER.AMP says: `off`, `bf16` or `fp16`."""
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


def copy_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start a copy to the CPU; the function returned waits for it, so that a later reader never stalls the queue."""
    if tensor.device.type == "cpu":
        copy = tensor.detach().clone()
        return lambda: copy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor.detach(), non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        event.synchronize()
        return copy

    return wait


def peak_memory(device: torch.device) -> int:
    """Largest memory in bytes that torch held on the device; on the CPU that the process held."""
    if device.type == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return torch.cuda.max_memory_allocated(device)


def reset_peak_memory(device: torch.device) -> None:
    """Have :func:`recent_peak_memory` begin anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # of another system, where the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def recent_peak_memory(device: torch.device) -> tuple[int, int]:
    """(bytes held now, most since :func:`reset_peak_memory`) by torch on the device, or on the CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return tuple(int(fields[key].split()[0]) << 10 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        return peak_memory(device), peak_memory(device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for it, through page-locked memory where that matters."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def band_bytes(device: torch.device) -> int:
    """How much of a large map to work on at a time: what stays in a core's cache, or fills a GPU."""
    return 1 << 20 if device.type == "cpu" else 1 << 26


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread, so that sums do not depend on how many there are."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
