"""Curves and factors of layers with known input moments: energy is then the share of output variance that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from trp_export.calibration.divergence import HeldOut
from trp_export.calibration.moments import Moments
from trp_export.graph.bias import takes_bias
from trp_export.graph.sites import LocatedSite
from trp_export.lowrank.branches import Pairs, calibrate_branches, calibrated_errors, sum_products
from trp_export.lowrank.calibrated import bias_shift, share_along
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.schemes import Array
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Plan
from trp_export.system.progress import Share
from trp_export.system.threads import in_background

# Where scales are all that varies.
_LEAST_WITHIN = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class LayerFactors:
    """The factors of a plan's layers and what is added to their biases (n,), by site name.

    `values` are new values of other initializers, by name; `held_out` says how the network answers with them.
    """

    factors: Mapping[str, Pairs]
    shifts: Mapping[str, Float64]
    values: Mapping[str, Array] = field(default_factory=dict)
    held_out: HeldOut | None = None


def calibrated_layers(
    layers: Sequence[Layer],
    located: Sequence[LocatedSite],
    moments: Mapping[str, Moments],
    progress: Share = lambda share: None,
    held_out: Mapping[str, Moments] | None = None,
) -> tuple[Layer, ...]:
    """The same layers with the share of output variance that each rank keeps in place of the energy of the kernel.

    Factors are found under `moments` and judged under the moments `held_out`, of inputs that took no part in them;
    without these, on the inputs that they were found from. A layer without moments keeps the curves it has.
    """
    places = {place.site.name: place for place in located}
    result = []
    for index, layer in enumerate(layers):
        progress(index / len(layers))
        name = layer.site.name
        own, judge = moments.get(name), (held_out or moments).get(name)
        if own is not None and judge is not None:
            layer = in_background(partial(_calibrated, layer, places[name], own, judge))
        result.append(layer)
    return tuple(result)


def calibrated_factors(
    plan: Plan,
    located: Sequence[LocatedSite],
    moments: Mapping[str, Moments],
    progress: Share = lambda share: None,
) -> LayerFactors:
    """Factors that keep most of each layer's output variance, and the shifts of biases that keep its mean.

    Layers without moments are absent.
    """
    places = {place.site.name: place for place in located}
    factors: dict[str, Pairs] = {}
    shifts: dict[str, Float64] = {}
    for index, change in enumerate(plan.changed):
        progress(index / len(plan.changed))
        site, own = change.site, moments.get(change.site.name)
        if own is None:
            continue
        place = places[site.name]
        kernel = place.kernel()
        metric = own.metric(centred=takes_bias(place))
        factors[site.name] = in_background(partial(calibrate_branches, kernel, change.branches, site.group, metric))
        if takes_bias(place):
            new = sum_products(factors[site.name], change.branches, site.kernel_shape, site.group)
            shifts[site.name] = bias_shift(kernel, new, own.mean)
    return LayerFactors(factors, shifts)


def _calibrated(layer: Layer, place: LocatedSite, moments: Moments, held_out: Moments) -> Layer:
    """A layer whose bias cannot move must also keep its mean output: its moments are then about zero."""
    centred, kernel, group = takes_bias(place), place.kernel(), layer.site.group
    metric = moments.metric(centred=centred)
    judge = held_out.about(moments.mean if centred else np.zeros_like(moments.mean))
    varies = share_within_scales(kernel, group, replace(metric, inputs=judge), held_out) if centred else 1.0
    curves = []
    for curve in layer.curves:
        errors = calibrated_errors(kernel, curve.scheme, group, metric, curve.after, judge) / varies
        curves.append(replace(curve, energy=1.0 - np.minimum(errors, 1.0)))
    return replace(layer, curves=tuple(curves))


def share_within_scales(kernel: Array, group: int, metric: ErrorMetric, inputs: Moments) -> float:
    """Share of the output's variance in a metric that is not between the means of the scales of images.

    A network is fed one scale: what the others would add to the variance is nothing that its layers keep.
    """
    between = inputs.between_scales
    if between.shape[-1] < 2:
        return 1.0
    return max(1.0 - share_along(kernel, group, metric, between), _LEAST_WITHIN)
