"""Write the report, the page and the bundle, and put everything into its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.calibration.moments import save_moments
from trp_export.graph.metadata import licence
from trp_export.options import Options
from trp_export.report.document import Report
from trp_export.steps.knowledge import Knowledge
from trp_export.system.files import replace_together
from trp_export.system.staging import OutputStage, Saved, made_beside
from trp_export.workspace import files_read, files_saved

if TYPE_CHECKING:
    from torch import nn


def publish(
    report: Report, model: str | Path | nn.Module, knowledge: Knowledge, options: Options, outputs: OutputStage
) -> Report:
    """Write all outputs whole, then move them into place together. Returns the report as it was written.

    Raises OutputError; then the earlier outputs are as they were.
    """
    report = report.without_paths([*files_read(model, options), *(saved.path for saved in files_saved(options))])
    if options.bundle is not None and options.bundle.ort is not None:
        from trp_export.ship.ort import convert

        ort, notes = convert(outputs.model, options.bundle.ort, knowledge.network.inputs)
        report = replace(report, ort=ort, notes=(*report.notes, *notes))
    if outputs.page is not None:
        from trp_export.report.page.page import make_page

        outputs.page.write_text(make_page(report, knowledge.layers), encoding="utf-8")
    if options.bundle is not None:
        report = _with_bundle(report, model, knowledge, outputs)
    else:
        document = json.dumps(report.to_json(), indent=2, allow_nan=False)
        outputs.document.write_text(document + "\n", encoding="utf-8")
    outputs.publish(_measurements(knowledge, options))
    return report


def save_measurements(knowledge: Knowledge, options: Options) -> None:
    """Save what was measured for later runs, where the user named files for it: all of them or none."""
    with made_beside(_measurements(knowledge, options)) as moves:
        replace_together(moves)


def _measurements(knowledge: Knowledge, options: Options) -> list[Saved]:
    """Calibration statistics and layer latencies, each with the file that the user named for it."""
    calibration, saved = options.calibration, list[Saved]()
    if knowledge.calibration is not None and calibration is not None and calibration.statistics is not None:
        moments, counted = knowledge.calibration.to_save, knowledge.calibration.counted
        saved.append((calibration.statistics, lambda path: save_moments(path, moments, counted)))
    if knowledge.latency is not None and options.benchmark.table is not None:
        saved.append((options.benchmark.table, knowledge.latency.table.save))
    return saved


def _with_bundle(report: Report, model: str | Path | nn.Module, knowledge: Knowledge, outputs: OutputStage) -> Report:
    from trp_export.ship.bundle import source_files, write_bundle

    source: Sequence[Path] = source_files(Path(model)) if isinstance(model, (str, Path)) else ()
    network, folder = knowledge.network, outputs.model.parent
    digest = write_bundle(folder, outputs.model, report, source, licence(network.model), network.described.specs)
    return replace(report, digest=digest)
