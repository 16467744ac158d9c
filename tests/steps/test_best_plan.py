"""Which of several timed plans is taken: pairs alone or beside fewer channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.latency.fake import CONDITIONS, OTHER, FakeDevice
from tests.latency.test_network import chain
from trp_export.latency.network import signatures_of
from trp_export.latency.pair_costs import EstimatedCosts, MeasuredCosts
from trp_export.latency.table import Table
from trp_export.load import load
from trp_export.lowrank.schemes import Branch
from trp_export.network import Network, analyse
from trp_export.options import LoadOptions
from trp_export.planning.curves import FIXED
from trp_export.planning.plan import Decision, Plan
from trp_export.rules import Macs
from trp_export.steps import best_plan
from trp_export.steps.thin_channels import CLEARLY_LESS

WIDE, THIN = SimpleNamespace(wide=None), SimpleNamespace(wide=object())


@dataclass(frozen=True)
class Round:
    """What the choice sees of a plan; `damage` is predicted.

    `thin`: channels went by images; `whole`: its time as a whole.
    """

    damage: float
    time: float
    thin: bool = False
    whole: float | None = None
    measured_damage: float | None = None

    @property
    def knowledge(self) -> SimpleNamespace:
        return SimpleNamespace(damage=self.damage, network=THIN if self.thin else WIDE)

    def timed(self) -> Round:
        return replace(self, time=self.time if self.whole is None else self.whole)


@pytest.fixture
def rounds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_plan, "damage_under", lambda rule, knowledge: knowledge.damage)


def best(rounds: Sequence[Round], ratio: float = 1.5) -> Round:
    return best_plan._best(rounds, Macs(ratio))  # type: ignore[arg-type, return-value]


ROUNDS = st.lists(
    st.builds(Round, st.floats(0.01, 1), st.floats(0.3, 1.2), st.booleans()), min_size=1, max_size=6, unique=True
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=ROUNDS, ratio=st.floats(1.1, 3))
def test_no_other_plan_is_both_faster_and_less_harmful(
    rounds_alone: None, rounds: Sequence[Round], ratio: float
) -> None:
    taken = best(rounds, ratio)
    alike = [one for one in rounds if one.thin == taken.thin]
    assert not any(one.damage < taken.damage and one.time < taken.time for one in alike)
    if any(one.time <= 1 for one in rounds):
        assert taken.time <= 1.03


def test_channels_need_clearly_less_damage_at_equal_time(rounds_alone: None) -> None:
    pairs = Round(0.3, 0.9)
    assert best([pairs, Round(0.25, 0.9, thin=True)]) is pairs
    assert best([pairs, Round(0.9 * CLEARLY_LESS * 0.3, 0.9, thin=True)]).thin


def test_measured_damage_needs_no_margin(rounds_alone: None) -> None:
    """What is predicted of pairs may be far too low, and far too high."""
    pairs, thin = Round(0.1, 0.9, measured_damage=0.3), Round(0.2, 0.9, thin=True, measured_damage=0.25)
    assert best([pairs, thin]) is thin
    assert best([replace(pairs, measured_damage=0.2), thin]).thin is False


def test_channels_go_where_pairs_save_no_time(rounds_alone: None) -> None:
    pairs, thin = Round(0.3, 1.02), Round(0.25, 0.8, thin=True)
    assert best([pairs, thin]) is thin
    assert best([replace(pairs, time=0.8), thin]) == replace(pairs, time=0.8)


def test_the_best_plan_of_each_network_is_timed_as_a_whole(rounds_alone: None) -> None:
    """What a pair costs its neighbours shows only there."""
    pairs, thin = Round(0.2, 0.98, whole=1.06), Round(0.25, 0.95, thin=True)
    assert best([pairs, thin]) is pairs
    finalists = best_plan._best_of_each_network([pairs, Round(0.4, 0.98), thin], Macs(1.5))  # type: ignore[list-item]
    assert [one.time for one in finalists] == [1.06, 0.95]
    assert best(finalists) == thin  # type: ignore[arg-type]


def test_nothing_is_timed_as_a_whole_where_no_channels_went(rounds_alone: None) -> None:
    pairs = Round(0.2, 0.98, whole=1.06)
    assert best_plan._best_of_each_network([pairs, Round(0.4, 0.98)], Macs(1.5)) == [pairs]  # type: ignore[list-item]


@pytest.fixture
def thin(tmp_path: Path) -> Network:
    """A chain of two convs, which stands for one of three that lost channels."""
    wide, narrow = (network_of(blocks, tmp_path / f"{blocks}") for blocks in (3, 2))
    return replace(narrow, wide=wide)


def network_of(blocks: int, folder: Path) -> Network:
    folder.mkdir()
    return analyse(load(chain(folder, blocks), LoadOptions()), folder)


def test_the_time_that_channels_save_is_measured_side_by_side(thin: Network, tmp_path: Path) -> None:
    device = FakeDevice({"x": (1, 24, 8, 8)})
    costs = MeasuredCosts(thin, device, Table(CONDITIONS, None), tmp_path, signatures_of(thin), "digest")  # type: ignore[arg-type]
    assert thin.wide is not None
    wide, narrow = (OTHER + sum(device.costs(chain(tmp_path, blocks)).values()) for blocks in (3, 2))
    for _ in range(2):
        assert costs.speedup_by_channels(thin) == pytest.approx(wide / narrow, rel=1e-4)
    assert device.comparisons == 1  # What the table holds is not measured again.
    assert costs.speedup_by_channels(thin.wide) == 1
    assert EstimatedCosts().speedup_by_channels(thin) == thin.fewer_macs


def test_each_network_is_timed_beside_itself_without_pairs(thin: Network, tmp_path: Path) -> None:
    """Both are timed in one folder, the wide one first."""
    assert thin.wide is not None
    device, table = FakeDevice({"x": (1, 24, 8, 8)}), Table(CONDITIONS, None)
    for network, digest in ((thin.wide, "wide"), (thin, "thin")):
        costs = MeasuredCosts(network, device, table, tmp_path, signatures_of(network), digest)  # type: ignore[arg-type]
        assert costs.speedup(Plan((), "none")) == pytest.approx(1)


def test_what_a_profile_does_not_tell_is_not_asked_again(thin: Network, tmp_path: Path) -> None:
    device = FakeDevice({"x": (1, 24, 8, 8)}, pace=0.0)  # Of layers that are too fast it says that they take nothing.
    costs = MeasuredCosts(thin, device, Table(CONDITIONS, None), tmp_path, signatures_of(thin), "digest")  # type: ignore[arg-type]
    plan = Plan((Decision(thin.located[0].site, (Branch(FIXED["channel"], 3),), ""),), "")
    for _ in range(3):
        assert costs.costs(plan) == {}
    assert device.profiles == 2
