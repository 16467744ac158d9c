"""Budgets of parameters, and damage told by sensitivities."""

from __future__ import annotations

import numpy as np
import pytest

from trp_export.errors import OptionError
from trp_export.lowrank.schemes import CHANNEL_WISE, SPATIAL_WISE
from trp_export.lowrank.site import Site, Use
from trp_export.planning.budgets import Budget, measured_damage, plan_by_macs, plan_by_params
from trp_export.planning.curves import Layer, make_curve
from trp_export.planning.sensitivity import Sensitivity


def _layers(count: int = 4) -> list[Layer]:
    rng = np.random.default_rng(0)
    layers = []
    for index in range(count):
        size = 16 // 2 ** (index // 2)
        use = Use((size, size), (size, size), (1, 1), (1, 1, 1, 1), (1, 1))
        site = Site(f"layer{index}", "Conv", (16, 16, 3, 3), 1, (use,))
        kernel = rng.standard_normal((16, 16, 3, 3))
        layers.append(Layer(site, tuple(make_curve(site, scheme, kernel) for scheme in (CHANNEL_WISE, SPATIAL_WISE))))
    return layers


@pytest.mark.parametrize("ratio", [1.3, 2.0, 3.5])
def test_a_budget_of_params_is_met_and_used(ratio: float) -> None:
    layers = _layers()
    total = sum(layer.site.params for layer in layers)
    plan = plan_by_params(layers, Budget(total, ratio))
    params = sum(decision.params for decision in plan.decisions)
    assert 0.9 * total / ratio <= params <= total / ratio
    assert plan.rule == f"params {ratio:g}x fewer"


def test_a_params_budget_out_of_reach_names_the_best_ratio() -> None:
    layers = _layers()
    with pytest.raises(OptionError, match=r"--params 1000 is out of reach: at the lowest ranks it is \d+"):
        plan_by_params(layers, Budget(sum(layer.site.params for layer in layers), 1000))


def test_a_budget_that_is_met_in_part_speaks_of_the_whole() -> None:
    """Where channels were removed before, plan and error still say what the user asked for."""
    layers = _layers()
    total = sum(layer.site.params for layer in layers)
    plan = plan_by_params(layers, Budget(total, 3.0, already=2.0))
    assert plan.rule == "params 3x fewer"
    assert plan.decisions == plan_by_params(layers, Budget(total, 1.5)).decisions
    with pytest.raises(OptionError, match="--params 1000 is out of reach") as half:
        plan_by_params(layers, Budget(total, 1000, already=2.0))
    with pytest.raises(OptionError) as whole:
        plan_by_params(layers, Budget(total, 1000))
    best = [float(str(error.value).split("it is ")[1].split(",")[0].rstrip(".")) for error in (half, whole)]
    assert best[0] == pytest.approx(2 * best[1], rel=0.01)


def test_a_sensitive_layer_keeps_more() -> None:
    layers = _layers(2)
    law = [Sensitivity((0.01, 0.1), (0.01 * weight, 0.1 * weight)) for weight in (1.0, 20.0)]
    damage = measured_damage({layer.site.name: own for layer, own in zip(layers, law, strict=True)})
    first, second = plan_by_macs(layers, Budget(sum(layer.site.macs for layer in layers), 2.0), 1, damage).decisions
    assert second.macs > first.macs


def test_a_layer_that_was_not_measured_counts_as_the_median() -> None:
    layers = _layers(1)
    curve = layers[0].curves[0]
    others = {name: Sensitivity((0.1,), (weight,)) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 9.0))}
    expected = others["b"].at(np.maximum(1 - curve.energy, 0))
    np.testing.assert_allclose(measured_damage(others)(layers[0], curve), expected)
    np.testing.assert_allclose(measured_damage({})(layers[0], curve), np.maximum(1 - curve.energy, 0))
