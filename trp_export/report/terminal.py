"""The report as tables in a terminal: aligned from 80 columns on, names cut in the middle rather than folded."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trp_export.planning.frontier import Frontier
from trp_export.planning.plan import Decision
from trp_export.report.document import Report
from trp_export.report.page.frontier import SMALLER, limit, measured_on, tried
from trp_export.report.page.markup import plain
from trp_export.report.page.precisions import Line, lines
from trp_export.report.page.summary import compared
from trp_export.report.wording import change, headline, kernel, short_schemes, shorten, times, tone
from trp_export.verify import Agreement

WIDTH_WHEN_PIPED = 1000  # tables take what they need, and lines stay whole
_SHORTEST_NAME = 14
_LONGEST_KERNEL = 18
_WIDEST_OUTCOME = 41  # longer reasons run on in the next line
_TONES = {None: "bold", "faster": "bold green", "slower": "bold red", "no difference": "bold yellow"}


def standard_output() -> Console:
    """Where tables go."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_WHEN_PIPED, highlight=False)


def print_report(report: Report, out: Console, messages: Console, verbose: bool = False) -> None:
    """Layers, before and after, the outcome in words on `out`; where the files are on `messages`."""
    out.print(Text(_one_line(f"{report.source.name}: {report.plan.rule}"), style="bold"))
    out.print(_layer_table(report, out.width))
    if report.after is not None:
        out.print()
        out.print(_summary_table(report))
    if report.forms is not None:
        out.print()
        out.print(_variants_table(report, out))
    if report.frontier is not None:
        out.print()
        out.print(_frontier_table(report.frontier))
    out.print()
    for line in _evidence(report):
        out.print(Text(plain(line), style="dim"))
    for note in report.notes:
        out.print(Text(plain(f"note: {note}")))
    if verbose and report.latency is not None:
        for remark in report.latency.noise:
            out.print(Text(plain(f"noise: {remark}")))
    out.print(Text(headline(report), style=_TONES[tone(report)]))
    if report.digest is not None:
        out.print(Text(f"digest {report.digest}"), soft_wrap=True)
    for path in report.files:
        messages.print(Text(plain(f"wrote {path}")), soft_wrap=True)


def _layer_table(report: Report, width: int) -> Table:
    """Three columns: a layer that is kept says why across the room of scheme, rank and MACs."""
    decisions = report.plan.decisions
    kernels = [shorten(kernel(one.site.kernel_shape, one.site.group), _LONGEST_KERNEL) for one in decisions]
    schemes = [short_schemes(one.branches) for one in decisions]
    ranks = [_ranks(one) for one in decisions]
    scheme_width = max(map(len, ["decouple ", *schemes]))
    rank_width = max(map(len, ["rank", *ranks]))
    outcomes = [
        _outcome(one, f"{scheme:<{scheme_width}}", f"{rank:>{rank_width}}")
        for one, scheme, rank in zip(decisions, schemes, ranks, strict=True)
    ]
    head = Text(f"{'becomes':<{scheme_width}}  {'rank':>{rank_width}}  energy  {'MACs':>6}", style="dim")
    needed = min(_WIDEST_OUTCOME, max([len(head), *(len(line) for line in outcomes)]))
    room = max(_SHORTEST_NAME, width - max(map(len, ["kernel", *kernels])) - needed - 4)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text("layer", style="dim"), Text("kernel", style="dim"), head)
    for one, shape, line in zip(decisions, kernels, outcomes, strict=True):
        table.add_row(Text(_one_line(shorten(one.site.name, room))), Text(shape, style="dim"), line)
    return table


def _ranks(decision: Decision) -> str:
    return " + ".join(f"{one.rank}/{decision.site.full_rank(one.scheme)}" for one in decision.branches)


def _outcome(decision: Decision, scheme: str, rank: str) -> Text:
    """One line; the reason of a factored layer only where it says more than the energy."""
    reason = _one_line(decision.reason)
    if not decision.branches:
        return Text(f"kept: {reason}", style="dim")
    reason = "" if reason.startswith("energy ") else f"  {reason}"
    ratio = times(decision.site.macs, decision.macs)
    return Text.assemble(
        (scheme, "cyan"),
        f"  {rank}  {_energy(decision.energy)}  ",
        (f"{ratio:>6}", "green" if decision.macs < decision.site.macs else "red"),
        reason,
    )


def _one_line(text: str) -> str:
    return plain(text).replace("\n", "?")


def _energy(energy: float) -> str:
    """Four digits, rounded down: what reads 1 has lost nothing."""
    return f"{math.floor(energy * 1e4 + 1e-6) / 1e4:.4f}"


def _summary_table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("before", "after", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in compared(report):
        table.add_row(*map(_text, (row.what, row.before, row.after, row.ratio)))
    return table


def _variants_table(report: Report, out: Console) -> Table:
    """Every precision beside the others, the shipped one in bold; one below the other where that is too wide."""
    heads, found = lines(report)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, name in enumerate(heads):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for line in found:
        table.add_row(*map(_text, line.cells), style="bold" if line.shipped else None)
    fits = out.measure(table, options=out.options.update(width=WIDTH_WHEN_PIPED)).maximum <= out.width
    return table if fits else _variants_stacked(heads, found)


def _variants_stacked(heads: Sequence[str], found: Sequence[Line]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for line in found:
        name, *cells = map(_text, line.cells)
        style = "bold" if line.shipped else None
        table.add_row(name, style=style)
        for head, cell in zip(heads[1:], cells, strict=True):
            if cell:
                table.add_row(Text(f"  {head}", style="dim"), cell, style=style)
    return table


def _frontier_table(frontier: Frontier) -> Table:
    """Every network that a search saw, the chosen one in bold."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    heads = ("tried: " + limit(frontier), SMALLER[frontier.by], measured_on(frontier), "change")
    for index, name in enumerate(heads):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for one in tried(frontier):
        style = {"chosen": "bold", "beyond": "dim"}.get(one.verdict)
        table.add_row(*map(_text, (one.verdict, one.smaller, one.after, one.change)), style=style)
    return table


def _text(cell: str) -> Text:
    """As it is: rich would take what stands in brackets for markup."""
    return Text(plain(cell))


def _evidence(report: Report) -> list[str]:
    """What was foretold and compared, and how far apart it was."""
    foretold = [str(report.forecast)] if report.forecast is not None else []
    deviation = report.deviation
    if deviation is None:
        return foretold
    found = deviation.agreement
    differing = [_differing(found)] if found is not None and found.lost + found.gained else []
    exact = f"Rewrite exact to {deviation.rewrite.relative_l2:.1e} relative L2 ({deviation.how})."
    if deviation.truncation is None:
        return [*foretold, exact, *differing]
    seen = deviation.seen
    moved = change((seen.distance if seen else deviation.truncation).relative_l2)
    inputs = seen.name if seen else deviation.inputs
    return [*foretold, exact, f"Outputs moved by {moved} relative L2 ({inputs}).", *differing]


def _differing(found: Agreement) -> str:
    """On how many images the two models differ, from which the standard error comes."""
    if found.accuracy_after is None:
        return f"{found.lost:,} of {found.images:,} images get another class; ± is the standard error."
    return (
        f"{found.lost:,} of {found.images:,} images are wrong now and were right, {found.gained:,} the reverse; "
        "± is the standard error of the change."
    )
