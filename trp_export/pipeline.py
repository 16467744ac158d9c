"""The straight line from a model to a smaller, verified, measured ONNX file. Each step is one call.

load > prepare > sites > plan > factor > rewrite > fold batch norm, simplify > verify > measure > save
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trp_export.errors import LoadError, NotFasterError, OptionError, UnsupportedError
from trp_export.graph.batchnorm import fold_batch_norm
from trp_export.graph.cost import count_macs, count_params
from trp_export.graph.prepare import prepare, remove_unused, strip_traces
from trp_export.graph.rewrite import path_names, rewrite, set_products, tag_nodes
from trp_export.graph.shapes import Shape, Shapes, infer_shapes, input_shapes
from trp_export.graph.simplify import simplify
from trp_export.graph.sites import LocatedSite, find_sites, note_decided
from trp_export.load import Source, load
from trp_export.lowrank.factor import Factors, factorise
from trp_export.options import Benchmark, Macs, Options, SavedPlan, Selection
from trp_export.planning.curves import Curve, Layer, make_curve, schemes_for
from trp_export.planning.plan import Choice, Plan, parse_plan
from trp_export.planning.rules import LayerRule, plan_by_choices, plan_by_rule
from trp_export.planning.shared_budget import plan_by_macs
from trp_export.report.document import Cost, Report
from trp_export.save import Stage, save_model, size_bytes
from trp_export.target import block_size
from trp_export.verify import Files, verify_export

if TYPE_CHECKING:
    from torch import nn

    from trp_export.bench import Comparison

Progress = Callable[[str, float], None]


def silent(step: str, share: float) -> None:
    """The default progress: none. `share` of the step is done, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Network:
    """A prepared model with its layers and what it costs. The model is changed in place by what follows."""

    source: Source
    model: ir.Model
    inputs: Mapping[str, Shape]
    shapes: Shapes
    located: tuple[LocatedSite, ...]
    macs: int
    params: int


def compress(model: str | Path | nn.Module, options: Options = Options(), progress: Progress = silent) -> Report:
    """Make the export that `options` ask for and write it. Returns what was done, with evidence.

    Raises a TrpError that says what is wrong and what to do; then nothing has been written.
    """
    progress("load", 0)
    network = analyse(load(model, options.load))
    layers = measure_layers(network, options.selection, _schemes_wanted(network.source, options), progress)
    plan = choose(network, layers, options)
    report = Report(
        network.source, options, plan, before=Cost(network.params, network.macs, None), notes=network.source.notes
    )
    if options.dry_run:
        return report
    with Stage(options.output or Path(f"{network.source.name}.trp.onnx"), options.report) as stage:
        report = build(network, plan, options, report, stage, progress)
        stage.write_text(stage.document, json.dumps(report.to_json(), indent=2) + "\n")
        if stage.page is not None:
            from trp_export.report.page import make_page

            stage.write_text(stage.page, make_page(report, layers))
        stage.publish()
    return report


def analyse(source: Source) -> Network:
    """Bring the model into normal form and find its layers."""
    model = prepare(source.model)
    inputs = input_shapes(model, source.input_shape)
    shapes = infer_shapes(model, inputs)
    _require_bounded(shapes)
    located = find_sites(model, shapes)
    return Network(source, model, inputs, shapes, located, count_macs(model, shapes), count_params(model))


def measure_layers(
    network: Network, selection: Selection, extra: Mapping[str, Choice], progress: Progress = silent
) -> tuple[Layer, ...]:
    """Each layer with its curves under the schemes to be tried; those left out by name carry a refusal."""
    layers = []
    for index, place in enumerate(network.located):
        progress("singular values", index / len(network.located))
        site = replace(place.site, refusal=place.site.refusal or _left_out(place.site.name, selection))
        layers.append(Layer(site, () if site.refusal else _curves(place, selection, extra.get(site.name))))
    return tuple(layers)


def choose(network: Network, layers: Sequence[Layer], options: Options) -> Plan:
    """The plan that the rule makes. Raises OptionError where there is no rule, or one that cannot be met."""
    rule, selection = options.rule, options.selection
    align = block_size() if selection.align == "auto" else selection.align
    if isinstance(rule, Macs):
        return plan_by_macs(layers, network.macs, rule.ratio, align)
    if isinstance(rule, SavedPlan):
        return plan_by_choices(
            layers, tuple(_saved_choices(network.source, options).values()), f"plan {rule.path.name}"
        )
    if isinstance(rule, LayerRule):
        return plan_by_rule(layers, rule, align)
    choices = tuple(_saved_choices(network.source, options).values())
    return plan_by_choices(layers, choices, "the plan inside the checkpoint")


def build(network: Network, plan: Plan, options: Options, report: Report, stage: Stage, progress: Progress) -> Report:
    """Factor, rewrite, fold, simplify, verify and measure, all inside the stage."""
    original = _original_file(network, stage)
    factors = factor(network.located, plan, progress)
    progress("rewrite", 0)
    files = Files(original, stage.scratch / "dense.onnx", stage.scratch / "products.onnx", stage.model)
    save_model(network.model, files.dense)
    set_products(network.model, plan, network.located, factors)
    save_model(network.model, files.products)
    rewrite(network.model, plan, network.located, factors)
    model, passed_by = finish(network.model, plan)
    save_model(model, stage.model)
    progress("verify", 0)
    deviation = verify_export(network.source, network.inputs, files, plan, options.images, progress)
    after = Cost(count_params(model), count_macs(model, infer_shapes(model, network.inputs)), size_bytes(stage.model))
    latency, why_not = measure(network, plan, original, stage.model, options.benchmark, progress)
    notes = [*report.notes, *([f"not simplified: {passed_by}"] if passed_by else []), *([why_not] if why_not else [])]
    return replace(
        report,
        before=replace(report.before, bytes=size_bytes(original)),
        after=after,
        deviation=deviation,
        latency=latency,
        notes=tuple(notes),
        files=stage.files,
    )


def factor(located: Iterable[LocatedSite], plan: Plan, progress: Progress = silent) -> dict[str, Factors]:
    """The factors of every layer that the plan changes, by site name."""
    places = {place.site.name: place for place in located}
    factors = {}
    for index, change in enumerate(plan.changed):
        progress("factor", index / len(plan.changed))
        site = change.site
        factors[site.name] = factorise(places[site.name].kernel(), change.scheme, site.group, change.rank)
    return factors


def finish(model: ir.Model, plan: Plan) -> tuple[ir.Model, str | None]:
    """Fold batch norm, simplify, strip what is private, and note what was decided. Returns why onnxsim passed by."""
    fold_batch_norm(model)
    remove_unused(model)
    model, passed_by = simplify(model)
    strip_traces(model)
    tag_nodes(model, plan)
    note_decided(model, _decided_words(plan))
    model.metadata_props["trp_export.rule"] = plan.rule
    return model, passed_by


def measure(
    network: Network, plan: Plan, original: Path, result: Path, benchmark: Benchmark, progress: Progress
) -> tuple[Comparison | None, str | None]:
    """Original and result side by side in onnxruntime, or the reason why not. Raises NotFasterError on request."""
    if not plan.changed:
        if benchmark.require:
            raise NotFasterError("no layer gains, so the result is not faster; nothing was written.")
        return None, "not measured: no layer changed"
    if not benchmark.run:
        return None, "not measured: --no-bench"
    from trp_export import bench

    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    try:
        comparison = bench.compare(
            [original, result],
            threads=benchmark.threads,
            budget_s=benchmark.budget_s,
            shapes=shapes,
            progress=lambda share: progress("measure", share),
        )
    except (LoadError, UnsupportedError, OptionError) as error:
        if benchmark.require:
            raise
        return None, f"not measured: {error}"
    ratio = bench.ratio(*comparison.measurements)
    if benchmark.require and ratio.verdict != "faster":
        raise NotFasterError(f"the result is not faster: {ratio}; nothing was written.")
    return comparison, None


def _decided_words(plan: Plan) -> dict[str, str]:
    """What a later export should know of each layer, and of each part that a layer became."""
    words = {decision.site.name: "kept" for decision in plan.decisions if decision.scheme is None}
    for change in plan.changed:
        for path in path_names(change):
            for part in ("reduce", "expand"):
                words[f"{path}.{part}"] = f"made ({change.scheme.name}, rank {change.rank})"
    return words


_MOST_BYTES = 16 * 2**30


def _require_bounded(shapes: Shapes) -> None:
    """An untrusted file must not make onnxruntime allocate without bounds."""
    for name, shape in shapes.items():
        if np.prod([float(dim or 1) for dim in shape]) * 4 > _MOST_BYTES:
            raise UnsupportedError(
                f"{name} has shape {list(shape)}: more than {_MOST_BYTES // 2**30} GiB for one tensor."
            )


def _original_file(network: Network, stage: Stage) -> Path:
    """The file that the result is compared with: the user's own, or the export of their module."""
    if network.source.path is not None:
        return network.source.path
    path = stage.scratch / f"{network.source.name}.onnx"
    save_model(network.model, path)
    return path


def _left_out(name: str, selection: Selection) -> str | None:
    if selection.only and not any(fnmatch.fnmatchcase(name, pattern) for pattern in selection.only):
        return "not among --only"
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in selection.skip):
        return "left out by --skip"
    return None


def _curves(place: LocatedSite, selection: Selection, choice: Choice | None) -> tuple[Curve, ...]:
    """Curves of the schemes to try, or of the one scheme that a saved plan names."""
    schemes = schemes_for(place.site, selection.scheme)
    if choice is not None:
        schemes = (choice.scheme,) if choice.scheme is not None else ()
    kernel = place.kernel()
    return tuple(make_curve(place.site, scheme, kernel) for scheme in schemes)


def _schemes_wanted(source: Source, options: Options) -> dict[str, Choice]:
    return _saved_choices(source, options) if options.rule is None or isinstance(options.rule, SavedPlan) else {}


def _saved_choices(source: Source, options: Options) -> dict[str, Choice]:
    """The choices of --plan, or those inside the checkpoint."""
    if isinstance(options.rule, SavedPlan):
        path = options.rule.path
        try:
            document: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise LoadError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise LoadError(f"{path} is not JSON: {error}.") from error
        return {choice.name: choice for choice in parse_plan(document, str(path))}
    if source.plan is None:
        raise OptionError("no rule says which ranks to take; --energy 0.98 is a good start.")
    return {choice.name: choice for choice in parse_plan(source.plan, f"the plan inside {source.name}")}
