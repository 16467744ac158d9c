"""A real network on real images: calibration and refit keep accuracy where plain factors lose it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from networks import as_samples, input_shapes

from trp_export.calibration.moments import calibration_remarks, gather_moments
from trp_export.calibration.output_curves import calibrated_factors, calibrated_layers
from trp_export.graph.bias import add_to_bias
from trp_export.graph.cost import count_macs
from trp_export.graph.exact.affine import fold_affine
from trp_export.graph.prepare import prepare
from trp_export.graph.rewrite import set_products
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import find_sites
from trp_export.graph.statistics import mean_inputs
from trp_export.inputs.images import load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.load import load
from trp_export.lowrank.branches import factorise_branches
from trp_export.lowrank.factor import Factors, Float64
from trp_export.options import LoadOptions
from trp_export.planning.budgets import Budget, plan_by_macs
from trp_export.planning.curves import Layer, make_curve, schemes_for
from trp_export.planning.plan import Plan
from trp_export.recover.refit import refit
from trp_export.runtime.partial import Tap

IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.slow
def test_resnet20_at_half_its_macs(shared: Path) -> None:
    model = prepare(load(shared / "models/resnet20-12fca82f.th", LoadOptions(arch="resnet20")).model)
    told = mean_inputs(find_sites(model, infer_shapes(model, input_shapes(model))))
    fold_affine(model)
    shapes = infer_shapes(model, input_shapes(model))
    located = find_sites(model, shapes)
    seen = load_images(shared / "data/cifar10/train_1.npz", IMAGENET, count=256)
    samples = as_samples(seen, model.graph.inputs[0].name or "")
    unseen = load_images(shared / "data/cifar10/train_5.npz", IMAGENET, count=500)
    moments = gather_moments(model, located, samples)
    assert calibration_remarks(moments, told) == ()
    plain = [
        Layer(place.site, tuple(make_curve(place.site, s, place.kernel()) for s in schemes_for(place.site, "spatial")))
        for place in located
    ]
    total = count_macs(model, shapes)
    plan = plan_by_macs(calibrated_layers(plain, located, moments), Budget(total, 2.0))
    assert sum(decision.macs for decision in plan.decisions) <= total / 2
    places = {place.site.name: place for place in located}
    by_weight = {
        c.site.name: factorise_branches(places[c.site.name].kernel(), c.branches, c.site.group) for c in plan.changed
    }
    alone = calibrated_factors(plan, located, moments)
    refitted = refit(model, plan, list(samples.batches(64)), alone)
    scores = [
        _accuracy(model, plan, unseen.inputs, unseen.labels, factors, shifts)
        for factors, shifts in ((by_weight, {}), (alone.factors, alone.shifts), (refitted.factors, refitted.shifts))
    ]
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 90


def _accuracy(
    model: ir.Model,
    plan: Plan,
    images: np.ndarray,
    labels: np.ndarray | None,
    factors: Mapping[str, Factors],
    shifts: Mapping[str, Float64],
) -> float:
    copy = model.clone()
    places = find_sites(copy, {})
    set_products(copy, plan, places, factors)
    add_to_bias(copy, places, shifts)
    name = copy.graph.outputs[0].name or ""
    outputs = Tap(copy, [copy.graph.inputs[0].name or ""], [name])({copy.graph.inputs[0].name or "": images})[name]
    return 100 * float((outputs.argmax(axis=1) == labels).mean())
