"""Sums of pairs: never worse than one, exact where they must be, and what a plan says of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trp_export.errors import LoadError, OptionError
from trp_export.lowrank.branches import (
    calibrate_branches,
    calibrated_errors,
    factorise_branches,
    residual,
    sum_products,
)
from trp_export.lowrank.calibrated import output_variance
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.schemes import CHANNEL_WISE, DECOUPLING, SPATIAL_WISE, Branch, describe, input_sliced
from trp_export.lowrank.site import Site, Use
from trp_export.lowrank.space import SHARES, all_schemes, lr_space, second_branches
from trp_export.planning.budgets import Budget, plan_by_macs
from trp_export.planning.curves import Layer, make_curve
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import plan_by_choices
from trp_export.planning.saved_plan import Choice, parse_plan
from trp_export.planning.second_branch import second_curves, with_curves

USE = Use((8, 8), (8, 8), (1, 1), (1, 1, 1, 1), (1, 1))
SITE = Site("conv", "Conv", (12, 8, 3, 3), 1, (USE,))
BRANCHES = (Branch(SPATIAL_WISE, 3), Branch(DECOUPLING, 1))
branch = st.builds(Branch, st.sampled_from(all_schemes(SITE)), st.integers(1, 4))


def _kernel(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SITE.kernel_shape)


def _covariance(seed: int = 1) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((72, 90))
    return (rows @ rows.T / 90)[None]


@given(branch, branch, st.integers(0, 99))
@settings(max_examples=40)
def test_a_sum_loses_no_more_than_its_first_pair(first: Branch, second: Branch, seed: int) -> None:
    kernel = _kernel(seed)
    lost = [
        np.sum(residual(kernel, factorise_branches(kernel, some, 1), some, 1) ** 2)
        for some in ((first,), (first, second))
    ]
    assert lost[1] <= lost[0] * (1 + 1e-9)


@given(branch, branch)
@settings(max_examples=15)
def test_a_calibrated_sum_loses_no_more_output_than_its_first_pair(first: Branch, second: Branch) -> None:
    kernel, metric = _kernel(), ErrorMetric(_covariance())
    lost = [
        output_variance(
            residual(kernel, calibrate_branches(kernel, some, 1, metric), some, 1),
            1,
            metric,
        )
        for some in ((first,), (first, second))
    ]
    assert lost[1] <= lost[0] * (1 + 1e-9)


def test_a_calibrated_sum_loses_less_output_than_plain_and_no_more_than_its_curve_says() -> None:
    kernel, metric = _kernel(), ErrorMetric(_covariance())
    plain, calibrated = (
        output_variance(residual(kernel, pairs, BRANCHES, 1), 1, metric) / output_variance(kernel, 1, metric)
        for pairs in (
            factorise_branches(kernel, BRANCHES, 1),
            calibrate_branches(kernel, BRANCHES, 1, metric),
        )
    )
    assert calibrated < 0.9 * plain
    assert calibrated <= calibrated_errors(kernel, DECOUPLING, 1, metric, BRANCHES[:1])[0] * (1 + 1e-9)


def test_fitting_in_turns_lowers_the_error() -> None:
    kernel = _kernel()
    once = residual(kernel, factorise_branches(kernel, BRANCHES[:1], 1), BRANCHES[:1], 1)
    once = residual(once, factorise_branches(once, BRANCHES[1:], 1), BRANCHES[1:], 1)
    turns = residual(kernel, factorise_branches(kernel, BRANCHES, 1), BRANCHES, 1)
    assert np.sum(turns**2) < 0.97 * np.sum(once**2)


def test_the_energy_of_a_sum_is_what_its_product_keeps() -> None:
    kernel = _kernel()
    made = sum_products(factorise_branches(kernel, BRANCHES, 1), BRANCHES, kernel.shape, 1)
    kept = 1 - np.sum((kernel - made) ** 2) / np.sum(kernel**2)
    exact = make_curve(SITE, DECOUPLING, kernel, BRANCHES[:1], fitted_at=1)
    assert exact.energy[0] == pytest.approx(kept, abs=1e-9)
    assert exact.energy[-1] == 1
    at_least = make_curve(SITE, DECOUPLING, kernel, BRANCHES[:1])
    assert at_least.energy[0] < exact.energy[0]


def test_costs_of_branches_add() -> None:
    curve = make_curve(SITE, DECOUPLING, _kernel(), BRANCHES[:1])
    assert curve.macs(1) == SITE.macs_of(BRANCHES) == SITE.macs_of(BRANCHES[:1]) + SITE.macs_of(BRANCHES[1:])
    assert curve.params(1) == SITE.params_of(BRANCHES)
    assert curve.macs(curve.break_even - 1) < SITE.macs <= curve.macs(curve.break_even)
    assert SITE.macs_of(()) == SITE.macs


def test_a_plan_with_a_sum_is_of_version_2_and_reads_back() -> None:
    sums = Plan((Decision(SITE, BRANCHES, "by hand"),), "by hand")
    document = json.loads(json.dumps(sums.to_json()))
    assert document["version"] == 2
    assert parse_plan(document, "x").layers == (Choice("conv", BRANCHES, "by hand"),)
    single = Plan((Decision(SITE, BRANCHES[:1], "by hand"),), "by hand").to_json()
    assert single["version"] == 1
    assert single["layers"][0] == {"name": "conv", "scheme": "spatial-wise", "rank": 3, "reason": "by hand"}
    assert parse_plan(single, "x").layers[0].branches == BRANCHES[:1]


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ([], "a list of 1 to 2 pairs"),
        ([{"scheme": "channel-wise", "rank": 1}] * 3, "a list of 1 to 2 pairs"),
        ("channel-wise", "a list of 1 to 2 pairs"),
        ([{"scheme": "channel-wise"}], "both scheme and rank"),
        (["channel-wise"], "both scheme and rank"),
        ([{"scheme": "input-sliced-x", "rank": 1}], "unknown scheme"),
        ([{"scheme": "channel-wise", "rank": 10**400}], None),
    ],
)
def test_a_sum_that_cannot_be_read_is_refused(branches: object, message: str | None) -> None:
    document = {"format": "trp-plan", "version": 2, "layers": [{"name": "conv", "branches": branches}]}
    if message is None:
        (choice,) = parse_plan(document, "x").layers
        with pytest.raises(OptionError, match="full rank is 12"):
            plan_by_choices([Layer(SITE, ())], [choice], "x")
    else:
        with pytest.raises(LoadError, match=message):
            parse_plan(document, "x")


@pytest.mark.parametrize(
    ("site", "branches", "message"),
    [
        (SITE, (Branch(input_sliced(3), 1),), "8 input and 12 output channels do not divide so"),
        (SITE, (Branch(CHANNEL_WISE, 1), Branch(SPATIAL_WISE, 25)), "whose full rank is 24"),
        (SITE, (Branch(CHANNEL_WISE, 1), Branch(CHANNEL_WISE, 2)), "two pairs of one scheme for conv: use one pair"),
        (
            Site("fc", "Gemm", (8, 8), 1, ()),
            (Branch(CHANNEL_WISE, 1), Branch(SPATIAL_WISE, 1)),
            "two pairs of one scheme",
        ),
    ],
)
def test_a_sum_that_does_not_fit_is_refused(site: Site, branches: tuple[Branch, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_by_choices([Layer(site, ())], [Choice(site.name, branches, "")], "x")


def test_the_space_of_a_layer_is_spaced_by_its_dense_cost() -> None:
    candidates = lr_space(SITE)
    assert (candidates[0].branches, candidates[0].macs) == ((), SITE.macs)
    assert len(set(candidates)) == len(candidates)
    assert {one.branches[0].scheme for one in candidates[1:]} == set(all_schemes(SITE))
    for one in candidates[1:]:
        (branch,) = one.branches
        assert one.macs == SITE.macs_of(one.branches) <= SHARES[-1] * SITE.macs
        assert branch.rank <= SITE.full_rank(branch.scheme)
    assert lr_space(Site("conv", "Conv", (12, 8, 3, 3), 1, (USE,), "no")) == (candidates[0],)


def test_second_branches_take_what_the_first_gives_up() -> None:
    first = Branch(SPATIAL_WISE, 9)
    sums = second_branches(SITE, first)
    assert sums
    for one in sums:
        lowered, second = one.branches
        assert lowered.scheme == SPATIAL_WISE
        assert SITE.macs_of((lowered,)) == pytest.approx(SITE.macs_of((first,)) - 0.2 * SITE.macs, abs=0.04 * SITE.macs)
        assert SITE.macs_of((second,)) <= 0.4 * SITE.macs
        assert one.macs < SITE.macs
    assert second_branches(SITE, Branch(SPATIAL_WISE, 1)) == ()


def test_describe_lists_the_pairs() -> None:
    assert describe(BRANCHES) == "spatial-wise 3 + network-decoupling 1"


def test_a_plan_may_take_sums_and_loses_less_with_them() -> None:
    kernels = {name: _kernel(seed) for seed, name in enumerate(("one", "two"))}
    sites = [Site(name, "Conv", SITE.kernel_shape, 1, (USE,)) for name in kernels]
    layers = [
        Layer(site, tuple(make_curve(site, scheme, kernels[site.name]) for scheme in all_schemes(site)))
        for site in sites
    ]
    total = 2 * SITE.macs
    single = plan_by_macs(layers, Budget(total, 2.0))
    sums = second_curves(layers, single, kernels.__getitem__)
    assert all(curve.after for layer in sums for curve in layer.curves)
    plan = plan_by_macs(with_curves(layers, sums), Budget(total, 2.0))
    assert sum(decision.macs for decision in plan.decisions) <= total / 2
    assert sum(decision.energy for decision in plan.decisions) > sum(decision.energy for decision in single.decisions)
    for change in plan.changed:
        kernel = kernels[change.site.name]
        made = factorise_branches(kernel, change.branches, 1)
        kept = 1 - np.sum(residual(kernel, made, change.branches, 1) ** 2) / np.sum(kernel**2)
        decision = next(one for one in plan.decisions if one.site == change.site)
        assert kept >= decision.energy - 5e-3
