"""Batches from worker processes, with a user's errors carried back as the one line they are."""

import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache, partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, get_worker_info

from core.datasets.catalog import ImageSet
from core.datasets.skipping import BadImage, SkippedImages
from core.datasets.transforms import resize, stack_images, to_tensor
from core.utils import distributed
from core.utils.errors import UserError, shorten
from core.utils.logging import LOGGER

PREFETCH_FACTOR = 2  # batches that each worker prepares ahead
ViewSize = tuple[int, int] | float  # (width, height), as configs give it; or times an image's own size
_UNKNOWN = 64  # px: width and height of a bad image's black view, where its own would be wanted
_PRELOAD = ["torch", "torchvision.transforms.v2", "cv2", "PIL.Image", "core.datasets.loading"]
_HINTS = {signal.SIGKILL: ", as where memory runs out", signal.SIGBUS: ", as where shared memory (/dev/shm) runs out"}


class WorkerDied(UserError):
    """A loader process ended by itself: killed, out of memory, or crashed."""


class _Guarded(Dataset):
    """Makes (sample, bad images that it did without); a UserError takes the place of the sample that raised it.

    Raised, a loader would wrap it in a traceback's text.
    """

    def __init__(self, dataset: Dataset, skipped: SkippedImages):
        self.dataset, self._skipped = dataset, skipped

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, request) -> tuple:
        self._skipped.take()
        try:
            sample = self.dataset[request]
        except UserError as error:
            sample = error
        except MemoryError:
            sample = UserError(f"memory ran out {_while_reading(self.dataset, [request])}")
        return sample, self._skipped.take()


def _guarded_collate(collate: Callable, made: list[tuple]) -> tuple:
    samples = [sample for sample, _ in made]
    errors = [sample for sample in samples if isinstance(sample, UserError)]
    batch = errors[0] if errors else collate(samples)
    return _handed_over(batch), [bad for _, noted in made for bad in noted]


class _Packed:
    """A batch as bytes, for which a worker found no room in shared memory: it goes through the pipe."""

    def __init__(self, batch):
        self._content = pickle.dumps(batch)  # unlike the pipe's own pickler, it copies what tensors hold

    def unpack(self):
        return pickle.loads(self._content)


def _handed_over(batch):
    """In a worker: the batch with its tensors in shared memory; packed, where there is no room.

    Left to the thread that feeds the pipe, that would end the thread, and the main process would wait for ever.
    """
    if get_worker_info() is None:
        return batch
    try:
        for tensor in _tensors(batch):
            tensor.share_memory_()
    except RuntimeError as error:
        if "No space left" not in str(error):
            raise
        return _Packed(batch)
    return batch


def _tensors(batch) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif is_dataclass(batch):
        for part in fields(batch):
            yield from _tensors(getattr(batch, part.name))
    elif isinstance(batch, Mapping | list | tuple):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


class _Handed:
    """A batch sampler that remembers what it handed out and is not yet done."""

    def __init__(self, sampler):
        self._sampler = sampler
        self.pending: deque = deque()

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator:
        self.pending.clear()
        for requests in self._sampler:
            self.pending.append(requests)
            yield requests


class Loader:
    """A DataLoader whose iteration raises a dataset's UserError unchanged, and one for a worker that dies.

    Bad images that samples did without are counted and logged as their batch arrives: in the order of the samples,
    for any number of workers.

    Args:
        dataset: maps what the sampler yields to samples. It may have `skipped`, the :class:`SkippedImages` that its
            samples note bad images with, and `files(request)`, the paths that a sample is made from.
        collate: joins a list of samples.
        workers: processes; 0 = this one.
        batch_size, batch_sampler: one of them, as of DataLoader.
        options: further arguments of DataLoader.
    """

    def __init__(
        self, dataset: Dataset, collate: Callable, workers: int, batch_size: int = 1, batch_sampler=None, **options
    ):
        self._dataset, self._skipped = dataset, getattr(dataset, "skipped", SkippedImages())
        if batch_sampler is None:
            batch_sampler = BatchSampler(range(len(dataset)), batch_size, drop_last=False)
        self._handed = _Handed(batch_sampler)
        if workers:
            options |= {
                "prefetch_factor": PREFETCH_FACTOR,
                "worker_init_fn": _start_worker,
                "multiprocessing_context": _worker_context(),
            }
        guarded, collate = _Guarded(dataset, self._skipped), partial(_guarded_collate, collate)
        options |= {"num_workers": workers, "collate_fn": collate, "batch_sampler": self._handed}
        with _many_workers():
            self._loader = DataLoader(guarded, **options)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator:
        others = set(multiprocessing.active_children())
        with _many_workers(), _deaths_show_in_next():
            batches = iter(self._loader)
        # in the order in which they were started: a name is ForkServerProcess-7, say, or in such a process …-7:1
        workers = set(multiprocessing.active_children()) - others
        workers = sorted(workers, key=lambda worker: int(re.split("[-:]", worker.name)[-1]))
        taken = 0
        try:
            while True:
                try:
                    batch, noted = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    batch, noted = self._death(workers, taken, error), ()
                if isinstance(batch, _Packed):
                    batch = batch.unpack()
                    _tell_of_packing()
                self._skipped.count(noted)
                if isinstance(batch, UserError):  # raised here, it does not keep the iterator by its context
                    raise batch
                self._handed.pending.popleft()
                taken += 1
                yield batch
        finally:
            del batches  # which ends the workers; a traceback would keep them until some later collection

    def _death(self, workers: list[BaseProcess], taken: int, error: RuntimeError) -> WorkerDied:
        """What is to be said of the worker that died; raises `error` again if it is about something else."""
        dead = [n for n, worker in enumerate(workers) if worker.exitcode is not None]
        if not dead or not str(error).startswith("DataLoader worker"):
            raise error
        worker = next((n for n in dead if workers[n].exitcode), dead[0])
        code = workers[worker].exitcode
        how = f"exited with code {code}"
        if code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name}{_HINTS.get(-code, '')})"
        batches = enumerate(self._handed.pending, taken)  # which the workers are given in turn
        requests = [request for number, batch in batches if number % len(workers) == worker for request in batch]
        reading = _while_reading(self._dataset, requests)
        return WorkerDied(f"a loader process {how} {reading}; fewer DATALOADER.NUM_WORKERS need less memory")


@cache
def _tell_of_packing() -> None:
    """Once in a process."""
    LOGGER.info(
        "shared memory (/dev/shm) is too small for the loader's processes: batches go through a pipe, which is slower; "
        "give a container more by --shm-size, or use fewer DATALOADER.NUM_WORKERS"
    )


def _while_reading(dataset: Dataset, requests: Sequence) -> str:
    """`while it may have been reading a.png, b.png`."""
    if not hasattr(dataset, "files"):
        return "while it made samples"
    files = [path for request in requests for path in dataset.files(request)]
    return f"while it may have been reading {shorten(files, len(files))}"


def _worker_context() -> BaseContext:
    """Start workers from a small process that has imported what they need, and nothing else.

    Forked from this one, they would keep its memory as it was then (weights, gradients, what torch holds in reserve):
    on the CPU, that is most of it, once more. Signals that a terminal or a cluster sends to all processes of a job are
    left to the main process: they are blocked in that small one, and so in its workers, from the start. A job of
    several processes stops only where all of them do, and its workers have to work until then: torchrun's SIGTERM, too.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    resource_tracker.ensure_running()  # which would unblock them
    job_stops = (signal.SIGTERM,) if distributed.count() > 1 else ()
    ignored = (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, *job_stops)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


def _start_worker(_: int) -> None:
    """Have the worker end with the main process, should that be killed, and say nothing of a batch left half taken."""
    sys.excepthook = _without_lost_connections
    threading.Thread(target=_end_with_main, daemon=True).start()


def _without_lost_connections(kind: type, error: BaseException, trace) -> None:
    """For the thread that hands tensors over: a main process that stops in the middle of it has said why itself."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _end_with_main() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _deaths_show_in_next() -> Iterator[None]:
    """Keep torch from raising a worker's death wherever the main process happens to be; `next` finds it, too."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # elsewhere torch leaves it alone
            signal.signal(signal.SIGCHLD, handler)


@contextmanager
def _many_workers() -> Iterator[None]:
    """Without the warning that there are more workers than cores, which is fine."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


class FullViews(Dataset):
    """Whole images resized bicubically to one or more sizes, or as large as they are, for evaluation and candidate
    passes.

    A sample is a dict: index, `views` (one 3×h×w uint8 tensor per size), `size` (H, W) of the file's image, `bad`; with
    labels also `label` (H×W uint8 class indices, a tensor: a worker hands it over in shared memory, not through a
    pipe), with `keep` also `image` (H×W×3 uint8 array, as it is in the file). Where the set allows for bad images
    (DATALOADER.SKIP_BAD_IMAGES), the sample of one is `bad`, with black views, the first view's size and no image.

    Args:
        images: the set.
        sizes: of the views.
        labels: read the label files, too.
        keep: hand over the image itself, too.
    """

    def __init__(self, images: ImageSet, sizes: Sequence[ViewSize], labels: bool = False, keep: bool = False):
        self.images, self.sizes, self.labels, self.keep = images, sizes, labels, keep
        self.skipped = images.skipped

    def __len__(self) -> int:
        return len(self.images)

    def files(self, index: int) -> list[Path]:
        return self.images.files(index, self.labels)

    def __getitem__(self, index: int) -> dict:
        try:
            return self._make(index)
        except BadImage as error:
            if self.labels:  # an evaluation leaves nothing out
                raise
            self.skipped.tolerate(error)
        black = [(3, *_size_of(view, (_UNKNOWN, _UNKNOWN))) for view in self.sizes]
        views = [torch.zeros(shape, dtype=torch.uint8) for shape in black]
        sample = {"index": index, "views": views, "size": black[0][1:], "bad": True}
        return sample | ({"image": None} if self.keep else {})

    def _make(self, index: int) -> dict:
        path = self.images.paths[index]
        image = self.images.form.read(path)
        sample = full_view(index, image, self.sizes)
        if self.keep:
            sample["image"] = image
        if self.labels:
            label = self.images.read_label(index)
            if label.shape != image.shape[:2]:
                (height, width), (image_height, image_width) = label.shape, image.shape[:2]
                raise UserError(
                    f"label {self.images.label_path(path)} is {width}×{height}, but its image {path} is "
                    f"{image_width}×{image_height}: mend or remove the pair"
                )
            sample["label"] = torch.from_numpy(label)
        return sample


def full_view(index: int, image: np.ndarray, sizes: Sequence[ViewSize]) -> dict:
    """The sample that :class:`FullViews` makes of an image (H×W×3 uint8)."""
    views = [resize(to_tensor(image), _size_of(view, image.shape[:2]), "bicubic") for view in sizes]
    return {"index": index, "views": views, "size": image.shape[:2], "bad": False}


def _size_of(view: ViewSize, own: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a view of an image of (H, W)."""
    return tuple(max(round(view * length), 1) for length in own) if isinstance(view, float) else view[::-1]


def collate_full_views(samples: list[dict]) -> dict:
    """One batch of several samples: lists, and each size's views as one B×3×h×w tensor where they are alike."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    groups = [[*views] for views in zip(*batch["views"], strict=True)]
    batch["views"] = [stack_images(views) if len({v.shape for v in views}) == 1 else views for views in groups]
    return batch


def full_view_loader(
    images: ImageSet,
    sizes: Sequence[ViewSize],
    batch_size: int,
    workers: int,
    labels: bool = False,
    keep: bool = False,
    pin: bool = False,
) -> Loader:
    """Every image once, in order; see :class:`FullViews`. The last batch may be smaller.

    With `pin`, tensors come in page-locked memory, from which copies to a device need no wait.

    Of several processes each has its share of the batches, which are those of one process.
    """
    batches = BatchSampler(distributed.share(len(images), batch_size), batch_size, drop_last=False)
    views = FullViews(images, sizes, labels, keep)
    return Loader(views, collate_full_views, workers, batch_sampler=batches, pin_memory=pin)
