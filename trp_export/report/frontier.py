"""What a search saw: each network that was built, how small it is and how well it answers. Table and picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trp_export.planning.frontier import Frontier, Point
from trp_export.report.latency import round_values
from trp_export.report.markup import Markup, element, join
from trp_export.report.plots import Frame, line, picture, text
from trp_export.report.words import count, percent, points

SMALLER = {"macs": "fewer MACs", "params": "fewer parameters"}
_WIDTH, _HEIGHT = 560, 320
_NARROWEST = 1.1


@dataclass(frozen=True, slots=True)
class Tried:
    """One line of the table."""

    smaller: str
    macs: str
    params: str
    after: str
    change: str
    verdict: str


def tried(frontier: Frontier) -> list[Tried]:
    """The lines that the terminal and the page share, from the largest network to the smallest."""
    return [
        Tried(
            f"{point.reached:.2f}x",
            count(point.macs),
            count(point.params),
            percent(point.after),
            points(frontier.before, point.after, point.error),
            _verdict(frontier, index),
        )
        for index, point in enumerate(frontier.points)
    ]


def measured_on(frontier: Frontier) -> str:
    """What was measured, on how many images."""
    return f"{frontier.what}, {frontier.images:,} images" if frontier.images else frontier.what


def limit(frontier: Frontier) -> str:
    """The limit in words."""
    return f"at most {frontier.max_drop:g} pp below {percent(frontier.before)}"


def section(frontier: Frontier) -> Markup:
    """The picture and the table."""
    head = ("", SMALLER[frontier.by], "MACs", "parameters", measured_on(frontier), "change")
    rows = (
        element(
            "tr",
            element("th", one.verdict, scope="row"),
            *(
                element("td", cell, class_="number")
                for cell in (one.smaller, one.macs, one.params, one.after, one.change)
            ),
        )
        for one in tried(frontier)
    )
    heads = (element("th", name, scope="col", class_="number" if index else None) for index, name in enumerate(head))
    return join(
        element("p", f"{len(frontier.points)} networks were built and measured; the limit: {limit(frontier)}."),
        element(
            "figure",
            _picture(frontier),
            _caption(frontier),
            class_="wide",
        ),
        element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="numbers"),
    )


_CAPTION = (
    "Bars show one standard error of the change to the original, on the same images. The choice was made on these "
    "images too, so on others expect a little less."
)


def _caption(frontier: Frontier) -> Markup | None:
    return element("figcaption", _CAPTION) if any(point.error for point in frontier.points) else None


def _verdict(frontier: Frontier, index: int) -> str:
    if index == frontier.chosen:
        return "chosen"
    return "holds" if frontier.points[index].holds else "beyond"


def _picture(frontier: Frontier) -> Markup:
    """Quality against size, the limit as a dashed line, the original at 1."""
    ends = [(point.after - (point.error or 0), point.after + (point.error or 0)) for point in frontier.points]
    low = min(frontier.limit, *(end[0] for end in ends))
    high = max(frontier.before, *(end[1] for end in ends))
    margin = max(high - low, 0.002) * 0.12
    bottom, top = low - margin, high + margin
    widest = max(_NARROWEST, *(point.reached for point in frontier.points))
    beside = (widest - 1) * 0.05
    frame = Frame(46, _WIDTH - 14, 14, _HEIGHT - 44, 1 - beside, widest + beside)

    def y(share: float) -> float:
        return frame.y((share - bottom) / (top - bottom))

    grid = [
        join(
            line(frame.left, y(value / 100), frame.right, y(value / 100), "grid"),
            text(frame.left - 6, y(value / 100) + 4, f"{value:g}", anchor="end"),
        )
        for value in round_values(bottom * 100, top * 100)
    ]
    ticks = [
        text(frame.x(value), frame.bottom + 16, f"{value:g}x", anchor="middle")
        for value in round_values(frame.low, frame.high)
    ]
    dash = y(frontier.limit)
    label = text(frame.right, dash - 6, f"limit, {percent(frontier.limit)}", anchor="end", class_="even")
    marks = [_mark(frame, y, point, _verdict(frontier, index)) for index, point in enumerate(frontier.points)]
    title = f"{measured_on(frontier)}, in percent, against times {SMALLER[frontier.by]}"
    return picture(
        _WIDTH,
        _HEIGHT,
        title,
        *grid,
        *ticks,
        text((frame.left + frame.right) / 2, _HEIGHT - 8, f"times {SMALLER[frontier.by]}", anchor="middle"),
        line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"),
        line(frame.left, dash, frame.right, dash, "dash"),
        label,
        element("circle", cx=frame.x(1), cy=y(frontier.before), r=4, class_="median before"),
        text(frame.x(1) + 8, y(frontier.before) - 8, f"original, {percent(frontier.before)}"),
        *marks,
        class_="plot",
    )


def _mark(frame: Frame, y: Callable[[float], float], point: Point, verdict: str) -> Markup:
    """A dot with its standard error; what was chosen has a label."""
    x, middle = frame.x(point.reached), y(point.after)
    error = point.error or 0.0
    bar = line(x, y(point.after - error), x, y(point.after + error), f"error {verdict}") if error else None
    dot = element("circle", cx=x, cy=middle, r=6.0 if verdict == "chosen" else 4.0, class_=f"point {verdict}")
    if verdict != "chosen":
        return join(bar, dot)
    words = f"{point.reached:.2f}x, {percent(point.after)}"
    left = x < (frame.left + frame.right) / 2
    label = text(x + (9 if left else -9), middle + 20, words, anchor="start" if left else "end", class_="strong")
    return join(bar, dot, label)
