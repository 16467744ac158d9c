"""Rank rules, the budget, and the plan as JSON."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trp_export.errors import LoadError, OptionError
from trp_export.lowrank.schemes import SCHEMES, Branch
from trp_export.lowrank.site import Site, Use
from trp_export.planning.budgets import Budget, plan_by_macs
from trp_export.planning.curves import FIXED, Layer, align_rank, make_curve, schemes_for
from trp_export.planning.knapsack import Menu, allocate
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep, plan_by_choices, plan_by_rule
from trp_export.planning.saved_plan import Choice, parse_plan, read_plan
from trp_export.rules import Energy, Macs, Rank, Threshold

CHANNEL, SPATIAL = SCHEMES["channel-wise"], SCHEMES["spatial-wise"]


def layer(
    name: str = "conv", shape: tuple[int, ...] = (16, 16, 3, 3), choice: str = "auto", seed: int = 0, extent: int = 8
) -> Layer:
    """A conv with random weights on a square feature map, as the planner sees it."""
    use = Use((extent,) * 2, (extent,) * 2, (1, 1), (1,) * 4, (1, 1))
    site = Site(name, "Conv", shape, 1, (use,))
    kernel = np.random.default_rng(seed).standard_normal(shape)
    return Layer(site, tuple(make_curve(site, scheme, kernel) for scheme in schemes_for(site, choice)))


def refused(name: str = "depthwise") -> Layer:
    return Layer(Site(name, "Conv", (8, 1, 3, 3), 8, (), "depthwise: nothing to gain"), ())


@given(st.integers(0, 99), st.floats(0.01, 1.0))
def test_energy_takes_the_smallest_rank_that_keeps_enough(seed: int, share: float) -> None:
    for curve in layer(seed=seed).curves:
        rank = Energy(share).rank(curve)
        assert curve.energy[rank - 1] >= share - 1e-12
        assert rank == 1 or curve.energy[rank - 2] < share


@given(st.integers(0, 99), st.floats(1e-11, 1e-2))
def test_energy_keeps_the_full_rank_where_no_rank_keeps_enough(seed: int, missing: float) -> None:
    for curve in layer(seed=seed).curves:
        measured = replace(curve, energy=curve.energy * (1 - missing))
        assert Energy(1).rank(measured) == curve.full_rank


@given(st.integers(0, 99), st.floats(0.01, 1.0))
def test_threshold_drops_what_is_below_a_share_of_the_largest(seed: int, share: float) -> None:
    (curve,) = layer(seed=seed, choice="channel").curves
    values = curve.singular_values[0]
    assert Threshold(share).rank(curve) == np.sum(values >= share * values[0])
    assert Threshold(share * values[0], absolute=True).rank(curve) == np.sum(values >= share * values[0])


def test_an_absolute_threshold_above_all_leaves_one_rank() -> None:
    (curve,) = layer(choice="channel").curves
    assert Threshold(1e9, absolute=True).rank(curve) == 1


def test_rank_stops_at_full_rank() -> None:
    (curve,) = layer(choice="channel").curves
    assert Rank(3).rank(curve) == 3
    assert Rank(999).rank(curve) == 16


def test_auto_chooses_the_scheme_with_the_fewest_macs() -> None:
    (best,) = plan_by_rule([layer()], Energy(0.5)).decisions
    each = [plan_by_rule([layer(choice=choice)], Energy(0.5)).decisions[0] for choice in FIXED]
    assert best.macs == min(decision.macs for decision in each if decision.branches)


def test_a_rank_at_break_even_is_never_taken() -> None:
    for choice in FIXED:
        curve = layer(choice=choice).curves[0]
        (at,) = plan_by_rule([layer(choice=choice)], Rank(curve.break_even)).decisions
        assert not at.branches or at.branches[0].rank < curve.break_even
        assert "not below break-even" in at.reason or at.branches[0].rank == curve.full_rank


def test_a_refused_layer_keeps_its_reason() -> None:
    (decision,) = plan_by_rule([refused()], Energy(0.9)).decisions
    assert (decision.branches, decision.reason) == ((), "depthwise: nothing to gain")


@given(st.integers(1, 100), st.integers(1, 40), st.integers(1, 100))
def test_aligned_ranks_stay_at_or_below_the_top_rank(rank: int, multiple: int, top: int) -> None:
    made = align_rank(min(rank, top), multiple, top)
    assert min(rank, top) <= made <= top
    assert made % multiple == 0 or made == min(rank, top)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Energy(0),
        lambda: Energy(1.01),
        lambda: Energy(float("nan")),
        lambda: Rank(0),
        lambda: Threshold(0),
        lambda: Threshold(1.5),
        lambda: Threshold(float("inf")),
        lambda: Macs(1),
        lambda: Macs(float("nan")),
        lambda: Macs(float("inf")),
    ],
)
def test_a_rule_outside_its_range_is_refused(make: Any) -> None:
    with pytest.raises(OptionError):
        make()


menus = st.lists(
    st.lists(st.tuples(st.integers(-30, 30), st.integers(0, 30)), min_size=1, max_size=5), min_size=1, max_size=4
)


@settings(max_examples=300)
@given(menus, st.integers(-60, 100))
def test_allocate_stays_within_the_budget_and_bounds_its_gap(drawn: list[list[tuple[int, int]]], budget: int) -> None:
    columns = [np.array(menu, dtype=float).T for menu in drawn]
    best = (
        min(
            (sum(option[1] for option in options), options)
            for options in itertools.product(*drawn)
            if sum(option[0] for option in options) <= budget
        )
        if sum(min(option[0] for option in menu) for menu in drawn) <= budget
        else None
    )
    found = allocate([Menu(cost, damage) for cost, damage in columns], budget)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert found.cost <= budget
    assert best[0] <= found.damage
    assert found.damage * (1 - found.gap) <= best[0] + 1e-6


def test_a_macs_budget_is_met() -> None:
    layers = [layer(f"conv{index}", seed=index) for index in range(5)] + [refused()]
    total = sum(each.site.macs for each in layers) + 1000
    plan = plan_by_macs(layers, Budget(total, 1.7))
    assert sum(decision.macs for decision in plan.decisions) + 1000 <= total / 1.7
    assert plan.decisions[-1].reason == "depthwise: nothing to gain"


def test_a_layer_that_costs_more_keeps_less() -> None:
    """Layers of one spectrum: the ranks follow the cost, not one ratio for all."""
    layers = [layer("large", extent=32), layer("small", extent=4)]
    large, small = plan_by_macs(layers, Budget(sum(each.site.macs for each in layers), 1.5)).decisions
    assert large.energy < small.energy == 1


def test_a_macs_budget_out_of_reach_names_the_best_ratio() -> None:
    with pytest.raises(OptionError, match=r"--macs 1000 is out of reach: at the lowest ranks it is \d+\.\d+"):
        plan_by_macs([layer()], Budget(layer().site.macs, 1000))


def test_a_budget_without_layers_to_cut_names_the_commonest_reason() -> None:
    reasons = ("made (channel-wise 2) earlier", "made (spatial-wise 3 + channel-wise 1) earlier", "depthwise")
    layers = [Layer(replace(layer().site, refusal=reason), ()) for reason in reasons]
    with pytest.raises(OptionError, match=r"--macs 2 is out of reach: no layer can be cut \(2 of 3: made earlier\)\.$"):
        plan_by_macs(layers, Budget(10**6, 2))
    with pytest.raises(OptionError, match=r"no layer can be cut: depthwise\.$"):
        plan_by_macs(layers[2:], Budget(10**6, 2))
    with pytest.raises(OptionError, match="at the lowest ranks"):
        plan_by_macs([*layers, layer()], Budget(10**6, 1000))


@pytest.mark.parametrize("macs", [0, 100])
def test_a_model_without_layers_meets_no_budget(macs: int) -> None:
    with pytest.raises(OptionError, match="--macs 2 is out of reach: the network has no layer to cut"):
        plan_by_macs([], Budget(macs, 2))


def test_a_plan_survives_json() -> None:
    layers = [layer("a"), layer("b", choice="channel"), refused()]
    plan = plan_by_rule(layers, Energy(0.6))
    choices = parse_plan(json.loads(json.dumps(plan.to_json())), "plan.json").layers
    assert plan_by_choices(layers, choices, plan.rule) == plan
    assert parse_plan({"plan": plan.to_json(), "schema": 1}, "report.json").layers == choices


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, 'holds no plan: "format": "trp-plan" is missing'),
        ({"version": 99}, "plan version 99 is unknown"),
        ({"layers": {}}, '"layers" must be a list'),
        ({"layers": [{}]}, r'layer 1: "name" must be a string'),
        ({"layers": [{"name": "a", "rank": 3}]}, r"layer 1 \('a'\): give both scheme and rank, or neither"),
        ({"layers": [{"name": "a", "scheme": "magic", "rank": 3}]}, r"unknown scheme 'magic'; one of channel-wise"),
        ({"layers": [{"name": "a", "scheme": ["x"], "rank": 3}]}, "unknown scheme"),
        ({"layers": [{"name": "a", "scheme": "spatial-wise", "rank": 0}]}, "whole number of at least 1, not 0"),
        ({"layers": [{"name": "a", "scheme": "spatial-wise", "rank": True}]}, "whole number"),
        ({"layers": [{"name": "a"}, {"name": "a"}]}, "names layer 'a' more than once"),
    ],
)
def test_a_damaged_plan_is_refused_and_the_layer_named(change: dict[str, Any], message: str) -> None:
    document = {"format": "trp-plan", "version": 1, "layers": [], **change}
    with pytest.raises(LoadError, match=message):
        parse_plan(document, "plan.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "scheme", "rank", "layers", "plan"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(json_values, json_values)
def test_any_json_is_a_plan_or_is_refused(whole: Any, layers: Any) -> None:
    for document in (
        whole,
        {"format": "trp-plan", "version": 1, "layers": layers},
        {"format": "trp-plan", "version": 1, "layers": [layers]},
    ):
        with suppress(LoadError):
            parse_plan(document, "plan.json")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            Choice("other", (Branch(CHANNEL, 2),), ""),
            "the plan names other, which this model lacks; its layers are conv, depthwise",
        ),
        (Choice("conv", (Branch(CHANNEL, 17),), ""), "wants rank 17 for conv, whose full rank is 16"),
        (Choice("conv", (Branch(SPATIAL, 2),), ""), "wants spatial-wise for conv, where only channel-wise applies"),
        (
            Choice("depthwise", (Branch(CHANNEL, 1),), ""),
            "factors depthwise, which cannot be factored: depthwise: nothing to gain",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(choice: Choice, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_by_choices([layer(choice="channel"), refused()], [choice], "plan.json")


def test_a_rank_is_at_least_one_and_a_matrix_is_one_pair() -> None:
    with pytest.raises(ValueError, match="below 1"):
        Branch(CHANNEL, 0)
    matrix = Site("fc", "Gemm", (8, 8), 1, ())
    with pytest.raises(ValueError, match="one pair of a higher rank"):
        Decision(matrix, (Branch(SCHEMES["matrix"], 1), Branch(SCHEMES["matrix"], 2)), "")


def test_changed_lists_the_layers_with_branches() -> None:
    site = layer().site
    plan = Plan((keep(site, "no"), Decision(site, (Branch(CHANNEL, 2),), "yes")), "rule")
    assert [change.rank for change in plan.changed] == [2]


def test_a_plan_of_many_layers_is_read_in_linear_time() -> None:
    layers = [{"name": f"layer{index}"} for index in range(100_000)]
    assert len(parse_plan({"format": "trp-plan", "version": 1, "layers": layers}, "plan.json").layers) == 100_000


@pytest.mark.parametrize("field", ["name", "scheme", "rank"])
def test_messages_show_the_beginning_of_a_long_value(field: str) -> None:
    layer = {"name": "a", "scheme": "channel-wise", "rank": "x", field: "x" * 10**6}
    with pytest.raises(LoadError) as caught:
        parse_plan({"format": "trp-plan", "version": 1, "layers": [layer]}, "plan.json")
    assert len(str(caught.value)) < 400


def test_a_plan_that_is_a_device_is_refused() -> None:
    with pytest.raises(LoadError, match="not a plain file"):
        read_plan(Path("/dev/zero"))


def test_an_unreachable_budget_names_the_layers_that_hold_the_rest() -> None:
    small = layer()
    held = Site("up", "ConvTranspose", (), 1, (), "its attribute output_shape sets the padding", 3 * small.site.macs)
    with pytest.raises(OptionError, match=r"up holds 75% and is kept: its attribute output_shape sets the padding\.$"):
        plan_by_macs([small, Layer(held, ())], Budget(4 * small.site.macs, 2.0))
