"""The straight line from a model to a smaller, verified, measured ONNX file. Each step is one call.

load > prepare > sites > plan > factor > rewrite > fold batch norm, simplify > verify > measure > save
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from trp_export.choose import make_plan, saved_choices
from trp_export.errors import LoadError, NotFasterError, OptionError, UnsupportedError
from trp_export.graph.batchnorm import fold_batch_norm
from trp_export.graph.cost import count_macs, count_params
from trp_export.graph.prepare import remove_unused, strip_traces
from trp_export.graph.rewrite import path_names, rewrite, set_products, tag_nodes
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.simplify import simplify
from trp_export.graph.sites import note_decided
from trp_export.load import load
from trp_export.lowrank.factor import Factors, factorise
from trp_export.network import Network, analyse, measure_layers
from trp_export.options import Benchmark, Options
from trp_export.parallel import map_layers
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Change, Plan
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
            _, _, report = plan_export(model, options, scratch.folder, progress)
        return report
    with Stage(_output(model, options), options.report) as stage:
        network, layers, report = plan_export(model, options, stage.scratch, progress)
        report = carry_out(network, options, report, stage, progress)
        stage.document.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
        if stage.page is not None:
            from trp_export.report.page import make_page

            stage.page.write_text(make_page(report, layers), encoding="utf-8")
        stage.publish()
    return report


def plan_export(
    model: str | Path | nn.Module, options: Options, folder: Path, progress: Progress
) -> tuple[Network, tuple[Layer, ...], Report]:
    """The network, what each layer could become, and the plan, in a report that has no results yet."""
    progress("load", 0)
    network = analyse(load(model, options.load), folder)
    saved = saved_choices(options.rule, network.source)
    by_name = {choice.name: choice for choice in saved}
    layers = measure_layers(network, options.selection, by_name, partial(progress, "singular values"))
    plan = make_plan(layers, network.macs, options.rule, saved, options.selection)
    before = Cost(network.params, network.macs, network.original_bytes)
    return network, layers, Report(network.source, options, plan, before, notes=network.source.notes)


def carry_out(network: Network, options: Options, report: Report, stage: Stage, progress: Progress) -> Report:
    """Everything that follows from the plan: factors, graph, evidence. The report says how it went."""
    made = build(network, report.plan, stage, progress)
    progress("verify", 0)
    deviation = verify_export(network.source, network.inputs, made.files, report.plan, options.images, progress)
    latency, unmeasured = measure(network, report.plan, made.files, options.benchmark, stage, progress)
    remarks = (made.not_simplified, unmeasured, _whole_story(latency))
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
    """The rewritten model's files and cost, and why onnxsim passed it by, where it did."""

    files: Files
    cost: Cost
    not_simplified: str | None


def build(network: Network, plan: Plan, stage: Stage, progress: Progress) -> Made:
    """Factor, rewrite, fold and simplify, in the stage."""
    factors = factor(network, plan, progress)
    progress("rewrite", 0)
    files = Files(network.original, network.file, stage.scratch / "products.onnx", stage.model)
    set_products(network.model, plan, network.located, factors)
    save_model(network.model, files.products, apart=True)
    rewrite(network.model, plan, network.located, factors)
    model, passed_by = finish(network.model)
    tag_nodes(model, plan)
    note_decided(model, _decided_words(plan))
    model.metadata_props["trp_export.rule"] = plan.rule
    save_model(model, files.result)
    macs = count_macs(model, infer_shapes(model, network.inputs))
    return Made(files, Cost(count_params(model), macs, size_bytes(files.result)), passed_by)


def factor(network: Network, plan: Plan, progress: Progress) -> dict[str, Factors]:
    """The factors of every layer that the plan changes, by site name, in the precision of its weight."""
    places = {place.site.name: place for place in network.located}

    def make(change: Change) -> Factors:
        place = places[change.site.name]
        factors = factorise(place.kernel(), change.scheme, change.site.group, change.rank)
        dtype = place.constant.dtype.numpy()
        return Factors(factors.reduce.astype(dtype), factors.expand.astype(dtype))

    made = map_layers(make, plan.changed, partial(progress, "factor"))
    return {change.site.name: factors for change, factors in zip(plan.changed, made, strict=True)}


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
        return None, f"not measured: {error}"
    original, result, dense = comparison.measurements
    for reference, what in ((original, "the original"), (dense, "the original cleaned up without low rank")):
        ratio = bench.ratio(reference, result)
        if benchmark.require and ratio.verdict != "faster":
            raise NotFasterError(f"the result is not faster than {what}: {ratio}; nothing was written.")
    return comparison, None


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


def _output(model: str | Path | nn.Module, options: Options) -> Path:
    """Where the result goes. Raises OptionError for a name that is not an ONNX file's, or is the model's own."""
    name = Path(model).stem if isinstance(model, (str, Path)) else type(model).__name__.lower()
    output = options.output or Path(f"{name}.trp.onnx")
    if output.suffix.lower() != ".onnx":
        raise OptionError(f"-o {output} does not end in .onnx; the report goes beside it as .json.")
    if isinstance(model, (str, Path)) and output.resolve() == Path(model).resolve():
        raise OptionError(f"-o {output} is the model itself; give the result another name.")
    return output


def _decided_words(plan: Plan) -> dict[str, str]:
    """What a later export should know of each layer, and of each part that a layer became."""
    words = {decision.site.name: "kept" for decision in plan.decisions if decision.scheme is None}
    for change in plan.changed:
        for path in path_names(change):
            for part in ("reduce", "expand"):
                words[f"{path}.{part}"] = f"made ({change.scheme.name}, rank {change.rank})"
    return words
