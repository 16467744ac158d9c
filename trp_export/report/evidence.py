"""The proof: how fast and how sure, and how far the outputs moved, on which inputs."""

from __future__ import annotations

from collections.abc import Sequence

from trp_export.report.document import Report
from trp_export.report.latency import ratio_picture, round_ratios, scale_of, share_beyond, spread_picture
from trp_export.report.markup import Markup, element, join
from trp_export.report.summary import points
from trp_export.report.words import percent, sureness
from trp_export.verify.compare import Distance


def speed(report: Report) -> Markup | None:
    """Both distributions, the interval of their ratio, the quantiles, and what disturbed the measurement."""
    comparison, ratio = report.latency, report.ratio
    if comparison is None or ratio is None:
        return None
    rounds, beyond = len(round_ratios(comparison)), share_beyond(comparison)
    spread = element(
        "figure",
        spread_picture(comparison),
        element(
            "figcaption",
            _HILLS,
            f" {percent(beyond, 0)} took longer than this picture shows." if beyond >= 0.01 else None,
        ),
    )
    sure = element(
        "figure",
        ratio_picture(comparison, ratio),
        element("figcaption", f"{rounds} rounds, original and result side by side in fresh processes. {_sure(report)}"),
    )
    return join(
        element("div", spread, sure, class_="pictures pair"),
        _quantiles(report),
        _disturbances(comparison.noise),
    )


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
        how = f"The result against the original, on {deviation.inputs}. This is what the lower ranks cost."
        rows.append(("truncation", _distance(deviation.truncation), how))
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
    found = report.deviation.agreement if report.deviation else None
    if found is None:
        return []
    path = report.options.images.path.name if report.options.images else "the images given"
    rows = [
        ("same class", percent(found.top1), f"The largest output of both models, on {found.images:,} images of {path}.")
    ]
    if found.accuracy_before is not None and found.accuracy_after is not None:
        change = points(found.accuracy_before, found.accuracy_after)
        amount = f"{percent(found.accuracy_before)} → {percent(found.accuracy_after)} ({change})"
        rows.append(("accuracy", amount, "Against the labels of the same images."))
    return rows


def _sure(report: Report) -> str:
    ratio = report.ratio
    return f"The bar is the interval: {sureness(ratio)}." if ratio is not None else ""


def _quantiles(report: Report) -> Markup | None:
    if report.latency is None:
        return None
    from trp_export.bench import summary

    divisor, unit = scale_of(report.latency.environment.unit)
    here, there = (summary(one) for one in report.latency.measurements[:2])
    rows = [
        (f"{name}, {unit}", *(f"{value / divisor:.4g}" for value in values))
        for name, values in (
            ("median", (here.median, there.median)),
            ("p90", (here.p90, there.p90)),
            ("p99", (here.p99, there.p99)),
            ("fastest", (here.min, there.min)),
        )
    ]
    rows.append(("loading, ms", f"{here.load_ms:.0f}", f"{there.load_ms:.0f}"))
    rows.append(("inferences", f"{here.n:,}", f"{there.n:,}"))
    rows.append(("processes", f"{here.processes:,}", f"{there.processes:,}"))
    head = element("tr", element("td"), *(element("th", n, scope="col", class_="number") for n in ("before", "after")))
    body = (
        element("tr", element("th", what, scope="row"), *(element("td", cell, class_="number") for cell in cells))
        for what, *cells in rows
    )
    return element("table", element("thead", head), element("tbody", *body), class_="numbers")
