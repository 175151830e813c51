"""Loaders: errors of workers as they are, workers that die, and bad images that are done without."""

import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset

from core.datasets import loading
from core.datasets.catalog import ImageSet
from core.datasets.loading import Loader, WorkerDied, _without_lost_connections, full_view_loader
from core.datasets.sampling import Request, TrainingSamples
from core.datasets.skipping import BadImage, SkippedImages
from core.utils.errors import UserError
from core.utils.logging import LOGGER
from tests.helpers import PROJECT


class Numbers(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 3:
            raise UserError("the fourth is broken")
        return index


def test_more_workers_than_cores_are_nobodys_business(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = iter(Loader(Numbers(), list, 2, batch_size=1))
        assert next(loader) == [0]


# --- workers that die


def end(number):
    os.kill(os.getpid(), number)


def end_later(number):
    time.sleep(0.5)
    end(number)


def fail(kind):
    raise kind("a defect of ours")


class Fatal(Dataset):
    """The sample of 2 does something that ends the process which makes it, say: action(argument)."""

    def __init__(self, action, argument):
        self.action, self.argument = action, argument

    def __len__(self):
        return 6

    def files(self, index):
        return [Path(f"frames/{index}.png")]

    def __getitem__(self, index):
        if index == 2:
            self.action(self.argument)
        return index


class FatalButSlow(Fatal):
    """Sample 2 ends its process before those before it are there."""

    def __getitem__(self, index):
        if index < 2:
            time.sleep(1)
        return super().__getitem__(index)


@pytest.fixture
def impatient(monkeypatch):
    """Loaders that look after their workers often."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    default = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(
        torch.utils.data.dataloader._MultiProcessingDataLoaderIter,
        "_try_get_data",
        lambda self, timeout=0.1: default(self, timeout),
    )


@pytest.mark.parametrize(
    ("action", "argument", "how"),
    [
        (end, signal.SIGKILL, r"was killed by signal 9 \(SIGKILL, as where memory runs out\)"),
        (end, signal.SIGBUS, r"was killed by signal 7 \(SIGBUS, .*/dev/shm"),
        (os._exit, 3, r"exited with code 3"),
    ],
    ids=["killed", "bus error", "exit"],
)
@pytest.mark.filterwarnings("error")
def test_a_worker_that_dies_is_one_line_with_the_files(impatient, capfd, action, argument, how):
    with pytest.raises(WorkerDied, match=how) as caught:
        list(Loader(Fatal(action, argument), list, 2, batch_size=2))
    message = str(caught.value)
    assert message.isprintable()
    assert "frames/2.png, frames/3.png;" in message
    assert "DATALOADER.NUM_WORKERS" in message
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_death_names_what_the_dead_worker_had_been_given(impatient, workers):
    """Batch n is the business of worker n modulo their number; another one's, still to come, is not named."""
    with pytest.raises(WorkerDied) as caught:
        list(Loader(FatalButSlow(end, signal.SIGKILL), list, workers, batch_size=1))
    named = {int(number) for number in re.findall(r"frames/(\d)\.png", str(caught.value))}
    assert 2 in named
    assert {number % workers for number in named} == {2 % workers}


def test_a_death_shows_where_the_next_batch_is_asked_for_and_nowhere_else(impatient):
    handler = signal.getsignal(signal.SIGCHLD)
    others = set(active_children())
    batches = iter(Loader(Fatal(end_later, signal.SIGKILL), list, 1, batch_size=2))
    assert next(batches) == [0, 1]
    assert signal.getsignal(signal.SIGCHLD) == handler
    (worker,) = set(active_children()) - others
    worker.join()  # a handler of torch's would raise here
    with pytest.raises(WorkerDied):
        next(batches)


def test_errors_of_other_kinds_keep_their_type(impatient):
    with pytest.raises(RuntimeError, match="a defect of ours"):
        list(Loader(Fatal(fail, RuntimeError), list, 1, batch_size=2))


def test_workers_end_with_the_error_that_ends_the_loop(impatient):
    others = set(active_children())
    for dataset, kind, message in (
        (Fatal(end, signal.SIGKILL), WorkerDied, "killed"),
        (Numbers(), UserError, "^the fourth is broken$"),
    ):
        with pytest.raises(kind, match=message) as caught:  # kept, and with it the frames that it came through
            list(Loader(dataset, list, 2, batch_size=1))
        assert set(active_children()) <= others
        assert caught.value.__context__ is None


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_that_runs_out_in_a_sample_is_one_line(workers):
    with pytest.raises(UserError, match=r"^memory ran out while it may have been reading frames/2\.png$"):
        list(Loader(Fatal(fail, MemoryError), list, workers, batch_size=2))


class Signals(Dataset):
    """The blocked signals of the process that makes a sample and of the one that it was forked from."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        texts = [Path(f"/proc/{process}/status").read_text() for process in (os.getpid(), os.getppid())]
        return [line.split()[1] for text in texts for line in text.splitlines() if line.startswith("SigBlk")]

    @staticmethod
    def blocked(masks):
        """Those that all of the masks hold."""
        return {n for n in signal.Signals if all(int(mask, 16) >> n - 1 & 1 for mask in masks)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_signals_to_the_whole_job_are_not_the_workers_business(number):
    assert number in Signals.blocked(next(iter(Loader(Signals(), list, 1)))[0])
    assert list(Loader(Fatal(end, number), list, 1, batch_size=3)) == [[0, 1, 2], [3, 4, 5]]


# --- bad images


class Frames(TrainingSamples):
    """Numbers whose multiples of 4 are bad."""

    def __init__(self, limit):
        self.images, self.skipped = range(10), SkippedImages(limit)

    def make(self, request):
        if request.image % 4 == 0:
            raise BadImage(f"image {request.image}.png is bad", f"{request.image}.png")
        return request.image


def loader_of(dataset, workers):
    """A loader of all frames, four at once."""
    return Loader(dataset, list, workers, batch_sampler=BatchSampler([Request(n, n) for n in range(10)], 4, False))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_bad_images_are_replaced_by_the_next_and_counted_once(workers, monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "info", lambda message, *values: lines.append(message % values))
    dataset = Frames(3)
    for _ in range(2):
        batches = list(loader_of(dataset, workers))
        assert batches == [[1, 1, 2, 3], [5, 5, 6, 7], [9, 9]]
    assert dataset.skipped.paths == ["0.png", "4.png", "8.png"]
    assert lines == [
        f"skipped a bad image, {n} of at most 3: image {index}.png is bad" for n, index in ((1, 0), (2, 4), (3, 8))
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_image_too_many_stops_the_run_and_says_how_many_were_skipped(workers):
    batches = iter(loader_of(Frames(2), workers))
    assert [next(batches), next(batches)] == [[1, 1, 2, 3], [5, 5, 6, 7]]
    with pytest.raises(UserError, match=r"^image 8\.png is bad \(2 bad images skipped before it: .*BAD_IMAGES 2\)$"):
        next(batches)


@pytest.mark.parametrize("limit", [0, 2, 5])
def test_nothing_but_bad_images_is_an_error(limit):
    dataset = Frames(limit)
    dataset.make = lambda request: Frames.make(dataset, Request(4 * request.image, 0))
    with pytest.raises(UserError, match=r"^image \d+\.png is bad( \(\d bad images? skipped before it.*)?$"):
        list(loader_of(dataset, 0))
    assert len(dataset.skipped.paths) == limit


def inside(folder, path):
    return folder / path.name


@pytest.fixture
def frames(tmp_path, write_png, draw_scene):
    """frames(bad=(), limit=0): five scenes with their labels, those of these numbers empty files."""

    def make(bad=(), limit=0):
        paths = tuple(tmp_path / f"{number}.png" for number in range(5))
        for number, path in enumerate(paths):
            image, label = draw_scene(number)
            path.write_bytes(b"") if number in bad else write_png(path, image)
            write_png(tmp_path / "labels" / path.name, label)
        names, table = tuple(path.name for path in paths), np.arange(256, dtype=np.uint8)
        return ImageSet("x", paths, names, partial(inside, tmp_path / "labels"), table, skipped=SkippedImages(limit))

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_goes_on_with_a_black_view_for_a_bad_image(frames, workers):
    images = frames(bad=(1, 4), limit=2)
    part = images.restricted([0, 1, 2, 4])
    batches = list(full_view_loader(part, [(32, 16)], 2, workers))
    assert [batch["bad"] for batch in batches] == [[False, True], [False, True]]
    assert [batch["views"][0].shape for batch in batches] == [(2, 3, 16, 32)] * 2
    assert not batches[0]["views"][0][1].any()
    assert batches[0]["size"] == [(64, 128), (16, 32)]
    assert images.skipped.paths == [str(images.paths[1]), str(images.paths[4])]  # one count for the whole run


def test_workers_hand_views_and_labels_over_in_shared_memory(frames, draw_scene):
    for number, batch in enumerate(full_view_loader(frames(), [(32, 16)], 1, 1, labels=True)):
        (view,), (label,) = batch["views"], batch["label"]
        assert view.is_shared()
        assert label.is_shared()  # a pipe of 64 KB would have the main process wait for 2 MB
        assert view.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(label, draw_scene(number)[1])


def test_an_evaluation_leaves_nothing_out(frames):
    images = frames(bad=(1,), limit=3)
    for part, labels in ((ImageSet(images.name, images.paths, images.names), False), (images, True)):
        with pytest.raises(BadImage, match=r"1\.png cannot be decoded"):
            list(full_view_loader(part, [(32, 16)], 1, 0, labels=labels))


def test_bad_images_survive_the_way_out_of_a_process():
    error = pickle.loads(pickle.dumps(BadImage("image a\nb is bad", Path("a\nb"))))
    assert (str(error), error.path) == ("image a\\nb is bad", "a\nb")


class Heap(Dataset):
    """Megabytes of anonymous memory that the process which makes a sample holds."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) >> 10


def test_a_worker_does_not_hold_the_main_processs_memory():
    (before,) = next(iter(Loader(Heap(), list, 1)))
    weights = torch.ones(256 << 18)  # 256 MB
    (after,) = next(iter(Loader(Heap(), list, 1)))
    assert after - before < 64
    assert weights.all()


SCRIPT = """
import os, time
from multiprocessing import connection
import torch
from core.datasets.loading import Loader

class Processes:
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.tensor([os.getpid(), os.getppid()])

def stop(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    batches = iter(Loader(Processes(), torch.stack, 1))  # of two, the second one's batch might be here already
    next(batches)
    answer, connection.answer_challenge = connection.answer_challenge, stop
    try:
        next(batches)  # as if a signal came in the middle of taking a tensor from a worker
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("stopped")
    connection.answer_challenge = answer
    batches = iter(Loader(Processes(), torch.stack, 2))
    for batch in (next(batches), next(batches)):
        print(*batch[0].tolist(), flush=True)
    time.sleep(600)
"""


def is_running(process):
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_workers_are_silent_about_a_batch_left_half_taken_and_never_outlive_a_killed_main_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command, environment = [sys.executable, tmp_path / "script.py"], os.environ | {"PYTHONPATH": str(PROJECT)}
    with (
        (tmp_path / "errors.txt").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as main,
    ):
        assert main.stdout.readline() == "stopped\n"
        processes = {int(word) for _ in range(2) for word in main.stdout.readline().split()}
        assert len(processes) == 3  # two workers and what they were forked from
        assert all(map(is_running, processes))
        assert (tmp_path / "errors.txt").read_text() == ""
        main.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, processes))


def test_workers_are_not_silent_about_defects(capsys):
    _without_lost_connections(RuntimeError, RuntimeError("a defect"), None)
    assert "a defect" in capsys.readouterr().err


class Large(Dataset):
    """Samples of 4 MB."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.full((1000, 1000), float(index))


def large_batch(samples):
    return {"images": torch.stack(samples), "names": ("a", "b")}


LOAD_LARGE = """
import sys
sys.path.insert(0, "tests/datasets")
from core.datasets.loading import Loader
from core.utils.logging import start_logging
from test_loading import Large, large_batch
if __name__ == "__main__":
    start_logging()
    print([float(batch["images"].mean()) for batch in Loader(Large(), large_batch, 2, batch_size=2)])
"""


def in_small_shared_memory(command):
    """The command where /dev/shm has one MB."""
    mount = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {shlex.join(command)}"
    return ["unshare", "--mount", "sh", "-c", mount]


def test_batches_pass_where_shared_memory_is_small():
    """With a container's 64 MB, and a batch of the published sizes, a loader waited for ever."""
    if subprocess.run(in_small_shared_memory(["true"]), capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small /dev/shm")
    command = in_small_shared_memory([sys.executable, "-c", LOAD_LARGE])
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    found = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    told, means = found.stdout.splitlines()
    assert "shared memory (/dev/shm) is too small" in told
    assert "--shm-size" in told
    assert means == str([0.5, 2.5, 4.5, 6.5, 8.5, 10.5])


def refuse(tensor):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.mark.parametrize("room", [True, False])
def test_a_packed_batch_is_the_same(monkeypatch, room):
    batch = {"images": torch.rand(2, 3), "parts": [(torch.arange(3), "a")], "number": 7}
    monkeypatch.setattr(loading, "get_worker_info", lambda: "a worker")
    if not room:
        monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    handed = loading._handed_over(batch)
    assert (handed is batch) == room
    if not room:
        handed = pickle.loads(pickle.dumps(handed)).unpack()
    assert torch.equal(handed["images"], batch["images"])
    assert torch.equal(handed["parts"][0][0], batch["parts"][0][0])
    assert (handed["parts"][0][1], handed["number"]) == ("a", 7)
