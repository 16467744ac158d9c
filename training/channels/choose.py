"""Which channels stay, by a score for each: so many in each group, or as many as a budget allows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from training.channels.groups import ChannelCosts
from trp_export.channels.blocks import worth_removing

# For each group: a score for each of its channels, and whether each stays.
Scores = Sequence[NDArray[np.float64]]
Stay = tuple[NDArray[np.bool_], ...]


class Target(Protocol):
    """How many channels are to stay."""

    def choose(self, scores: Scores) -> Stay:
        """The channels of the highest scores that meet the target; at least one stays in each group."""

    def distance(self, counts: Tensor) -> Tensor:
        """How far the numbers of channels in each group (groups,) are from the target, 0 where they meet it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """A number of channels for each group. Of equal scores the first channel stays."""

    counts: tuple[int, ...]

    def choose(self, scores: Scores) -> Stay:
        chosen = []
        for group, count in zip(scores, self.counts, strict=True):
            stay = np.zeros(len(group), dtype=bool)
            stay[np.argsort(-group, kind="stable")[:count]] = True
            chosen.append(stay)
        return tuple(chosen)

    def distance(self, counts: Tensor) -> Tensor:
        """The mean over groups of |log(count / wanted)|."""
        return (counts / counts.new_tensor(self.counts)).log().abs().mean()


@dataclass(frozen=True, slots=True)
class Budget:
    """The most multiply-adds; one threshold for the scores of all groups, the lowest that meets them."""

    costs: ChannelCosts
    most: float

    def choose(self, scores: Scores) -> Stay:
        thresholds = [-np.inf, *np.unique(np.concatenate(scores)).tolist()]

        def fits(threshold: float) -> bool:
            return self.costs.macs([int(stay.sum()) for stay in _above(scores, threshold)]) <= self.most

        # More channels go as the threshold rises, so bisection finds the first that fits.
        return _above(scores, thresholds[bisect_left(thresholds, True, key=fits)])

    def distance(self, counts: Tensor) -> Tensor:
        """|log(expected multiply-adds / budget)|."""
        return (self.costs.expected(counts) / self.most).log().abs()


def _above(scores: Scores, threshold: float) -> Stay:
    """The channels above the threshold, in each group at least the best one.

    Where few would go, as many stay as `trp-export` will keep.
    """
    chosen = []
    for group in scores:
        lost = min(int((group <= threshold).sum()), len(group) - 1)
        stay = np.ones(len(group), dtype=bool)
        stay[np.argsort(group, kind="stable")[: worth_removing(len(group), lost)]] = False
        chosen.append(stay)
    return tuple(chosen)
