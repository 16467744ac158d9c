"""Make the factors of the plan's layers, and what is added to their biases.

Without images the factors are a truncated SVD of the weights; where batch norm gives the mean input of a layer, the
bias restores the mean of its output. With images the factors keep most of each layer's output, and are refitted layer
after layer to what the compressed network feeds them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from trp_export.calibration.answers import answers_are_vectors
from trp_export.calibration.output_curves import LayerFactors, calibrated_factors
from trp_export.graph.bias import takes_bias
from trp_export.lowrank.branches import Pairs, factorise_branches, sum_products
from trp_export.lowrank.calibrated import bias_shift
from trp_export.lowrank.factor import Factors, Float64
from trp_export.network import Network
from trp_export.options import Calibration
from trp_export.planning.plan import Change, Plan
from trp_export.recover.best_of import closest
from trp_export.recover.refit import refit
from trp_export.steps.calibrate import CalibrationData
from trp_export.system.progress import Progress
from trp_export.system.threads import map_layers


def make_factors(
    network: Network, plan: Plan, known: CalibrationData | None, calibration: Calibration | None, progress: Progress
) -> LayerFactors:
    """Factors of every layer that the plan changes, in the precision of its weight, and shifts of biases.

    With images, those of plain, calibrated and refitted factors that come closest to the original on held-out images:
    on a network that was trained for low rank plain ones are exact, and nothing can be closer.
    """
    plain = _plain(network, plan, progress)
    if known is None or not known.moments or calibration is None or not (plan.changed or network.wide):
        return plain
    candidates = _candidates(network, plan, plain, known, calibration, progress) if plan.changed else [plain]
    original = network.wide.model if network.wide is not None else None
    best, scores = closest(network.model, plan, candidates, known.judged_on, original=original)
    return _rounded(network, replace(candidates[best], held_out=scores[best] if known.held_out else None))


def _candidates(
    network: Network,
    plan: Plan,
    plain: LayerFactors,
    known: CalibrationData,
    calibration: Calibration,
    progress: Progress,
) -> list[LayerFactors]:
    """Plain, calibrated and refitted factors."""
    calibrated = calibrated_factors(plan, network.located, known.moments, partial(progress, "factor"))
    candidates = [plain, _completed(calibrated, plain)]
    if calibration.recover:
        refitted = refit(
            network.model,
            plan,
            known.batches,
            candidates[-1],
            others=[plain],
            held_out=known.held_out,
            stays=answers_are_vectors(network.model, known.batches[0]),
            calibrated=known.moments,
            owed={name: own.owed for name, own in known.moments.items() if own.owed is not None},
            room=known.room,
            seed=calibration.seed,
            progress=partial(progress, "refit"),
        )
        candidates.append(_completed(refitted, plain))
    return candidates


def _completed(fitted: LayerFactors, plain: LayerFactors) -> LayerFactors:
    """The same with plain factors, and their shifts, for the layers that are missing."""
    missing = plain.factors.keys() - fitted.factors.keys()
    shifts = {name: shift for name, shift in plain.shifts.items() if name in missing}
    return LayerFactors({**plain.factors, **fitted.factors}, {**shifts, **fitted.shifts}, fitted.values)


def _plain(network: Network, plan: Plan, progress: Progress) -> LayerFactors:
    places = {place.site.name: place for place in network.located}

    def make(change: Change) -> tuple[Pairs, Float64 | None]:
        site, place = change.site, places[change.site.name]
        kernel = place.kernel()
        factors = factorise_branches(kernel, change.branches, site.group)
        shift = None
        if site.name in network.means and takes_bias(place):
            new = sum_products(factors, change.branches, site.kernel_shape, site.group)
            shift = bias_shift(kernel, new, network.means[site.name])
        place.release()
        return _in_type(factors, place.constant.dtype.numpy()), shift

    results = map_layers(make, plan.changed, partial(progress, "factor"))
    named = {change.site.name: result for change, result in zip(plan.changed, results, strict=True)}
    shifts = {name: shift for name, (_, shift) in named.items() if shift is not None}
    return LayerFactors({name: factors for name, (factors, _) in named.items()}, shifts)


def _rounded(network: Network, fitted: LayerFactors) -> LayerFactors:
    """The factors in the precision that the graph stores; verification compares the result with these."""
    types = {
        place.site.name: place.constant.dtype.numpy() for place in network.located if place.site.name in fitted.factors
    }
    return replace(fitted, factors={name: _in_type(pairs, types[name]) for name, pairs in fitted.factors.items()})


def _in_type(pairs: Pairs, dtype: np.dtype[Any]) -> Pairs:
    """The factors as they are stored; those of float16 weights in float32, since they are rounded last of all."""
    dtype = np.promote_types(dtype, np.float32)
    return tuple(
        Factors(pair.reduce.astype(dtype, copy=False), pair.expand.astype(dtype, copy=False)) for pair in pairs
    )
