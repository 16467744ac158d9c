"""Measure how far the network's output moves when one layer alone loses part of its own output.

Each layer in turn is replaced by calibrated factors at a few error levels; of the network only what lies after it
runs again. Against the layer's relative output error the damage is close to a power law, whatever the scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.divergence import divergence
from trp_export.calibration.moments import Moments, is_tapped
from trp_export.graph.bias import add_to_bias, takes_bias
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.lowrank.calibrated import bias_shift, calibrate
from trp_export.lowrank.factor import product
from trp_export.planning.curves import Curve, Layer
from trp_export.planning.sensitivity import Sensitivity
from trp_export.runtime.incremental import Walk
from trp_export.system.progress import Share

Batches = Sequence[NDArray[Any]]

# Shares of a layer's output variance at which it is measured.
LEVELS = (0.01, 0.05, 0.2)
_TURNS = 2


def measure_sensitivities(
    model: ir.Model,
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    batches: Batches,
    *,
    threads: int = 0,
    progress: Share = lambda share: None,
) -> dict[str, Sensitivity]:
    """Site name -> sensitivity, for the layers with calibrated curves and moments. The model stays as it is.

    `batches` are inputs (n, C, H, W); they are held in memory with the values alive at one layer.
    """
    copy = model.clone()
    places = {place.site.name: place for place in find_sites(copy, {})}
    outputs = [value.name or "" for value in copy.graph.outputs]
    walk = Walk(copy, batches, threads)
    reference = _outputs(walk, outputs)
    measured: dict[str, Sensitivity] = {}
    for index, layer in enumerate(layers):
        progress(index / len(layers))
        place = places[layer.site.name]
        if not layer.curves or layer.site.name not in moments or not is_tapped(copy, place) or not takes_bias(place):
            continue
        walk.to([place.nodes[0].inputs[0].name or ""])  # type: ignore[union-attr]
        # The scheme with the most ranks comes nearest to the levels.
        curve = max(layer.curves, key=lambda curve: curve.full_rank)
        points = {}
        for rank in _ranks(curve):
            error, outcome = _replaced(copy, place, curve, rank, moments[layer.site.name], walk, outputs)
            if error > 0:
                points[error] = divergence(reference, outcome)
        if points:
            measured[layer.site.name] = Sensitivity(tuple(sorted(points)), tuple(points[e] for e in sorted(points)))
    return measured


def _ranks(curve: Curve) -> list[int]:
    """The smallest rank for each level, as far as it loses anything."""
    lost = 1 - curve.energy
    return sorted({int(np.argmax(lost <= level)) + 1 for level in LEVELS} - {curve.full_rank})


def _replaced(
    model: ir.Model,
    place: LocatedSite,
    curve: Curve,
    rank: int,
    moments: Moments,
    walk: Walk,
    outputs: Sequence[str],
) -> tuple[float, dict[str, NDArray[Any]]]:
    """The relative error and the network's outputs with one layer replaced; it is as before afterwards."""
    kernel, site = place.kernel().copy(), place.site
    fit = calibrate(kernel, curve.scheme, site.group, rank, moments.covariance, turns=_TURNS)
    new = product(fit.factors, curve.scheme, site.kernel_shape, site.group)
    shift = bias_shift(kernel, new, moments.mean)
    set_kernel(place, new)
    add_to_bias(model, [place], {site.name: shift})
    outcome = _outputs(walk, outputs)
    set_kernel(place, kernel)
    add_to_bias(model, [place], {site.name: -shift})
    return fit.relative_error, outcome


def _outputs(walk: Walk, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate(parts) for name, parts in walk.run(names).items()}
