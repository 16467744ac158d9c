"""Pictures of a measurement: how the latencies of both models are spread, and how sure their ratio is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trp_export.report.markup import Markup, element, join
from trp_export.report.plots import Float64, Frame, curve_path, line, picture, text

if TYPE_CHECKING:
    from trp_export.bench import Comparison, Measurement, Ratio

_WIDTH = 380
_HEIGHT = 232
_GRID = 110
_MOST_MEDIANS = 1.5


def scale_of(unit: str) -> tuple[float, str]:
    """What to divide samples by, and the name of the quotient."""
    return (1e6, "ms") if unit == "ns" else (1e6, f"million {unit}")


def spread_picture(comparison: Comparison) -> Markup:
    """One hill per model: the higher, the more inferences took that long. Dots: the median of each process."""
    divisor, unit = scale_of(comparison.environment.unit)
    before, after = (np.asarray(one.samples, dtype=np.float64) / divisor for one in comparison.measurements[:2])
    frame = Frame(10, _WIDTH - 10, 0, 196, *_span((before, after)))
    rows = [
        _hill(frame, samples, one, divisor, f"{name}: median {float(np.median(samples)):.4g} {unit}", class_, bottom)
        for samples, one, name, class_, bottom in (
            (before, comparison.measurements[0], "before", "before", 84.0),
            (after, comparison.measurements[1], "after", "after", 178.0),
        )
    ]
    title = (
        f"Distribution of the time per inference in {unit}: median {float(np.median(before)):.4g} before, "
        f"{float(np.median(after)):.4g} after."
    )
    return picture(_WIDTH, _HEIGHT, title, _scale(frame, unit), *rows, class_="plot")


def share_beyond(comparison: Comparison) -> float:
    """The share of inferences that took longer than the picture of their spread shows."""
    groups = [np.asarray(one.samples, dtype=np.float64) for one in comparison.measurements[:2]]
    _, high = _span(groups)
    return float(np.mean(np.concatenate(groups) > high))


def ratio_picture(comparison: Comparison, ratio: Ratio) -> Markup:
    """Each round's ratio as a dot, the interval of the whole as a bar, against the line of no difference."""
    ratios = round_ratios(comparison)
    ends = [value for value in (ratio.low, ratio.high) if math.isfinite(value) and value > 0]
    low, high = min([1.0, ratio.value, *ratios, *ends]), max([1.0, ratio.value, *ratios, *ends])
    margin = max(high - low, 0.04) * 0.08
    frame = Frame(10, _WIDTH - 10, 34, 196, low - margin, high + margin)
    title = f"Speed against the original: {ratio}, the ratios of {len(ratios)} rounds, and 1 for no difference."
    return picture(
        _WIDTH,
        _HEIGHT,
        title,
        _scale(frame, "times as fast as the original"),
        _no_difference(frame),
        *(
            element("circle", cx=frame.x(value), cy=_height(index, len(ratios)), r=3.0, class_="round")
            for index, value in enumerate(ratios)
        ),
        _interval(frame, ratio) if len(ends) == 2 else None,
        class_=f"plot {ratio.verdict.replace(' ', '-')}",
    )


def round_ratios(comparison: Comparison) -> list[float]:
    """Time before over time after, for each round that holds both, in order."""
    first, second = (
        {process.round: float(np.median(process.samples)) for process in one.processes if process.samples}
        for one in comparison.measurements[:2]
    )
    return [first[index] / second[index] for index in sorted(first.keys() & second.keys()) if second[index]]


def _span(groups: Sequence[Float64]) -> tuple[float, float]:
    """From the fastest inference to the 95th percentile, but not beyond half as much again as a median takes.

    A disturbance must not flatten the rest; `share_beyond` tells how much it cuts off.
    """
    low = min(float(group.min()) for group in groups)
    high = max(min(float(np.quantile(group, 0.95)), _MOST_MEDIANS * float(np.median(group))) for group in groups)
    margin = max(high - low, high * 0.02, 1e-9) * 0.06
    return low - margin, high + margin


def _hill(
    frame: Frame, samples: Float64, one: Measurement, divisor: float, label: str, class_: str, bottom: float
) -> Markup:
    places, heights = _density(samples, frame)
    xs = np.array([frame.x(place) for place in places])
    ridge = curve_path(xs, bottom - 50 * heights)
    area = element("path", d=f"{ridge}L{xs[-1]:.1f} {bottom:g}L{xs[0]:.1f} {bottom:g}Z", class_=f"hill {class_}")
    medians = [float(np.median(process.samples)) / divisor for process in one.processes if process.samples]
    dots = [
        element("circle", cx=frame.x(value), cy=bottom + 6, r=2.2, class_=f"median {class_}")
        for value in medians
        if frame.low <= value <= frame.high
    ]
    middle = frame.x(float(np.median(samples)))
    return join(area, line(middle, bottom - 54, middle, bottom, "middle"), *dots, _label(frame, middle, bottom, label))


def _label(frame: Frame, middle: float, bottom: float, label: str) -> Markup:
    anchor, x = ("start", frame.left) if middle < (frame.left + frame.right) / 2 else ("end", frame.right)
    return text(x, bottom - 60, label, anchor=anchor, class_="strong")


def _density(samples: Float64, frame: Frame) -> tuple[Float64, Float64]:
    """A histogram smoothed by a Gaussian of Silverman's width, its peak at 1."""
    places = np.linspace(frame.low, frame.high, _GRID)
    quartiles = np.quantile(samples, [0.25, 0.75])
    spread = min(float(samples.std()), float(quartiles[1] - quartiles[0]) / 1.34) or float(samples.std())
    step = float(places[1] - places[0])
    width = max(0.9 * spread * len(samples) ** -0.2, step)
    counts, edges = np.histogram(samples, bins=4 * _GRID, range=(frame.low, frame.high))
    centres = (edges[:-1] + edges[1:]) / 2
    heights = np.exp(-0.5 * ((places[:, None] - centres) / width) ** 2) @ counts
    return places, heights / heights.max() if heights.max() > 0 else heights


def _scale(frame: Frame, label: str) -> Markup:
    """A line with round numbers under it, and what they count."""
    ticks = [
        join(
            line(frame.x(value), frame.bottom, frame.x(value), frame.bottom + 4, "axis"),
            text(frame.x(value), frame.bottom + 15, f"{value:.6g}", anchor="middle"),
        )
        for value in round_values(frame.low, frame.high)
    ]
    base = line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    return join(base, *ticks, text((frame.left + frame.right) / 2, frame.bottom + 29, label, anchor="middle"))


def round_values(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values; not too near the ends, where labels are cut."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    margin = (high - low) * 0.03
    first = math.ceil((low + margin) / step)
    return [index * step for index in range(first, math.floor((high - margin) / step) + 1)]


def _no_difference(frame: Frame) -> Markup:
    x = frame.x(1.0)
    left, right = x - frame.left, frame.right - x
    words = (
        text(x - 6, 14, "slower", anchor="end") if left > 50 else None,
        text(x + 6, 14, "faster") if right > 50 else None,
    )
    return join(line(x, 4, x, frame.bottom, "dash"), *words)


def _height(index: int, rounds: int) -> float:
    return 34 + 100 * (index + 0.5) / rounds


def _interval(frame: Frame, ratio: Ratio) -> Markup:
    left, middle, right = frame.x(ratio.low), frame.x(ratio.value), frame.x(ratio.high)
    bar = element("rect", x=left, y=166.0, width=max(right - left, 1.0), height=10, rx=5, class_="interval")
    anchor = "start" if middle < _WIDTH * 0.3 else "end" if middle > _WIDTH * 0.7 else "middle"
    label = text(middle, 158, str(ratio), anchor=anchor, class_="strong")
    return join(bar, line(middle, 162, middle, 180, "middle"), label)
