"""The channel groups of a plan: which lose channels, and why the others stay."""

from __future__ import annotations

from trp_export.planning.channels import ChannelDecision
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import shorten

_MOST_ROWS = 400
_NAME = 90
_REASON = 240


def section(groups: tuple[ChannelDecision, ...]) -> Markup:
    """One row per group: those that lose channels first, each part in the order of the graph."""
    thinner = sum(group.removed > 0 for group in groups)
    listed = sorted(groups, key=lambda group: not group.removed)[:_MOST_ROWS]
    loss = "." if any(group.fitted for group in groups) else ", at no loss of accuracy."
    intro = f"{thinner} of {len(groups)} channel groups lose channels{loss}"
    head = element("tr", *(element("th", name, scope="col") for name in ("channel group", "channels", "why")))
    rows = (
        element(
            "tr",
            element("td", shorten(group.name, _NAME)),
            element("td", f"{group.channels} to {group.kept}" if group.removed else f"{group.channels}"),
            element("td", shorten(group.reason, _REASON)),
        )
        for group in listed
    )
    return join(element("p", intro), element("table", element("thead", head), element("tbody", *rows), class_="layers"))
