"""Pairs that are not faster than their layers, on a device whose costs are known and by the estimate."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.latency.fake import CONDITIONS, OTHER, PER_NODE, FakeDevice
from tests.latency.test_network import chain
from trp_export.channels.thin import Thinned
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.shapes import infer_shapes, infer_value_shapes
from trp_export.graph.sites import find_sites
from trp_export.latency.network import signatures_of
from trp_export.latency.pair_costs import EstimatedCosts, MeasuredCosts, PairCosts
from trp_export.latency.placeholder import make_standin
from trp_export.latency.table import Table
from trp_export.load import load
from trp_export.lowrank.factor import factorise, stored_product
from trp_export.lowrank.schemes import Branch
from trp_export.network import Network, analyse, measure_layers
from trp_export.options import LoadOptions, Options, Selection
from trp_export.planning.curves import FIXED
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.saved_plan import Choice
from trp_export.rules import Energy, Macs, Params, Rank, Rule, SavedPlan
from trp_export.steps.best_plan import best_plan
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.slow_pairs import FastPlan, Round
from trp_export.steps.thin_channels import Thinner


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = tmp_path_factory.mktemp("slow")
    return analyse(load(chain(folder), LoadOptions()), folder)


def make_knowledge(network: Network, costs: PairCosts | None, saved: tuple[Choice, ...] = ()) -> Knowledge:
    layers = measure_layers(network, Selection(), saved, lambda step, share: None)
    return Knowledge(network, layers, saved, align=1, pair_costs=costs)


def clock(network: Network, folder: Path, device: FakeDevice | None = None) -> MeasuredCosts:
    device = device or FakeDevice({"x": (1, 24, 8, 8)})
    return MeasuredCosts(network, device, Table(CONDITIONS, None), folder, signatures_of(network), "digest")  # type: ignore[arg-type]


def plan(network: Network, rule: Rule, costs: PairCosts | None, saved: tuple[Choice, ...] = ()) -> FastPlan:
    thinner = Thinner(make_knowledge(network, costs, saved), Options(), None)  # type: ignore[arg-type]
    return best_plan(rule, thinner, lambda step, share: None)[0]


def test_pairs_that_save_less_than_they_cost_are_left_out(network: Network, tmp_path: Path) -> None:
    kept = plan(network, Rank(35), None)
    fast = plan(network, Rank(35), clock(network, tmp_path))
    assert len(kept.plan.changed) > len(fast.plan.changed) == 0
    assert fast.plan.decisions[0].reason.startswith("a pair is not faster: 0.342 to 0.3")
    (note,) = fast.notes
    assert note == "3 layers stay dense, since a pair is not faster (timed); --speedup 1.2 looks for pairs that are"


def test_reasons_tell_the_times_of_pairs_that_are_faster(network: Network, tmp_path: Path) -> None:
    fast = plan(network, Energy(0.5), clock(network, tmp_path))
    assert len(fast.plan.changed) == 3
    for decision in fast.plan.decisions:
        if decision.branches:
            dense, pair = PER_NODE + 1e-6 * decision.site.macs, 2 * PER_NODE + 1e-6 * decision.macs
            assert decision.reason == f"{dense:.3g} to {pair:.3g} ms"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.3, 1.0), rank=st.integers(1, 40))
def test_every_pair_that_stays_is_faster(network: Network, tmp_path: Path, share: float, rank: int) -> None:
    for rule in (Energy(share), Rank(rank)):
        costs = clock(network, tmp_path)
        fast = plan(network, rule, costs)
        known = costs.costs(fast.plan)
        assert set(known) == {change.site.name for change in fast.plan.changed}
        assert all(cost.is_lower for cost in known.values())


@pytest.mark.parametrize("rule", [Macs(1.3), Params(1.3)])
def test_a_budget_is_met_without_slow_pairs(network: Network, tmp_path: Path, rule: Macs | Params) -> None:
    costs = clock(network, tmp_path)
    fast = plan(network, rule, costs)
    assert all(cost.is_lower for cost in costs.costs(fast.plan).values())
    count = "macs" if isinstance(rule, Macs) else "params"
    before = sum(getattr(decision.site, count) for decision in fast.plan.decisions)
    assert before / sum(getattr(decision, count) for decision in fast.plan.decisions) >= rule.ratio
    assert fast.notes == ()


def test_a_budget_out_of_reach_without_slow_pairs_keeps_them(network: Network, tmp_path: Path) -> None:
    slow = FakeDevice({"x": (1, 24, 8, 8)}, per_node=1.0)
    fast = plan(network, Macs(1.3), clock(network, tmp_path, slow))
    assert fast.plan.changed
    (note,) = fast.notes
    assert note.endswith("not faster than the layer; --speedup chooses by time")


def test_a_slow_pair_stays_where_others_would_do_far_more_damage(tmp_path: Path) -> None:
    lossless = low_rank_first(tmp_path, rank=34)
    fast = plan(lossless, Macs(1.018), clock(lossless, tmp_path))
    assert [(change.site.name, change.rank) for change in fast.plan.changed] == [("conv0", 34)]
    (note,) = fast.notes
    assert note.startswith("the pair of conv0 is not faster")


def test_a_slow_pair_goes_where_it_makes_the_whole_network_slower(tmp_path: Path) -> None:
    lossless = low_rank_first(tmp_path, rank=34)
    costs = clock(lossless, tmp_path, FakeDevice({"x": (1, 24, 8, 8)}, per_node=0.07))
    slow = plan(lossless, Macs(1.018), None).plan
    assert more_time(slow, costs) > 0.03
    fast = plan(lossless, Macs(1.018), costs).plan
    assert fast.changed
    assert more_time(fast, costs) <= 0.03


def more_time(plan: Plan, costs: PairCosts) -> float:
    """What its pairs cost more than their layers, as a share of the whole network's cost."""
    return sum(cost.pair - cost.dense for cost in costs.costs(plan).values()) / costs.whole(plan)


def low_rank_first(folder: Path, rank: int) -> Network:
    """The chain, whose first conv has a low rank as a spatial pair."""
    loaded = load(chain(folder), LoadOptions())
    place = find_sites(loaded.model, infer_shapes(loaded.model, {"x": (1, 24, 8, 8)}))[0]
    factors = factorise(place.kernel(), FIXED["spatial"], 1, rank)
    set_kernel(place, stored_product(factors, FIXED["spatial"], place.site.kernel_shape, 1))
    return analyse(loaded, folder)


def test_a_saved_plan_is_carried_out_with_a_note(network: Network, tmp_path: Path) -> None:
    saved = (Choice("conv0", (Branch(FIXED["spatial"], 36),), ""), Choice("conv1", (), ""), Choice("conv2", (), ""))
    fast = plan(network, SavedPlan(Path("plan.json")), clock(network, tmp_path), saved)
    assert [change.rank for change in fast.plan.changed] == [36]
    assert fast.notes == ("the pair of conv0 is not faster than the layer; --speedup chooses by time",)


def test_pairs_go_where_the_whole_network_is_slower(network: Network, tmp_path: Path) -> None:
    slow_as_a_whole = FakeDevice({"x": (1, 24, 8, 8)}, scale=3.0)
    fast = plan(network, Energy(0.5), clock(network, tmp_path, slow_as_a_whole))
    assert not fast.plan.changed
    assert fast.notes[0].startswith("4 layers stay dense")


def test_costs_are_estimated_where_the_device_fails(network: Network, tmp_path: Path) -> None:
    broken = FakeDevice({"x": (1, 24, 8, 8)}, dies_after=0)
    fast = plan(network, Energy(0.5), clock(network, tmp_path, broken))
    assert fast.plan == plan(network, Energy(0.5), EstimatedCosts()).plan
    assert fast.notes[-1] == "the cost of pairs is estimated, since they were not timed: the device was lost."


def test_the_table_is_not_measured_again(network: Network, tmp_path: Path) -> None:
    device = FakeDevice({"x": (1, 24, 8, 8)})
    costs = clock(network, tmp_path, device)
    first = plan(network, Energy(0.5), costs)
    profiles, comparisons = device.profiles, device.comparisons
    assert plan(network, Energy(0.5), costs) == first
    assert (device.profiles, device.comparisons) == (profiles, comparisons) == (2, 1)


@pytest.mark.parametrize("scheme", ["channel", "spatial", "spatial-t"])
def test_the_estimate_counts_each_element_between_two_convs(network: Network, scheme: str) -> None:
    decisions = tuple(
        Decision(place.site, (Branch(FIXED[scheme], 5),) if place.site.op == "Conv" else (), "")
        for place in network.located
    )
    made, _ = make_standin(network.model, Plan(decisions, ""))
    shapes = infer_value_shapes(made, network.inputs)
    between = [prod(shapes[str(node.outputs[0].name)]) for node in made.graph if node.op_type == "Conv"][::2]  # type: ignore[arg-type]
    costs = EstimatedCosts().costs(Plan(decisions, ""))
    extra = [costs[decision.site.name].pair - decision.macs for decision in decisions if decision.branches]
    assert extra == [16 * elements for elements in between]


def test_layers_of_unknown_size_are_not_estimated(network: Network) -> None:
    site = network.located[0].site
    unknown = replace(site, uses=tuple(replace(use, known=False) for use in site.uses))
    assert EstimatedCosts().costs(Plan((Decision(unknown, (Branch(FIXED["channel"], 3),), ""),), "")) == {}


def test_a_network_of_unknown_size_takes_as_long_as_before(network: Network) -> None:
    site = network.located[0].site
    unknown = replace(site, uses=tuple(replace(use, known=False) for use in site.uses))
    plan = Plan((Decision(unknown, (Branch(FIXED["channel"], 3),), ""),), "")
    assert Round(plan, {}, make_knowledge(network, EstimatedCosts()), {}).time == 1


def test_the_time_of_a_whole_is_measured_where_it_can_be(network: Network, tmp_path: Path) -> None:
    fast = plan(network, Energy(0.5), None).plan
    device = FakeDevice({"x": (1, 24, 8, 8)})
    timed = Round(fast, {}, make_knowledge(network, clock(network, tmp_path, device)), {}).timed()
    pairs = sum(2 * PER_NODE + 1e-6 * decision.macs for decision in fast.decisions if decision.branches)
    dense = sum(PER_NODE + 1e-6 * decision.site.macs for decision in fast.decisions if decision.branches)
    assert timed.time == pytest.approx((OTHER + pairs) / (OTHER + dense), rel=1e-3)
    untimed = Round(fast, {}, make_knowledge(network, EstimatedCosts()), {})
    assert untimed.timed() == untimed


def test_nothing_is_timed_where_there_is_one_plan(network: Network, tmp_path: Path) -> None:
    device = FakeDevice({"x": (1, 24, 8, 8)})
    assert network.macs is not None
    before = Thinned(network.file, network.file, {}, network.params, network.params, 2 * network.macs)
    met = replace(network, thinned=before)
    thinner = Thinner(make_knowledge(met, clock(network, tmp_path, device)), Options(), None)  # type: ignore[arg-type]
    fast, _ = best_plan(Macs(1.5), thinner, lambda step, share: None)
    assert not fast.plan.changed
    assert device.profiles == device.comparisons == 0


def test_the_model_that_is_timed_is_not_changed(network: Network, tmp_path: Path) -> None:
    before = ir.to_proto(network.model).SerializeToString()
    plan(network, Energy(0.5), clock(network, tmp_path))
    assert ir.to_proto(network.model).SerializeToString() == before
