"""The outcome at a glance: four figures, and a table of everything before and after."""

from __future__ import annotations

from dataclasses import dataclass

from trp_export.report.document import Report
from trp_export.report.page.charts import bars
from trp_export.report.page.latency import scale_of
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import change, count, percent, points, size, times, tone


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `share` is after over before, where a bar can show it."""

    what: str
    before: str
    after: str
    ratio: str
    share: float | None = None


def tiles(report: Report) -> Markup | None:
    """What a reader looks for first, large."""
    if report.after is None:
        return None
    shown = (_file_tile(report), _macs_tile(report), _latency_tile(report), _answer_tile(report))
    return element("dl", *(tile for tile in shown if tile is not None), class_="tiles")


def table(report: Report) -> Markup:
    """Every number before and after, in full."""
    rows = compared(report)
    head = element("tr", *(_head(name, index > 0) for index, name in enumerate(("", "before", "after", "ratio"))))
    body = (
        element(
            "tr",
            element("th", row.what, scope="row"),
            *(element("td", cell, class_="number") for cell in (row.before, row.after, row.ratio)),
        )
        for row in rows
    )
    return element("table", element("thead", head), element("tbody", *body), class_="numbers")


def compared(report: Report) -> list[Row]:
    """The rows that the terminal and the page share. Without a result, only what there was before."""
    before, after = report.before, report.after
    rows = [_cost("parameters", before.params, after.params if after else None)]
    if before.macs:
        rows.append(_cost("MACs", before.macs, after.macs if after else None))
    if before.bytes:
        rows.append(_cost("file, bytes", before.bytes, after.bytes if after else None))
    return [*rows, *_latency_rows(report), *_accuracy_rows(report)]


def _cost(what: str, before: int, after: int | None) -> Row:
    if after is None:
        return Row(what, f"{before:,}", "", "")
    return Row(what, f"{before:,}", f"{after:,}", times(before, after), after / max(before, 1))


def _latency_rows(report: Report) -> list[Row]:
    if report.latency is None:
        return []
    from trp_export.bench import summary

    environment = report.latency.environment
    divisor, unit = scale_of(environment.unit)
    here, there = (summary(one) for one in report.latency.measurements[:2])
    threads = f"{environment.threads} thread{'s' if environment.threads > 1 else ''}"
    rows = [
        Row(
            f"latency, {unit} ({threads})",
            f"{here.median / divisor:.4g}",
            f"{there.median / divisor:.4g}",
            str(report.ratio),
            there.median / here.median if here.median else None,
        )
    ]
    if report.without_low_rank is not None:
        alone = summary(report.without_low_rank)
        cells = f"{alone.median / divisor:.4g}", f"{there.median / divisor:.4g}", str(report.low_rank_ratio)
        precision = report.forms.chosen.precision if report.forms else "fp32"
        what = "low rank alone" if precision == "fp32" else f"beside {precision} alone"
        rows.append(Row(f"latency, {what}", *cells))
    if here.peak_bytes and there.peak_bytes:
        cells = size(here.peak_bytes), size(there.peak_bytes), times(here.peak_bytes, there.peak_bytes)
        rows.append(Row("peak memory", *cells))
    return rows


def _accuracy_rows(report: Report) -> list[Row]:
    deviation = report.deviation
    if deviation is None:
        return []
    agreement, graded = deviation.agreement, deviation.graded
    rows = []
    if agreement is not None:
        rows.append(Row(f"same class, {agreement.images:,} images", "", percent(agreement.top1), ""))
    seen = deviation.seen
    if seen is not None and seen.top1 is not None:
        rows.append(Row(f"same class, {seen.name}", "", percent(seen.top1), ""))
    if graded is not None:
        what = f"{graded.what}, {graded.images:,} images" if graded.images else graded.what
        change = points(graded.before, graded.after, graded.error)
        rows.append(Row(what, percent(graded.before), percent(graded.after), change))
    return rows


def _file_tile(report: Report) -> Markup | None:
    before, after = report.before.bytes, report.after.bytes if report.after else None
    if not before or not after:
        return None
    return _tile("File", f"{times(before, after)} smaller", f"{size(before)} → {size(after)}", after / before)


def _macs_tile(report: Report) -> Markup | None:
    before, after = report.before.macs, report.after.macs if report.after else 0
    if not before or not after:
        return None
    return _tile("MACs", f"{times(before, after)} fewer", f"{count(before)} → {count(after)}", after / before)


def _latency_tile(report: Report) -> Markup:
    ratio = report.ratio
    if report.latency is None or ratio is None:
        return _tile("Latency", "not timed", "")
    row = _latency_rows(report)[0]
    colour = {"faster": "good", "slower": "bad"}.get(tone(report) or "", "warn")
    told = {"no difference": "no difference", "unknown": "not known"}
    figure = told.get(ratio.verdict, f"{ratio.value:.2f}x as fast")
    _, unit = scale_of(report.latency.environment.unit)
    return _tile("Latency", figure, f"{row.before} → {row.after} {unit}", row.share, colour)


def _answer_tile(report: Report) -> Markup:
    deviation = report.deviation
    if deviation is None:
        return _tile("Outputs", "not compared", "")
    agreement = deviation.agreement
    graded = deviation.graded
    if graded is not None:
        before, after = graded.before, graded.after
        moved, ends = points(before, after), f"{percent(before)} → {percent(after)}"
        return _tile(graded.what.capitalize(), moved, ends, after / max(before, 1e-9))
    if agreement is not None:
        return _tile("Same class", percent(agreement.top1), f"on {agreement.images:,} images")
    seen = deviation.seen
    if seen is not None and seen.top1 is not None:
        return _tile("Same class", percent(seen.top1), f"on {seen.name}")
    if seen is not None:
        return _tile("Output change", change(seen.distance.relative_l2), f"relative L2, on {seen.name}")
    if deviation.truncation is None:
        return _tile("Outputs", "not compared", "layers alone were")
    return _tile("Output change", change(deviation.truncation.relative_l2), "relative L2, on noise")


def _tile(what: str, figure: str, detail: str, share: float | None = None, colour: str | None = None) -> Markup:
    """A figure with the numbers it comes from, and bars of both where they can be drawn."""
    drawn = bars(1.0, share, max(1.0, share)) if share is not None else None
    value = element("span", figure, class_=f"figure {colour}" if colour else "figure")
    return element("div", element("dt", what), element("dd", value, drawn, element("small", detail)), class_="tile")


def _head(name: str, numeric: bool) -> Markup:
    return element("th", name, scope="col", class_="number") if numeric else element("td", join())
