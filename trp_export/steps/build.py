"""Carry out a plan: factors into the graph, tuned where asked for, folded and simplified, and saved."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.divergence import HeldOut
from trp_export.calibration.output_curves import LayerFactors
from trp_export.graph.bias import add_to_bias
from trp_export.graph.cost import Cost, count_params
from trp_export.graph.exact import fold_all, fold_scales, in_words, write_timed
from trp_export.graph.half_weights import has_rounded, take_rounded, widened
from trp_export.graph.interface import require_same_interface
from trp_export.graph.large_files import read_model
from trp_export.graph.metadata import sign, strip_traces
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.graph.packed import drop_shapes, pack_weights
from trp_export.graph.prepare import remove_unused
from trp_export.graph.rewrite import WeightNames, read_factors, rewrite, set_products, tag_nodes
from trp_export.graph.simplify import simplify
from trp_export.graph.sites import find_sites, note_decided
from trp_export.graph.weights import apply_values
from trp_export.inputs.description import note_pixels
from trp_export.lowrank.branches import Pairs
from trp_export.lowrank.schemes import describe
from trp_export.metrics.score import holds, points
from trp_export.network import Network, measured_macs
from trp_export.options import Calibration, Options
from trp_export.planning.plan import Plan
from trp_export.recover.tune import tune
from trp_export.steps.calibrate import CalibrationData
from trp_export.steps.factors import make_factors
from trp_export.steps.knowledge import Knowledge
from trp_export.system.progress import Progress
from trp_export.system.text import name_some, percent
from trp_export.verify import Deviation, Files, verify_export
from trp_export.workspace import Workspace

_LEAST_DIVERGENCE = 1e-4


@dataclass(frozen=True, slots=True)
class Built:
    """The rewritten model's files and cost, notes on how it was made, and how far it is from the original.

    `held_out` is the divergence on held-out calibration images before any tuning; `tuned` is set where there was one.
    `on_outputs` are notes on how far the outputs are, which another precision moves further.
    """

    files: Files
    cost: Cost
    notes: tuple[str, ...]
    deviation: Deviation | None = None
    held_out: HeldOut | None = None
    tuned: bool = False
    on_outputs: tuple[str, ...] = ()


def build_verified(plan: Plan, knowledge: Knowledge, options: Options, work: Workspace) -> Built:
    """Build the result and verify it. It is not tuned where a limit on the drop holds only without tuning."""
    calibration, limit = options.calibration, options.effective_rule.largest_drop
    built = _verified(build(plan, knowledge, calibration, work.result, work), plan, knowledge, work)
    if calibration is None or calibration.tune is None or limit is None or built.deviation is None:
        return built
    score = built.deviation.score
    if score is None or holds(score, limit):
        return replace(built, on_outputs=(*built.on_outputs, *_room_left(built.deviation, limit)))
    untuned = build(plan, knowledge, calibration.without_tuning, work.result, work)
    note = f"not tuned: with tuning more than {points(limit, score.unit)} were lost"
    return _verified(replace(untuned, notes=(*untuned.notes, note)), plan, knowledge, work)


def build(plan: Plan, knowledge: Knowledge, calibration: Calibration | None, result: Path, work: Workspace) -> Built:
    """Factor, rewrite, tune, fold and simplify; the model goes to `result`. The network stays as it is."""
    network, progress = knowledge.network, work.progress
    fitted = make_factors(network, plan, knowledge.calibration, calibration, progress)
    progress("rewrite", 0)
    model, wide = network.model.clone(), widened(network.model)
    names = _rewrite(model, plan, network, fitted)
    tuned, on_outputs = _tune(network, model, knowledge.calibration, calibration, progress)
    apply_values(model, tuned)
    if wide is not None:
        _rewrite(wide, plan, network, fitted)
        apply_values(wide, tuned)

    factors = read_factors(wide or model, plan, names) if tuned else fitted.factors
    unthinned = network.wide.file if network.wide is not None else None
    files = Files(network.original, network.file, work.scratch / "products.onnx", result, wide=unthinned)
    products = network.model.clone()
    _set_products(products, plan, network, fitted, tuned, factors)
    save_model(products, files.products, apart=True)
    model, not_simplified = finish(model, wide)
    if wide is not None and has_rounded(model, wide) and (wide_products := widened(network.model)) is not None:
        _set_products(wide_products, plan, network, fitted, tuned, factors)
        files = replace(files, unrounded=(work.scratch / "wide_products.onnx", work.scratch / "wide_result.onnx"))
        for file, one in zip(files.unrounded or (), (wide_products, wide), strict=True):
            save_model(one, file, apart=True)
    # A parametric ReLU counts no multiply-adds, whatever it is written as.
    macs = measured_macs(model, network.described, work.scratch / "counted.onnx", network.shapes)
    rewritten = in_words(write_timed(model, network.rewrites))
    tag_nodes(model, plan, names)
    require_same_interface(network.model, model)
    note_decided(model, _decided_words(plan, names))
    note_pixels(model, network.described)
    sign(model, {"rule": plan.rule, "plan": _summary(plan, network.original_macs, macs)})
    save_model(model, files.result)
    params = count_params(model)
    if size_bytes(files.result) > network.original_bytes:
        original = read_model(network.original)
        pack_weights(model, original)
        drop_shapes(model, original)
        save_model(model, files.result)
    cost = Cost(params, macs, size_bytes(files.result))
    notes = (*_refitted(plan, network, fitted), *not_simplified, *rewritten)
    return Built(files, cost, notes, held_out=fitted.held_out, tuned=bool(on_outputs), on_outputs=on_outputs)


def _rewrite(model: ir.Model, plan: Plan, network: Network, fitted: LayerFactors) -> WeightNames:
    """Put the factors, shifts and values into a copy of the network's model."""
    located = find_sites(model, network.shapes)
    add_to_bias(model, located, fitted.shifts)
    apply_values(model, fitted.values)
    names = rewrite(model, plan, located, fitted.factors)
    remove_unused(model)
    return names


def _set_products(
    model: ir.Model,
    plan: Plan,
    network: Network,
    fitted: LayerFactors,
    tuned: Mapping[str, NDArray[Any]],
    factors: Mapping[str, Pairs],
) -> None:
    """Make a copy of the network's model what the result must equal: the same biases and kept weights, and the products
    of the same factors."""
    located = find_sites(model, network.shapes)
    add_to_bias(model, located, fitted.shifts)
    apply_values(model, fitted.values)
    apply_values(model, tuned)
    set_products(model, plan, located, factors)


def _on_held_out_images(built: Built, deviation: Deviation, data: CalibrationData | None) -> tuple[str, ...]:
    """A note on the divergence of the outputs, in units of their variance; none where only rounding moves them."""
    score = built.held_out
    if score is None or built.tuned:
        return ()
    evaluated = deviation.score
    lost = evaluated is not None and evaluated.after != evaluated.before  # A network may answer all noise alike.
    if deviation.is_within_rounding and not lost:
        return ()
    synthetic = data is not None and data.synthetic
    if not isfinite(score.divergence):
        return ("on held-out images the outputs are not finite, or have other numbers of rows than the original's",)
    apart = share_of_variance(score.divergence, score.error)
    kind, more = ("synthetic ", "; on real ones by more") if synthetic else ("", "")
    images = f"{score.images:,} held-out {kind}image{'s' if score.images > 1 else ''}"
    return (f"on {images} the outputs differ from the original's by {apart} % of their variance{more}",)


def share_of_variance(divergence: float, error: float = 0.0) -> str:
    """A divergence in percent without the sign, with its standard error."""
    if divergence < _LEAST_DIVERGENCE:
        return f"less than {percent(_LEAST_DIVERGENCE)}"
    return percent(divergence) + (f" \u00b1 {percent(error)}" if error else "")


def _refitted(plan: Plan, network: Network, fitted: LayerFactors) -> tuple[str, ...]:
    """A note on the layers that stay with other weights."""
    stay = {decision.site.name for decision in plan.decisions if not decision.branches}
    places = (place for place in network.located if place.site.name in stay and place.weight is not None)
    count = sum(place.constant.root.name in fitted.values for place in places)
    what = (
        "layer that stays has new weights, which make"
        if count == 1
        else "layers that stay have new weights, which make"
    )
    return (f"{count} {what} up for what others lost (--no-recover keeps them)",) if count else ()


def _verified(built: Built, plan: Plan, knowledge: Knowledge, work: Workspace) -> Built:
    network = knowledge.network
    work.progress("verify", 0)
    gc.collect()  # Graphs are full of cycles, which hold on to weights.
    deviation = verify_export(
        network.source,
        network.described,
        built.files,
        plan,
        evaluator=knowledge.evaluator,
        images=knowledge.batches,
        thinned=network.thinned,
        progress=work.progress,
    )
    not_run = tuple(change.site.name for change in plan.changed if change.site.name in network.not_run)
    on_images = _on_held_out_images(built, deviation, knowledge.calibration)
    return replace(
        built,
        deviation=replace(deviation, not_run=not_run),
        notes=(*built.notes, *_effect_unknown(not_run, deviation)),
        on_outputs=(*built.on_outputs, *on_images),
    )


def _effect_unknown(layers: Sequence[str], deviation: Deviation) -> tuple[str, ...]:
    """A note on layers that the inputs of the comparison did not reach."""
    if not layers or deviation.truncation is None:
        return ()
    effect = f"the effect of {'its' if len(layers) == 1 else 'their'} lower rank on the outputs is unknown"
    return (f"{name_some(layers)} did not run on {deviation.fed}, so {effect}; --input FILE.npz feeds other inputs",)


# The share of the limit up to which a tuned network leaves room for a smaller one.
_ROOM = 0.5


def _room_left(deviation: Deviation, limit: float) -> tuple[str, ...]:
    """A note where tuning won back so much that a smaller network may do."""
    score = deviation.score
    if score is None or score.drop > _ROOM * limit:
        return ()
    lost = points(max(0.0, score.drop), score.unit)
    return (f"after tuning {lost} of {limit:g} are lost: a smaller tuned network may stay within the limit",)


def _tune(
    network: Network,
    model: ir.Model,
    data: CalibrationData | None,
    calibration: Calibration | None,
    progress: Progress,
) -> tuple[Mapping[str, NDArray[Any]], tuple[str, ...]]:
    """New values of initializers after distillation from the original, where asked for, and a note on it."""
    if calibration is None or calibration.tune is None or data is None:
        return {}, ()
    tuned = tune(
        (network.wide or network).model,
        model,
        data.batches,
        held_out=data.held_out,
        minutes=calibration.tune.minutes,
        steps=calibration.tune.steps,
        seed=calibration.seed,
        progress=partial(progress, "tune"),
    )
    agreement = (
        f"agreement with the original {tuned.agreement_before:.2%} to {tuned.agreement_after:.2%}, "
        if tuned.agreement_before is not None and tuned.agreement_after is not None
        else ""
    )
    divergence = f"{tuned.divergence_before:.3g} to {tuned.divergence_after:.3g}"
    return tuned.values, (
        f"tuned for {tuned.steps} steps (--tune {tuned.steps}steps repeats it): on held-out calibration images "
        f"{agreement}divergence {divergence}",
    )


def finish(model: ir.Model, wide: ir.Model | None = None) -> tuple[ir.Model, tuple[str, ...]]:
    """Rewrite without loss, simplify, and strip private metadata. Notes say what was done and what was not.

    `wide` is the same model with its float16 weights before they were rounded, which is folded likewise.
    """
    rewritten = fold_all(model)
    if wide is not None:
        fold_scales(wide)
        take_rounded(model, wide)
    model, passed_by = simplify(model)
    strip_traces(model)
    return model, (*in_words(rewritten), *([f"not simplified: {passed_by}"] if passed_by else []))


def _summary(plan: Plan, macs_before: int | None, macs_after: int | None) -> str:
    """The plan in one line, for readers of the file's metadata."""
    summary = f"{len(plan.changed)} of {len(plan.decisions)} layers are factor pairs"
    if plan.thinner:
        removed = sum(decision.removed for decision in plan.thinner)
        summary += f", {removed} channels of {len(plan.thinner)} groups are removed"
    return f"{summary}, {macs_before / macs_after:.2f} times fewer MACs" if macs_before and macs_after else summary


def _decided_words(plan: Plan, names: WeightNames) -> dict[str, str]:
    """What a later export should know about each layer, and about each part of a factored layer."""
    words = {decision.site.name: "kept" for decision in plan.decisions if not decision.branches}
    for change in plan.changed:
        for name in (name for path in names[change.site.name] for name in path):
            words[name.removesuffix(".weight")] = f"made ({describe(change.branches)})"
    return words
