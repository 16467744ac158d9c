"""What samples say: quantiles of one model, and the ratio of two models with its interval.

The interval is a bootstrap over processes, not over single runs: runs inside a process share its memory placement and
are far from independent. Few processes make percentile intervals too narrow; the expanded percentile interval of
T. Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), section 4.3, corrects that with Student's t.
Below eight processes no resampling helps, as the range of all values holds the truth in less than 99 % of cases; the
interval is then Student's own, and wide.

Counts of an emulator repeat, so their interval is the range of the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trp_export.bench.samples import Measurement

CONFIDENCE = 0.99
SMALLEST_DIFFERENCE = 0.01  # below this, "no difference", however sure; counts of one model repeat to 0.2 %
RESAMPLES = 20_000
ENOUGH = 8
TRIM = 0.25  # the middle half of the processes: one disturbed process does not decide

Verdict = Literal["faster", "slower", "no difference", "unknown"]


@dataclass(frozen=True, slots=True)
class Summary:
    """Quantiles over all samples of one model in the environment's unit; load time and peak memory are medians."""

    median: float
    p90: float
    p99: float
    min: float
    n: int
    processes: int
    load_ms: float
    peak_bytes: int

    def to_json(self, unit: str) -> dict[str, Any]:
        """A plain dict, times in ms where samples are times, otherwise in `unit`."""
        scale, suffix = (1e6, "ms") if unit == "ns" else (1.0, unit)
        return {
            f"p50_{suffix}": self.median / scale,
            f"p90_{suffix}": self.p90 / scale,
            f"p99_{suffix}": self.p99 / scale,
            f"min_{suffix}": self.min / scale,
            "n": self.n,
            "processes": self.processes,
            "load_ms": self.load_ms,
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """Time of the reference over time of the other: above 1 the other is faster.

    `low` to `high` is the interval that holds the truth with `confidence`; of counts it is the range of the rounds, and
    `confidence` None. `n` samples of both together, `processes` of the one that had fewer. Times of fewer than two
    processes have the interval 0 to infinity and the verdict `unknown`.
    """

    value: float
    low: float
    high: float
    verdict: Verdict
    n: int
    processes: int
    confidence: float | None = CONFIDENCE

    def __str__(self) -> str:
        if not math.isfinite(self.high):
            return f"{self.value:.2f}x [unknown]"
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"

    def to_json(self) -> dict[str, Any]:
        """A plain dict; an unbounded end is null."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high if math.isfinite(self.high) else None,
            "confidence": self.confidence,
            "verdict": self.verdict,
            "n": self.n,
            "processes": self.processes,
        }


def median(measurement: Measurement) -> float:
    """The median over all samples, in the environment's unit."""
    return float(np.median(measurement.samples))


def summary(measurement: Measurement) -> Summary:
    """Quantiles of all samples of `measurement`, which must have at least one."""
    samples = np.asarray(measurement.samples, dtype=np.float64)
    p50, p90, p99 = np.quantile(samples, [0.5, 0.9, 0.99])
    return Summary(
        median=float(p50),
        p90=float(p90),
        p99=float(p99),
        min=float(samples.min()),
        n=samples.size,
        processes=len(measurement.processes),
        load_ms=float(np.median([process.load_ms for process in measurement.processes])),
        peak_bytes=int(np.median([process.peak_bytes for process in measurement.processes])),
    )


def ratio(reference: Measurement, other: Measurement, *, paired: bool = True, seed: int = 0) -> Ratio:
    """How many times faster `other` is than `reference`, with its interval, resampled by process.

    Paired, processes of the same round are compared with one another, which takes slow drifts of the machine out;
    measurements of different runs are not paired. Counts (`Measurement.counts`) have the range of the rounds for an
    interval. Raises ValueError when no two processes can be compared.
    """
    first, second = _medians(reference), _medians(other)
    rounds = sorted(first.keys() & second.keys())
    if paired and not rounds:
        raise ValueError("no round holds samples of both models")
    if paired:
        groups = [np.log([first[index] / second[index] for index in rounds])]
    else:
        groups = [np.log(list(first.values())), np.log(list(second.values()))]
    value = math.exp(_middle(*groups))
    counted = bool(reference.counts and other.counts)
    low, high = (math.exp(end) for end in (_range(groups) if counted else _interval(groups, seed)))
    return Ratio(
        value=value,
        low=low,
        high=high,
        verdict=verdict(value, low, high),
        n=len(reference.samples) + len(other.samples),
        processes=min(len(group) for group in groups),
        confidence=None if counted else CONFIDENCE,
    )


def verdict(value: float, low: float, high: float) -> Verdict:
    """`no difference` where the interval straddles 1 or the difference is under 1 %, `unknown` where it has no end."""
    if not math.isfinite(high):
        return "unknown"
    if low <= 1 <= high or abs(value - 1) < SMALLEST_DIFFERENCE:
        return "no difference"
    return "faster" if value > 1 else "slower"


def _medians(measurement: Measurement) -> dict[int, float]:
    return {process.round: float(np.median(process.samples)) for process in measurement.processes if process.samples}


def _middle(*groups: np.ndarray, axis: int = -1) -> Any:
    """The trimmed mean of one group of logarithms, or the difference of two."""
    from scipy.stats import trim_mean

    means = [trim_mean(group, TRIM, axis=axis) for group in groups]
    return means[0] if len(means) == 1 else means[0] - means[1]


def _range(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """From the smallest of one group, or of the differences of two, to the largest."""
    others = groups[1] if len(groups) > 1 else np.zeros(1)
    return float(groups[0].min() - others.max()), float(groups[0].max() - others.min())


def _interval(groups: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """The expanded percentile interval of `_middle`, or Student's where there are too few values to resample."""
    from scipy.stats import bootstrap, norm
    from scipy.stats import t as student

    fewest = min(len(group) for group in groups)
    if fewest < 2:
        return -math.inf, math.inf
    if fewest < ENOUGH:
        error = math.sqrt(sum(float(np.var(group, ddof=1)) / len(group) for group in groups))
        half = float(student.ppf((1 + CONFIDENCE) / 2, fewest - 1)) * error
        return float(_middle(*groups)) - half, float(_middle(*groups)) + half
    wider = math.sqrt(fewest / (fewest - 1)) * student.ppf((1 + CONFIDENCE) / 2, fewest - 1)
    result = bootstrap(
        groups,
        _middle,
        confidence_level=float(2 * norm.cdf(wider) - 1),
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
