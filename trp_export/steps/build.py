"""Carry out a plan: factors into the graph, tuned where asked for, folded and simplified, and saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.graph.batch_norm import fold_batch_norm
from trp_export.graph.bias import add_to_bias
from trp_export.graph.cost import count_macs, count_params
from trp_export.graph.metadata import sign, strip_traces
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.graph.prepare import remove_unused
from trp_export.graph.rewrite import WeightNames, read_factors, rewrite, set_products, tag_nodes
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.simplify import simplify
from trp_export.graph.sites import find_sites, note_decided
from trp_export.graph.weights import apply_values
from trp_export.lowrank.schemes import describe
from trp_export.network import Network
from trp_export.options import Calibration
from trp_export.planning.plan import Plan
from trp_export.recover.tune import tune
from trp_export.report.document import Cost
from trp_export.steps.calibrate import CalibrationData
from trp_export.steps.factors import make_factors
from trp_export.system.progress import Progress
from trp_export.verify import Files


@dataclass(frozen=True, slots=True)
class Made:
    """The rewritten model's files and cost, and what is worth saying of how it was made."""

    files: Files
    cost: Cost
    notes: tuple[str | None, ...]


def build(
    network: Network,
    plan: Plan,
    known: CalibrationData | None,
    calibration: Calibration | None,
    result: Path,
    scratch: Path,
    progress: Progress,
) -> Made:
    """Factor, rewrite, tune, fold and simplify; the model goes to `result`. The network stays as it is."""
    fitted = make_factors(network, plan, known, calibration, progress)
    progress("rewrite", 0)
    model = network.model.clone()
    located = find_sites(model, network.shapes)
    add_to_bias(model, located, fitted.shifts)
    apply_values(model, fitted.values)
    names = rewrite(model, plan, located, fitted.factors)
    remove_unused(model)
    tuned, told = _tune(network, model, known, calibration, progress)
    apply_values(model, tuned)

    # What the result must equal: the same biases and kept weights, and the products of the same factors.
    products = network.model.clone()
    located = find_sites(products, network.shapes)
    add_to_bias(products, located, fitted.shifts)
    apply_values(products, fitted.values)
    apply_values(products, tuned)
    set_products(products, plan, located, read_factors(model, plan, names) if tuned else fitted.factors)
    files = Files(network.original, network.file, scratch / "products.onnx", result)
    save_model(products, files.products, apart=True)

    model, passed_by = finish(model)
    tag_nodes(model, plan, names)
    note_decided(model, _decided_words(plan, names))
    macs = count_macs(model, infer_shapes(model, network.inputs))
    sign(model, {"rule": plan.rule, "plan": _summary(plan, network.macs, macs)})
    save_model(model, files.result)
    return Made(files, Cost(count_params(model), macs, size_bytes(files.result)), (told, passed_by))


def _tune(
    network: Network,
    model: ir.Model,
    known: CalibrationData | None,
    calibration: Calibration | None,
    progress: Progress,
) -> tuple[Mapping[str, NDArray[Any]], str | None]:
    """New values of initializers after distillation from the original, where asked for, and a word on it."""
    if known is None or calibration is None or not (calibration.tune_minutes or calibration.tune_steps):
        return {}, None
    tuned = tune(
        network.model,
        model,
        np.concatenate(known.batches),
        minutes=calibration.tune_minutes,
        steps=calibration.tune_steps,
        seed=calibration.seed,
        progress=partial(progress, "tune"),
    )
    agreement = f"{tuned.agreement_before:.2%} to {tuned.agreement_after:.2%}"
    divergence = f"{tuned.divergence_before:.3g} to {tuned.divergence_after:.3g}"
    return tuned.values, (
        f"tuned for {tuned.steps} steps (--tune-steps {tuned.steps} repeats it): on held-out calibration images "
        f"agreement with the original {agreement}, divergence {divergence}"
    )


def finish(model: ir.Model) -> tuple[ir.Model, str | None]:
    """Fold batch norm, simplify, strip what is private. Returns why onnxsim passed by, where it did."""
    fold_batch_norm(model)
    remove_unused(model)
    model, passed_by = simplify(model)
    strip_traces(model)
    return model, f"not simplified: {passed_by}" if passed_by else None


def _summary(plan: Plan, macs_before: int, macs_after: int) -> str:
    """The plan in a line, for who looks at the file alone."""
    summary = f"{len(plan.changed)} of {len(plan.decisions)} layers are factor pairs"
    return f"{summary}, {macs_before / macs_after:.2f} times fewer MACs" if macs_before and macs_after else summary


def _decided_words(plan: Plan, names: WeightNames) -> dict[str, str]:
    """What a later export should know of each layer, and of each part that a layer became."""
    words = {decision.site.name: "kept" for decision in plan.decisions if not decision.branches}
    for change in plan.changed:
        for name in (name for path in names[change.site.name] for name in path):
            words[name.removesuffix(".weight")] = f"made ({describe(change.branches)})"
    return words
