"""Devices, with a torch.cuda that is patched: neither a GPU nor a build for one is needed."""

import os
import re
from pathlib import Path

import pytest
import torch

from core.configs import cfg
from core.utils import devices, distributed
from core.utils.errors import UserError
from test import main as evaluate
from train_src import main as train
from train_TCR_DTU import main as adapt


class Cuda:
    """Takes the place of torch.cuda's functions that are about devices.

    Args:
        count: of devices.
        capability: of each.
    """

    def __init__(self, count, capability=(9, 0)):
        self.count, self.capability = count, capability
        self.current, self.set = 0, []  # what set_device was called with

    def patch(self, monkeypatch):
        for name in ("is_available", "current_device", "set_device", "get_device_capability", "get_device_name"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, device=None, **options: empty(*size, **options))
        return self

    def is_available(self):
        return self.count > 0

    def current_device(self):
        return self.current

    def set_device(self, device):
        index = device if isinstance(device, int) else torch.device(device).index
        if index is None:  # as torch says it
            raise ValueError(f"Expected a torch.device with a specified index or an integer, but got: {device}")
        if index >= self.count:
            raise RuntimeError("CUDA error: invalid device ordinal\nand more lines")
        self.current = index
        self.set.append(index)

    def get_device_capability(self, device=None):
        return self.capability

    def get_device_name(self, device=None):
        return "Patched"


@pytest.fixture
def two_gpus(monkeypatch):
    return Cuda(2).patch(monkeypatch)


@pytest.fixture
def flags(monkeypatch):
    """flags() → what SOLVER decides on, as torch has it now; everything is put back in the end."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it goes in the end, whoever sets it
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn, matmul, filling = torch.backends.cudnn, torch.backends.cuda.matmul, torch.utils.deterministic
    places = (
        (cudnn, "benchmark"),
        (cudnn, "deterministic"),
        (cudnn, "allow_tf32"),
        (matmul, "allow_tf32"),
        (filling, "fill_uninitialized_memory"),
    )
    before = [getattr(owner, name) for owner, name in places]

    def now():
        return {
            "benchmark": cudnn.benchmark,
            "deterministic": cudnn.deterministic,
            "tf32": cudnn.allow_tf32,
            "algorithms": torch.are_deterministic_algorithms_enabled(),
        }

    yield now
    for (owner, name), value in zip(places, before, strict=True):
        setattr(owner, name, value)
    torch.use_deterministic_algorithms(False)


def solver(**options):
    """The config node SOLVER."""
    config = cfg.clone()
    config.SOLVER.update(options)
    return config.SOLVER


# --- choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "current", "index"),
    [("auto", 0, 0), ("cuda", 0, 0), ("cuda:0", 0, 0), ("cuda:1", 0, 1), ("cuda", 1, 1)],  # the last: a caller's choice
)
def test_a_cuda_device_has_an_index_and_is_the_current_one(two_gpus, wanted, current, index):
    two_gpus.current = current
    assert devices.choose_device(wanted) == torch.device("cuda", index)
    assert two_gpus.set == [index]


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize("local_rank", [0, 1])
def test_of_several_processes_each_has_its_own(two_gpus, monkeypatch, wanted, local_rank):
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "local_rank", lambda: local_rank)
    assert devices.choose_device(wanted) == torch.device("cuda", local_rank)
    assert two_gpus.set == [local_rank]


@pytest.mark.parametrize(
    ("gpus", "processes", "wanted", "message"),
    [
        *((2, 1, name, f"MODEL.DEVICE {name!r}") for name in ("gpu", "cuda:x", "", "meta", "xpu:0")),
        (0, 1, "mps", "MODEL.DEVICE mps is not available here (torch finds no GPU of a Mac); use auto or cpu"),
        (2, 1, "cuda:2", "MODEL.DEVICE cuda:2 is not available here (CUDA error: invalid device ordinal); use auto or"),
        (0, 1, "cuda:0", "MODEL.DEVICE cuda:0 is not available here (CUDA error: invalid device ordinal); use auto or"),
        (2, 2, "cuda:1", "MODEL.DEVICE is 'cuda:1', but of several processes each has"),
    ],
)
def test_a_device_that_cannot_be_is_one_line(monkeypatch, gpus, processes, wanted, message):
    cuda = Cuda(gpus).patch(monkeypatch)
    monkeypatch.setattr(distributed, "count", lambda: processes)
    with pytest.raises(UserError) as caught:
        devices.choose_device(wanted)
    line = str(caught.value)
    assert line.startswith(message)
    assert "\n" not in line
    assert "not available" in line or processes > 1 or line.endswith("use auto, cpu, cuda or cuda:0")
    assert cuda.set == []


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    Cuda(0).patch(monkeypatch)
    assert devices.choose_device("auto") == torch.device("cpu")


# --- a Mac's GPU: what can be said of it without one ------------------------------------------------------------------


@pytest.fixture
def mac(monkeypatch):
    Cuda(0).patch(monkeypatch)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_mps_is_taken_where_it_is_asked_for_and_there(mac, monkeypatch):
    assert devices.choose_device("auto") == torch.device("cpu")  # as it is untried
    device = devices.choose_device("mps")
    assert device == torch.device("mps")
    devices.configure_backends(device, solver())
    with devices.autocast(device, "off"):
        assert not torch.is_autocast_enabled("cpu")
    assert devices.peak_memory(device) > 1e6  # of the process, whose memory it shares
    with pytest.raises(UserError, match=r"^SOLVER\.AMP bf16: not on MODEL\.DEVICE mps; use off$"):
        devices.configure_backends(device, solver(AMP="bf16"))
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(UserError, match=r"^MODEL\.DEVICE is 'mps', which one process can use alone: give cpu$"):
        devices.choose_device("mps")


NO_MPS = (
    NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device. If you want\nmore"),
    TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use"),
)


@pytest.mark.parametrize("error", NO_MPS, ids=lambda error: type(error).__name__)
def test_what_torch_does_not_do_on_mps_is_one_line(error):
    config = cfg.clone()
    with pytest.raises(type(error)), devices.device_errors(config, training=False):
        raise error
    config.MODEL.DEVICE = "mps"
    first = str(error).split(". ")[0]
    with pytest.raises(UserError) as caught, devices.device_errors(config, training=False):
        raise error
    assert str(caught.value) == f"MODEL.DEVICE mps cannot do this ({first}); use cpu"
    with pytest.raises(TypeError, match=r"^x$"), devices.device_errors(config, training=False):
        raise TypeError("x")


@pytest.mark.parametrize("program", [adapt, train])
def test_trainings_refuse_mps_before_anything_is_written(program, write_config, tmp_path, capsys):
    config = write_config(tmp_path, **{"MODEL.DEVICE": "mps"})
    before = sorted(tmp_path.rglob("*"))
    assert program(["-cfg", str(config)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: MODEL.DEVICE mps: training sums in float64, which it lacks; use cpu")
    assert (line.count("\n"), sorted(tmp_path.rglob("*"))) == (1, before)


# --- precision -------------------------------------------------------------------------------------------------------


def test_the_flags_are_those_of_the_config_and_go_back_with_the_next(two_gpus, flags):
    cuda = torch.device("cuda:0")
    free = {"benchmark": False, "deterministic": False, "tf32": True, "algorithms": False}
    devices.configure_backends(cuda, solver())
    assert flags() == free
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    devices.configure_backends(cuda, solver(CUDNN_BENCHMARK=True))
    assert flags() == free | {"benchmark": True}
    devices.configure_backends(cuda, solver(CUDNN_BENCHMARK=True, DETERMINISTIC=True, TF32=False))
    assert flags() == {"benchmark": False, "deterministic": True, "tf32": False, "algorithms": True}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    devices.configure_backends(cuda, solver())
    assert flags() == free


def test_matrix_products_round_to_tf32_only_where_somebody_else_allowed_it(two_gpus, flags):
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        devices.configure_backends(torch.device("cuda:0"), solver())
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
    devices.configure_backends(torch.device("cuda:0"), solver(TF32=False))
    assert not torch.backends.cuda.matmul.allow_tf32


def test_deterministic_is_for_gpus(flags):
    devices.configure_backends(torch.device("cpu"), solver(DETERMINISTIC=True, CUDNN_BENCHMARK=True, AMP="bf16"))
    assert flags() == {"benchmark": False, "deterministic": False, "tf32": True, "algorithms": False}
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_workspace_that_the_user_chose_is_kept(two_gpus, flags, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    devices.configure_backends(torch.device("cuda:0"), solver(DETERMINISTIC=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_bfloat16_on_a_gpu_without_it_is_one_line(monkeypatch, flags):
    Cuda(1, capability=(7, 5)).patch(monkeypatch)
    before = flags()
    with pytest.raises(UserError) as caught:
        devices.configure_backends(torch.device("cuda:0"), solver(AMP="bf16", DETERMINISTIC=True))
    assert str(caught.value) == "SOLVER.AMP bf16: cuda:0 (Patched) has no bfloat16 arithmetic; use fp16 or off"
    assert flags() == before
    devices.configure_backends(torch.device("cuda:0"), solver(AMP="fp16"))


@pytest.mark.parametrize(
    ("name", "capability", "options", "expected"),
    [
        ("cpu", (9, 0), {}, "float32"),
        ("cuda:0", (9, 0), {}, "float32, but TF32 in convolutions (SOLVER.TF32)"),
        ("cuda:0", (9, 0), {"TF32": False}, "float32"),
        ("cuda:0", (7, 5), {}, "float32"),
        ("cuda:0", (9, 0), {"AMP": "bf16"}, "bfloat16 autocast"),
        ("cpu", (9, 0), {"AMP": "fp16"}, "float16 autocast"),
    ],
)
def test_the_precision_that_the_log_tells(monkeypatch, name, capability, options, expected):
    Cuda(1, capability).patch(monkeypatch)
    assert devices.describe_precision(torch.device(name), solver(**options)) == expected


def test_prepare_device_chooses_and_sets_up(two_gpus, flags):
    config = cfg.clone()
    config.MODEL.DEVICE, config.SOLVER.TF32 = "cuda:1", False
    assert devices.prepare_device(config) == torch.device("cuda:1")
    assert flags()["tf32"] is False


# --- why there is no GPU ---------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch):
    """card(there): whether the system says that there is an NVIDIA card."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(there):
        glob, exists = Path.glob, Path.exists
        nodes = [Path("/dev/nvidia0")] if there else []
        monkeypatch.setattr(Path, "glob", lambda path, what: nodes if str(path) == "/dev" else glob(path, what))
        version = "/proc/driver/nvidia/version"
        monkeypatch.setattr(Path, "exists", lambda path: there if str(path) == version else exists(path))

    return put


def driver_too_old():
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it")


@pytest.mark.parametrize(
    ("there", "built_for", "visible", "reason"),
    [
        (False, "13.0", None, "there is no CUDA device"),
        (True, None, None, "this torch is a build for the CPU, although there is an NVIDIA card: install a CUDA build"),
        (True, "13.0", "", "CUDA_VISIBLE_DEVICES hides the NVIDIA card"),
        (True, "13.0", "-1", "CUDA_VISIBLE_DEVICES hides the NVIDIA card"),
        (True, "13.0", "0", "the NVIDIA card cannot be used by torch for CUDA 13.0 (The NVIDIA driver on your system"),
    ],
    ids=["no card", "a build for the CPU", "hidden", "hidden, too", "old driver"],
)
def test_the_log_says_why_auto_is_the_cpu(card, monkeypatch, there, built_for, visible, reason):
    card(there)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "init", driver_too_old)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    line = devices.describe_device(torch.device("cpu"), "auto")
    assert re.match(r"cpu \(\d+ threads, because " + re.escape(reason), line)
    assert "\n" not in line
    assert re.fullmatch(r"cpu \(\d+ threads\)", devices.describe_device(torch.device("cpu"), "cpu"))


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch):
    """80 GB, of which this process holds 50, others 20."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (10 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 50 * 10**9)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


OUT_OF_MEMORY = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error).partition("\n")[0])
def test_memory_that_runs_out_is_one_line_that_says_what_takes_less(memory, error):
    config = cfg.clone()
    config.DATASETS.TARGET_TRAIN, config.SOLVER.BATCH_SIZE = "cityscapes_train", 8
    with pytest.raises(UserError) as caught, devices.device_errors(config, training=True):
        raise error
    line = str(caught.value)
    assert line.startswith("cuda:1 ran out of memory: of 80.0 GB this run holds 50.0, others 20.0; ")
    for part in (
        "SOLVER.ACCUMULATE (now 1, of SOLVER.BATCH_SIZE 8)",
        "SOLVER.AMP bf16 (now off)",
        "INPUT.INPUT_SIZE_TEST 1024×512",
        "INPUT.TARGET_INPUT_SIZE_TRAIN 1024×512",
        "`resume auto`",
    ):
        assert part in line
    assert "\n" not in line


def test_source_training_and_predictions_name_their_own_sizes(memory):
    config = cfg.clone()
    config.DATASETS.TARGET_TRAIN = ""
    lines = []
    for training in (True, False):
        with pytest.raises(UserError) as caught, devices.device_errors(config, training):
            raise OUT_OF_MEMORY[0]
        lines.append(str(caught.value))
    assert "INPUT.SOURCE_INPUT_SIZE_TRAIN 1280×720" in lines[0]
    assert "TARGET_INPUT_SIZE_TRAIN" not in lines[0]
    assert "TEST.BATCH_SIZE is 1, INPUT.INPUT_SIZE_TEST 1024×512" in lines[1]
    assert "ACCUMULATE" not in lines[1]
    config.TEST.WINDOW = (512, 256)
    message = r"TEST\.BATCH_SIZE is 1, TEST\.WINDOW 512×256, SOLVER\.AMP off: a smaller batch or size"
    with pytest.raises(UserError, match=message), devices.device_errors(config, training=False):
        raise OUT_OF_MEMORY[0]


def test_a_device_that_cannot_say_what_it_holds(monkeypatch):
    def fail():
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    message = r"^the device ran out of memory; "
    with pytest.raises(UserError, match=message), devices.device_errors(cfg.clone(), False):
        raise OUT_OF_MEMORY[0]


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), UserError("a line")])
def test_other_errors_are_left_alone(memory, error):
    with pytest.raises(type(error)) as caught, devices.device_errors(cfg.clone(), training=True):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("program", ["test.py", "train_TCR_DTU.py --check", "ranking"])
def test_a_full_device_is_one_line_while_the_network_is_loaded(
    program, cityscapes_root, write_config, tiny_checkpoint, monkeypatch, capsys
):
    def full(*_args, **_named):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    several = cityscapes_root / "several"
    several.mkdir()
    for number in (1, 2):
        (several / f"model_iter{number:06d}.pth").symlink_to(tiny_checkpoint)
    main, *words, resume = {
        "test.py": (evaluate, tiny_checkpoint),
        "ranking": (evaluate, "--rank-without-labels", several),
        "train_TCR_DTU.py --check": (adapt, "--check", tiny_checkpoint),
    }[program]
    monkeypatch.setattr("core.models.deeplab.Segmentor.to", full)
    assert main([*words, "-cfg", str(write_config(cityscapes_root)), "resume", str(resume)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "ran out of memory" in error
    assert error.count("\n") == 1


def test_a_network_that_cannot_be_deterministic_is_one_line():
    config = cfg.clone()
    config.SOLVER.DETERMINISTIC = True
    words = (
        "adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but you set …. You can turn"
    )
    message = r"^SOLVER\.DETERMINISTIC: adaptive_max_pool2d_backward_cuda does not have"
    with pytest.raises(UserError, match=message), devices.device_errors(config, training=True):
        raise RuntimeError(words)
