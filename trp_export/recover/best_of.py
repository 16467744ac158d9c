"""Choose between sets of factors for a plan: measure how far each leaves the network from the original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.answers import answer_divergence, find_answers, read_answers
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
    """The index of the candidate whose answers diverge least from the model's, and the divergence of each.

    Every candidate holds factors for all of the plan's layers. `batches` should be inputs that no candidate was fitted
    to. The model stays as it is.
    """
    answers = find_answers(model)
    reference = read_answers(Walk(model, batches, threads), answers)
    scores = []
    for candidate in candidates:
        copy = model.clone()
        places = find_sites(copy, {})
        set_products(copy, plan, places, candidate.factors)
        add_to_bias(copy, places, candidate.shifts)
        apply_values(copy, candidate.values)
        outcome = read_answers(Walk(copy, batches, threads), answers)
        scores.append(answer_divergence(answers, reference, outcome))
    return int(np.argmin(scores)), tuple(scores)
