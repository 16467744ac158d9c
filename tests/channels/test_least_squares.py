"""Channels that go with a refit: the order and the errors against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx_ir as ir
import pytest
from models import build

from trp_export.calibration.moments import Moments
from trp_export.calibration.triangles import packed
from trp_export.channels import least_squares
from trp_export.channels.analysis import analyse_channels
from trp_export.channels.groups import find_groups
from trp_export.channels.least_squares import find_thinnable, find_thinning, refitted
from trp_export.graph.prepare import prepare
from trp_export.graph.shapes import infer_shapes, infer_value_shapes
from trp_export.graph.sites import find_sites

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] image) => (float[N, 5, 8, 8] answer)
<float[6, 3, 1, 1] conv1__weight, float[6, 1, 3, 3] conv2__weight, float[5, 6, K, K] conv3__weight,
 float[5] conv3__bias>
{
    a = Conv (image, conv1__weight)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 6> (b, conv2__weight)
    d = Relu (c)
    answer = Conv <pads = [P, P, P, P]> (d, conv3__weight, conv3__bias)
}
"""
SHAPES = {"image": (1, 3, 8, 8)}


def moments_of(entries: int, seed: int) -> Moments:
    """Of correlated values that are not centred."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((500, entries)) @ rng.standard_normal((entries, entries)) + rng.standard_normal(
        entries
    )
    return Moments(500, values.sum(axis=0)[None], packed((values.T @ values)[None]))


def costs_of(located) -> dict[str, float]:
    return {place.site.name: place.site.macs for place in located}


@pytest.fixture(params=[1, 3])
def case(request: pytest.FixtureRequest):
    size = request.param
    text = NET.replace("K", str(size)).replace("P", str(size // 2))
    model = prepare(ir.serde.deserialize_model(build(text)))
    located = find_sites(model, infer_shapes(model, SHAPES))
    analysis = analyse_channels(model, infer_value_shapes(model, SHAPES))
    moments = moments_of(6 * size * size, 0)
    (group,) = find_thinnable(analysis, find_groups(analysis), located, {"conv3": moments}, costs_of(located))
    return group, moments


def thinning_of(group, *moments: Moments):
    known = {reader.name: own for reader, own in zip(group.readers, moments, strict=True)}
    return find_thinning(group, known, known, dict.fromkeys(known, 1.0))


def lost(reader, moments: Moments, gone) -> float:
    """The mean squared change of a reader's output, over its variance: least squares from the definition."""
    kernel = reader.place.kernel().astype(np.float64)
    new, shift = refitted(reader.place, reader.positions[list(gone)], moments)
    apart = (kernel - new).reshape(len(kernel), -1)
    second, mean = moments.second[0], moments.mean[0]
    error = np.einsum("nd,de,ne->", apart, second, apart) - 2 * shift @ apart @ mean + shift @ shift
    flat = kernel.reshape(len(kernel), -1)
    return float(error / np.einsum("nd,de,ne->", flat, moments.covariance[0], flat))


def test_the_reader_of_a_group_is_found_behind_a_depthwise_conv(case) -> None:
    group, _ = case
    (reader,) = group.readers
    assert reader.name == "conv3"
    assert group.group.name == "conv1"
    sites = {"conv1": 3 * 64, "conv2": 9 * 64, "conv3": 5 * reader.place.kernel()[0, 0].size * 64}
    assert group.cost == pytest.approx(sum(sites.values()))


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_errors_are_those_of_the_refit(case, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "_AT_ONCE", at_once)
    group, moments = case
    thinning = thinning_of(group, moments)
    assert thinning.counts == (0, 2, 4)
    for count, error in zip(thinning.counts, thinning.errors[0], strict=True):
        wanted = lost(group.readers[0], moments, thinning.order[:count])
        assert error == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_the_first_channel_that_goes_is_the_cheapest_of_all(case) -> None:
    group, moments = case
    first = thinning_of(group, moments).order[0]
    costs = [lost(group.readers[0], moments, (index,)) for index in range(6)]
    assert first == int(np.argmin(costs))


def test_two_channels_cost_no_less_than_the_best_two(case) -> None:
    group, moments = case
    thinning = thinning_of(group, moments)
    best = min(lost(group.readers[0], moments, pair) for pair in combinations(range(6), 2))
    assert best <= thinning.errors[0, 1] * (1 + 1e-6)


def test_a_refitted_kernel_reads_nothing_of_what_went(case) -> None:
    group, moments = case
    (reader,) = group.readers
    new, _ = refitted(reader.place, reader.positions[[1, 4]], moments)
    assert not new[:, reader.positions[[1, 4]]].any()
    assert new[:, reader.positions[[0, 2, 3, 5]]].any()


@pytest.fixture
def twice_read():
    """A group that two convs read, each with moments of its own."""
    text = (
        NET.replace("K", "1")
        .replace("P", "0")
        .replace("net (", "two (")
        .replace("answer)", "answer, float[N, 5, 8, 8] more)")
    )
    text = text.replace("conv3__bias>", "conv3__bias, float[5, 6, 1, 1] conv4__weight>")
    text = text.replace("    answer =", "    more = Conv (d, conv4__weight)\n    answer =")
    model = prepare(ir.serde.deserialize_model(build(text)))
    located = find_sites(model, infer_shapes(model, SHAPES))
    analysis = analyse_channels(model, infer_value_shapes(model, SHAPES))
    groups, moments = find_groups(analysis), {"conv3": moments_of(6, 0), "conv4": moments_of(6, 1)}
    return lambda known: find_thinnable(analysis, groups, located, known, costs_of(located)), moments


def test_channels_that_two_layers_read_go_by_what_both_lose(twice_read) -> None:
    find, moments = twice_read
    (group,) = find(moments)
    assert [reader.name for reader in group.readers] == ["conv4", "conv3"]
    weights = {"conv3": 1.0, "conv4": 3.0}
    thinning = find_thinning(group, moments, moments, weights)
    alone = [
        sum(weights[reader.name] * lost(reader, moments[reader.name], (index,)) for reader in group.readers)
        for index in range(6)
    ]
    assert thinning.order[0] == int(np.argmin(alone))
    for reader, errors in zip(group.readers, thinning.errors, strict=True):
        wanted = lost(reader, moments[reader.name], thinning.order[:4])
        assert errors[2] == pytest.approx(wanted, rel=1e-6)


def test_channels_stay_where_a_layer_that_reads_them_was_not_calibrated(twice_read) -> None:
    find, moments = twice_read
    assert find({"conv3": moments["conv3"]}) == ()


def test_channels_stay_where_a_layer_reads_constants_alone(twice_read) -> None:
    """Behind dead ReLUs, for example: there is nothing to fit it to."""
    find, moments = twice_read
    constant = Moments(500, np.zeros((1, 6)), packed(np.zeros((1, 6, 6))))
    assert find(moments | {"conv4": constant}) == ()


def test_channels_that_a_layer_without_moments_reads_stay() -> None:
    text = NET.replace("K", "1").replace("P", "0").replace("answer = Conv", "e = Sum (d, d)\n    f = Conv")
    text = text.replace("f = Conv <pads = [0, 0, 0, 0]> (d,", "answer = Conv <pads = [0, 0, 0, 0]> (e,")
    model = prepare(ir.serde.deserialize_model(build(text)))
    located = find_sites(model, infer_shapes(model, SHAPES))
    analysis = analyse_channels(model, infer_value_shapes(model, SHAPES))
    assert find_thinnable(analysis, find_groups(analysis), located, {}, costs_of(located)) == ()
