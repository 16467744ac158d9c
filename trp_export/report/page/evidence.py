"""The evidence on the page: how fast and with which certainty, how far the outputs moved, and on which inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trp_export.metrics.names import is_function
from trp_export.metrics.score import Score, amount, change, of_images, uncertainty
from trp_export.report.document import Report
from trp_export.report.page.latency import (
    RatioRow,
    ratio_picture,
    round_ratios,
    scale_of,
    share_beyond,
    spread_picture,
    timed_models,
)
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import behind_score, interval, shorten
from trp_export.runtime.distance import Distance
from trp_export.verify import Deviation

if TYPE_CHECKING:
    from trp_export.bench import Comparison

_LONGEST_REASON, _MOST_REASONS = 200, 10
_SPREAD = "Each hill shows how often an inference took that long, each dot the median of one process."
_CLEANED = (
    "An export also cleans the graph up: it folds batch norm, computes constants and removes what is unused. The "
    "original with the same clean-up but without low rank is measured too, so that this gain is not credited to low "
    "rank."
)


def speed(report: Report) -> Markup | None:
    """The distributions of the latencies, the intervals of their ratios, the quantiles, and disturbances."""
    if report.latency is None:
        return None
    rows = _ratio_rows(report)
    return join(
        element("div", _spread_figure(report.latency), _ratio_figure(rows), class_="pictures pair"),
        element("p", str(report.forecast)) if report.forecast is not None else None,
        element("p", _CLEANED) if len(rows) > 1 else None,
        _quantiles(report.latency),
        _disturbances(report.latency.noise),
    )


def _spread_figure(latency: Comparison) -> Markup:
    beyond = share_beyond(latency)
    cut_off = f" {beyond:.0%} took longer than shown." if beyond >= 0.01 else None
    return element("figure", spread_picture(latency), element("figcaption", _SPREAD, cut_off))


def _ratio_figure(rows: Sequence[RatioRow]) -> Markup:
    first = rows[0]
    caption = (
        f"{len(first.rounds)} rounds, with all models in turn in new processes; a dot is a round. "
        f"The bar is the interval ({interval(first.ratio)})."
    )
    return element("figure", ratio_picture(rows), element("figcaption", caption))


def _ratio_rows(report: Report) -> list[RatioRow]:
    """The result against the original, and against what there is without low rank if that was measured."""
    if report.timings is None or report.ratio is None:
        return []
    original, result = report.timings.original, report.timings.result
    rows = [RatioRow("against the original", report.ratio, round_ratios(original, result))]
    alone = report.without_low_rank
    if alone is not None and report.low_rank_ratio is not None:
        cleaned = report.precision == "fp32"
        name = "against the original cleaned up" if cleaned else f"against {report.precision} alone"
        rows.append(RatioRow(name, report.low_rank_ratio, round_ratios(alone, result)))
    return rows


def _disturbances(remarks: Sequence[str]) -> Markup | None:
    if not remarks:
        return None
    items = element("ul", *(element("li", remark) for remark in remarks))
    return element("div", element("p", "Disturbances of the measurement:"), items, class_="warn")


def _quantiles(comparison: Comparison) -> Markup:
    from trp_export.bench import summary

    divisor, unit = scale_of(comparison.environment.unit)
    models = timed_models(comparison)
    summaries = [summary(model.measurement) for model in models]
    rows = [
        (f"median, {unit}", [f"{values.median / divisor:.4g}" for values in summaries]),
        (f"p90, {unit}", [f"{values.p90 / divisor:.4g}" for values in summaries]),
        (f"p99, {unit}", [f"{values.p99 / divisor:.4g}" for values in summaries]),
        (f"fastest, {unit}", [f"{values.min / divisor:.4g}" for values in summaries]),
        ("loading, ms", [f"{values.load_ms:.0f}" for values in summaries]),
        ("inferences", [f"{values.n:,}" for values in summaries]),
        ("processes", [f"{values.processes:,}" for values in summaries]),
    ]
    names = (element("th", model.name, scope="col", class_="number") for model in models)
    body = (
        element("tr", element("th", what, scope="row"), *(element("td", cell, class_="number") for cell in cells))
        for what, cells in rows
    )
    head = element("thead", element("tr", element("td"), *names))
    return element("table", head, element("tbody", *body), class_="numbers")


def agreement(report: Report) -> Markup:
    """What was compared, on which inputs, and how large the differences are."""
    deviation = report.deviation
    if deviation is None:
        return element("p", "The outputs of the two models were not compared.")
    body = (
        element("tr", element("th", what, scope="row"), element("td", amount, element("br"), element("small", how)))
        for what, amount, how in _agreement_rows(report)
    )
    return join(
        element("p", f"Compared in onnxruntime: {deviation.how}. Inputs: {deviation.inputs}."),
        element("table", element("tbody", *body), class_="facts"),
    )


def _agreement_rows(report: Report) -> list[tuple[str, str, str]]:
    """What was compared, the difference, and an explanation."""
    deviation = report.deviation
    if deviation is None:
        return []
    rows = [("the rewrite", _distance(deviation.rewrite), _rewrite_note(deviation))]
    if deviation.whole is not None:
        how = f"The same for the whole model; rounding explains up to {deviation.whole.bound:.1g}."
        rows.append(("the whole model", _distance(deviation.whole.distance), how))
    if deviation.not_compared:
        how = "; ".join(shorten(reason, _LONGEST_REASON) for reason in deviation.not_compared[:_MOST_REASONS])
        rows.append(("not compared", f"{len(deviation.not_compared)}", f"{how}."))
    if deviation.truncation is not None:
        cause = "the lower ranks" if report.precision == "fp32" else f"the lower ranks and {report.precision}"
        how = f"The result, compared with the original, on {deviation.inputs}. This is the effect of {cause}."
        rows.append(("truncation", _distance(deviation.truncation), how))
    seen = deviation.seen
    if seen is not None:
        fitted = "to which the factors were fitted: on other images, expect more"
        if seen.kind.startswith("held-out"):
            fitted = "to which no factor was fitted"
        how = f"The same on {seen.name}, {fitted}."
        rows.append(("on images", _distance(seen.distance), how))
        if seen.top1 is not None:
            how = "How often both models give the same class the largest output, on the same images."
            rows.append(("same class", of_images(seen.top1, seen.images), how))
    return [*rows, *_evaluation_rows(report)]


def _rewrite_note(deviation: Deviation) -> str:
    """What the rewrite was compared with, and where it is least exact."""
    how = (
        "The result, compared with the original whose changed kernels are the products of their factors. The two may "
        "differ by rounding only, whatever was truncated."
    )
    if not deviation.layers:
        return how
    worst = max(deviation.layers, key=lambda layer: layer.distance.relative_l2)
    return (
        f"{how} {len(deviation.layers)} parts were compared, each on its own inputs; the largest difference is in "
        f"{shorten(worst.name, 90)}, where rounding explains up to {worst.bound:.1g}."
    )


def _evaluation_rows(report: Report) -> list[tuple[str, str, str]]:
    score = report.deviation.score if report.deviation is not None else None
    if score is None:
        return []
    after = amount(score.after, score.unit)
    moved = change(score.before, score.after, score.error, score.unit)
    figure = f"{amount(score.before, score.unit)} → {after} ({moved})"
    if not score.labelled:
        figure = f"{after} {uncertainty(score.error, score.unit)}".rstrip()
    return [(score.what, figure, f"{_against(score, report)} {behind_score(score)}".strip())]


def _against(score: Score, report: Report) -> str:
    """What the figure compares, and on which images."""
    if report.options.images is None:
        return "Your own measure."
    on = f"on {score.images:,} {score.counted} of {report.options.images.path.name}"
    if is_function(report.options.images.metric):
        return f"Your own measure, --metric {score.metric}, {on}."
    truth = "the labels" if score.labelled else "the answers of the original"
    return f"--metric {score.metric}, against {truth}, {on}."


def _distance(distance: Distance) -> str:
    if not distance.relative_l2 and not distance.max_abs:
        return "none"
    return f"relative L2 {distance.relative_l2:.2g}, largest difference {distance.max_abs:.2g}"
