"""What a layer may become: the regression of residuals on inputs, and the choice by its error, against numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import in_batches, make_images, make_network

from trp_export.calibration.output_curves import LayerFactors
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import set_products
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.graph.weights import apply_values
from trp_export.lowrank.branches import factorise_branches
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.metric import channel_roots
from trp_export.lowrank.schemes import CHANNEL_WISE, Branch
from trp_export.lowrank.site import Site
from trp_export.planning.plan import Change, Decision, Plan
from trp_export.recover.refit import refit
from trp_export.recover.regression import (
    PULLS,
    RIDGE,
    Choice,
    LayerState,
    Samples,
    closest_choice,
    regress,
    sum_residuals,
)
from trp_export.runtime.partial import Tap

IMAGES, POSITIONS = 40, 30
# The covariance of inputs is far from the identity, towards which it is shrunk.
MIXED = np.array([[3, 1, 0], [0, 1, 1], [0, 0, 0.5]])


def layer(group: int, seed: int, *, owed: bool = False) -> tuple[LayerState, Float64]:
    """A layer of two output channels and three inputs in each group, and the kernel that it should have."""
    rng = np.random.default_rng(seed)
    kernel, wanted = rng.standard_normal((2, 2 * group, 3))
    roots = rng.standard_normal((group, 2, 2))
    site = Site("layer", "Conv", (2 * group, 3), group, ())
    state = LayerState(Change(site, ()), kernel, rng.standard_normal(2 * group), roots @ roots.mT if owed else None)
    return state, wanted


def samples(state: LayerState, wanted: Float64, seed: int, noise: float = 0.0) -> list[Samples]:
    """Two batches of inputs with a mean, and targets that a kernel and a bias of one make of them, with noise."""
    rng, group = np.random.default_rng(seed), state.layer.site.group
    batches = []
    for images in (IMAGES - 5, 5):
        x = rng.standard_normal((group, images, POSITIONS, 3)) @ MIXED + 2
        y = np.einsum("gipd,gnd->ipgn", x, state.by_group(wanted)).reshape(-1, 2 * group) + 1
        y += noise * rng.standard_normal(y.shape)
        batches.append((x.astype(np.float32), y.astype(np.float32), None))
    return batches


@settings(max_examples=30)
@given(group=st.integers(1, 5), seed=st.integers(0, 99), times=st.sampled_from(PULLS))
def test_regression_is_least_squares_with_a_pull_towards_the_kernel(group: int, seed: int, times: float) -> None:
    """The same by numpy's least squares: rows of samples, and below them rows that pull."""
    state, wanted = layer(group, seed)
    batches = samples(state, wanted, seed, noise=0.3)
    shown = sum_residuals(state, batches)
    found = regress(state, shown, times)
    x = np.concatenate([part.reshape(group, -1, 3) for part, _, _ in batches], axis=1).astype(np.float64)
    y = np.concatenate([part for _, part, _ in batches]).reshape(-1, group, 2)
    for index in range(group):
        inputs, targets = x[index] - x[index].mean(axis=0), y[:, index] - y[:, index].mean(axis=0)
        share = max(float(shown.inputs.shrinkage[index]), RIDGE)
        pull = np.sqrt(times * share * np.square(inputs).sum() / 3) * np.eye(3)
        own = state.by_group(state.kernel)[index].T
        rows = np.concatenate([np.sqrt(1 - share) * inputs, pull])
        best = np.linalg.lstsq(rows, np.concatenate([np.sqrt(1 - share) * targets, pull @ own]), rcond=None)[0]
        np.testing.assert_allclose(state.by_group(found.kernel)[index].T, best, atol=1e-4)
        bias = (y[:, index] - x[index] @ best).mean(axis=0)
        np.testing.assert_allclose((state.bias + found.shift).reshape(group, 2)[index], bias, atol=1e-3)


@pytest.mark.parametrize(("is_changed", "noise", "chosen"), [(True, 0.01, PULLS[0]), (False, 3.0, PULLS[-1])])
def test_held_out_inputs_choose_how_strong_the_pull_is(is_changed: bool, noise: float, chosen: float) -> None:
    """Weak where the targets show another kernel, strong where they are noise about the layer's own."""
    state, wanted = layer(2, 0)
    wanted = wanted if is_changed else state.kernel
    shown = sum_residuals(state, samples(state, wanted, 1, noise))
    choices = [regress(state, shown, pull) for pull in PULLS]
    judged = sum_residuals(state, samples(state, wanted, 2, noise=0.0))
    assert PULLS[choices.index(closest_choice(state, choices, judged))] == chosen


def test_inputs_that_never_change_leave_the_kernel_as_it_is() -> None:
    state, wanted = layer(2, 0)
    still = [(np.full_like(x, 3), np.full_like(y, 5), None) for x, y, _ in samples(state, wanted, 0)]
    found = regress(state, sum_residuals(state, still))
    np.testing.assert_array_equal(found.kernel, state.kernel)
    made = state.by_group(found.kernel).sum(axis=2).reshape(-1) * 3 + state.bias + found.shift
    np.testing.assert_allclose(made, 5, rtol=1e-6)


@settings(max_examples=30)
@given(group=st.integers(1, 4), seed=st.integers(0, 99), owed=st.booleans())
def test_the_choice_is_that_of_the_least_error_over_all_samples(group: int, seed: int, owed: bool) -> None:
    state, wanted = layer(group, seed, owed=owed)
    batches, rng = samples(state, wanted, seed, noise=0.3), np.random.default_rng(seed)
    kernels = [state.kernel, *(wanted + rng.standard_normal(wanted.shape) for _ in range(3))]
    choices = [Choice((), kernel, rng.standard_normal(2 * group)) for kernel in kernels]

    def error(choice: Choice) -> float:
        total = 0.0
        for x, y, _ in batches:
            made = np.einsum("gipd,gnd->ipgn", x, state.by_group(choice.kernel)).reshape(y.shape)
            left = (y - made - state.bias - choice.shift).reshape(len(y), group, 2)
            roots = np.broadcast_to(np.eye(2), (group, 2, 2)) if state.owed is None else channel_roots(state.owed)
            total += float(np.square(np.einsum("gab,pgb->pga", roots, left)).sum())
        return total

    best = closest_choice(state, choices, sum_residuals(state, batches))
    assert error(best) <= 1.0001 * min(map(error, choices))


STAYS = """<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 12, 12] x) => (float[N, 8, 12, 12] y)
{
    c0 = Conv <pads = [1, 1, 1, 1]> (x, stem_weight, stem_bias)
    r0 = Relu (c0)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, one_weight, one_bias)
    r1 = Relu (c1)
    LAST
}
"""
LAST = {
    "depthwise": "y = Conv <pads = [1, 1, 1, 1], group = 8> (r1, deep_weight)",
    "dense": "y = Conv <pads = [1, 1, 1, 1]> (r1, two_weight)",
}


def _cut(model: ir.Model, located: tuple[LocatedSite, ...]) -> tuple[Plan, LayerFactors]:
    """The first conv behind the stem as a pair of a low rank, and its factors by the weights alone."""
    branches = (Branch(CHANNEL_WISE, 3),)
    decisions = [Decision(p.site, branches if p.site.name == "one" else (), reason="by hand") for p in located]
    place = next(place for place in located if place.site.name == "one")
    pairs = factorise_branches(place.kernel(), branches, 1)
    return Plan(tuple(decisions), "by hand"), LayerFactors({"one": pairs}, {})


@pytest.mark.parametrize("kind", LAST)
def test_a_layer_that_stays_takes_back_what_the_pair_before_it_lost(kind: str) -> None:
    """By its weight and its bias, as judged on images that nothing was fitted to."""
    deep = np.random.default_rng(1).standard_normal((8, 1, 3, 3))
    model, located = make_network(STAYS.replace("LAST", LAST[kind]), given={"deep.weight": deep})
    plan, start = _cut(model, located)
    shown, held_out, others = (make_images(40, seed=seed).inputs for seed in range(3))
    fitted = refit(model, plan, in_batches(shown), start, held_out=in_batches(held_out), stays=True)
    name = "deep.weight" if kind == "depthwise" else "two.weight"
    assert list(fitted.values) == [name]
    assert fitted.factors.keys() == {"one"}

    def error(values: dict[str, np.ndarray], shifts: dict[str, Float64]) -> float:
        copy = model.clone()
        places = find_sites(copy, {})
        set_products(copy, plan, places, fitted.factors)
        add_to_bias(copy, places, shifts)
        apply_values(copy, values)
        wanted, got = (Tap(each, ["x"], ["y"])({"x": others})["y"] for each in (model, copy))
        return float(np.square(wanted - got).mean())

    of_the_pair = {"one": fitted.shifts["one"]}
    assert error(dict(fitted.values), dict(fitted.shifts)) < 0.9 * error({}, of_the_pair)


def test_without_held_out_images_layers_that_stay_are_as_they_were() -> None:
    model, located = make_network(STAYS.replace("LAST", LAST["dense"]))
    plan, start = _cut(model, located)
    assert not refit(model, plan, in_batches(make_images(40).inputs), start, stays=True).values


@pytest.mark.parametrize("positions", [1, POSITIONS])
def test_groups_of_images_count_by_the_inverse_of_their_size(positions: int) -> None:
    """Moments and residuals are sums over patches that are weighed, which numpy makes as well."""
    state, wanted = layer(1, 0)
    (x, y, _), *_ = samples(state, wanted, 0, noise=0.3)
    groups = np.arange(x.shape[1]) % 2
    x = x[:, :, :positions] * np.where(groups, 1000, 1).astype(np.float32)[:, None, None]
    y = y.reshape(x.shape[1], POSITIONS, -1)[:, :positions].reshape(-1, y.shape[-1])
    half = x.shape[1] // 2
    found = sum_residuals(state, [(x, y, groups)] if positions > 1 else [
        (x[:, :half], y[:half], groups[:half]), (x[:, half:], y[half:], groups[half:]),
    ])  # fmt: skip
    first = x if positions > 1 else x[:, :half]
    sizes = [np.square(first[:, groups[: first.shape[1]] == group].astype(np.float64)).mean() for group in (0, 1)]
    weights = np.repeat(1 / np.array(sizes)[groups], positions)
    rows = x.reshape(-1, 3).astype(np.float64)
    left = y - rows @ state.by_group(state.kernel)[0].T - state.bias
    mean = np.average(rows, axis=0, weights=weights)
    covariance = np.einsum("r,ri,rj->ij", weights / weights.sum(), rows - mean, rows - mean)
    np.testing.assert_allclose(found.inputs.mean[0], mean, rtol=1e-5)
    np.testing.assert_allclose(found.inputs.covariance[0], covariance, rtol=1e-4, atol=1e-4 * covariance.max())
    np.testing.assert_allclose(found.mean, np.average(left, axis=0, weights=weights), rtol=1e-4)
    cross = np.einsum("r,rn,ri->ni", weights / weights.sum(), left - np.average(left, axis=0, weights=weights), rows)
    np.testing.assert_allclose(found.cross[0], cross, rtol=1e-3, atol=1e-4 * np.abs(cross).max())
    assert found.inputs.count == len(rows)
