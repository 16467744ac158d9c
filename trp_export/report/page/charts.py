"""Pictures of layers as SVG, coloured by CSS: what a rank keeps of a kernel, and the cost before and after.

Each picture is about as wide as a phone, so that its letters can be read there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trp_export.planning.curves import Curve
from trp_export.report.page.markup import Markup, element, join

MOST_POINTS = 72  # more cannot be told apart on a curve 280 pixels wide
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a picture that holds data: pixels from `left` to `right` and, downwards, `top` to `bottom`."""

    left: float
    right: float
    top: float
    bottom: float
    low: float
    high: float

    def x(self, value: float) -> float:
        """The pixel of a value between `low` and `high`."""
        return self.left + (self.right - self.left) * (value - self.low) / (self.high - self.low)

    def y(self, share: float) -> float:
        """The pixel of a share between 0 and 1."""
        return self.bottom - (self.bottom - self.top) * share


def picture(width: int, height: int, title: str, *parts: object, class_: str | None = None) -> Markup:
    """An SVG with a title for screen readers."""
    title_part = element("title", title)
    size = {"viewBox": f"0 0 {width} {height}", "role": "img", "class_": class_}
    return element("svg", title_part, *parts, **size, aria_label=title)


def text(x: float, y: float, label: object, *, anchor: str | None = None, class_: str | None = None) -> Markup:
    """A label with its base line at y; `anchor` is start, middle or end."""
    return element("text", label, x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=class_)


def curve_path(xs: Float64, ys: Float64) -> str:
    """The path through points in pixels."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def energy_picture(title: str, curve: Curve, rank: int | None) -> Markup:
    """Energy by rank as a line, singular values as an area, the cut and the break-even rank as vertical lines."""
    frame = Frame(30, 308, 34, 144, 0, curve.full_rank)
    return picture(
        320,
        172,
        title,
        _energy_axes(frame, curve.full_rank),
        _spectrum_area(frame, curve, rank),
        _break_even(frame, curve),
        _energy_line(frame, curve),
        _cut(frame, curve, rank) if rank is not None else None,
        class_="energy",
    )


def bars(before: float, after: float | None, largest: float) -> Markup:
    """A bar for before above one for after, relative to the largest value. The numbers stand beside them."""
    drawing = [
        element("rect", y=y, width=max(1.0, 160 * value / largest), height=5, class_=class_)
        for value, y, class_ in ((before, 0, "before"), (after, 7, "after"))
        if value and largest
    ]
    return element("svg", *drawing, viewBox="0 0 160 12", class_="bars", preserveAspectRatio="none", aria_hidden="true")


def _energy_axes(frame: Frame, full_rank: int) -> Markup:
    levels = [
        join(
            line(frame.left, frame.y(level), frame.right, frame.y(level), "grid"),
            text(frame.left - 5, frame.y(level) + 4, f"{level:g}", anchor="end"),
        )
        for level in (0, 0.5, 1)
    ]
    ends = (
        text(frame.left, frame.bottom + 15, "0", anchor="middle"),
        text(frame.right, frame.bottom + 15, str(full_rank), anchor="end"),
        text((frame.left + frame.right) / 2, frame.bottom + 15, "rank", anchor="middle"),
    )
    return join(*levels, *ends)


def _spectrum_area(frame: Frame, curve: Curve, rank: int | None) -> Markup:
    """Kept and dropped singular values, relative to the largest; root mean square over the matrices of a layer."""
    values = np.sqrt(np.mean(np.square(curve.singular_values), axis=0))
    heights = values / values[0] if values[0] > 0 else values
    cut = rank or curve.full_rank  # a layer that stays dense keeps all
    return join(
        _steps(frame, heights, 0, cut, "kept"),
        _steps(frame, heights, cut, curve.full_rank, "dropped") if cut < curve.full_rank else None,
    )


def _steps(frame: Frame, heights: Float64, start: int, stop: int, class_: str) -> Markup:
    """The values of ranks `start` + 1 to `stop` as an area of steps above the axis."""
    edges = np.unique(np.linspace(start, stop, min(stop - start, MOST_POINTS) + 1).round().astype(int))
    path = [f"M{frame.x(start):.1f} {frame.bottom:g}"]
    for left, right in pairwise(edges):
        path.append(f"V{frame.y(float(heights[left:right].mean())):.1f}H{frame.x(right):.1f}")
    return element("path", d="".join(path) + f"V{frame.bottom:g}Z", class_=class_)


def _energy_line(frame: Frame, curve: Curve) -> Markup:
    ranks = np.unique(np.linspace(0, curve.full_rank, min(curve.full_rank, MOST_POINTS) + 1).round().astype(int))
    energy = np.concatenate([[0.0], curve.energy])[ranks]
    xs = np.array([frame.x(rank) for rank in ranks])
    return element("path", d=curve_path(xs, frame.y(0) - (frame.y(0) - frame.y(1)) * energy), class_="line")


def _break_even(frame: Frame, curve: Curve) -> Markup | None:
    """A dashed line at the break-even rank, and a veil over the ranks that save nothing."""
    if curve.break_even > curve.full_rank:
        return None
    x = frame.x(curve.break_even)
    veil = element("rect", x=x, y=frame.top, width=frame.right - x, height=frame.bottom - frame.top, class_="veil")
    label = text(x, 11, f"break-even {curve.break_even}", anchor=_anchor(frame, x), class_="even")
    return join(veil, line(x, 15, x, frame.bottom, "dash"), label)


def _cut(frame: Frame, curve: Curve, rank: int) -> Markup:
    x, y = frame.x(rank), frame.y(float(curve.energy[rank - 1]))
    label = text(x, 27, f"rank {rank}", anchor=_anchor(frame, x), class_="cut")
    return join(line(x, 31, x, frame.bottom, "cutline"), element("circle", cx=x, cy=y, r=3.5, class_="dot"), label)


def _anchor(frame: Frame, x: float) -> str:
    """The anchor that keeps a label at x inside the picture."""
    share = (x - frame.left) / (frame.right - frame.left)
    if share < 0.15:
        return "start"
    return "end" if share > 0.8 else "middle"
