"""Images read and decoded in worker processes, a batch at a time. What is wrong with them reaches the run as data."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from training.data.reading import Samples, decode
from training.data.transforms import Transform, transformed
from training.stop import ECHO_S
from training.torchrun import local_processes
from trp_export.errors import LoadError, TrpError

# Batches that each worker holds ready.
_PREFETCH = 2
_MOST_WORKERS = 8


class Item(NamedTuple):
    """One image: pixels uint8 (h, w, 3), None if damaged; its label; its name with what is odd about it."""

    pixels: Tensor | None
    label: int
    remark: tuple[str, str] | None


class Read(NamedTuple):
    """A batch as workers make it: pixels uint8 (b, h, w, 3), labels (b,), remarks; or why reading has failed."""

    pixels: Tensor
    labels: Tensor
    remarks: Sequence[tuple[str, str]]
    failure: str | None = None


def read_item(source: Any, name: str, label: int, transform: Transform, seed: int) -> Item:
    """Decode and transform one image."""
    decoded = decode(source, name)
    remark = None if decoded.remark is None else (name, decoded.remark)
    pixels = None if decoded.image is None else transformed(decoded.image, transform, seed)
    return Item(pixels, label, remark)


def training_batch(items: Sequence[Item]) -> Read:
    """A batch in which other images of the batch take the place of damaged ones."""
    sound = [item for item in items if item.pixels is not None]
    if not sound:
        first = "" if items[0].remark is None else f": {items[0].remark[1]}"
        return failed(f"all {len(items)} images of a batch are damaged{first}")
    spare = iter(sound * len(items))
    return _batch([item if item.pixels is not None else next(spare) for item in items], items)


def validation_batch(items: Sequence[Item]) -> Read:
    """A batch without the damaged images."""
    return _batch([item for item in items if item.pixels is not None], items)


def failed(why: str) -> Read:
    """No batch: what has gone wrong, with the rest of the data unread."""
    return Read(torch.empty(0), torch.empty(0), (), why)


class SampleReader(Dataset[Item]):
    """Images by index and seed."""

    def __init__(self, samples: Samples, transform: Transform) -> None:
        self._samples, self._transform = samples, transform

    def __getitem__(self, draw: tuple[int, int]) -> Item:
        index, seed = draw
        label, name = int(self._samples.labels[index]), self._samples.name(index)
        return read_item(self._samples.read(index), name, label, self._transform, seed)


def default_workers() -> int:
    """A worker for each core that this process may use but one, at most 8; the processes of one machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // local_processes() - 1))


def read_batches(loader: DataLoader[Any]) -> Iterator[Read]:
    """The batches of a loader. Raises TrpError where a worker dies, LoadError where data is missing."""
    iterator = iter(_without_child_signals(loader))
    while True:
        try:
            batch: Read = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # A worker that dies while it hands over a batch breaks the connection before torch notices.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise TrpError(
                "a process that reads images has died, most often for lack of memory: lower --workers."
            ) from error
        if batch.failure is not None:
            raise LoadError(batch.failure)
        yield batch


def make_loader(
    dataset: Dataset[Any], batches: Iterable[list[tuple[int, int]]] | None, workers: int, **settings: Any
) -> DataLoader[Any]:
    """A loader of these batches, or of a dataset that makes its own."""
    if batches is None:
        settings["batch_size"] = None
    else:
        settings["batch_sampler"] = batches
    if workers:
        settings |= {"worker_init_fn": _leave_signals_to_the_run, "prefetch_factor": _PREFETCH}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # More workers than cores: the user's choice.
        return DataLoader(dataset, num_workers=workers, **settings)


def _batch(chosen: Sequence[Item], items: Sequence[Item]) -> Read:
    pixels = [item.pixels for item in chosen if item.pixels is not None]
    return Read(
        default_collate(pixels) if pixels else torch.empty(0),  # In a worker, straight into shared memory.
        torch.tensor([item.label for item in chosen], dtype=torch.int64),
        tuple(item.remark for item in items if item.remark is not None),
    )


def _without_child_signals(loader: DataLoader[Any]) -> Iterator[Any]:
    """torch would raise the death of a worker at any moment, in the midst of a step too; `next` notices it as well."""
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
    return iterator


@atexit.register
def _end_workers() -> None:
    """Python would send workers one signal, which they leave to the run, and wait for them for ever.

    Other processes of a program that uses this module are waited for as ever: daemons alone would be ended anyway.
    """
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes of a job; the run itself saves and then ends its workers."""
    came: list[float] = []

    def take_one(number: int, frame: object) -> None:
        came.append(time.monotonic())
        if number == signal.SIGTERM and came[-1] - came[0] > ECHO_S:
            os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, take_one)
