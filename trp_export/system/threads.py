"""Work on layers in parallel, one core each, and long work in the background.

BLAS with several threads for one layer gains less, and on a busy machine its threads wait for one another far longer
than they compute. Python handles signals between two steps of its main thread, which must therefore not wait inside a
library: it waits for other threads. Those that a signal interrupts are left behind and end with the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

from threadpoolctl import threadpool_limits

from trp_export.system.signals import BACKGROUND

T = TypeVar("T")
R = TypeVar("R")


def map_layers(work: Callable[[T], R], layers: Sequence[T], progress: Callable[[float], None]) -> list[R]:
    """Apply `work` to every layer; results are in order. `progress` receives the share that is done."""
    results: list[R] = []
    tasks: list[tuple[T, Future[R]]] = [(layer, Future()) for layer in layers]
    todo = iter(tasks)

    def take_turns() -> None:
        for layer, future in todo:
            _fulfil(future, lambda layer=layer: work(layer))  # type: ignore[misc]

    with threadpool_limits(1, user_api="blas"):
        threads = [_start(take_turns) for _ in range(min(os.cpu_count() or 1, len(tasks)))]
        try:
            for index, (_, future) in enumerate(tasks):
                results.append(future.result())
                progress((index + 1) / len(tasks))
        except BaseException as error:
            for _, future in tasks:
                future.cancel()
            if isinstance(error, Exception):
                _join(threads)
            raise
        _join(threads)
    return results


def in_background(work: Callable[[], R]) -> R:
    """The result of `work`, for which a signal need not wait."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    future: Future[R] = Future()
    thread = _start(lambda: _fulfil(future, work))
    try:
        return future.result()
    finally:
        if future.done():
            thread.join()


def _join(threads: Sequence[threading.Thread]) -> None:
    """Wait for threads that have nothing left to do: one that is alive when the command ends counts as left behind."""
    for thread in threads:
        thread.join()


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=copy_context().run, args=(work,), name=BACKGROUND, daemon=True)
    thread.start()
    return thread


def _fulfil(future: Future[R], work: Callable[[], R]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
