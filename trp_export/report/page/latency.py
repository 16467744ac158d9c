"""Pictures of a measurement: the distribution of the latencies, and the confidence interval of their ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trp_export.report.page.charts import Float64, Frame, curve_path, line, picture, text
from trp_export.report.page.markup import Markup, element, join

if TYPE_CHECKING:
    from trp_export.bench import Comparison, Measurement, Ratio

_WIDTH = 380
_ROW = 94
_GRID = 110
_MOST_MEDIANS = 1.5


def scale_of(unit: str) -> tuple[float, str]:
    """The divisor of samples in `unit`, and the unit of the quotient."""
    return (1e6, "ms") if unit == "ns" else (1e6, f"million {unit}")


@dataclass(frozen=True, slots=True)
class TimedModel:
    """A measured model, its name on the page, and its CSS class."""

    name: str
    class_: str
    measurement: Measurement


def timed_models(comparison: Comparison) -> list[TimedModel]:
    """Before, cleaned up without low rank if that was measured, and after."""
    original, result, *cleaned = comparison.measurements
    middle = [TimedModel("cleaned up alone", "cleaned", measurement) for measurement in cleaned[:1]]
    return [TimedModel("before", "before", original), *middle, TimedModel("after", "after", result)]


def spread_picture(comparison: Comparison) -> Markup:
    """One hill per model, as high as inferences of that time are frequent. Dots are the medians of the processes."""
    divisor, unit = scale_of(comparison.environment.unit)
    models = timed_models(comparison)
    samples = [np.asarray(model.measurement.samples, dtype=np.float64) / divisor for model in models]
    frame = Frame(10, _WIDTH - 10, 0, _ROW * len(models) + 8, *_span(samples))
    labels = [
        f"{model.name}: median {float(np.median(values)):.4g} {unit}"
        for model, values in zip(models, samples, strict=True)
    ]
    hills = [
        _hill(frame, values, _process_medians(model, divisor), label, model.class_, _ROW * (row + 1) - 10.0)
        for row, (model, values, label) in enumerate(zip(models, samples, labels, strict=True))
    ]
    title = f"Distribution of the time per inference. {'; '.join(labels)}."
    return picture(_WIDTH, _ROW * len(models) + 44, title, _scale(frame, unit), *hills, class_="plot")


def share_beyond(comparison: Comparison) -> float:
    """The share of inferences that took longer than the picture shows."""
    groups = [np.asarray(model.measurement.samples, dtype=np.float64) for model in timed_models(comparison)]
    _, high = _span(groups)
    return float(np.mean(np.concatenate(groups) > high))


@dataclass(frozen=True, slots=True)
class RatioRow:
    """The ratio to another model, named by `what`, and the ratios of the single rounds."""

    what: str
    ratio: Ratio
    rounds: list[float]


def ratio_picture(compared: Sequence[RatioRow]) -> Markup:
    """The ratio of each round as a dot and the interval as a bar, beside the line of no difference."""
    values = [1.0]
    for row in compared:
        values += [row.ratio.value, *row.rounds, *_ends(row.ratio)]
    margin = max(max(values) - min(values), 0.04) * 0.08
    bottom = _ROW * len(compared) + 8
    frame = Frame(10, _WIDTH - 10, 0, bottom, min(values) - margin, max(values) + margin)
    title = "Speed of the result, 1 for no difference. " + "; ".join(f"{row.what}: {row.ratio}" for row in compared)
    rows = (_ratio_row(frame, row, _ROW * index) for index, row in enumerate(compared))
    parts = _scale(frame, "times as fast"), _no_difference(frame), *rows
    return picture(_WIDTH, bottom + 36, title, *parts, class_="plot")


def round_ratios(reference: Measurement, other: Measurement) -> list[float]:
    """The time of the reference over the time of the other model, for each round with both, in order."""
    first, second = (
        {process.round: float(np.median(process.samples)) for process in model.processes if process.samples}
        for model in (reference, other)
    )
    return [first[index] / second[index] for index in sorted(first.keys() & second.keys()) if second[index]]


def _span(groups: Sequence[Float64]) -> tuple[float, float]:
    """From the fastest inference to the 95th percentile, or 1.5 times the median if that is less.

    This keeps a disturbance from flattening the rest; `share_beyond` is the share that it cuts off.
    """
    low = min(float(group.min()) for group in groups)
    high = max(min(float(np.quantile(group, 0.95)), _MOST_MEDIANS * float(np.median(group))) for group in groups)
    margin = max(high - low, high * 0.02, 1e-9) * 0.06
    return low - margin, high + margin


def _hill(frame: Frame, samples: Float64, medians: Sequence[float], label: str, class_: str, bottom: float) -> Markup:
    places, heights = _density(samples, frame)
    xs = np.array([frame.x(place) for place in places])
    ridge = curve_path(xs, bottom - 50 * heights)
    area = element("path", d=f"{ridge}L{xs[-1]:.1f} {bottom:g}L{xs[0]:.1f} {bottom:g}Z", class_=f"hill {class_}")
    dots = [
        element("circle", cx=frame.x(value), cy=bottom + 6, r=2.2, class_=f"median {class_}")
        for value in medians
        if frame.low <= value <= frame.high
    ]
    middle = frame.x(float(np.median(samples)))
    return join(area, line(middle, bottom - 54, middle, bottom, "middle"), *dots, _label(frame, middle, bottom, label))


def _process_medians(model: TimedModel, divisor: float) -> list[float]:
    return [float(np.median(process.samples)) / divisor for process in model.measurement.processes if process.samples]


def _label(frame: Frame, middle: float, bottom: float, label: str) -> Markup:
    anchor, x = ("start", frame.left) if middle < (frame.left + frame.right) / 2 else ("end", frame.right)
    return text(x, bottom - 60, label, anchor=anchor, class_="strong")


def _density(samples: Float64, frame: Frame) -> tuple[Float64, Float64]:
    """A histogram, smoothed by a Gaussian of Silverman's width and scaled to a maximum of 1."""
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
    """An axis with round numbers and its label."""
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
    """Multiples of 1, 2 or 5 times a power of ten between two values, away from the ends, where labels would be cut."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    margin = (high - low) * 0.03
    first = math.ceil((low + margin) / step)
    return [index * step for index in range(first, math.floor((high - margin) / step) + 1)]


def _no_difference(frame: Frame) -> Markup:
    x, y = frame.x(1.0), frame.bottom - 6
    words = (
        text(x - 6, y, "slower", anchor="end") if x - frame.left > 50 else None,
        text(x + 6, y, "faster") if frame.right - x > 50 else None,
    )
    return join(line(x, 4, x, frame.bottom, "dash"), *words)


def _ratio_row(frame: Frame, row: RatioRow, top: float) -> Markup:
    """The label, the rounds as dots one below the other, and the interval as a bar."""
    dots = [
        element("circle", cx=frame.x(value), cy=top + 24 + 40 * (index + 0.5) / len(row.rounds), r=2.5, class_="round")
        for index, value in enumerate(row.rounds)
    ]
    label = text(frame.left, top + 14, f"{row.what}: {row.ratio}", class_="strong")
    return join(*dots, _interval(frame, row.ratio, top + 69), label)


def _interval(frame: Frame, ratio: Ratio, top: float) -> Markup | None:
    ends = _ends(ratio)
    if not ends:
        return None
    left, right = (frame.x(value) for value in ends)
    middle, tone = frame.x(ratio.value), ratio.verdict.replace(" ", "-")
    bar = element("rect", x=left, y=top, width=max(right - left, 1.0), height=8, rx=4, class_=f"interval {tone}")
    return join(bar, line(middle, top - 4, middle, top + 12, "middle"))


def _ends(ratio: Ratio) -> tuple[float, ...]:
    """Both ends of the interval; none if it is unbounded."""
    return (ratio.low, ratio.high) if math.isfinite(ratio.high) else ()
