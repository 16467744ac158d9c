"""Put what an export did into its report."""

from __future__ import annotations

from dataclasses import replace

from trp_export.errors import NotFasterError, OptionError
from trp_export.graph.cost import Cost
from trp_export.graph.model_files import size_bytes
from trp_export.latency.search import REACHED
from trp_export.options import Options
from trp_export.precision.forms import Precisions
from trp_export.report.document import Report
from trp_export.rules import Macs, Params, Speedup
from trp_export.steps.benchmark import Timing, compared, share_of_speedup
from trp_export.steps.build import Built
from trp_export.steps.knowledge import Knowledge
from trp_export.steps.plan import Planned
from trp_export.steps.precisions import as_shipped, outputs_as_shipped, precision_remarks
from trp_export.verify import CalibrationAgreement, Deviation, compare_on_calibration_images
from trp_export.verify.calibration_images import Kind
from trp_export.workspace import Workspace

# A budget counts as met up to this share: cleaning up may leave a constant more than the plan counts.
_COUNTED = 0.99


def report_plan(knowledge: Knowledge, planned: Planned, options: Options) -> Report:
    """The report of a plan, before anything is built."""
    network = knowledge.network
    return Report(
        network.source,
        options,
        planned.plan,
        before=Cost(network.original_params, network.original_macs, network.original_bytes),
        fewer_macs=network.fewer_macs,
        frontier=planned.frontier,
        forecast=planned.forecast,
        notes=tuple(dict.fromkeys((*knowledge.notes, *planned.notes))),
    )


def report_result(
    report: Report, built: Built, timing: Timing, precisions: Precisions | None, knowledge: Knowledge, work: Workspace
) -> Report:
    """The same with the result, its evidence and its measurements."""
    latency = compared(timing, built, precisions, work.scratch)
    remarks = tuple(precision_remarks(precisions)) if precisions is not None else ()
    if precisions is None and report.plan.reduction:
        remarks = share_of_speedup(latency, report.plan)
    not_measured = (timing.not_measured,) if timing.not_measured else ()
    deviation = as_shipped(built.deviation, precisions, knowledge.network, built.files)
    on_outputs = outputs_as_shipped(built.on_outputs, precisions)
    size = size_bytes(work.result)
    report = replace(report, after=replace(built.cost, bytes=size))
    larger = f"the result is larger than the original: {size:,} instead of {report.before.bytes:,} bytes"
    return replace(
        report,
        deviation=deviation and replace(deviation, seen=_on_calibration_images(deviation, built, knowledge)),
        latency=latency,
        layer_ms=timing.layer_ms,
        forms=precisions,
        notes=(
            *report.notes,
            *built.notes,
            *on_outputs,
            *([larger] if report.is_larger else []),
            *not_measured,
            *remarks,
        ),
        files=work.outputs.files if work.outputs is not None else (),
    )


def require_budget(report: Report) -> None:
    """Raises OptionError or NotFasterError where the result misses the budget that its plan was to meet.

    Multiply-adds and parameters are those counted in the result, the speed is the one measured; an interval that
    reaches the budget is enough.
    """
    rule, after = report.options.effective_rule, report.after
    match rule:
        case Macs():
            before, left, what = report.before.macs, after and after.macs, "--macs"
        case Params():
            before, left, what = report.before.params, after and after.params, "--params"
        case Speedup() if report.ratio is not None and report.ratio.high < rule.ratio * REACHED:
            raise NotFasterError(
                f"--speedup {rule.ratio:g} was asked for, and the result measured {report.ratio}; nothing was written."
            )
        case _:
            return
    if before and left and before / left < rule.ratio * _COUNTED:
        raise OptionError(
            f"{what} {rule.ratio:g} is not met: the plan meets it, but the whole result has {before / left:.2f} times "
            "fewer. Ask for less; nothing was written."
        )


def _on_calibration_images(deviation: Deviation, built: Built, knowledge: Knowledge) -> CalibrationAgreement | None:
    """What calibration images show of the result, where nothing else evaluates it."""
    data = knowledge.calibration
    if knowledge.evaluator is not None or data is None or not data.batches or deviation.truncation is None:
        return None
    original, result = built.files.original, built.files.result
    kind: Kind = "synthetic" if data.synthetic else "calibration"
    if data.held_out:
        kind = "held-out synthetic" if data.synthetic else "held-out"
    return compare_on_calibration_images(original, result, data.judged_on, kind)
