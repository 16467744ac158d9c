"""The plan for a speed-up where whole networks gain more, or less, than their layers promise."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trp_export.errors import OptionError
from trp_export.latency.search import plan_at_speed

ORIGINAL = 10.0


@dataclass
class Promised:
    """A device on which a network gains `factor` times what its plan, the cost that is predicted for it, promises."""

    factor: float
    original: float = ORIGINAL

    def progress(self, stage: str, share: float) -> None: ...

    def predicted(self, plan: float) -> float:
        return plan

    def measured(self, plan: float) -> float:
        return 1 / (1 - self.factor * (1 - plan / self.original))


def fastest_at(least: float):
    """Plans of any cost that is not below the least that the table knows."""
    return lambda budget: max(budget, least)


@given(factor=st.floats(0.5, 4), least=st.floats(5, 9.9), wish=st.floats(0.05, 1))
def test_no_plan_is_taken_that_is_much_faster_than_asked(factor: float, least: float, wish: float) -> None:
    """What goes beyond the wish is accuracy that nobody had to lose."""
    device = Promised(factor)
    assume(factor * (1 - least / ORIGINAL) <= 0.8)
    ratio = 1 + wish * (device.measured(least) - 1)
    plan = plan_at_speed(device, ratio, fastest_at(least))
    assert device.measured(plan) == pytest.approx(ratio, rel=0.02)


def test_what_no_plan_reaches_is_refused() -> None:
    with pytest.raises(OptionError, match=r"out of reach on this device: the fastest plan measured 1\.18x"):
        plan_at_speed(Promised(0.3), 1.5, fastest_at(5))
