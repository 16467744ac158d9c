"""The report as one HTML page without scripts and without other files, for light and dark screens and for paper.

Names and notes come from untrusted model files: `markup` escapes them, and they are shortened. The number of layers
that are listed and drawn is bounded, so that the page stays below 2 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from string import Template

from trp_export.planning.curves import Layer
from trp_export.report.document import Report
from trp_export.report.page import channels, evidence, frontier, precisions, reproduce, summary
from trp_export.report.page import layers as layer_parts
from trp_export.report.page.markup import Markup, element, escape, join
from trp_export.report.wording import headline, shorten, tone


def make_page(report: Report, layers: Sequence[Layer]) -> str:
    """The page as text. `layers` are the layers that the plan was made from, with their curves."""
    name = shorten(report.source.name, 80)
    sections = [section for section in _sections(report, layers) if section is not None]
    body = join(
        element(
            "header",
            element("h1", element("b", name), ": export report"),
            element("p", headline(report), class_=f"lead {_tone(report)}"),
            summary.tiles(report),
        ),
        _contents([title for title, _ in sections]),
        element("main", *(_section(title, content) for title, content in sections)),
        element("footer", element("small", "Made by trp-export. This page loads nothing from elsewhere.")),
    )
    template = files("trp_export.report.page").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(f"{name}: export report"), body=body)


def _sections(report: Report, layers: Sequence[Layer]) -> tuple[tuple[str, Markup] | None, ...]:
    """The sections in order: the outcome, the evidence, the layers, and how to repeat the export."""
    speed, pictures = evidence.speed(report), layer_parts.pictures(report.plan, layers, report.layer_ms)
    return (
        ("Before and after", summary.table(report)),
        ("Speed", speed) if speed else None,
        ("Agreement", evidence.agreement(report)),
        ("Precision", precisions.section(report)) if report.forms else None,
        ("Frontier", frontier.section(report.frontier)) if report.frontier else None,
        ("Layers", layer_parts.table(report.plan, report.layer_ms)),
        ("Channels", channels.section(report.plan.channels)) if report.plan.thinner else None,
        ("What each rank keeps", pictures) if pictures else None,
        ("Environment", reproduce.environment(report)),
        ("Notes", reproduce.notes(report)) if report.notes else None,
        ("Repeat this export", reproduce.reproduce(report)),
    )


def _contents(titles: Sequence[str]) -> Markup:
    links = (element("li", element("a", title, href=f"#{_anchor(title)}")) for title in titles)
    return element("nav", element("ul", *links), aria_label="Contents")


def _section(title: str, content: Markup) -> Markup:
    return element("section", element("h2", title, id=_anchor(title)), content)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _tone(report: Report) -> str:
    return (tone(report) or "untimed").replace(" ", "-")
