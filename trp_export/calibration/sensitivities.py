"""Measure how far the network's answers move when a single layer loses part of its output.

Each layer in turn is replaced by calibrated factors at a few error levels, and the network runs again from there. The
damage is close to a power law of the layer's relative output error, for every scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from trp_export.calibration.answers import (
    Answer,
    Array,
    answers_ahead,
    find_answers,
    read_answers,
    reference_to,
    values_of,
)
from trp_export.calibration.moments import Moments, is_tapped
from trp_export.calibration.output_curves import share_within_scales
from trp_export.graph.bias import add_to_bias, takes_bias
from trp_export.graph.rewrite import as_stored
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.graph.weights import find_bias
from trp_export.inputs.samples import Batch, groups_of
from trp_export.lowrank.calibrated import bias_shift, calibrated_pair, relative_error
from trp_export.lowrank.factor import Float64, product
from trp_export.lowrank.metric import ErrorMetric
from trp_export.planning.curves import Curve, Layer
from trp_export.planning.sensitivity import Sensitivity
from trp_export.runtime.incremental import Walk
from trp_export.system.progress import Share
from trp_export.system.threads import in_background

# Shares of a layer's output variance at which it is measured: plans of small ratios use the
# lowest, and a layer that hardly matters may lose most of its output.
LEVELS = (0.002, 0.02, 0.15, 0.6)
_TURNS = 2


def measure_sensitivities(
    model: ir.Model,
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    batches: Sequence[Batch],
    *,
    held_out: Mapping[str, Moments] | None = None,
    progress: Share = lambda share: None,
) -> dict[str, Sensitivity]:
    """Site name -> sensitivity, for the layers with calibrated curves and moments. The model stays as it is.

    `batches` took no part in `moments`; `held_out` are the moments of such inputs, under
    which the error of a layer is measured. The batches stay in memory with the values that are alive at one layer.
    """
    copy = model.clone()
    places = {place.site.name: place for place in find_sites(copy, {})}
    answers = find_answers(copy)
    walk = Walk(copy, [batch.arrays for batch in batches], stops=[values_of(answers)])
    reference = reference_to(answers, read_answers(walk, answers), groups_of(batches))
    measured: dict[str, Sensitivity] = {}
    for index, layer in enumerate(layers):
        # What lies behind a layer runs again for it: the first layers take longest.
        progress(1 - (1 - index / len(layers)) ** 2)
        name, place = layer.site.name, places[layer.site.name]
        if not layer.curves or name not in moments or not is_tapped(copy, place) or not takes_bias(place):
            continue
        walk.to([place.nodes[0].inputs[0].name or ""])  # type: ignore[union-attr]
        # The scheme with the most ranks comes closest to the levels.
        curve = max(layer.curves, key=lambda curve: curve.full_rank)
        metric = moments[name].metric(centred=True)
        judged = (held_out or {}).get(name, moments[name])  # A layer may have no rows on held-out inputs.
        judge = replace(metric, inputs=judged.about(moments[name].mean))
        varies = share_within_scales(place.kernel(), place.site.group, judge, judged)
        points, replace_by = {}, _replacing(copy, place, walk, answers)
        for rank in _ranks(curve):
            fitted = _fit(place, curve, rank, metric, moments[name].mean)
            error = relative_error(place.kernel(), fitted[0], place.site.group, judge) / varies
            damage = reference.divergence(replace_by(*fitted)) if error > 0 else np.nan
            if np.isfinite(damage):  # An original that answers NaN tells nothing.
                points[error] = damage
        if points:
            measured[name] = Sensitivity(tuple(sorted(points)), tuple(points[e] for e in sorted(points)))
    return measured


def _ranks(curve: Curve) -> list[int]:
    """The smallest rank for each level, as far as it loses anything."""
    lost = 1 - curve.energy
    return sorted({int(np.argmax(lost <= level)) + 1 for level in LEVELS} - {curve.full_rank})


def _fit(place: LocatedSite, curve: Curve, rank: int, metric: ErrorMetric, mean: Float64) -> tuple[Float64, Float64]:
    """The kernel of a rank, and the shift of the bias that keeps the mean output."""
    kernel, site = place.kernel(), place.site
    factors = in_background(lambda: calibrated_pair(kernel, curve.scheme, site.group, rank, metric, turns=_TURNS))
    new = product(factors, curve.scheme, site.kernel_shape, site.group)
    return new, bias_shift(kernel, new, mean)


def _replacing(
    model: ir.Model, place: LocatedSite, walk: Walk, answers: Sequence[Answer]
) -> Callable[[Float64, Float64], Mapping[str, Array]]:
    """What gives the network's answers with another kernel (n, c/group, *k) of a layer and its bias shifted by (n,).

    One session serves all kernels. The layer's equal biases are stored once from here on.
    """
    add_to_bias(model, [place], {place.site.name: np.zeros(place.site.kernel_shape[0])})
    weight = place.constant.root.name or ""
    biases = {node.inputs[2].name or "": find_bias(node) for node in place.nodes if node.inputs[2] is not None}
    ahead = answers_ahead(walk, answers, [weight, *biases])

    def replace_by(kernel: Float64, shift: Float64) -> Mapping[str, Array]:
        shifted = {name: bias + shift for name, bias in biases.items() if bias is not None}
        return ahead({weight: as_stored(place, kernel), **shifted})

    return replace_by
