"""Channels that go with a refit: the order and the errors against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx_ir as ir
import pytest
from models import build

from trp_export.calibration.moments import Moments
from trp_export.calibration.triangles import packed
from trp_export.channels.analysis import analyse_channels
from trp_export.channels.groups import find_groups
from trp_export.channels.least_squares import find_readers, find_thinning, refitted
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
    (reader,) = find_readers(analysis, find_groups(analysis), located, {"conv3": moments}, costs_of(located))
    return reader, moments


def lost(reader, moments: Moments, gone) -> float:
    """The mean squared change of the reader's output, over its variance: least squares from the definition."""
    kernel = reader.place.kernel().astype(np.float64)
    new, shift = refitted(reader, gone, moments)
    apart = (kernel - new).reshape(len(kernel), -1)
    second, mean = moments.second[0], moments.mean[0]
    error = np.einsum("nd,de,ne->", apart, second, apart) - 2 * shift @ apart @ mean + shift @ shift
    flat = kernel.reshape(len(kernel), -1)
    return float(error / np.einsum("nd,de,ne->", flat, moments.covariance[0], flat))


def test_the_reader_of_a_group_is_found_behind_a_depthwise_conv(case) -> None:
    reader, _ = case
    assert reader.place.site.name == "conv3"
    assert reader.group.name == "conv1"
    sites = {"conv1": 3 * 64, "conv2": 9 * 64, "conv3": 5 * reader.place.kernel()[0, 0].size * 64}
    assert reader.cost == pytest.approx(sum(sites.values()))


def test_errors_are_those_of_the_refit(case) -> None:
    reader, moments = case
    thinning = find_thinning(reader, moments, moments)
    assert thinning.counts == (0, 2, 4)
    for count, error in zip(thinning.counts, thinning.errors, strict=True):
        assert error == pytest.approx(lost(reader, moments, thinning.order[:count]), rel=1e-6, abs=1e-9)


def test_the_first_channel_that_goes_is_the_cheapest_of_all(case) -> None:
    reader, moments = case
    first = find_thinning(reader, moments, moments).order[0]
    costs = [lost(reader, moments, (index,)) for index in range(6)]
    assert first == int(np.argmin(costs))


def test_two_channels_cost_no_less_than_the_best_two(case) -> None:
    reader, moments = case
    thinning = find_thinning(reader, moments, moments)
    best = min(lost(reader, moments, pair) for pair in combinations(range(6), 2))
    assert best <= thinning.errors[1] * (1 + 1e-6)


def test_a_refitted_kernel_reads_nothing_of_what_went(case) -> None:
    reader, moments = case
    new, _ = refitted(reader, (1, 4), moments)
    assert not new[:, reader.positions[[1, 4]]].any()
    assert new[:, reader.positions[[0, 2, 3, 5]]].any()


def test_channels_that_an_output_or_two_layers_read_stay() -> None:
    text = NET.replace("K", "1").replace("P", "0").replace("answer = Conv", "e = Sum (d, d)\n    f = Conv")
    text = text.replace("f = Conv <pads = [0, 0, 0, 0]> (d,", "answer = Conv <pads = [0, 0, 0, 0]> (e,")
    model = prepare(ir.serde.deserialize_model(build(text)))
    located = find_sites(model, infer_shapes(model, SHAPES))
    analysis = analyse_channels(model, infer_value_shapes(model, SHAPES))
    assert find_readers(analysis, find_groups(analysis), located, {}, costs_of(located)) == ()
