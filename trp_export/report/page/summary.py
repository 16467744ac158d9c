"""The outcome at a glance: four figures, and a table of everything before and after."""

from __future__ import annotations

from dataclasses import dataclass

from trp_export.metrics.score import Detail, Score, amount, change, of_images, uncertainty
from trp_export.report.document import Report
from trp_export.report.page.charts import bars
from trp_export.report.page.latency import scale_of
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import change_in, count, size, times, tone


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `share` is after over before, None if no bar can show it."""

    what: str
    before: str
    after: str
    ratio: str
    share: float | None = None


def tiles(report: Report) -> Markup | None:
    """The figures that a reader looks for first, in large letters."""
    if report.after is None:
        return None
    figures = (_file_tile(report), _macs_tile(report), _latency_tile(report), _outputs_tile(report))
    return element("dl", *(tile for tile in figures if tile is not None), class_="tiles")


def table(report: Report) -> Markup:
    """All numbers before and after, in full."""
    head = element("tr", *(_head(name, index > 0) for index, name in enumerate(("", "before", "after", "ratio"))))
    body = (
        element(
            "tr",
            element("th", row.what, scope="row"),
            *(element("td", cell, class_="number") for cell in (row.before, row.after, row.ratio)),
        )
        for row in compared(report)
    )
    return element("table", element("thead", head), element("tbody", *body), class_="numbers")


def compared(report: Report) -> list[Row]:
    """The rows that terminal, page and model card share. A plan alone has no values after."""
    before, after = report.before, report.after
    rows = [_cost("parameters", before.params, after.params if after else None)]
    if before.macs is None or (after and after.macs is None):
        rows.append(Row("MACs", "unknown", "unknown" if after else "", ""))
    elif before.macs:
        rows.append(_cost("MACs", before.macs, after.macs if after else None))
    if before.bytes:
        rows.append(_cost("file, bytes", before.bytes, after.bytes if after else None))
    return [*rows, *_latency_rows(report), *_evaluation_rows(report)]


def _cost(what: str, before: int, after: int | None) -> Row:
    if after is None:
        return Row(what, f"{before:,}", "", "")
    return Row(what, f"{before:,}", f"{after:,}", times(before, after), after / max(before, 1))


def _latency_rows(report: Report) -> list[Row]:
    if report.latency is None or report.timings is None:
        return []
    from trp_export.bench import summary

    environment = report.latency.environment
    divisor, unit = scale_of(environment.unit)
    before, after = summary(report.timings.original), summary(report.timings.result)
    result = f"{after.median / divisor:.4g}"
    threads = f"{environment.threads} thread{'s' if environment.threads > 1 else ''}"
    share = after.median / before.median if before.median else None
    rows = [Row(f"latency, {unit} ({threads})", f"{before.median / divisor:.4g}", result, str(report.ratio), share)]
    if report.without_low_rank is not None:
        alone = f"{summary(report.without_low_rank).median / divisor:.4g}"
        what = "vs cleaned up" if report.precision == "fp32" else f"vs {report.precision} alone"
        rows.append(Row(f"latency, {what}", alone, result, str(report.low_rank_ratio)))
    if before.peak_bytes and after.peak_bytes:
        cells = size(before.peak_bytes), size(after.peak_bytes), times(before.peak_bytes, after.peak_bytes)
        rows.append(Row("peak memory", *cells))
    return rows


def _evaluation_rows(report: Report) -> list[Row]:
    if report.deviation is None:
        return []
    score, seen = report.deviation.score, report.deviation.seen
    rows = []
    if seen is not None and seen.top1 is not None:
        rows.append(Row(f"same class, {seen.name}", "", of_images(seen.top1, seen.images), ""))
    if score is not None:
        what = f"{score.what}, {score.images:,} {score.counted}" if score.images else score.what
        main = Detail(what, score.before, score.after, score.unit)
        rows.append(_evaluation_row(main, score.error, labelled=score.labelled))
        rows += [_evaluation_row(detail, None, labelled=score.labelled) for detail in score.details]
    return rows


def _evaluation_row(figure: Detail, error: float | None, *, labelled: bool) -> Row:
    """Without labels the original counts as perfect, so only the result has a figure."""
    after = amount(figure.after, figure.unit)
    if not labelled:
        return Row(figure.what, "", after, uncertainty(error, figure.unit))
    moved = change(figure.before, figure.after, error, figure.unit)
    return Row(figure.what, amount(figure.before, figure.unit), after, moved)


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
        return _tile("Latency", "not measured", "")
    row = _latency_rows(report)[0]
    _, unit = scale_of(report.latency.environment.unit)
    figure = {"no difference": "no difference", "unknown": "unknown"}.get(ratio.verdict, f"{ratio.value:.2f}x as fast")
    colour = {"faster": "good", "slower": "bad"}.get(tone(report) or "", "warn")
    return _tile("Latency", figure, f"{row.before} → {row.after} {unit}", row.share, colour)


def _outputs_tile(report: Report) -> Markup:
    """The best evidence that there is of what happens to the outputs."""
    deviation = report.deviation
    if deviation is None:
        return _tile("Outputs", "not compared", "")
    score, seen = deviation.score, deviation.seen
    if score is not None:
        return _score_tile(score)
    if seen is not None and seen.top1 is not None:
        return _tile("Same class", of_images(seen.top1, seen.images), f"on {seen.name}")
    if seen is not None:
        return _tile("Output change", change_in(seen.distance.relative_l2), f"relative L2, on {seen.name}")
    if deviation.truncation is None:
        return _tile("Outputs", "not compared", "only layer by layer")
    detail = f"relative L2, on {deviation.fed}" + (
        f" ({len(deviation.unreached)} changed layers did not run)" if deviation.unreached else ""
    )
    return _tile("Output change", change_in(deviation.truncation.relative_l2), detail)


def _score_tile(score: Score) -> Markup:
    name, after = f"{score.what[0].upper()}{score.what[1:]}", amount(score.after, score.unit)
    if not score.labelled:
        return _tile(name, after, f"on {score.images:,} {score.counted}")
    ends = f"{amount(score.before, score.unit)} → {after}"
    share = score.after / score.before if score.before > 0 and score.after >= 0 else None
    return _tile(name, change(score.before, score.after, None, score.unit), ends, share)


def _tile(what: str, figure: str, detail: str, share: float | None = None, colour: str | None = None) -> Markup:
    """A figure with the numbers it comes from, and with bars for both if they can be drawn."""
    drawing = bars(1.0, share, max(1.0, share)) if share is not None else None
    value = element("span", figure, class_=f"figure {colour}" if colour else "figure")
    return element("div", element("dt", what), element("dd", value, drawing, element("small", detail)), class_="tile")


def _head(name: str, numeric: bool) -> Markup:
    return element("th", name, scope="col", class_="number") if numeric else element("td", join())
