"""The straight line from a model to a smaller, verified, measured ONNX file. Each step is one call.

load > prepare > sites > plan > factor > rewrite > fold batch norm, simplify > verify > measure > save
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.moments import save_moments
from trp_export.choose import make_plan, saved_choices
from trp_export.errors import LoadError, NotFasterError, OptionError, UnsupportedError
from trp_export.fit import Known, fit, look
from trp_export.graph.batchnorm import fold_batch_norm
from trp_export.graph.bias import add_to_bias
from trp_export.graph.cost import count_macs, count_params
from trp_export.graph.prepare import remove_unused, strip_traces
from trp_export.graph.rewrite import WeightNames, read_factors, rewrite, set_products, tag_nodes
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.simplify import simplify
from trp_export.graph.sites import find_sites, note_decided
from trp_export.load import load
from trp_export.network import Network, analyse, measure_layers, require_matches
from trp_export.options import Benchmark, Calibration, Options
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Plan
from trp_export.planning.recognise import recognise, sharp_drop
from trp_export.planning.shared_budget import lost_energy
from trp_export.recover.tune import apply_values, tune
from trp_export.report.document import Cost, Report
from trp_export.save import Scratch, Stage, save_model, size_bytes
from trp_export.verify import Files, verify_export

if TYPE_CHECKING:
    from torch import nn

    from trp_export.bench import Comparison

Progress = Callable[[str, float], None]


def silent(step: str, share: float) -> None:
    """The default progress: none. `share` of the step is done, from 0 to 1."""


def compress(model: str | Path | nn.Module, options: Options = Options(), progress: Progress = silent) -> Report:
    """Make the export that `options` ask for and write it. Returns what was done, with evidence.

    Raises a TrpError that says what is wrong and what to do; then nothing has been written.
    """
    if options.dry_run:
        with Scratch() as scratch:
            return plan_export(model, options, scratch.folder, progress).report
    with Stage(_output(model, options), options.report) as stage:
        stage.require_apart(_inputs(model, options))
        planned = plan_export(model, options, stage.scratch, progress)
        report = carry_out(planned, options, stage, progress)
        stage.document.write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        if stage.page is not None:
            from trp_export.report.page import make_page

            stage.page.write_text(make_page(report, planned.layers), encoding="utf-8")
        stage.publish()
        if planned.known is not None and options.calibration and options.calibration.save_moments:
            save_moments(options.calibration.save_moments, planned.known.moments)
    return report


@dataclass(frozen=True, slots=True)
class Planned:
    """The network, what each layer could become, what images told, and a report that holds the plan so far."""

    network: Network
    layers: tuple[Layer, ...]
    known: Known | None
    report: Report


def plan_export(model: str | Path | nn.Module, options: Options, folder: Path, progress: Progress) -> Planned:
    """Everything up to the plan; the model is as it was."""
    progress("load", 0)
    calibration = options.calibration
    network = analyse(load(model, options.load), folder, fold=calibration is not None)
    saved = saved_choices(options.rule, network.source)
    by_name = {choice.name: choice for choice in saved}
    require_matches(network.located, options.selection)
    layers = measure_layers(network, options.selection, by_name, partial(progress, "singular values"))
    known, notes = None, (*network.notes, *_low_rank_already(layers))
    if calibration is not None:
        known, layers = look(network, layers, calibration, options.rule, progress)
        notes = (*notes, *known.notes)
    damage = known.damage if known is not None else lost_energy
    plan = make_plan(layers, network, options.rule, saved, options.selection, damage)
    before = Cost(network.params, network.macs, network.original_bytes)
    return Planned(network, layers, known, Report(network.source, options, plan, before, notes=notes))


def carry_out(planned: Planned, options: Options, stage: Stage, progress: Progress) -> Report:
    """Everything that follows from the plan: factors, graph, evidence. The report says how it went."""
    network, report = planned.network, planned.report
    made = build(planned, options.calibration, stage, progress)
    progress("verify", 0)
    deviation = verify_export(network.source, network.inputs, made.files, report.plan, options.images, progress)
    latency, unmeasured = measure(network, report.plan, made.files, options.benchmark, stage, progress)
    remarks = (*made.notes, unmeasured, _whole_story(latency))
    return replace(
        report,
        after=made.cost,
        deviation=deviation,
        latency=latency,
        notes=(*report.notes, *(remark for remark in remarks if remark)),
        files=stage.files,
    )


@dataclass(frozen=True, slots=True)
class Made:
    """The rewritten model's files and cost, and what is worth saying of how it was made."""

    files: Files
    cost: Cost
    notes: tuple[str | None, ...]


def build(planned: Planned, calibration: Calibration | None, stage: Stage, progress: Progress) -> Made:
    """Factor, rewrite, tune, fold and simplify, in the stage."""
    network, plan = planned.network, planned.report.plan
    fitted = fit(network, plan, planned.known, calibration, progress)
    progress("rewrite", 0)
    model = network.model.clone()
    located = find_sites(model, network.shapes)
    add_to_bias(model, located, fitted.shifts)
    names = rewrite(model, plan, located, fitted.factors)
    remove_unused(model)
    tuned, told = _tune(network, model, planned.known, calibration, progress)
    apply_values(model, tuned)

    # What the result must equal: the same biases and kept weights, and the products of the same factors.
    add_to_bias(network.model, network.located, fitted.shifts)
    apply_values(network.model, tuned)
    factors = read_factors(model, names) if tuned else fitted.factors
    set_products(network.model, plan, network.located, factors)
    files = Files(network.original, network.file, stage.scratch / "products.onnx", stage.model)
    save_model(network.model, files.products, apart=True)

    model, passed_by = finish(model)
    tag_nodes(model, plan, names)
    note_decided(model, _decided_words(plan, names))
    model.metadata_props["trp_export.rule"] = plan.rule
    save_model(model, files.result)
    macs = count_macs(model, infer_shapes(model, network.inputs))
    return Made(files, Cost(count_params(model), macs, size_bytes(files.result)), (told, passed_by))


def _tune(
    network: Network, model: ir.Model, known: Known | None, calibration: Calibration | None, progress: Progress
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


def measure(
    network: Network, plan: Plan, files: Files, benchmark: Benchmark, stage: Stage, progress: Progress
) -> tuple[Comparison | None, str | None]:
    """Original, result, and the original cleaned up without low rank, side by side; or the reason why not.

    The third keeps the figures honest: what cleaning up alone gains is not owed to low rank.
    Raises NotFasterError on request.
    """
    if not plan.changed:
        if benchmark.require:
            raise NotFasterError("no layer gains, so the result is not faster; nothing was written.")
        return None, "not measured: no layer changed"
    if not benchmark.run:
        return None, "not measured: --no-bench"
    from trp_export import bench

    cleaned = stage.scratch / "cleaned.onnx"
    save_model(finish(ir.load(files.dense))[0], cleaned)
    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    try:
        comparison = bench.compare(
            [files.original, files.result, cleaned],
            threads=benchmark.threads,
            budget_s=benchmark.budget_s,
            shapes=shapes,
            progress=partial(progress, "measure"),
        )
    except (LoadError, UnsupportedError, OptionError) as error:
        if benchmark.require:
            raise
        return None, f"not measured: {str(error).replace(str(files.original), files.original.name)}"
    original, result, dense = comparison.measurements
    for reference, what in ((original, "the original"), (dense, "the original cleaned up without low rank")):
        ratio = bench.ratio(reference, result)
        if benchmark.require and ratio.verdict != "faster":
            raise NotFasterError(f"the result is not faster than {what}: {ratio}; nothing was written.")
    return comparison, None


# Lost energy that is rounding and no more.
_NOTHING = 1e-6


def _low_rank_already(layers: tuple[Layer, ...]) -> tuple[str, ...]:
    """A word where the network was trained for low rank, by whomever: its spectra drop sharply."""
    sharpest = [
        max(layer.curves, key=lambda curve: sharp_drop(curve.singular_values) or 0) for layer in layers if layer.curves
    ]
    found = recognise(sharpest)
    if found is None or 1 - found.energy > _NOTHING:
        return ()
    energy = min(math.floor(found.energy * 1e6) / 1e6, 0.999999)  # 1 would keep what is only rounding.
    return (f"{found.layers} of {found.of_layers} layers have low rank already: --energy {energy:g} costs nothing",)


def _whole_story(latency: Comparison | None) -> str | None:
    """Where cleaning up alone changes the speed, how much of the gain is low rank's."""
    if latency is None:
        return None
    from trp_export import bench

    original, result, dense = latency.measurements
    alone = bench.ratio(original, dense)
    if alone.verdict == "no difference":
        return None
    return (
        f"cleaning up without low rank makes the original {alone} as fast; low rank adds {bench.ratio(dense, result)}"
    )


def _inputs(model: str | Path | nn.Module, options: Options) -> list[Path]:
    """The user's files that an export reads, none of which it may write over.

    A report whose plan is replayed may be renewed: the new one holds the same plan.
    """
    calibration = options.calibration
    files = [Path(model)] if isinstance(model, (str, Path)) else []
    files += [options.images.path] if options.images else []
    return files + ([calibration.path, *calibration.moments] if calibration else [])


def _output(model: str | Path | nn.Module, options: Options) -> Path:
    """Where the result goes. Raises OptionError for a name that is not an ONNX file's, or is the model's own."""
    name = Path(model).stem if isinstance(model, (str, Path)) else type(model).__name__.lower()
    output = options.output or Path(f"{name}.trp.onnx")
    if output.suffix.lower() != ".onnx":
        raise OptionError(f"-o {output} does not end in .onnx; the report goes beside it as .json.")
    if isinstance(model, (str, Path)) and output.resolve() == Path(model).resolve():
        raise OptionError(f"-o {output} is the model itself; give the result another name.")
    return output


def _decided_words(plan: Plan, names: WeightNames) -> dict[str, str]:
    """What a later export should know of each layer, and of each part that a layer became."""
    words = {decision.site.name: "kept" for decision in plan.decisions if decision.scheme is None}
    for change in plan.changed:
        for name in (name for path in names[change.site.name] for name in path):
            words[name.removesuffix(".weight")] = f"made ({change.scheme.name}, rank {change.rank})"
    return words
