"""The networks that a search built: how small each is and how well it answers, as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass

from trp_export.metrics.score import Unit, amount, change, points, scale
from trp_export.planning.frontier import Frontier, Point
from trp_export.report.page.charts import Frame, line, picture, text
from trp_export.report.page.latency import round_values
from trp_export.report.page.markup import Markup, element, join

SMALLER = {"macs": "times fewer MACs", "params": "times fewer parameters", "latency": "times as fast"}
_WIDTH, _HEIGHT = 380, 270
_NARROWEST = 1.1
_LEAST_HEIGHT = 0.002
_IN = {"%": "in percent, ", "dB": "in dB, ", "": ""}


@dataclass(frozen=True, slots=True)
class Tried:
    """One line of the table."""

    verdict: str
    smaller: str
    after: str
    change: str


def tried(frontier: Frontier) -> list[Tried]:
    """The lines that terminal and page share, from the largest network to the smallest."""
    return [
        Tried(
            _verdict(frontier, point),
            f"{point.reached:.2f}x",
            amount(point.after, frontier.unit),
            change(frontier.before, point.after, point.error, frontier.unit),
        )
        for point in frontier.points
    ]


def measured_on(frontier: Frontier) -> str:
    """The measure and the number of images."""
    return f"{frontier.what}, {frontier.images:,} {frontier.counted}" if frontier.images else frontier.what


def limit(frontier: Frontier) -> str:
    """The limit of the search in words."""
    return f"at most {points(frontier.max_drop, frontier.unit)} below {amount(frontier.before, frontier.unit)}"


def section(frontier: Frontier) -> Markup:
    """The picture and the table."""
    names = ("", SMALLER[frontier.by], measured_on(frontier), "change")
    heads = (element("th", name, scope="col", class_="number" if name else None) for name in names)
    rows = (
        element(
            "tr",
            element("th", network.verdict, scope="row"),
            *(element("td", cell, class_="number") for cell in (network.smaller, network.after, network.change)),
            class_=network.verdict,
        )
        for network in tried(frontier)
    )
    return join(
        element("p", f"{len(frontier.points)} networks were built and measured. The limit is {limit(frontier)}."),
        element("figure", _picture(frontier), element("figcaption", _caption(frontier)), class_="one"),
        element("table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="numbers"),
    )


def _caption(frontier: Frontier) -> str:
    caption = "These figures made the choice, so expect slightly worse ones on other images."
    if not any(point.error for point in frontier.points):
        return caption
    return f"Bars show one standard error of the change from the original, on the same images. {caption}"


def _verdict(frontier: Frontier, point: Point) -> str:
    if point is frontier.points[frontier.chosen]:
        return "chosen"
    return "holds" if point.holds else "beyond"


@dataclass(frozen=True, slots=True)
class _Plane:
    """The plane of the picture: how many times smaller from left to right, quality upwards."""

    frame: Frame
    low: float
    high: float
    unit: Unit

    def x(self, reached: float) -> float:
        return self.frame.x(reached)

    def y(self, value: float) -> float:
        return self.frame.y((value - self.low) / (self.high - self.low))


def _plane(frontier: Frontier) -> _Plane:
    values = [frontier.limit, frontier.before]
    for point in frontier.points:
        values += [point.after - (point.error or 0), point.after + (point.error or 0)]
    above = max(max(values) - min(values), _LEAST_HEIGHT * 100 / scale(frontier.unit)) * 0.12
    widest = max(_NARROWEST, *(point.reached for point in frontier.points))
    beside = (widest - 1) * 0.06
    frame = Frame(40, _WIDTH - 8, 8, _HEIGHT - 40, 1 - beside, widest + beside)
    return _Plane(frame, min(values) - above, max(values) + above, frontier.unit)


def _picture(frontier: Frontier) -> Markup:
    """Quality against size, with the limit as a dashed line and the original at 1."""
    plane = _plane(frontier)
    title = f"{measured_on(frontier)}, {_IN[frontier.unit]}against {SMALLER[frontier.by]}; {limit(frontier)}"
    x, y = plane.x(1), plane.y(frontier.before)
    return picture(
        _WIDTH,
        _HEIGHT,
        title,
        _axes(plane, SMALLER[frontier.by]),
        _limit_line(plane, frontier),
        element("circle", cx=x, cy=y, r=4, class_="median before"),
        text(x + 8, y - 7, f"original, {amount(frontier.before, frontier.unit)}"),
        *(_mark(plane, point, _verdict(frontier, point)) for point in frontier.points),
        class_="plot",
    )


def _axes(plane: _Plane, label: str) -> Markup:
    frame = plane.frame
    times = scale(plane.unit)
    levels = [
        join(
            line(frame.left, plane.y(value / times), frame.right, plane.y(value / times), "grid"),
            text(frame.left - 6, plane.y(value / times) + 4, f"{value:g}", anchor="end"),
        )
        for value in round_values(plane.low * times, plane.high * times)
    ]
    ticks = [
        text(plane.x(value), frame.bottom + 15, f"{value:g}x", anchor="middle")
        for value in round_values(frame.low, frame.high)
    ]
    base = line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    return join(*levels, base, *ticks, text((frame.left + frame.right) / 2, frame.bottom + 31, label, anchor="middle"))


def _limit_line(plane: _Plane, frontier: Frontier) -> Markup:
    y = plane.y(frontier.limit)
    label = text(plane.frame.left + 4, y + 14, f"limit, {amount(frontier.limit, frontier.unit)}", class_="even")
    return join(line(plane.frame.left, y, plane.frame.right, y, "dash"), label)


def _mark(plane: _Plane, point: Point, verdict: str) -> Markup:
    """A dot with its standard error. The chosen network has a label, on the side where there is room."""
    x, y, error = plane.x(point.reached), plane.y(point.after), point.error or 0.0
    bar = line(x, plane.y(point.after - error), x, plane.y(point.after + error), f"error {verdict}") if error else None
    dot = element("circle", cx=x, cy=y, r=6.0 if verdict == "chosen" else 4.0, class_=f"point {verdict}")
    if verdict != "chosen":
        return join(bar, dot)
    label = f"{point.reached:.2f}x, {amount(point.after, plane.unit)}"
    if x < (plane.frame.left + 2 * plane.frame.right) / 3:
        return join(bar, dot, text(x + 9, y - 9, label, class_="strong"))
    return join(bar, dot, text(x - 9, y + 20, label, anchor="end", class_="strong"))
