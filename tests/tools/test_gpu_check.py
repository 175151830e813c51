"""The check of a GPU, without one: its report, and what it compares by."""

import json
import re
import socket

import pytest
import torch

from tests.helpers import PROJECT, call
from tools.gpu_check import main, runner
from tools.gpu_check.numbers import relative_error
from tools.gpu_check.runner import Check, anonymous
from tools.gpu_check.runs import differences, last_state
from tools.gpu_check.speed import group_of
from tools.gpu_check.workplace import TINY, Failed, Skipped, Workplace


def fine(bench, found):
    found.note(seconds=0.123456, places={"core/solver.py:71": 1})
    found.within("error", 1e-7, 1e-5)


def wrong(bench, found):
    found.within("error", 0.5, 1e-5)
    found.require(False, "decisions differ")


def broken(bench, found):
    found.note(before=1, file=str(bench.folder / "out/x.csv"))
    raise RuntimeError(f"no {PROJECT}/core/none.py on {socket.gethostname()}, nor /usr/lib/none.so\nmore")


def failing(bench, found):
    raise Failed("exit code 3")


def impossible(bench, found):
    raise Skipped("2 devices are needed")


@pytest.fixture
def checks(monkeypatch):
    """checks(*bodies, **options of Check): these are the tool's checks, named as their functions, on a made-up card."""
    monkeypatch.setattr(runner, "describe_card", lambda: {"card": "made up", "torch": torch.__version__})

    def use(*bodies, **options):
        monkeypatch.setattr(runner, "CHECKS", tuple(Check(body.__name__, body, **options) for body in bodies))

    return use


def test_without_a_device_it_is_one_line(monkeypatch, capsys):
    def fail():
        raise RuntimeError("No CUDA GPUs are available.\nmore")

    monkeypatch.setattr(torch.cuda, "init", fail)
    assert main(["--quick"]) == 1
    assert capsys.readouterr() == ("", "error: there is no CUDA device to check (No CUDA GPUs are available)\n")


@pytest.mark.parametrize("programs", [False, True])
def test_a_line_and_an_entry_for_every_check(checks, tmp_path, capsys, programs):
    checks(fine, wrong, broken, failing, impossible, programs=programs)
    report = tmp_path / "gpu.json"
    assert main(["--json", str(report)]) == 3
    card, *lines = capsys.readouterr().out.splitlines()
    assert card.startswith("card made up, torch ")
    lines = {line[6:].split(":")[0]: line.rpartition(" (")[0] for line in lines}
    assert lines["fine"] == "ok    fine: seconds 0.123, error 1e-07"
    assert lines["wrong"] == "FAIL  wrong: error is 0.5, above 1e-05; decisions differ; error 0.5"
    assert lines["broken"].startswith(
        "FAIL  broken: RuntimeError: no core/none.py on this machine, nor …/none.so; before 1"
    )
    assert lines["failing"] == "FAIL  failing: exit code 3"
    assert lines["impossible"] == "skip  impossible: 2 devices are needed"
    text = report.read_text()
    tree = json.loads(text)
    assert tree.keys() == {"card", "torch", "commit", "quick", "checks"}
    found = {entry["name"]: entry for entry in tree["checks"]}
    assert found["fine"]["figures"] == {"seconds": 0.123456, "places": {"core/solver.py:71": 1}, "error": 1e-7}
    assert found["broken"]["figures"]["file"] == "out/x.csv"
    assert all(entry["seconds"] >= 0 for entry in found.values())
    assert not [word for word in (str(PROJECT), '"/', " /", "/usr") if word in text]
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_the_report_holds_what_is_done_so_far_and_must_be_writable(checks, tmp_path, capsys):
    report = tmp_path / "gpu.json"
    seen = []

    def looking(bench, found):
        seen.append([entry["name"] for entry in json.loads(report.read_text())["checks"]])

    checks(looking, fine, looking)
    assert main(["--json", str(report)]) == 0
    assert seen == [[], ["looking", "fine"]]
    assert not list(tmp_path.glob("*.partial"))
    capsys.readouterr()
    assert main(["--json", str(tmp_path / "none/gpu.json")]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: --json ")
    assert "ok " not in out


def test_some_checks_only(checks, capsys):
    checks(fine, wrong, broken)
    assert main(["--only", "wrong", "fine"]) == 1
    names = [line[6:].split(":")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["fine", "wrong"]
    assert main(["--only", "fine", "swift"]) == 1
    assert capsys.readouterr().err == "error: --only swift: no such check; there are fine, wrong, broken\n"


def test_the_slow_ones_are_for_who_has_time_or_names_them_and_some_for_real_devices(checks, monkeypatch, capsys):
    checks(fine, wrong, real=True)
    monkeypatch.setattr(runner, "SLOW", ("wrong",))
    assert main(["--quick"]) == 0
    assert main([]) == main(["--quick", "--only", "wrong"]) == 1
    monkeypatch.setenv("DTST_SIMULATED", "1")
    assert main([]) == 0
    assert "skip  wrong: not on a simulated device" in capsys.readouterr().out


def test_the_exit_code_stays_one_that_a_shell_takes_for_it_and_tracebacks_come_where_asked_for(checks, capsys):
    checks(*[broken] * 130, programs=True)
    assert main([]) == 125
    assert capsys.readouterr().err == ""
    main(["--verbose", "--only", "broken"])
    assert "in broken" in capsys.readouterr().err


def test_paths_of_this_machine_are_cut_and_others_stay(tmp_path):
    assert anonymous([{"a": f"{tmp_path}/b.pth"}, 3], tmp_path) == [{"a": "b.pth"}, 3]
    assert anonymous(f"{tmp_path}/{socket.gethostname()}2/b.pth", tmp_path) == f"{socket.gethostname()}2/b.pth"
    assert anonymous("see /home/me/x y.pth", tmp_path) == "see …/x y.pth"
    assert anonymous("12 images/s, core/solver.py:71", tmp_path) == "12 images/s, core/solver.py:71"


def test_kinds_of_kernels():
    kinds = {
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": "convolution",
        "void cudnn::engines_precompiled::nchwToNhwcKernel<float, float>": "copies",
        "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>": "copies",
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "elementwise",
        "void (anonymous namespace)::softmax_warp_forward": "softmax",
        "void at::native::upsample_bilinear2d_out_frame": "upsample",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>": "reduce",
        "void at::native::multi_tensor_apply_kernel": "optimizer",
        "Memcpy HtoD (Pinned -> Device)": "copies",
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL": "nccl",
        "something": "other",
    }
    assert {kernel: group_of(kernel) for kernel in kinds} == kinds


def test_an_error_that_is_no_number_is_infinite():
    one = torch.ones(4)
    assert relative_error([one * 1.5], [one]) == pytest.approx(0.5)
    assert relative_error([one / 0], [one]) == float("inf")


def test_a_program_with_another_exit_code_fails_with_its_last_line(tmp_path):
    bench = Workplace(tmp_path, quick=True)
    command = ["-c", "import sys; print('too late'); sys.exit(3)"]
    assert bench.run(command, command, codes=[3, 3])[1].out == "too late\n"
    with pytest.raises(Failed, match=r"^the process: exit code 3, too late \(expected 0\)$"):
        bench.run(command)


def test_a_stopped_run_that_goes_on_ends_as_a_whole_one(tmp_path):
    """By what the check of determinism is made of, on the CPU."""
    bench = Workplace(tmp_path, quick=True)
    options = {"MODEL__NAME": TINY, "MODEL__DEVICE": "cpu", "SOLVER__STOP_ITER": 2}
    bench.run(bench.command("stopped", what="stop:1", **options), codes=[143])
    assert last_state(tmp_path / "stopped")["iteration"] == 1
    for command in (bench.command("whole", **options), bench.command("stopped", **options, resume="auto")):
        call(*command).check_returncode()
    whole, stopped = (last_state(tmp_path / name) for name in ("whole", "stopped"))
    assert differences(whole, stopped) == []
    stopped["student"]["classifier.weight"][0, 0] += 1e-12
    assert differences(whole, stopped) == ["student.classifier.weight"]
