"""Choose between sets of factors for a plan: measure how far each leaves the network from the original."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trp_export.calibration.answers import find_answers, read_answers, reference_to
from trp_export.calibration.divergence import Float64, HeldOut
from trp_export.calibration.output_curves import LayerFactors
from trp_export.graph.bias import add_to_bias
from trp_export.graph.random_draws import set_seeds
from trp_export.graph.sites import find_sites
from trp_export.graph.weights import apply_values
from trp_export.inputs.samples import Batch, Groups, groups_of
from trp_export.planning.plan import Plan
from trp_export.recover.stand_in import stand_in
from trp_export.runtime.incremental import Walk


def closest(
    model: ir.Model,
    plan: Plan,
    candidates: Sequence[LayerFactors],
    batches: Sequence[Batch],
    *,
    original: ir.Model | None = None,
) -> tuple[int, tuple[HeldOut, ...]]:
    """The index of the candidate whose answers diverge least from the original's, and the divergence of each.

    The original is the model itself, unless that has lost channels already.

    Candidates are in the order of preference, the best last: the last one is taken that is not further away than the
    closest by more than the standard error of their difference over images. Every candidate holds factors for all of
    the plan's layers. `batches` should be samples that no candidate was fitted to. The model stays as it is.
    """
    answers = find_answers(model)
    inputs, images = [batch.arrays for batch in batches], sum(len(batch) for batch in batches)
    groups = groups_of(batches)
    whole = (original or model).clone()
    set_seeds(whole)
    reference = reference_to(answers, read_answers(Walk(whole, inputs), answers), groups)
    scores = []
    for candidate in candidates:
        copy = model.clone()
        set_seeds(copy)
        _carry_out(copy, plan, candidate)
        outcome = read_answers(Walk(copy, inputs), answers)
        scores.append(_by_image(reference.of_images(outcome), images))
    least = scores[int(np.argmin([score.mean() for score in scores]))]
    alike = [index for index, score in enumerate(scores) if _is_as_close(score, least)]
    return alike[-1], tuple(_held_out(score, images, groups) for score in scores)


def _carry_out(model: ir.Model, plan: Plan, fitted: LayerFactors) -> None:
    """Put shifts, values and factors into the model."""
    places = {place.site.name: place for place in find_sites(model, {})}
    add_to_bias(model, tuple(places.values()), fitted.shifts)
    apply_values(model, fitted.values)
    for change in plan.changed:
        stand_in(model, change, places[change.site.name], fitted.factors[change.site.name])


def _held_out(score: Float64, images: int, groups: Groups | None) -> HeldOut:
    apart = [score] if groups is None or len(groups) != len(score) else [score[groups == one] for one in set(groups)]
    return HeldOut(images, float(score.mean()), _standard_error(score), float(min(part.mean() for part in apart)))


def _by_image(rows: Float64, images: int) -> Float64:
    """One value for each image, where images of unlike sizes have a row for each position."""
    return rows if len(rows) <= images else np.array([part.mean() for part in np.array_split(rows, images)])


def _is_as_close(score: Float64, least: Float64) -> bool:
    """True where the difference is within its standard error over images."""
    if score is least or not np.isfinite(score).all():
        return score is least
    apart = score - least
    return bool(apart.mean() <= _standard_error(apart))


def _standard_error(values: Float64) -> float:
    """Zero where values are not finite."""
    return float(values.std() / np.sqrt(len(values))) if np.isfinite(values).all() else 0.0
