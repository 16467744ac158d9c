"""How fast a run goes, and how much of its time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")


class Pace:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._started, self._waited, self._images = time.perf_counter(), 0.0, 0

    def waits_for(self, batches: Iterable[_Item], images: int) -> Iterator[_Item]:
        """The same batches, of `images` each over all processes, with the time that each takes to come."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch
            self._images += images

    def images_per_second(self) -> float:
        return self._images / (time.perf_counter() - self._started)

    def waiting(self) -> float:
        """The share of time spent waiting for data, from 0 to 1."""
        return self._waited / (time.perf_counter() - self._started)
