"""Work on layers in parallel, one core each.

BLAS with several threads for one layer gains less, and on a busy machine its threads wait for one another far longer
than they compute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


def map_layers(work: Callable[[T], R], layers: Sequence[T], progress: Callable[[float], None]) -> list[R]:
    """Apply `work` to every layer; results are in order. `progress` receives the share that is done."""
    results = []
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for index, result in enumerate(pool.map(work, layers)):
                results.append(result)
                progress((index + 1) / len(layers))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
