"""How far a score can be trusted to choose among plans: rank correlations and regret, with bootstrap intervals.

A score predicts accuracy without the work of recovering a plan; more means better. Kendall's tau-b and Spearman's
rho say how well it ranks, the regret what it costs to build only the plans it likes best.
Source: Xie et al., "Weight-Sharing Neural Architecture Search", arXiv 2008.01475, section 3 (the optimisation gap).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

Float64 = NDArray[np.float64]
Statistic = Callable[[Float64, Float64], float]

TOP = 0.2
REGRET_AT = (1, 3, 5)
_DRAWS = 2000
_LEVEL = 0.95
# Two plans have one order: correlations of fewer than three say nothing.
_LEAST = 3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic over all plans and its 95 % interval; None where the plans do not tell it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Trust:
    """Of one score: correlations over all plans and among the most accurate fifth, and the regret in percentage
    points by the number of plans that are built."""

    kendall: Estimate
    spearman: Estimate
    kendall_top: Estimate
    spearman_top: Estimate
    regret: tuple[tuple[int, Estimate], ...]


def measure_trust(score: Float64, accuracy: Float64, seed: int = 0) -> Trust:
    """`score` and `accuracy` (plans,), for both more is better; accuracy in percent."""

    def estimate(statistic: Statistic) -> Estimate:
        return bootstrap(statistic, score, accuracy, seed)

    return Trust(
        kendall=estimate(kendall),
        spearman=estimate(spearman),
        kendall_top=estimate(partial(_among_best, kendall)),
        spearman_top=estimate(partial(_among_best, spearman)),
        regret=tuple((k, estimate(partial(regret, k=k))) for k in REGRET_AT),
    )


def kendall(score: Float64, accuracy: Float64) -> float:
    """Tau-b: concordant less discordant pairs, over the geometric mean of the pairs that either leaves untied.

    NaN where one of them is the same for all plans.
    """
    return float(kendalltau(score, accuracy).statistic) if _tells(score, accuracy) else float("nan")


def spearman(score: Float64, accuracy: Float64) -> float:
    """The correlation of ranks, ties sharing their mean rank. NaN where one of them is the same for all plans."""
    return float(spearmanr(score, accuracy).statistic) if _tells(score, accuracy) else float("nan")


def best_fifth(accuracy: Float64) -> NDArray[np.intp]:
    """Indices of the most accurate fifth of the plans, rounded up; among equals the earlier ones."""
    return np.argsort(-accuracy, kind="stable")[: -(-len(accuracy) // round(1 / TOP))]


def regret(score: Float64, accuracy: Float64, k: int) -> float:
    """Points between the best plan and the best of the k that the score likes most; ties count as unlucky."""
    liked = np.lexsort((accuracy, -score))[:k]
    return float(accuracy.max() - accuracy[liked].max())


def bootstrap(statistic: Statistic, score: Float64, accuracy: Float64, seed: int) -> Estimate:
    """The statistic with its percentile interval over plans drawn anew with replacement.

    Draws that leave it undefined are left out; without a single one that defines it there is no interval.
    """
    value = statistic(score, accuracy)
    if not np.isfinite(value):
        return Estimate(None, None, None)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(score), size=len(score)) for _ in range(_DRAWS))
    found = np.array([statistic(score[index], accuracy[index]) for index in drawn])
    found = found[np.isfinite(found)]
    if not len(found):
        return Estimate(value, None, None)
    low, high = np.quantile(found, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _among_best(statistic: Statistic, score: Float64, accuracy: Float64) -> float:
    best = best_fifth(accuracy)
    return statistic(score[best], accuracy[best])


def _tells(score: Float64, accuracy: Float64) -> bool:
    return len(score) >= _LEAST and bool(np.ptp(score) > 0 and np.ptp(accuracy) > 0)
