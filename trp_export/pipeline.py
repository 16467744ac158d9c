"""The straight line from a model to a smaller, verified, measured ONNX file; each step is a public function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.options import Options
from trp_export.report.document import Report
from trp_export.steps.benchmark import benchmark, require_faster
from trp_export.steps.build import build_verified
from trp_export.steps.closeness import require_close
from trp_export.steps.knowledge import learn
from trp_export.steps.plan import make_plan
from trp_export.steps.precisions import choose_precision, make_variants, put_in_place
from trp_export.steps.publish import publish, save_measurements
from trp_export.steps.summarise import report_plan, report_result, require_budget
from trp_export.system.progress import Progress
from trp_export.workspace import open_workspace

if TYPE_CHECKING:
    from torch import nn


def silent(step: str, share: float) -> None:
    """The default progress: none. `share` of the step is done, from 0 to 1."""


def compress(model: str | Path | nn.Module, options: Options = Options(), progress: Progress = silent) -> Report:
    """Make the export that `options` ask for and write it. Returns what was done, with evidence.

    Raises a TrpError that says what is wrong and what to do; then nothing has been written.
    """
    asked, options = options, options.with_calibration
    with open_workspace(model, options, progress) as work:
        planned = make_plan(learn(model, options, work), options, work)
        knowledge = planned.knowledge
        report = report_plan(knowledge, planned, asked)
        if work.outputs is None:
            save_measurements(knowledge, options)
            return report
        built = build_verified(planned.plan, knowledge, options, work)
        require_close(report, built, knowledge, options)
        variants = make_variants(planned.plan, built, knowledge, options, work)
        timing = benchmark(planned.plan, built, variants, knowledge, options, work)
        precisions = choose_precision(timing.of_variants(variants), options)
        put_in_place(precisions, work.result)
        report = report_result(report, built, timing, precisions, knowledge, work)
        require_faster(report.latency, planned.plan, options)
        require_budget(report)
        return publish(report, model, knowledge, options, work.outputs)
