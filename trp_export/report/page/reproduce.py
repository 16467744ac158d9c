"""Where the numbers come from and how to get them again: machine, versions, notes, command line, plan."""

from __future__ import annotations

import json
import platform

from trp_export.command_line import command_line
from trp_export.report.document import Report, versions
from trp_export.report.page.markup import Markup, element, join, plain
from trp_export.report.wording import shorten

_NOTE = 600
_MOST_NOTES = 200
_PLAN_BYTES = 400_000


def environment(report: Report) -> Markup:
    """The machine the times were taken on, else the one the export ran on; and the versions of what it depends on."""
    installed = ", ".join(f"{name} {number}" for name, number in versions().items())
    rows = [*_machine(report), ("versions", installed)]
    body = (element("tr", element("th", what, scope="row"), element("td", value)) for what, value in rows)
    return element("table", element("tbody", *body), class_="facts")


def notes(report: Report) -> Markup:
    """What was odd but did not stop the export."""
    listed = report.notes[:_MOST_NOTES]
    return element("ul", *(element("li", shorten(note, _NOTE)) for note in listed))


def reproduce(report: Report) -> Markup:
    """The command line, and the plan as JSON, which `--plan` replays."""
    document = json.dumps(report.plan.to_json(), indent=1)
    if len(document) > _PLAN_BYTES:
        plan = element("p", "The plan is too long for this page; the JSON document beside the model holds it.")
    else:
        title = element("summary", "The plan as JSON")
        how = element("p", "Saved to a file, ", element("code", "--plan"), " replays it without choosing again.")
        plan = element("details", title, how, element("pre", element("code", document), tabindex=0))
    model = None if report.source.path else element("p", "MODEL stands for the file or the module that was exported.")
    command = plain(command_line(report.source, report.options))
    return join(element("pre", element("code", shorten(command, 4000))), model, plan)


def _machine(report: Report) -> list[tuple[str, str]]:
    if report.latency is None:
        return [("system", platform.platform()), ("machine", platform.machine())]
    taken = report.latency.environment
    pinned = f"pinned to {', '.join(map(str, taken.cores))}" if taken.cores else "not pinned"
    threads = f"{taken.threads} thread{'s' if taken.threads > 1 else ''}, {pinned}, of {taken.logical_cores} cores"
    return [
        ("device", taken.device),
        ("CPU", f"{taken.cpu} ({taken.machine})"),
        ("system", taken.system),
        ("threads", threads),
        ("frequency governor", taken.governor),
        ("runtime", f"onnxruntime {taken.onnxruntime}, {taken.provider}"),
        ("inputs of the timing", taken.inputs),
        ("time spent timing", f"{report.latency.seconds:.0f} s"),
    ]
