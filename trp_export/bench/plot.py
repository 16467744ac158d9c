"""Pictures: the latency distributions of the models, and bars for what each layer costs in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.bench.profile import Profile
from trp_export.bench.report import threads
from trp_export.bench.samples import Comparison
from trp_export.bench.stats import ratio
from trp_export.errors import OptionError
from trp_export.system.extras import require
from trp_export.system.pictures import literal_text, save_picture
from trp_export.system.text import brief

COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Paul Tol's bright scheme
MOST_LAYERS = 60
# Of a model: more tell little and make an SVG of a megabyte.
MOST_DOTS = 500


def check_plot_path(path: Path) -> None:
    """Raise OptionError unless `path` names a picture that can be drawn here."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise OptionError(f"--plot draws .png or .svg, not {path.name!r}")
    require("--plot", "matplotlib")
    with literal_text():  # What keeps matplotlib from being imported is known before anything is measured.
        pass


def draw(comparison: Comparison, profiles: Sequence[Profile], path: Path, *, paired: bool = True) -> None:
    """Write the picture to `path`, whole or not at all. Raises OutputError."""
    # The same comparison gives the same file.
    settings = {"metadata": {"Date": None}} if path.suffix.lower() == ".svg" else {}
    with literal_text():
        figure = _figure(comparison, profiles, paired)
        save_picture(figure, path, dpi=150, remedy="Choose another place with --plot.", **settings)


def _figure(comparison: Comparison, profiles: Sequence[Profile], paired: bool) -> Any:
    from matplotlib.figure import Figure

    rows = len(_layer_names(profiles))
    heights = [1.1 + 0.7 * len(comparison.measurements)] + ([0.8 + 0.16 * rows * len(profiles)] if profiles else [])
    figure = Figure(figsize=(9, sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _distributions(axes[0], comparison, paired)
    if profiles:
        _layers(axes[1], profiles)
    environment = comparison.environment
    where = (environment.cpu, threads(environment.threads), f"onnxruntime {environment.onnxruntime}")
    figure.suptitle(", ".join(map(brief, (*where, environment.inputs))), fontsize=9)
    return figure


def _distributions(axes: Any, comparison: Comparison, paired: bool) -> None:
    """One row per model: every process a strip of samples, one in so many where there are many; all make the median."""
    unit = comparison.environment.unit
    scale = 1e6  # ns to ms, or instructions to millions
    top = max(float(np.quantile(one.samples, 0.98)) for one in comparison.measurements) / scale
    for row, one in enumerate(comparison.measurements):
        colour, step = COLOURS[row % len(COLOURS)], -(-len(one.samples) // MOST_DOTS)
        for index, process in enumerate(one.processes):
            height = row - 0.3 + 0.6 * (index + 0.5) / len(one.processes)
            points = np.asarray(process.samples[::step]) / scale
            axes.plot(points, np.full(points.size, height), ".", color=colour, markersize=2.5, alpha=0.35, clip_on=True)
        middle = float(np.median(one.samples)) / scale
        axes.plot([middle, middle], [row - 0.38, row + 0.38], color="black", linewidth=1.2)
        note = f"{middle:.4g}" + ("" if row == 0 else f"   {ratio(comparison.measurements[0], one, paired=paired)}")
        axes.annotate(note, (middle, row - 0.4), ha="center", va="bottom", fontsize=8)
    axes.set_yticks(range(len(comparison.measurements)), [brief(one.model) for one in comparison.measurements])
    axes.set_ylim(len(comparison.measurements) - 0.4, -0.75)
    axes.set_xlim(0, top * 1.05)
    axes.set_xlabel(
        "ms per inference; a row of dots is a process, the line the median" if unit == "ns" else f"1e6 {unit}"
    )
    _plain(axes)


def _layers(axes: Any, profiles: Sequence[Profile]) -> None:
    """Horizontal bars, one group per layer in order of execution, one colour per model."""
    names = _layer_names(profiles)
    width = 0.8 / len(profiles)
    for index, profile in enumerate(profiles):
        times = {layer.name: layer.ms for layer in profile.layers} | {"(other)": profile.other_ms}
        places = np.arange(len(names)) - 0.4 + width * (index + 0.5)
        lengths = [times.get(name, 0.0) for name in names]
        axes.barh(places, lengths, width, color=COLOURS[index % len(COLOURS)], label=brief(profile.model))
    axes.set_yticks(range(len(names)), [brief(name) for name in names], fontsize=7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("ms per inference by layer, from onnxruntime's profile")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)


def _layer_names(profiles: Sequence[Profile]) -> list[str]:
    """Layers of all profiles in order of execution, the costliest where there are too many to draw."""
    times: dict[str, float] = {}
    for profile in profiles:
        for layer in profile.layers:
            times[layer.name] = max(times.get(layer.name, 0.0), layer.ms)
    kept = set(sorted(times, key=lambda name: -times[name])[:MOST_LAYERS])
    return [name for name in times if name in kept] + (["(other)"] if profiles else [])


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
