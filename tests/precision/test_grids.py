"""Grids against what rounding may do at most."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import given
from hypothesis import strategies as st

from trp_export.inputs.samples import Batch
from trp_export.precision.grids import LEVELS, WEIGHT_LIMIT, grid_between, round_bias, round_weight, weight_scales
from trp_export.precision.ranges import METHODS, Spread, gather_spreads

ENDS = st.floats(-1e4, 1e4, allow_nan=False).filter(lambda end: end == 0 or abs(end) > 1e-6)


@given(low=ENDS, high=ENDS, shares=st.lists(st.floats(0, 1), min_size=1))
def test_a_grid_holds_zero_and_rounds_by_half_a_step(low: float, high: float, shares: list[float]) -> None:
    low, high = min(low, high), max(low, high)
    grid = grid_between(low, high)
    assert 0 <= grid.zero <= 255
    assert grid.rounded(np.zeros(1)) == 0.0
    values = min(low, 0.0) + (max(high, 0.0) - min(low, 0.0)) * np.array(shares)
    # The zero point is rounded too: at the ends that may cost another half step.
    assert np.abs(grid.rounded(values) - values).max() <= grid.scale * (1 + 1e-6)


def test_two_products_fit_into_16_bits() -> None:
    """What x86 without VNNI adds up before it widens."""
    assert np.iinfo(np.int16).max >= 2 * LEVELS * WEIGHT_LIMIT


def test_what_never_falls_below_zero_spends_nothing_there() -> None:
    assert grid_between(0.0, 5.1).zero == 0


@given(
    kernel=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    bias=st.floats(-1e6, 1e6),
    input_scale=st.floats(1e-6, 10),
)
def test_weights_round_by_half_a_step_and_biases_fit(
    kernel: list[list[float]], bias: float, input_scale: float
) -> None:
    weight = np.array(kernel, dtype=np.float32)
    biases = np.full(len(weight), bias)
    scales = weight_scales(weight, 0, biases, input_scale)
    whole = round_weight(weight, scales, 0)
    assert np.abs(whole.astype(int)).max() <= WEIGHT_LIMIT
    assert (np.abs(whole * scales[:, None].astype(float) - weight) <= scales[:, None] * (0.5 + 1e-4)).all()
    steps = (scales.astype(np.float64) * input_scale).astype(np.float32)
    apart = np.abs(round_bias(biases, steps) * steps.astype(np.float64) - biases)
    assert (apart <= np.maximum(steps, 1e-6 * abs(bias))).all()


def test_least_error_cuts_a_rare_outlier_and_full_range_does_not() -> None:
    counts = np.zeros(2048, dtype=np.int64)
    counts[:40] = 100_000
    counts[-1] = 1
    spread = Spread(0.0, 100.0, counts)
    assert METHODS["full range"](spread).scale * 255 > 99.9
    assert METHODS["least error"](spread).scale < METHODS["full range"](spread).scale


def test_least_error_keeps_the_range_of_even_values() -> None:
    spread = Spread(-1.0, 1.0, np.full(2048, 10, dtype=np.int64))
    assert METHODS["least error"](spread) == METHODS["full range"](spread)


def test_a_value_that_never_changes_has_a_grid() -> None:
    for method in METHODS.values():
        for level in (0.0, 3.0, -2.0):
            grid = method(Spread(level, level, np.zeros(2048, dtype=np.int64)))
            assert np.isfinite(grid.scale)
            assert grid.scale > 0
            assert abs(float(grid.rounded(np.array([level]))[0]) - level) <= grid.scale


def test_ranges_of_random_values_are_counted_whole() -> None:
    """The second run of a random network leaves the range of the first, at both ends."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[1, 8] x) => (float[1, 8] y)
        { n = RandomNormalLike (x)  y = Add (x, n) }"""
    )
    batch = np.zeros((1, 8), np.float32)
    spread = gather_spreads(ir.serde.deserialize_model(proto), ["y"], [Batch({"x": batch})] * 50)["y"]
    assert spread.counts.sum() == 400
