"""The forms of the model in several precisions, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from trp_export.precision.convert import Variant
from trp_export.report.document import Report
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import percent, size

HEADS = ("", "file", "latency, ms", "as fast as the original", "as int8 alone", "same class", "divergence", "accuracy")


@dataclass(frozen=True, slots=True)
class Line:
    """One form: its cells under HEADS. `note` says why it may not ship, or how it was made."""

    cells: tuple[str, ...]
    shipped: bool
    note: str


def lines(report: Report) -> tuple[tuple[str, ...], list[Line]]:
    """The heads of the columns that say something, and the forms; the original first where it was timed."""
    if report.forms is None:
        return (), []
    variants, alone = report.forms.variants, report.forms.alone("int8")
    found = [
        Line(_cells(report, one, alone), one is report.forms.chosen, one.refused or one.how)
        for one in sorted(variants, key=lambda one: one.low_rank)
    ]
    told = [index for index in range(len(HEADS)) if index == 0 or any(line.cells[index] for line in found)]
    kept = [Line(tuple(line.cells[index] for index in told), line.shipped, line.note) for line in found]
    return tuple(HEADS[index] for index in told), kept


def _cells(report: Report, one: Variant, alone: Variant | None) -> tuple[str, ...]:
    from trp_export.bench import ratio, summary

    original = report.latency.measurements[0] if report.latency is not None else None
    timed = one.latency
    return (
        f"{one.name} (shipped)" if report.forms and one is report.forms.chosen else one.name,
        size(one.bytes) if one.bytes else "none",
        f"{summary(timed).median / 1e6:.4g}" if timed else "",
        str(ratio(original, timed)) if original and timed else "",
        str(ratio(alone.latency, timed)) if alone and alone is not one and alone.latency and timed else "",
        f"{percent(one.parity.agreement)} of {one.parity.images:,}" if one.parity and one.parity.agreement else "",
        f"{one.parity.divergence:.2g}" if one.parity else "",
        percent(one.judged.after) if one.judged else "",
    )


_BESIDE = (
    "Classes and divergence (squared distance over the spread of the outputs) are held against the float model that a "
    "form was made from, on calibration images that did not show it ranges."
)


def section(report: Report) -> Markup:
    """The same for the page, with what is worth knowing of each."""
    heads, found = lines(report)
    rows = (
        element(
            "tr",
            element("th", line.cells[0], scope="row"),
            *(
                element("td", cell, class_="number", data_head=head)
                for head, cell in zip(heads[1:], line.cells[1:], strict=True)
            ),
            class_="chosen" if line.shipped else None,
        )
        for line in found
    )
    head = element("tr", element("td"), *(element("th", name, scope="col", class_="number") for name in heads[1:]))
    return join(
        element("p", _BESIDE),
        element("table", element("thead", head), element("tbody", *rows), class_="numbers forms"),
        element("ul", *(element("li", f"{line.cells[0]}: {line.note}") for line in found if line.note)),
    )
