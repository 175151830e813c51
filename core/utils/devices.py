"""The one place that knows about devices: choice, precision, memory, copies to the host."""

import os
import re
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from core.utils import distributed
from core.utils.errors import UserError

_HAS_BF16_AND_TF32 = (8, 0)  # compute capability
_OUT_OF_MEMORY = re.compile("out of memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED")


def prepare_device(config) -> torch.device:
    """The device of MODEL.DEVICE, set up as SOLVER says: what a program that has a config begins with.

    Raises:
        UserError: the name is unknown, the device is not there, or it lacks the precision that SOLVER.AMP asks for.
    """
    device = choose_device(config.MODEL.DEVICE)
    configure_backends(device, config.SOLVER)
    return device


def choose_device(wanted: str) -> torch.device:
    """The device of MODEL.DEVICE: `auto`, or any name torch knows; of several processes on a machine each has its GPU.

    A CUDA device comes back with its index, and is the process's current one.

    Raises:
        UserError: the name is unknown or the device is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if _cuda_is_available() else "cpu"
    if distributed.count() > 1 and wanted.startswith("cuda"):
        if wanted != "cuda":
            raise UserError(f"MODEL.DEVICE is {wanted!r}, but of several processes each has its own: give auto or cuda")
        wanted = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"MODEL.DEVICE {wanted!r} is not a device; use auto, cpu, cuda or cuda:0") from None
    if device.type == "mps":  # a Mac's GPU, never `auto`: nothing here was tried on one
        _check_mps(wanted)
    elif device.type not in ("cpu", "cuda"):
        raise UserError(f"MODEL.DEVICE {wanted!r} is not supported; use auto, cpu, cuda or cuda:0")
    try:
        if device.type == "cuda":
            if device.index is None:
                device = torch.device("cuda", torch.cuda.current_device())
            torch.cuda.set_device(device)  # streams, events and page-locked memory of this process belong to it
        torch.empty(1, device=device)
    except torch.cuda.OutOfMemoryError:
        raise  # it is there, but full
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"MODEL.DEVICE {wanted} is not available here ({reason}); use auto or cpu") from None
    return device


def _check_mps(wanted: str) -> None:
    if not torch.backends.mps.is_available():
        raise UserError(f"MODEL.DEVICE {wanted} is not available here (torch finds no GPU of a Mac); use auto or cpu")
    if distributed.count() > 1:
        raise UserError(f"MODEL.DEVICE is {wanted!r}, which one process can use alone: give cpu")


def configure_backends(device: torch.device, solver) -> None:
    """Have torch compute on a GPU as SOLVER.TF32, DETERMINISTIC and CUDNN_BENCHMARK say; the CPU knows none of them.

    Nor does what decides labels (softmax, confidence, thresholds, scores): it is elementwise, in float32.

    Args:
        solver: the config node SOLVER.
    Raises:
        UserError: SOLVER.AMP asks for what the device lacks: bfloat16, or on a Mac's GPU any mixed precision.
    """
    if device.type == "mps" and solver.AMP != "off":
        raise UserError(f"SOLVER.AMP {solver.AMP}: not on MODEL.DEVICE mps; use off")
    on_gpu = device.type == "cuda"
    if on_gpu and solver.AMP == "bf16" and torch.cuda.get_device_capability(device) < _HAS_BF16_AND_TF32:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"SOLVER.AMP bf16: {device} ({name}) has no bfloat16 arithmetic; use fp16 or off")
    deterministic = on_gpu and solver.DETERMINISTIC
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a help to find bugs, which takes its time
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = on_gpu and solver.CUDNN_BENCHMARK and not deterministic
    torch.backends.cudnn.allow_tf32 = solver.TF32
    if not solver.TF32:
        torch.backends.cuda.matmul.allow_tf32 = False


def describe_device(device: torch.device, wanted: str) -> str:
    """One line for the log."""
    several = f" in each of {distributed.count()} processes" if distributed.count() > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}){several}"
    note = f", because {_why_no_cuda()}" if wanted == "auto" else ""
    return f"{device.type} ({torch.get_num_threads()} threads{note}){several}"


def describe_precision(device: torch.device, solver) -> str:
    """What networks are really computed in, for the log (`solver`: the config node SOLVER)."""
    if solver.AMP != "off":
        return {"bf16": "bfloat16 autocast", "fp16": "float16 autocast"}[solver.AMP]
    rounded = solver.TF32 and device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HAS_BF16_AND_TF32
    return "float32, but TF32 in convolutions (SOLVER.TF32)" if rounded else "float32"


def _cuda_is_available() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several lines; _why_no_cuda says it in one
        return torch.cuda.is_available()


def _why_no_cuda() -> str:
    """Why `auto` fell to the CPU: also where the reason is not the want of a card."""
    if not (any(Path("/dev").glob("nvidia[0-9]*")) or Path("/proc/driver/nvidia/version").exists()):
        return "there is no CUDA device"
    if torch.version.cuda is None:
        return "this torch is a build for the CPU, although there is an NVIDIA card: install a CUDA build of torch"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides the NVIDIA card"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
    else:
        reason = "no device is offered"
    return f"the NVIDIA card cannot be used by torch for CUDA {torch.version.cuda} ({reason}): mend the driver"


@contextmanager
def device_errors(config, training: bool, domain: str = "") -> Iterator[None]:
    """Have what the device cannot do end in one line: memory that runs out, an operator that is not deterministic.

    Args:
        training: it is a run that trains; False: one that predicts.
        domain: of a run's images, `source` or `target`; empty: as the config shows it.
    Raises:
        UserError: in the place of torch's own error; at once where it trains and the device cannot.
    """
    on_mps = config.MODEL.DEVICE.startswith("mps")
    if on_mps and training:
        raise UserError("MODEL.DEVICE mps: training sums in float64, which it lacks; use cpu (mps is for predictions)")
    try:
        yield
    except (RuntimeError, TypeError) as error:  # torch.OutOfMemoryError is one; cuDNN and the driver have messages only
        if "deterministic" in str(error) and config.SOLVER.DETERMINISTIC:
            reason = str(error).split(". ")[0]
            raise UserError(f"SOLVER.DETERMINISTIC: {reason}; set it False, or use another network") from None
        if not isinstance(error, torch.cuda.OutOfMemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            if on_mps and "MPS" in str(error):  # an operator or a type that torch does not have there
                reason = str(error).split("\n")[0].split(". ")[0]
                raise UserError(f"MODEL.DEVICE mps cannot do this ({reason}); use cpu") from None
            raise
        raise UserError(f"{_memory_held()}; {_what_takes_less(config, training, domain)}") from None


def _memory_held() -> str:
    try:
        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.memory_reserved()
    except (RuntimeError, AssertionError):
        return "the device ran out of memory"
    others = max(total - free - own, 0)
    held = f"of {total / 1e9:.1f} GB this run holds {own / 1e9:.1f}, others {others / 1e9:.1f}"
    return f"cuda:{torch.cuda.current_device()} ran out of memory: {held}"


def _what_takes_less(config, training: bool, domain: str) -> str:
    solver = config.SOLVER
    full = "×".join(map(str, config.INPUT.INPUT_SIZE_TEST))
    if not training:
        window = config.TEST.WINDOW
        seen = f"TEST.WINDOW {'×'.join(map(str, window))}" if window else f"INPUT.INPUT_SIZE_TEST {full}"
        return (
            f"TEST.BATCH_SIZE is {config.TEST.BATCH_SIZE}, {seen}, SOLVER.AMP {solver.AMP}: "
            f"a smaller batch or size{' or SOLVER.AMP bf16' if solver.AMP == 'off' else ''} takes less"
        )
    domain = domain or ("target" if config.DATASETS.TARGET_TRAIN else "source")
    key = f"{domain.upper()}_INPUT_SIZE_TRAIN"
    crop = "×".join(map(str, config.INPUT[key]))
    half = ", set SOLVER.AMP bf16 (now off)" if solver.AMP == "off" else f" (SOLVER.AMP is {solver.AMP})"
    return (
        f"raise SOLVER.ACCUMULATE (now {solver.ACCUMULATE}, of SOLVER.BATCH_SIZE {solver.BATCH_SIZE}){half}, or lower "
        f"INPUT.INPUT_SIZE_TEST {full} and INPUT.{key} {crop}; a saved state is whole: `resume auto` goes on from it"
    )


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """Mixed precision as SOLVER.AMP says: `off`, `bf16` or `fp16`."""
    if device.type == "mps":  # before torch 2.5 it knows none there
        return nullcontext()
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=amp != "off")


def copy_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Start a copy to the CPU; the function returned waits for it, so that a later reader never stalls the queue."""
    if tensor.device.type != "cuda":
        copy = tensor.detach().to("cpu", copy=True)
        return lambda: copy
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor.detach(), non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))

    def wait() -> torch.Tensor:
        with torch.cuda.device(tensor.device):  # another thread's would be the first one
            event.synchronize()
        return copy

    return wait


def peak_memory(device: torch.device) -> int:
    """Largest memory in bytes that torch held on the device; on the CPU, and a Mac, that the process held."""
    if device.type != "cuda":
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
    return tensor.to(device, non_blocking=device.type == "cuda")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one CPU thread, so that sums do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
