"""The result in several precisions, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trp_export.metrics.score import amount, of_all_images
from trp_export.precision.convert import Variant
from trp_export.report.document import Report
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import size

if TYPE_CHECKING:
    from trp_export.bench import Measurement

HEADS = ("", "file", "latency, ms", "vs original", "vs int8 alone", "same class", "divergence")
_EXPLANATION = (
    "Divergence (squared distance over the variance of the outputs) and, for classifiers, the same class compare each "
    "form with the float model that it was made from, on calibration images that did not set its ranges."
)


@dataclass(frozen=True, slots=True)
class Line:
    """One form: its cells under HEADS and the metric of --eval. `note` says how it was made, or why it may not ship."""

    cells: tuple[str, ...]
    shipped: bool
    note: str


def lines(report: Report) -> tuple[tuple[str, ...], list[Line]]:
    """The heads of the columns that are not empty, and a line for each form: first those without low rank."""
    if report.forms is None:
        return (), []
    ordered = sorted(report.forms.variants, key=lambda variant: variant.low_rank)
    rows = [_cells(report, variant) for variant in ordered]
    heads = (*HEADS, next((one.judged.what for one in ordered if one.judged), ""))
    columns = [index for index in range(len(heads)) if index == 0 or any(cells[index] for cells in rows)]
    found = [
        Line(tuple(cells[index] for index in columns), variant is report.forms.chosen, variant.refused or variant.how)
        for variant, cells in zip(ordered, rows, strict=True)
    ]
    return tuple(heads[index] for index in columns), found


def _cells(report: Report, variant: Variant) -> tuple[str, ...]:
    from trp_export.bench import summary

    shipped = report.forms is not None and variant is report.forms.chosen
    alone = report.forms.alone("int8") if report.forms is not None else None
    return (
        f"{variant.name} (shipped)" if shipped else variant.name,
        size(variant.bytes) if variant.bytes else "none",
        f"{summary(variant.latency).median / 1e6:.4g}" if variant.latency else "",
        _ratio(report.timings.original if report.timings else None, variant.latency),
        _ratio(alone.latency, variant.latency) if alone is not None and alone is not variant else "",
        _same_class(variant),
        f"{variant.parity.divergence:.2g}" if variant.parity else "",
        amount(variant.judged.after, variant.judged.unit) if variant.judged else "",
    )


def _ratio(reference: Measurement | None, other: Measurement | None) -> str:
    from trp_export.bench import ratio

    return str(ratio(reference, other)) if reference is not None and other is not None else ""


def _same_class(variant: Variant) -> str:
    if variant.parity is None or variant.parity.agreement is None:
        return ""
    return of_all_images(variant.parity.agreement, variant.parity.images)


def section(report: Report) -> Markup:
    """The table of all forms, and a note on each."""
    heads, forms = lines(report)
    rows = (
        element(
            "tr",
            element("th", form.cells[0], scope="row"),
            *(
                element("td", cell, class_="number", data_head=head)
                for head, cell in zip(heads[1:], form.cells[1:], strict=True)
            ),
            class_="chosen" if form.shipped else None,
        )
        for form in forms
    )
    head = element("tr", element("td"), *(element("th", name, scope="col", class_="number") for name in heads[1:]))
    return join(
        element("p", _EXPLANATION),
        element("table", element("thead", head), element("tbody", *rows), class_="numbers forms"),
        element("ul", *(element("li", f"{form.cells[0]}: {form.note}") for form in forms if form.note)),
    )
