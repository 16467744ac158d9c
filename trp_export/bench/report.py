"""What trp-bench prints: a table of latencies, one of layers, or both as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from trp_export.bench import stats
from trp_export.bench.environment import Environment
from trp_export.bench.profile import Profile, ProfiledLayer
from trp_export.bench.samples import Comparison, Measurement
from trp_export.bench.saved import to_json
from trp_export.system.console import standard_output
from trp_export.system.text import plain


def document(found: Comparison, profiles: Sequence[Profile], *, paired: bool = True) -> dict[str, Any]:
    """The result without raw samples as a plain dict; those are for `--save`."""
    values = to_json(found, samples=False, paired=paired)
    return {**values, "profiles": [profile.to_json() for profile in profiles]}


def print_tables(found: Comparison, profiles: Sequence[Profile], *, paired: bool = True) -> None:
    """Print latencies or counts, layers, the environment, and what disturbed the measurement."""
    out = standard_output()
    out.print(_times(found, paired) if found.environment.unit == "ns" else _counts(found, paired))
    if profiles:
        out.print(_layers(profiles))
    out.print(plain(_where(found.environment, found)), markup=False)
    for note in found.noise:
        out.print(plain(f"note: {note}", keep_lines=False), markup=False)


def _plain_table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(_safe(column), justify="left" if index == 0 else "right", no_wrap=True, overflow="fold")
    return table


def _times(found: Comparison, paired: bool) -> Table:
    table = _plain_table("model", "p50 ms", "p90", "p99", "min", "load ms", "peak MB", "ratio [99 %]", "verdict", "n")
    for index, one in enumerate(found.measurements):
        summary = stats.summary(one)
        times = [f"{value / 1e6:.4g}" for value in (summary.median, summary.p90, summary.p99, summary.min)]
        against, verdict = _against(found.measurements[0], one, paired) if index else ("1 (reference)", "")
        table.add_row(
            _safe(one.model),
            *times,
            f"{summary.load_ms:.0f}",
            f"{summary.peak_bytes / 1e6:.0f}" if summary.peak_bytes else "-",
            against,
            verdict,
            f"{summary.n} in {summary.processes}",
        )
    return table


def _counts(found: Comparison, paired: bool) -> Table:
    table = _plain_table("model", "1e6 instructions", "1e6 multiply-adds", "ratio [range]", "verdict", "vector kernels")
    for index, one in enumerate(found.measurements):
        kernels = {name: count for name, count in one.counts.items() if name not in ("macs", "instructions")}
        names = ", ".join(sorted(kernels, key=lambda name: -kernels[name])[:3])
        against, verdict = _against(found.measurements[0], one, paired) if index else ("1 (reference)", "")
        macs = f"{one.counts.get('macs', 0) / 1e6:.2f}"
        word = {"faster": "fewer", "slower": "more"}.get(verdict, verdict)
        table.add_row(_safe(one.model), f"{stats.median(one) / 1e6:.2f}", macs, against, word, names)
    return table


def _against(reference: Measurement, one: Measurement, paired: bool) -> tuple[str, str]:
    found = stats.ratio(reference, one, paired=paired)
    return _safe(str(found)), found.verdict


def _layers(profiles: Sequence[Profile]) -> Table:
    """Each layer of the first model beside the same layer of the others."""
    columns = [column for profile in profiles for column in ("ms", "MMACs", "GMAC/s")]
    ratios = ["ratio"] * (len(profiles) - 1)
    table = _plain_table("layer", *columns, *ratios)
    by_name = [{layer.name: layer for layer in profile.layers} for profile in profiles]
    names = list(dict.fromkeys(name for layers in by_name for name in layers))
    for name in names:
        found = [layers.get(name) for layers in by_name]
        cells = [cell for layer in found for cell in _layer_cells(layer)]
        first = found[0]
        quotients = [_times_faster(first.ms, one.ms) if first and one else "-" for one in found[1:]]
        pair = "" if all(layer is None or layer.parts == 1 for layer in found) else " (pair)"
        table.add_row(_safe(name) + pair, *cells, *quotients)
    table.add_row("other", *(cell for profile in profiles for cell in (f"{profile.other_ms:.3f}", "", "")))
    totals = [cell for profile in profiles for cell in (f"{profile.total_ms:.3f}", "", "")]
    table.add_row("all", *totals, *(_times_faster(profiles[0].total_ms, one.total_ms) for one in profiles[1:]))
    return table


def _times_faster(before_ms: float, after_ms: float) -> str:
    """A profile counts whole microseconds, so a time can be 0."""
    return f"{before_ms / after_ms:.2f}x" if after_ms else "-"


def _layer_cells(layer: ProfiledLayer | None) -> tuple[str, str, str]:
    if layer is None:
        return "-", "-", "-"
    return f"{layer.ms:.3f}", f"{layer.macs / 1e6:.1f}", f"{layer.gmacs_per_s:.1f}"


def _where(environment: Environment, found: Comparison) -> str:
    parts = [
        environment.device,
        environment.cpu,
        environment.system,
        *(_threads_and_governor(environment) if environment.unit == "ns" else ()),
        f"onnxruntime {environment.onnxruntime} {environment.provider}",
        environment.inputs,
        f"{found.seconds:.0f} s",
    ]
    apart = [one.deviation.relative_l2 for one in found.measurements if one.deviation]
    outputs = f"outputs within {max(apart):.1g} relative L2 of this computer's" if apart else "outputs not compared"
    return f"{'; '.join(parts)}\n{outputs}"


def _threads_and_governor(environment: Environment) -> tuple[str, str]:
    """What a time depends on and a count does not: threads on cores, and how their frequency is governed."""
    names = ", ".join(map(str, environment.cores))
    where = f"on core{'s' if len(environment.cores) > 1 else ''} {names}" if environment.cores else "not pinned"
    return (
        f"{threads(environment.threads)} {where} (of {environment.logical_cores})",
        f"governor {environment.governor}",
    )


def threads(number: int) -> str:
    """As `1 thread`."""
    return f"{number} thread{'s' if number > 1 else ''}"


def print_devices(rows: Sequence[tuple[str, str, str]]) -> None:
    """The devices, and what is missing for those that are not usable here."""
    table = _plain_table("device", "usable", "what it is")
    table.columns[1].justify = table.columns[2].justify = "left"
    table.columns[2].no_wrap = False
    for spelling, description, missing in rows:
        table.add_row(_safe(spelling), "no" if missing else "yes", description + (f"\n{missing}" if missing else ""))
    standard_output().print(table)


def _safe(text: str) -> str:
    """Text from a file name or a model as a cell of a table: without control characters and rich's markup."""
    return plain(text, keep_lines=False).replace("[", "\\[")
