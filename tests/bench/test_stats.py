"""Statistics against known answers and against coin-tossing: how often the interval is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from trp_export.bench import Comparison, Environment, Measurement, Process, ratio, summary, to_json
from trp_export.bench.saved import from_json

HERE = Environment("local", "CPU", "x86_64", "Linux", 2, "unknown", (), 1, "CPUExecutionProvider", "1.31.1", "")


def measured(medians: list[float], *, spread: float = 0.0, samples: int = 9) -> Measurement:
    """A measurement whose processes have the given medians in ms."""
    wobble = np.linspace(-spread, spread, samples)
    processes = tuple(
        Process(i, 1.0, 0, 10 + i, tuple(round(median * 1e6 * (1 + w)) for w in wobble))
        for i, median in enumerate(medians)
    )
    return Measurement("m", "0" * 64, 1, processes, None, {})


def test_summary_takes_quantiles_over_all_samples() -> None:
    one = summary(measured([1.0, 2.0, 3.0], samples=1))
    assert (one.median, one.min, one.n, one.processes, one.peak_bytes) == (2e6, 1e6, 3, 3, 11)
    assert one.to_json("ns")["p50_ms"] == 2.0
    assert one.to_json("instructions")["p50_instructions"] == 2e6


def test_an_exact_ratio_has_an_exact_interval() -> None:
    found = ratio(measured([2.0] * 6), measured([1.0] * 6))
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert found.verdict == "faster"
    assert str(found) == "2.00x [2.00, 2.00]"
    assert ratio(measured([1.0] * 6), measured([2.0] * 6)).verdict == "slower"


def test_pairs_take_drift_out() -> None:
    drift = [1.0, 1.2, 1.5, 1.9, 2.4, 3.0]
    found = ratio(measured(drift), measured([median / 1.05 for median in drift]))
    assert found.verdict == "faster"
    assert (
        ratio(measured(drift), measured([median / 1.05 for median in drift]), paired=False).verdict == "no difference"
    )


def test_under_one_percent_is_no_difference_however_sure() -> None:
    assert ratio(measured([1.0] * 9), measured([0.992] * 9)).verdict == "no difference"
    assert ratio(measured([1.0] * 9), measured([0.985] * 9)).verdict == "faster"


def test_one_process_tells_nothing() -> None:
    found = ratio(measured([2.0]), measured([1.0]))
    assert (found.low, found.high, found.verdict) == (0.0, math.inf, "unknown")
    assert str(found) == "2.00x [unknown]"
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["high"] is None


def counted(*counts: float) -> Measurement:
    """What an emulator counted, one inference a process."""
    return replace(measured(list(counts), samples=1), counts={"macs": 1})


def test_counts_have_the_range_of_their_rounds_for_an_interval() -> None:
    half = ratio(counted(100.0, 100.2), counted(50.1, 50.0))
    assert (half.low, half.high) == pytest.approx((100 / 50.1, 100.2 / 50))
    assert (half.verdict, half.confidence) == ("faster", None)
    assert ratio(counted(100, 100.3), counted(102, 101.9)).verdict == "slower"
    assert ratio(counted(100, 100.3), counted(99.4, 99.5)).verdict == "no difference"
    assert ratio(counted(100), counted(50)).verdict == "faster"
    apart = ratio(counted(100, 101), counted(50, 52, 51), paired=False)
    assert (apart.low, apart.high) == pytest.approx((100 / 52, 101 / 50))
    assert json.loads(json.dumps(apart.to_json()))["confidence"] is None


def test_a_run_stopped_in_its_first_round_can_still_be_saved() -> None:
    stopped = Comparison(HERE, (measured([1.0]), measured([])), (), 1.0)
    values = json.loads(json.dumps(to_json(stopped), allow_nan=False))
    assert values["models"][1]["ratio"] is None
    assert values["models"][1]["summary"] is None
    assert from_json(values, "x") == stopped


def test_one_disturbed_process_does_not_decide() -> None:
    assert ratio(measured([1.0] * 9), measured([1.0] * 8 + [3.0])).value == pytest.approx(1.0)


@pytest.mark.parametrize("processes", [2, 5, 8, 16])
def test_the_interval_holds_what_it_promises(processes: int) -> None:
    """99 % intervals on normal noise miss the truth rarely, also with few processes ."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(150):
        noise = rng.normal(0, 0.03, (2, processes))
        found = ratio(measured(list(np.exp(noise[0])), samples=1), measured(list(np.exp(noise[1])), samples=1))
        missed += not found.low <= 1 <= found.high
    assert missed <= 150 * 0.04
