"""The report as tables in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trp_export.planning.plan import Decision
from trp_export.report.document import Report


def print_report(report: Report, console: Console, verbose: bool = False) -> None:
    """Layers, before and after, and where the files are."""
    console.print(_layer_table(report))
    if report.after is not None:
        console.print(_summary_table(report))
    for note in report.notes:
        console.print(f"note: {escape(note)}", highlight=False)
    console.print(verdict(report), highlight=False)
    for path in report.files:
        console.print(f"wrote {escape(str(path))}", highlight=False)
    if verbose and report.latency is not None:
        for remark in report.latency.noise:
            console.print(f"noise: {escape(remark)}", highlight=False)


def verdict(report: Report) -> str:
    """The outcome in one plain sentence."""
    changed = len(report.plan.changed)
    if not changed:
        return "No layer gains under this rule, so the model stays as it is."
    ratio = report.ratio
    if ratio is None:
        return f"{changed} of {len(report.plan.decisions)} layers become factor pairs."
    if ratio.verdict == "faster":
        return f"The whole model is {ratio} times as fast as the original here."
    if ratio.verdict == "slower":
        return f"The whole model is SLOWER than the original here: {ratio}. Do not ship it for speed."
    return f"The whole model is NOT faster than the original here: {ratio}."


def _layer_table(report: Report) -> Table:
    table = Table(title=f"{report.source.name}: {report.plan.rule}", title_justify="left", box=None, padding=(0, 1))
    for name in ("layer", "kernel", "becomes"):
        table.add_column(name, overflow="fold")
    for name in ("rank", "of", "MACs"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for decision in report.plan.decisions:
        table.add_row(*_layer_row(decision))
    return table


def _layer_row(decision: Decision) -> tuple[str, ...]:
    site = decision.site
    kernel = "x".join(map(str, site.kernel_shape)) + (f" /{site.group}" if site.group > 1 else "")
    if decision.scheme is None:
        return escape(site.name), kernel, "-", "", "", "", escape(decision.reason)
    ratio = f"{site.macs / decision.macs:.2f}x"
    cells = decision.scheme.name, str(decision.rank), str(decision.full_rank), ratio, escape(decision.reason)
    return escape(site.name), kernel, *cells


def _summary_table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    for name in ("before", "after", "ratio"):
        table.add_column(name, justify="right")
    before, after = report.before, report.after
    if after is None:
        return table
    table.add_row("parameters", f"{before.params:,}", f"{after.params:,}", f"{before.params / after.params:.2f}x")
    if before.macs and after.macs:
        table.add_row("MACs", f"{before.macs:,}", f"{after.macs:,}", f"{before.macs / after.macs:.2f}x")
    if before.bytes and after.bytes:
        table.add_row("file, bytes", f"{before.bytes:,}", f"{after.bytes:,}", f"{before.bytes / after.bytes:.2f}x")
    _add_latency(table, report)
    _add_deviation(table, report)
    return table


def _add_latency(table: Table, report: Report) -> None:
    if report.latency is None:
        return
    from trp_export.bench import median

    here, there = (median(measurement) / 1e6 for measurement in report.latency.measurements[:2])
    threads = report.latency.environment.threads
    label = f"latency, ms ({threads} thread{'s' if threads > 1 else ''})"
    table.add_row(label, f"{here:.3f}", f"{there:.3f}", f"{report.ratio}")


def _add_deviation(table: Table, report: Report) -> None:
    deviation = report.deviation
    if deviation is None:
        return
    agreement = deviation.agreement
    if agreement is not None:
        table.add_row(f"same class, {agreement.images} images", "", f"{agreement.top1:.2%}", "")
        if agreement.accuracy_before is not None and agreement.accuracy_after is not None:
            drop = (agreement.accuracy_after - agreement.accuracy_before) * 100
            cells = f"{agreement.accuracy_before:.2%}", f"{agreement.accuracy_after:.2%}", f"{drop:+.2f} pp"
            table.add_row(f"accuracy, {agreement.images} images", *cells)
    if deviation.truncation is not None:
        table.add_row("output change, noise", "", f"{deviation.truncation.relative_l2:.2e}", "relative L2")
    table.add_row("rewrite error", "", f"{deviation.rewrite.relative_l2:.1e}", "relative L2")
