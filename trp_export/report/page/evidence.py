"""The proof: how fast and how sure, and how far the outputs moved, on which inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trp_export.report.document import Report
from trp_export.report.page.latency import (
    Against,
    ratio_picture,
    round_ratios,
    scale_of,
    share_beyond,
    shown,
    spread_picture,
)
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import percent, points, sureness
from trp_export.runtime.distance import Distance
from trp_export.verify import Agreement

if TYPE_CHECKING:
    from trp_export.bench import Comparison


def speed(report: Report) -> Markup | None:
    """Both distributions, the interval of their ratio, the quantiles, and what disturbed the measurement."""
    if report.latency is None:
        return None
    beyond = share_beyond(report.latency)
    compared = _compared(report)
    rounds = f"{len(compared[0].rounds)} rounds, the models side by side in fresh processes; a dot is a round."
    sure = f" The first bar is the interval: {sureness(compared[0].ratio)}."
    return join(
        element(
            "div",
            element(
                "figure",
                spread_picture(report.latency),
                element(
                    "figcaption", _HILLS, f" {percent(beyond, 0)} took longer than shown." if beyond >= 0.01 else None
                ),
            ),
            element("figure", ratio_picture(compared), element("figcaption", rounds, sure)),
            class_="pictures pair",
        ),
        element("p", str(report.forecast)) if report.forecast is not None else None,
        element("p", _CLEANED) if len(compared) > 1 else None,
        _quantiles(report.latency),
        _disturbances(report.latency.noise),
    )


_CLEANED = (
    "Exporting also cleans up: batch norm folded, constants computed, what is unused removed. The original cleaned up "
    "in the same way, without low rank, is measured too, so that low rank is not credited with what cleaning up gains."
)


def _compared(report: Report) -> list[Against]:
    """The result against the original, and against the original cleaned up where that was measured."""
    if report.latency is None or report.ratio is None:
        return []
    original, result = report.latency.measurements[:2]
    found = [Against("against the original", report.ratio, round_ratios(original, result))]
    alone = report.without_low_rank
    if alone is not None and report.low_rank_ratio is not None:
        precision = report.forms.chosen.precision if report.forms else "fp32"
        what = "against the original cleaned up" if precision == "fp32" else f"against {precision} alone"
        found.append(Against(what, report.low_rank_ratio, round_ratios(alone, result)))
    return found


def _disturbances(remarks: Sequence[str]) -> Markup | None:
    if not remarks:
        return None
    listed = element("ul", *(element("li", remark) for remark in remarks))
    return element("div", element("p", "What disturbed the measurement:"), listed, class_="warn")


_HILLS = "Each hill shows how often an inference took that long, each dot the median of a process."


def agreement(report: Report) -> Markup:
    """What was compared with what, on which inputs, and how far apart it was."""
    deviation = report.deviation
    if deviation is None:
        return element("p", "The outputs of the two models were not compared.")
    rows = [
        (
            "the rewrite",
            _distance(deviation.rewrite),
            "The result against the original with every changed kernel set to the product of its factors. "
            "Only rounding may set them apart, whatever was truncated.",
        )
    ]
    if deviation.truncation is not None:
        precision = report.forms.chosen.precision if report.forms else "fp32"
        cause = "the lower ranks" if precision == "fp32" else f"the lower ranks and {precision}"
        how = f"The result against the original, on {deviation.inputs}. This is what {cause} cost."
        rows.append(("truncation", _distance(deviation.truncation), how))
    seen = deviation.seen
    if seen is not None:
        how = f"The same on {seen.name}, to which the factors were fitted: others may move more."
        rows.append(("on images", _distance(seen.distance), how))
        if seen.top1 is not None:
            how = "The largest output of both models, on the same images."
            rows.append(("same class", percent(seen.top1), how))
    rows += _on_images(report)
    body = (
        element("tr", element("th", what, scope="row"), element("td", amount, element("br"), element("small", how)))
        for what, amount, how in rows
    )
    return join(
        element("p", f"Compared in onnxruntime: {deviation.how}. Inputs: {deviation.inputs}."),
        element("table", element("tbody", *body), class_="facts"),
    )


def _distance(found: Distance) -> str:
    return f"relative L2 {found.relative_l2:.2g}, largest difference {found.max_abs:.2g}"


def _on_images(report: Report) -> list[tuple[str, str, str]]:
    if report.deviation is None:
        return []
    found, graded = report.deviation.agreement, report.deviation.graded
    path = report.options.images.path.name if report.options.images else "the images given"
    rows = []
    if found is not None:
        how = f"The largest output of both models, on {found.images:,} images of {path}."
        rows.append(("same class", percent(found.top1), how))
    if graded is not None:
        change = points(graded.before, graded.after, graded.error)
        how = _against_labels(graded) if isinstance(graded, Agreement) else "By a measure of your own."
        rows.append((graded.what, f"{percent(graded.before)} → {percent(graded.after)} ({change})", how))
    return rows


def _against_labels(found: Agreement) -> str:
    return (
        f"Against the labels of the same images: {found.lost:,} are wrong now and were right, {found.gained:,} the "
        "reverse. ± is the standard error of the change."
    )


def _quantiles(comparison: Comparison) -> Markup:
    from trp_export.bench import summary

    divisor, unit = scale_of(comparison.environment.unit)
    models = shown(comparison)
    found = [summary(one) for _, _, one in models]
    rows = [
        (f"median, {unit}", [f"{one.median / divisor:.4g}" for one in found]),
        (f"p90, {unit}", [f"{one.p90 / divisor:.4g}" for one in found]),
        (f"p99, {unit}", [f"{one.p99 / divisor:.4g}" for one in found]),
        (f"fastest, {unit}", [f"{one.min / divisor:.4g}" for one in found]),
        ("loading, ms", [f"{one.load_ms:.0f}" for one in found]),
        ("inferences", [f"{one.n:,}" for one in found]),
        ("processes", [f"{one.processes:,}" for one in found]),
    ]
    names = (element("th", name, scope="col", class_="number") for name, _, _ in models)
    body = (
        element("tr", element("th", what, scope="row"), *(element("td", cell, class_="number") for cell in cells))
        for what, cells in rows
    )
    head = element("thead", element("tr", element("td"), *names))
    return element("table", head, element("tbody", *body), class_="numbers")
