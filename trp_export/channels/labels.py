"""Channels as numbers: which positions of which tensors stand or fall together.

Every filter of every layer gets a number. A tensor carries the numbers of its channels along one axis; an operator
that works on each channel alone passes them on, a sum ties those of its operands, a concatenation strings them
together. What happens to a number happens to all of its positions, in tensors and in weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The channels of a tensor with `rank` axes: `ids[i]` is that of position i on `axis`."""

    rank: int
    axis: int
    ids: Ids

    def __post_init__(self) -> None:
        if not 0 <= self.axis < self.rank:
            raise ValueError(f"a tensor of {self.rank} axes has no axis {self.axis}")


@dataclass(slots=True)
class Ties:
    """A union-find over channels, with the reason why a channel must stay."""

    _parents: list[int] = field(default_factory=list)
    _reasons: dict[int, str] = field(default_factory=dict)

    def fresh(self, count: int) -> Ids:
        """The numbers of new channels."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def find(self, channel: int) -> int:
        """The lowest number among the channels that this one is tied to."""
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def roots(self, ids: Ids) -> Ids:
        """`find` for each of them."""
        return np.array([self.find(int(channel)) for channel in ids], dtype=np.int64)

    def tie(self, first: Ids, second: Ids) -> None:
        """Tie two lists of channels position by position."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.find(one), self.find(other)))
            if low != high:
                self._parents[high] = low
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons.pop(high))

    def block(self, ids: Iterable[int], reason: str) -> None:
        """Make channels stay; the first reason counts."""
        for channel in ids:
            self._reasons.setdefault(self.find(int(channel)), reason)

    def reason(self, channel: int) -> str | None:
        """Why a channel must stay, None where it may go."""
        return self._reasons.get(self.find(channel))
