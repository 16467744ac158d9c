"""The search over ratios: few builds, close to the limit, and an end whatever it is shown."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from trp_export.planning.frontier import CLOSE, LEAST, MOST, START, explore


def seen_under(limit: float, reach: float = math.inf) -> list[tuple[float, bool | None]]:
    """What a search sees where ratios up to `limit` hold and those above `reach` cannot be built."""
    seen: list[tuple[float, bool | None]] = []

    def see(ratio: float) -> bool | None:
        seen.append((ratio, ratio <= limit if ratio <= reach else None))
        return seen[-1][1]

    explore(see)
    return seen


@given(st.floats(1.1, START * 1.5**2))
def test_explore_comes_close_to_the_limit(limit: float) -> None:
    best = max(ratio for ratio, holds in seen_under(limit) if holds)
    assert limit / 1.03 <= best <= limit


@given(st.floats(START, 50))
def test_explore_brackets_far_limits(limit: float) -> None:
    seen = seen_under(limit)
    assert len(seen) == MOST or min(ratio for ratio, holds in seen if not holds) <= limit * CLOSE


@given(st.floats(1, LEAST, exclude_max=True))
def test_explore_stops_soon_where_no_ratio_holds(limit: float) -> None:
    assert not any(holds for _, holds in seen_under(limit))
    assert len(seen_under(limit)) < MOST


@given(st.floats(1.1, 10))
def test_a_ratio_out_of_reach_ends_the_bracket(reach: float) -> None:
    seen = seen_under(limit=math.inf, reach=reach)
    assert sum(holds is not None for _, holds in seen) <= MOST
    assert max(ratio for ratio, holds in seen if holds) >= min(reach, START * 1.5**5) / CLOSE**2


@given(st.lists(st.sampled_from([True, False, None]), min_size=1))
def test_explore_always_ends(answers: list[bool | None]) -> None:
    seen: list[float] = []

    def see(ratio: float) -> bool | None:
        seen.append(ratio)
        assert LEAST <= ratio < math.inf
        return answers[(len(seen) - 1) % len(answers)]

    explore(see)
    assert 0 < len(seen) <= 40
    assert len(set(seen)) == len(seen)
