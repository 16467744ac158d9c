"""The report as tables in a terminal: aligned from 80 columns on, with names cut in the middle rather than wrapped."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trp_export.metrics.score import Score
from trp_export.planning.frontier import Frontier
from trp_export.planning.plan import Decision
from trp_export.report.document import Report
from trp_export.report.page.frontier import SMALLER, limit, measured_on, tried
from trp_export.report.page.precisions import Line, lines
from trp_export.report.page.summary import compared
from trp_export.report.wording import behind_score, change_in, headline, kernel, short_schemes, shorten, times, tone
from trp_export.system.console import WIDTH_WHEN_PIPED
from trp_export.system.text import name_some, plain

_SHORTEST_NAME = 14
_LONGEST_KERNEL = 18
_WIDEST_OUTCOME = 41  # longer reasons continue on the next line
_LARGE_SHARE = 0.1
_TONES = {None: "bold", "faster": "bold green", "slower": "bold red", "no difference": "bold yellow"}


def print_report(report: Report, out: Console, messages: Console, verbose: bool = False) -> None:
    """Print tables and the outcome on `out`, and the names of the written files on `messages`."""
    out.print(Text(_one_line(f"{report.source.name}: {report.plan.rule}"), style="bold"))
    _print_plan(report, out)
    if report.after is not None:
        out.print()
        out.print(_summary_table(report))
    if report.forms is not None:
        out.print()
        out.print(_precisions_table(report, out))
    if report.frontier is not None:
        out.print()
        out.print(_frontier_table(report.frontier))
    out.print()
    for line in _evidence(report):
        out.print(Text(_one_line(line), style="dim"))
    for note in report.notes:
        out.print(Text(_one_line(f"note: {note}")))
    if verbose and report.latency is not None:
        for remark in report.latency.noise:
            out.print(Text(_one_line(f"noise: {remark}")))
    out.print(Text(headline(report), style=_TONES[tone(report)]))
    if report.digest is not None:
        out.print(Text(f"digest {report.digest}"), soft_wrap=True)
    for path in report.files:
        messages.print(Text(_one_line(f"wrote {path}")), soft_wrap=True)


def _print_plan(report: Report, out: Console) -> None:
    """What happens to each layer, and to channel groups where channels are removed."""
    out.print(_layer_table(report, out.width))
    if report.plan.thinner:
        out.print()
        out.print(_channel_table(report, out.width))


def _layer_table(report: Report, width: int) -> Table:
    """Three columns. A layer that is kept gives its reason in place of scheme, rank and MACs."""
    decisions = report.plan.decisions
    kernels = [shorten(kernel(layer.site.kernel_shape, layer.site.group), _LONGEST_KERNEL) for layer in decisions]
    schemes = [short_schemes(layer.branches) for layer in decisions]
    ranks = [_ranks(layer) for layer in decisions]
    scheme_width = max(map(len, ["decouple ", *schemes]))
    rank_width = max(map(len, ["rank", *ranks]))
    outcomes = [
        _outcome(layer, f"{scheme:<{scheme_width}}", f"{rank:>{rank_width}}", report.before.macs)
        for layer, scheme, rank in zip(decisions, schemes, ranks, strict=True)
    ]
    head = Text(f"{'becomes':<{scheme_width}}  {'rank':>{rank_width}}  energy  {'MACs':>6}", style="dim")
    outcome_width = min(_WIDEST_OUTCOME, max([len(head), *(len(line) for line in outcomes)]))
    name_width = max(_SHORTEST_NAME, width - max(map(len, ["kernel", *kernels])) - outcome_width - 4)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text("layer", style="dim"), Text("kernel", style="dim"), head)
    for layer, shape, line in zip(decisions, kernels, outcomes, strict=True):
        table.add_row(Text(_one_line(shorten(layer.site.name, name_width))), Text(shape, style="dim"), line)
    return table


def _channel_table(report: Report, width: int) -> Table:
    """The channel groups that lose channels."""
    groups = report.plan.thinner
    counts = [f"{group.channels} to {group.kept}" for group in groups]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("channel group", no_wrap=True)
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    name_width = max(_SHORTEST_NAME, width - max(map(len, ["channels", *counts])) - _WIDEST_OUTCOME - 4)
    for group, channels in zip(groups, counts, strict=True):
        name = Text(_one_line(shorten(group.name, name_width)))
        table.add_row(name, Text(channels, style="green"), Text(_one_line(group.reason), style="dim"))
    return table


def _ranks(decision: Decision) -> str:
    return " + ".join(f"{branch.rank}/{decision.site.full_rank(branch.scheme)}" for branch in decision.branches)


def _outcome(decision: Decision, scheme: str, rank: str, macs: int | None) -> Text:
    """One line; the reason of a factored layer only if it says more than the energy.

    A kept layer that holds much of the network's `macs` shows its share.
    """
    reason = _one_line(decision.reason)
    if not decision.branches:
        share = decision.site.macs / macs if macs and decision.site.is_known else 0.0
        return Text(f"kept{f', {share:.0%} of MACs' if share >= _LARGE_SHARE else ''}: {reason}", style="dim")
    colour = "green" if decision.macs < decision.site.macs else "red"
    return Text.assemble(
        (scheme, "cyan"),
        f"  {rank}  {_energy(decision.energy)}  ",
        (f"{times(decision.site.macs, decision.macs):>6}", colour),
        "" if reason.startswith("energy ") else f"  {reason}",
    )


def _one_line(text: str) -> str:
    return plain(text, keep_lines=False)


def _energy(energy: float) -> str:
    """Four digits, rounded down: 1 means that nothing was lost."""
    return f"{math.floor(energy * 1e4 + 1e-6) / 1e4:.4f}"


def _summary_table(report: Report) -> Table:
    table = _number_table(("", "before", "after", "ratio"))
    for row in compared(report):
        table.add_row(*map(_text, (row.what, row.before, row.after, row.ratio)))
    return table


def _precisions_table(report: Report, out: Console) -> Table:
    """All precisions side by side, the shipped one in bold; one below the other if the table is too wide."""
    heads, forms = lines(report)
    table = _number_table(heads)
    for form in forms:
        table.add_row(*map(_text, form.cells), style="bold" if form.shipped else None)
    fits = out.measure(table, options=out.options.update(width=WIDTH_WHEN_PIPED)).maximum <= out.width
    return table if fits else _precisions_stacked(heads, forms)


def _precisions_stacked(heads: Sequence[str], forms: Sequence[Line]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for form in forms:
        name, *cells = map(_text, form.cells)
        style = "bold" if form.shipped else None
        table.add_row(name, style=style)
        for head, cell in zip(heads[1:], cells, strict=True):
            if cell:
                table.add_row(Text(f"  {head}", style="dim"), cell, style=style)
    return table


def _frontier_table(frontier: Frontier) -> Table:
    """All networks that a search built, the chosen one in bold."""
    table = _number_table(("tried: " + limit(frontier), SMALLER[frontier.by], measured_on(frontier), "change"))
    for network in tried(frontier):
        style = {"chosen": "bold", "beyond": "dim"}.get(network.verdict)
        table.add_row(*map(_text, (network.verdict, network.smaller, network.after, network.change)), style=style)
    return table


def _number_table(heads: Sequence[str]) -> Table:
    """A first column of names and then columns of numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for index, name in enumerate(heads):
        table.add_column(name, justify="right" if index else "left", no_wrap=index > 0)
    return table


def _text(cell: str) -> Text:
    """Text without markup: rich would interpret brackets."""
    return Text(plain(cell))


def _evidence(report: Report) -> list[str]:
    """The forecast, and how far the outputs are apart."""
    forecast = [str(report.forecast)] if report.forecast is not None else []
    deviation = report.deviation
    if deviation is None:
        return forecast
    apart = deviation.rewrite.relative_l2
    rewrite = f"The rewrite is exact{f' to {apart:.1e} relative L2' if apart else ''} ({deviation.how})."
    if deviation.truncation is None:
        return [*forecast, rewrite, *_remark(deviation.score)]
    seen = deviation.seen
    relative = (seen.distance if seen else deviation.truncation).relative_l2
    outcome = f"moved by {change_in(relative)} relative L2" if relative else "did not move"
    not_run = f"; {name_some(deviation.unreached)} did not run" if deviation.unreached else ""
    outputs = f"Outputs {outcome} ({seen.name if seen else deviation.inputs}{not_run})."
    return [*forecast, rewrite, outputs, *_remark(deviation.score)]


def _remark(score: Score | None) -> list[str]:
    """What lies behind the figures of the evaluation."""
    words = behind_score(score) if score is not None else ""
    return [words] if words else []
