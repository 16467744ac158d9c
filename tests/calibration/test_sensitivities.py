"""Sensitivities: what is interpolated, what is measured, and the walk that runs every part once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import as_samples, in_batches, make_images, make_network
from shared import USES, SharedUse, shared_images, shared_network

from trp_export.calibration.divergence import Kind, agreement, divergence
from trp_export.calibration.moments import gather_moments
from trp_export.calibration.output_curves import calibrated_layers
from trp_export.calibration.sensitivities import measure_sensitivities
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.weights import set_value
from trp_export.planning.curves import Layer, make_curve, schemes_for
from trp_export.planning.sensitivity import Sensitivity
from trp_export.runtime.incremental import Walk
from trp_export.runtime.partial import Tap


def test_a_power_law_is_met_inside_and_outside_the_points() -> None:
    errors = np.array([0.01, 0.05, 0.2])
    law = Sensitivity(tuple(errors), tuple(3 * errors**1.3))
    everywhere = np.array([1e-6, 0.01, 0.03, 0.2, 0.9])
    np.testing.assert_allclose(law.at(everywhere), 3 * everywhere**1.3)
    assert law.at(np.zeros(1)) == 0


@given(st.lists(st.floats(1e-12, 10), min_size=1, max_size=4))
def test_more_error_never_does_less_damage(damage: list[float]) -> None:
    points = Sensitivity(tuple(0.01 * 3.0**i for i in range(len(damage))), tuple(damage))
    at = points.at(np.geomspace(1e-8, 1, 200))
    assert (np.diff(at) >= -1e-15).all()
    assert at[-1] > at[0] > 0


def test_points_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        Sensitivity((0.2, 0.1), (1.0, 2.0))
    with pytest.raises(ValueError, match="as many"):
        Sensitivity((), ())


def test_divergence_is_blind_to_a_shift_of_all_classes() -> None:
    logits = np.random.default_rng(0).standard_normal((6, 4))
    assert divergence({"y": logits}, {"y": logits + 3}, {"y": Kind.CLASSES}) == pytest.approx(0, abs=1e-20)
    assert divergence({"y": logits}, {"y": 0 * logits}, {"y": Kind.CLASSES}) == pytest.approx(1)
    assert agreement({"y": logits}, {"y": logits}) == 1


def test_agreement_of_maps_is_the_share_of_positions_of_the_same_class() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 5, 4, 4))
    other = scores.copy()
    other[0, :, 1, 2] = -other[0, :, 1, 2]
    assert agreement({"y": scores}, {"y": other}) == 31 / 32


def test_a_walk_gives_what_one_run_gives() -> None:
    model, _ = make_network()
    images = make_images(10).inputs
    names = ["c1", "r0", "c2", "g", "y"]
    whole = Tap(model, ["x"], names)({"x": images})
    walk = Walk(model, [{"x": images[:4]}, {"x": images[4:]}])
    for name in names:
        walk.to([name])
        np.testing.assert_allclose(np.concatenate(walk.values[name]), whole[name], atol=1e-5)
    assert set(walk.values) == {"y"}
    with pytest.raises(ValueError, match="c1 lies behind"):
        walk.to(["c1"])


def test_a_walk_keeps_what_is_read_later_and_sees_changed_weights() -> None:
    model, _ = make_network()
    walk = Walk(model, [{"x": make_images(4).inputs}])
    walk.to(["r1"])
    assert set(walk.values) == {"r0", "r1"}
    assert walk.knows("r0", by=["r1"])
    assert not walk.knows("c2", by=["r1"])
    set_value(model.graph.initializers["two.weight"], np.zeros((8, 8, 3, 3)))
    walk.to(["s"])
    assert (walk.values["s"][0] >= 0).all()


@settings(max_examples=15, deadline=None)
@given(uses=USES, seed=st.integers(0, 99))
def test_a_walk_goes_ahead_with_other_weights(uses: Sequence[SharedUse], seed: int) -> None:
    model, x, rng = shared_network(uses), shared_images(4), np.random.default_rng(seed)
    walk = Walk(model, [{"x": x[:1]}, {"x": x[1:]}])
    walk.to(["c0"])
    ahead = walk.ahead(["c1", "y"], ["w", "b"])
    for _ in range(2):
        weights = {"w": rng.standard_normal((3, 3, 3, 3)).astype(np.float32), "b": np.zeros(3, np.float32)}
        made = ahead(weights)
        other = model.clone()
        for name, array in weights.items():
            set_value(other.graph.initializers[name], array)
        whole = Walk(other, [{"x": x}])
        whole.values["c0"] = [np.concatenate(walk.values["c0"])]  # It was made before.
        for name, parts in whole.run(["c1", "y"]).items():
            np.testing.assert_allclose(np.concatenate(made[name]), parts[0], rtol=1e-4, atol=1e-5)


def test_a_layer_that_hardly_reaches_the_output_is_hardly_sensitive() -> None:
    model, located = make_network()
    set_kernel(located[2], 0.01 * located[2].kernel())
    images = make_images(40)
    moments = gather_moments(model, located, as_samples(images))
    plain = [
        Layer(place.site, tuple(make_curve(place.site, s, place.kernel()) for s in schemes_for(place.site, "auto")))
        for place in located
    ]
    layers = calibrated_layers(plain, located, moments)
    before = Tap(model, ["x"], ["y"])({"x": images.inputs})["y"]
    measured = measure_sensitivities(model, layers, moments, in_batches(images.inputs))
    assert set(measured) >= {"stem", "one", "two", "grouped"}
    assert measured["two"].at(np.array([0.05])) < 0.01 * measured["grouped"].at(np.array([0.05]))
    np.testing.assert_array_equal(Tap(model, ["x"], ["y"])({"x": images.inputs})["y"], before)
