"""Statistics of trust against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from trust import best_fifth, bootstrap, kendall, measure_trust, regret, spearman

# Of the 6 pairs 5 agree and 1 does not; the ranks differ by 0, 1, 1, 0.
SCORE, ACCURACY = np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 30.0, 20.0, 40.0])


def test_kendall_and_spearman_without_ties() -> None:
    assert kendall(SCORE, ACCURACY) == pytest.approx((5 - 1) / 6)
    assert spearman(SCORE, ACCURACY) == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_kendall_with_ties_is_tau_b() -> None:
    # One pair is tied in the score, another in accuracy; the other four agree: 4 / sqrt(5 * 5).
    score, accuracy = np.array([1.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0, 3.0])
    assert kendall(score, accuracy) == pytest.approx(0.8)
    # Ranks 1.5 1.5 3 4 and 1 2.5 2.5 4, less their mean of 2.5: products sum to 3.75, squares to 4.5 on each side.
    assert spearman(score, accuracy) == pytest.approx(3.75 / 4.5)


def test_a_constant_tells_nothing() -> None:
    assert math.isnan(kendall(np.ones(4), ACCURACY))
    assert math.isnan(spearman(SCORE, np.ones(4)))
    trust = measure_trust(np.ones(4), ACCURACY)
    assert (trust.kendall.value, trust.kendall.low, trust.kendall.high) == (None, None, None)


def test_the_best_fifth_is_by_accuracy_and_rounded_up() -> None:
    accuracy = np.array([5.0, 9.0, 1.0, 9.0, 7.0, 3.0, 2.0, 8.0, 4.0, 6.0])
    assert best_fifth(accuracy).tolist() == [1, 3]
    assert best_fifth(accuracy[:6]).tolist() == [1, 3]
    assert len(best_fifth(np.arange(36.0))) == 8


def test_regret_is_what_the_liked_plans_miss() -> None:
    score, accuracy = np.array([0.1, 0.9, 0.5, 0.7]), np.array([95.0, 90.0, 94.0, 92.5])
    assert [regret(score, accuracy, k) for k in (1, 2, 3, 4)] == [5.0, 2.5, 1.0, 0.0]
    # Of equally liked plans the worse one is built.
    assert regret(np.ones(4), accuracy, 1) == 5.0


def test_the_interval_holds_the_value_and_narrows_with_more_plans() -> None:
    rng = np.random.default_rng(0)

    def width(count: int) -> float:
        score = rng.standard_normal(count)
        found = bootstrap(kendall, score, score + rng.standard_normal(count), 0)
        assert found.low is not None
        assert found.high is not None
        assert found.value is not None
        assert found.low < found.value < found.high
        return found.high - found.low

    assert width(400) < width(20) / 2


def test_perfect_and_reversed_scores() -> None:
    accuracy = np.arange(20.0)
    best, worst = measure_trust(accuracy**3, accuracy), measure_trust(-accuracy, accuracy)
    assert (best.kendall.value, best.spearman_top.value) == (pytest.approx(1), pytest.approx(1))
    assert [estimate.value for _, estimate in best.regret] == [0, 0, 0]
    assert worst.kendall.value == pytest.approx(-1)
    assert [(k, estimate.value) for k, estimate in worst.regret] == [(1, 19), (3, 17), (5, 15)]


def test_the_same_seed_gives_the_same_interval() -> None:
    assert bootstrap(spearman, SCORE, ACCURACY, 1) == bootstrap(spearman, SCORE, ACCURACY, 1)


@given(arrays(np.float64, 12, elements=st.integers(0, 5)), arrays(np.float64, 12, elements=st.integers(0, 5)))
def test_kendall_by_counting_pairs(score: np.ndarray, accuracy: np.ndarray) -> None:
    signs = [(np.sign(score[i] - score[j]), np.sign(accuracy[i] - accuracy[j])) for i in range(12) for j in range(i)]
    untied = [sum(1 for pair in signs if pair[side]) for side in (0, 1)]
    own = kendall(score, accuracy)
    if 0 in untied:
        assert math.isnan(own)
    else:
        assert own == pytest.approx(sum(a * b for a, b in signs) / math.sqrt(untied[0] * untied[1]))
