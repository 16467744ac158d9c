"""How far a network with a plan's factors in place is from the original: what decides between sets of factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.divergence import divergence
from trp_export.calibration.output_curves import LayerFactors
from trp_export.graph.bias import add_to_bias
from trp_export.graph.rewrite import set_products
from trp_export.graph.sites import find_sites
from trp_export.graph.weights import apply_values
from trp_export.planning.plan import Plan
from trp_export.runtime.incremental import Walk

Batches = Sequence[NDArray[Any]]


def closest(
    model: ir.Model, plan: Plan, candidates: Sequence[LayerFactors], batches: Batches, threads: int = 0
) -> tuple[int, tuple[float, ...]]:
    """The index of the candidate whose outputs diverge least from the model's, and the divergence of each.

    Every candidate holds factors for all of the plan's layers. The model stays as it is.
    """
    names = [value.name or "" for value in model.graph.outputs]
    reference = _outputs(model, names, batches, threads)
    scores = []
    for candidate in candidates:
        copy = model.clone()
        places = find_sites(copy, {})
        set_products(copy, plan, places, candidate.factors)
        add_to_bias(copy, places, candidate.shifts)
        apply_values(copy, candidate.values)
        scores.append(divergence(reference, _outputs(copy, names, batches, threads)))
    return int(np.argmin(scores)), tuple(scores)


def _outputs(model: ir.Model, names: Sequence[str], batches: Batches, threads: int) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate(parts) for name, parts in Walk(model, batches, threads).run(names).items()}
