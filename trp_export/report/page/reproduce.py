"""Where the numbers come from and how to repeat them: machine, versions, notes, command line, plan."""

from __future__ import annotations

import json
import platform

from trp_export.command_line import command_line
from trp_export.report.document import Report, versions
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import shorten
from trp_export.system.text import plain

_NOTE = 600
_MOST_NOTES = 200
_PLAN_BYTES = 400_000


def environment(report: Report) -> Markup:
    """The machine of the measurement, or of the export if nothing was measured, and the versions of the packages."""
    installed = ", ".join(f"{name} {number}" for name, number in versions().items())
    rows = [*_machine(report), ("versions", installed)]
    body = (element("tr", element("th", what, scope="row"), element("td", value)) for what, value in rows)
    return element("table", element("tbody", *body), class_="facts")


def notes(report: Report) -> Markup:
    """What the user should know and what did not stop the export."""
    return element("ul", *(element("li", shorten(note, _NOTE)) for note in report.notes[:_MOST_NOTES]))


def reproduce(report: Report) -> Markup:
    """The command line, and the plan as JSON for `--plan`."""
    document = json.dumps(report.plan.to_json(), indent=1)
    if len(document) > _PLAN_BYTES:
        plan = element("p", "The plan is too long for this page; it is in the JSON report beside the model.")
    else:
        title = element("summary", "The plan as JSON")
        how = element("p", "Save it to a file to repeat the same choices with ", element("code", "--plan"), ".")
        plan = element("details", title, how, element("pre", element("code", document), tabindex=0))
    model = None if report.source.path else element("p", "MODEL is the file or the module that was exported.")
    command = plain(command_line(report.source, report.options))
    return join(element("pre", element("code", shorten(command, 4000))), model, plan)


def _machine(report: Report) -> list[tuple[str, str]]:
    if report.latency is None:
        return [("system", platform.platform()), ("machine", platform.machine())]
    environment = report.latency.environment
    pinned = f"pinned to {', '.join(map(str, environment.cores))}" if environment.cores else "not pinned"
    plural = "s" if environment.threads > 1 else ""
    threads = f"{environment.threads} thread{plural}, {pinned}, of {environment.logical_cores} cores"
    return [
        ("device", environment.device),
        ("CPU", f"{environment.cpu} ({environment.machine})"),
        ("system", environment.system),
        ("threads", threads),
        ("frequency governor", environment.governor),
        ("runtime", f"onnxruntime {environment.onnxruntime}, {environment.provider}"),
        ("timed inputs", environment.inputs),
        ("duration of the timing", f"{report.latency.seconds:.0f} s"),
    ]
