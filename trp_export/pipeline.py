"""The straight line from a model to a smaller, verified, measured ONNX file. Each step is one call.

load > prepare > sites > plan > factor > rewrite > fold batch norm, simplify > verify > measure > save
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.calibration.moments import save_moments
from trp_export.errors import OptionError
from trp_export.graph.metadata import licence
from trp_export.graph.model_files import size_bytes
from trp_export.load import load
from trp_export.network import Network, analyse, measure_layers, require_matches
from trp_export.options import SYNTHETIC, Calibration, MaxDrop, Options, Rule, Target
from trp_export.planning.budgets import lost_energy
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Plan
from trp_export.planning.trained_low_rank import recognise, sharp_drop
from trp_export.report.document import Cost, Report
from trp_export.steps.benchmark import (
    benchmark,
    layer_times,
    low_rank_share_of_speedup,
    require_faster,
    why_not_benchmarked,
    without_low_rank,
)
from trp_export.steps.build import Made, build
from trp_export.steps.calibrate import CalibrationData, calibrate
from trp_export.steps.max_drop import room_left, search_max_drop, within, without_tuning
from trp_export.steps.plan import make_plan, saved_choices
from trp_export.steps.precisions import (
    as_compared,
    as_shipped,
    choose_precision,
    judge_as_shipped,
    make_variants,
    precision_remarks,
    ship,
    timed,
)
from trp_export.system.progress import Progress
from trp_export.system.staging import OutputStage, Scratch
from trp_export.verify import (
    CalibrationAgreement,
    Deviation,
    Evaluator,
    Files,
    compare_on_calibration_images,
    open_evaluator,
    verify_export,
)

if TYPE_CHECKING:
    from torch import nn

    from trp_export.latency.network import NetworkLatency


def silent(step: str, share: float) -> None:
    """The default progress: none. `share` of the step is done, from 0 to 1."""


def compress(model: str | Path | nn.Module, options: Options = Options(), progress: Progress = silent) -> Report:
    """Make the export that `options` ask for and write it. Returns what was done, with evidence.

    Raises a TrpError that says what is wrong and what to do; then nothing has been written.
    """
    if options.dry_run:
        with Scratch() as scratch:
            planned = plan_export(model, options, scratch.folder, progress)
            _keep(planned, options)
            return planned.report
    with _stage(model, options) as stage:
        stage.require_apart(_inputs(model, options))
        planned = plan_export(model, options, stage.scratch, progress)
        report = carry_out(planned, options, stage, progress)
        report = report.without_paths(_inputs(model, options))
        if options.bundle is not None and options.bundle.ort is not None:
            report = _with_ort(report, options.bundle.ort, stage.model, planned.network)
        if stage.page is not None:
            from trp_export.report.page.page import make_page

            stage.page.write_text(make_page(report, planned.layers), encoding="utf-8")
        if options.bundle is not None:
            report = _with_bundle(report, model, stage, planned.network)
        else:
            stage.document.write_text(json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        _keep(planned, options)
        stage.publish()
    return report


def _keep(planned: Planned, options: Options) -> None:
    """What was learned on the way, where the user wants it for another time."""
    if planned.known is not None and options.calibration and options.calibration.save_moments:
        save_moments(options.calibration.save_moments, planned.known.moments)
    if planned.latency is not None and options.tables.save is not None:
        planned.latency.table.save(options.tables.save)


@dataclass(frozen=True, slots=True)
class Planned:
    """The network, what each layer could become, what images told, who judges the result, what layers take on the
    device, and a report that holds the plan so far."""

    network: Network
    layers: tuple[Layer, ...]
    known: CalibrationData | None
    judge: Evaluator | None
    latency: NetworkLatency | None
    report: Report


def plan_export(model: str | Path | nn.Module, options: Options, folder: Path, progress: Progress) -> Planned:
    """Everything up to the plan; the model is as it was."""
    progress("load", 0)
    calibration, rule = options.calibration, options.rule
    network = analyse(load(model, options.load), folder, fold=calibration is not None)
    saved = saved_choices(options.rule, network.source, needed=not options.precisions)
    by_name = {choice.name: choice for choice in saved}
    require_matches(network.located, options.selection)
    layers = measure_layers(network, options.selection, by_name, partial(progress, "singular values"))
    judge, seen = _judge(network, options, progress)
    known, notes = None, (*network.notes, *_low_rank_already(layers), *seen, *_same_images(options))
    if calibration is not None:
        known, layers = calibrate(network, layers, calibration, rule, progress)
        notes = (*notes, *known.notes)
    damage = known.damage if known is not None else lost_energy
    latency = _latency(network, layers, options, folder, progress)

    def plan_by(rule: Rule | None) -> Plan:
        return make_plan(layers, network, rule, saved, options.aligned, damage, latency)

    frontier = None
    if isinstance(rule, MaxDrop):
        assert judge is not None
        shipped = judge_as_shipped(judge, options, known.batches if known is not None else (), folder)
        plan, frontier = search_max_drop(rule, plan_by, network, known, shipped, latency, calibration, folder, progress)
    else:
        plan = plan_by(rule)
    before = Cost(network.original_params, network.macs, network.original_bytes)
    forecast = latency.forecast(plan) if latency is not None else None
    notes = (*notes, *(forecast.remarks if forecast is not None else ()))
    report = Report(
        network.source,
        options,
        plan,
        before,
        frontier=frontier,
        forecast=forecast,
        notes=tuple(dict.fromkeys(notes)),
    )
    return Planned(network, layers, known, judge, latency, report)


def _latency(
    network: Network, layers: Sequence[Layer], options: Options, folder: Path, progress: Progress
) -> NetworkLatency | None:
    """What the network and its layers take on the device in the precision asked for, where a speed-up is."""
    if not options.by_latency:
        return None
    from trp_export.latency.session import open_latency

    return open_latency(
        network, layers, options.selection, options.benchmark, options.tables, options.precision, folder, progress
    )


def carry_out(planned: Planned, options: Options, stage: OutputStage, progress: Progress) -> Report:
    """Everything that follows from the plan: factors, graph, evidence. The report says how it went."""
    network, report = planned.network, planned.report
    made, deviation = _make(planned, options, stage, progress)
    why_not = why_not_benchmarked(report.plan, options)
    cleaned = without_low_rank(made.files, stage.scratch) if why_not is None else None
    known = planned.known.batches if planned.known is not None else ()
    variants = make_variants(report.plan, made.files, cleaned, known, planned.judge, options, stage.scratch, progress)
    latency, layer_ms, models = None, None, [made.files.original, made.files.result]
    if cleaned is not None:
        models += [cleaned, *(one.file for one in variants[1:] if one.file not in (None, cleaned))]
        latency, why_not = benchmark(network, models, options, progress)
        if latency is not None and stage.page is not None and report.plan.changed:
            layer_ms = layer_times(network, cleaned, made.files.result, latency.environment)
    forms = choose_precision(timed(variants, models, latency), options)
    if forms is not None:
        ship(forms, stage.model)
    if latency is not None:
        latency = as_compared(latency, forms)
        if options.benchmark.require:
            require_faster(latency)
        elif options.by_latency:
            require_faster(latency, low_rank=False)
    told = (
        *made.notes,
        why_not,
        *(precision_remarks(forms) if forms is not None else (low_rank_share_of_speedup(latency),)),
    )
    deviation = as_shipped(deviation, forms, network, made.files)
    return replace(
        report,
        after=replace(made.cost, bytes=size_bytes(stage.model)),
        deviation=replace(deviation, seen=_on_seen(planned, deviation, made.files, options)),
        latency=latency,
        layer_ms=layer_ms,
        forms=forms,
        notes=(*report.notes, *(remark for remark in told if remark)),
        files=stage.files,
    )


def _make(planned: Planned, options: Options, stage: OutputStage, progress: Progress) -> tuple[Made, Deviation]:
    """The result, and how far it is from the original; not tuned where --max-drop holds only without."""
    rule, untuned = options.rule, without_tuning(options.calibration)
    made, deviation = _make_once(planned, options.calibration, stage, progress)
    if not isinstance(rule, MaxDrop) or untuned == options.calibration:
        return made, deviation
    if within(deviation, rule):
        return replace(made, notes=(*made.notes, room_left(deviation, rule))), deviation
    made, deviation = _make_once(planned, untuned, stage, progress)
    note = f"not tuned: with tuning more than {rule.points:g} pp were lost"
    return replace(made, notes=(*made.notes, note)), deviation


def _make_once(
    planned: Planned, calibration: Calibration | None, stage: OutputStage, progress: Progress
) -> tuple[Made, Deviation]:
    network, plan = planned.network, planned.report.plan
    made = build(network, plan, planned.known, calibration, stage.model, stage.scratch, progress)
    progress("verify", 0)
    return made, verify_export(network.source, network.inputs, made.files, plan, planned.judge, progress)


def _judge(network: Network, options: Options, progress: Progress) -> tuple[Evaluator | None, tuple[str, ...]]:
    """Who says what is lost, ready before long work is done; a plan alone is judged only where it is searched for."""
    if options.dry_run and not isinstance(options.rule, MaxDrop):
        return None, ()
    return open_evaluator(
        network.source,
        network.inputs,
        network.original,
        options.images,
        options.evaluate,
        lambda share: progress("original's answers", share),
    )


def _on_seen(planned: Planned, deviation: Deviation, files: Files, options: Options) -> CalibrationAgreement | None:
    """What calibration images show of the result, where there are any and no others."""
    batches = planned.known.batches if planned.known is not None else ()
    if planned.judge is not None or not batches or deviation.truncation is None:
        return None
    synthetic = options.calibration is not None and options.calibration.path == SYNTHETIC
    return compare_on_calibration_images(
        files.original, files.result, batches, "synthetic" if synthetic else "calibration"
    )


def _same_images(options: Options) -> tuple[str, ...]:
    images, calibration = options.images, options.calibration
    seen = calibration.path if calibration is not None else None
    if images is None or not isinstance(seen, Path) or images.path.resolve() != seen.resolve():
        return ()
    return ("--eval and --calib are the same images: on others expect somewhat more to be lost",)


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


def _stage(model: str | Path | nn.Module, options: Options) -> OutputStage:
    """Where the result is made: beside a file to be, or beside a bundle."""
    if options.bundle is None:
        return OutputStage(_output(model, options), options.report)
    from trp_export.ship.bundle_stage import BundleStage

    return BundleStage(options.bundle.folder)


def _with_ort(report: Report, target: Target, model: Path, network: Network) -> Report:
    from trp_export.ship.ort import convert

    ort, notes = convert(model, target, network.inputs)
    return replace(report, ort=ort, notes=(*report.notes, *notes))


def _with_bundle(report: Report, model: str | Path | nn.Module, stage: OutputStage, network: Network) -> Report:
    from trp_export.ship.bundle import source_files, write_bundle

    source = source_files(Path(model)) if isinstance(model, (str, Path)) else ()
    digest = write_bundle(stage.model.parent, stage.model, report, source, licence(network.model))
    return replace(report, digest=digest)


def _inputs(model: str | Path | nn.Module, options: Options) -> list[Path]:
    """The user's files that an export reads, none of which it may write over.

    A report whose plan is replayed may be renewed: the new one holds the same plan.
    """
    calibration = options.calibration
    files = [Path(model)] if isinstance(model, (str, Path)) else []
    files += [options.images.path] if options.images else []
    files += options.tables.given
    files += calibration.moments if calibration else ()
    return files + ([calibration.path] if calibration and isinstance(calibration.path, Path) else [])


def _output(model: str | Path | nn.Module, options: Options) -> Path:
    """Where the result goes. Raises OptionError for a name that is not an ONNX file's, or is the model's own."""
    name = Path(model).stem if isinstance(model, (str, Path)) else type(model).__name__.lower()
    output = options.output or Path(f"{name}.trp.onnx")
    if output.suffix.lower() != ".onnx":
        raise OptionError(f"-o {output} does not end in .onnx; the report goes beside it as .json.")
    if isinstance(model, (str, Path)) and output.resolve() == Path(model).resolve():
        raise OptionError(f"-o {output} is the model itself; give the result another name.")
    return output
