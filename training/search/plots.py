"""A picture of how a search settles: losses and cost; for each layer the entropy and the most probable candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.system.extras import is_installed
from trp_export.system.pictures import literal_text, save_picture
from trp_export.system.text import brief

Record = dict[str, Any]

# In inches; matplotlib draws at most 655 at 100 dots per inch.
_HIGHEST = 200

# Kinds, by the beginnings of the names of schemes, and their colours.
_KINDS = {
    "kept": "0.85",
    "channel-wise": "C2",
    "spatial-wise": "C0",
    "spatial-wise-transposed": "C9",
    "pointwise-first": "C1",
    "network-decoupling": "C4",
    "input-sliced": "C3",
    "output-sliced": "C6",
    "matrix": "C7",
}


def draw(history: Sequence[Record], path: Path) -> None:
    """One figure over the epochs of one search, at `path`; none where matplotlib is not installed: it is an extra.

    Raises OutputError.
    """
    if is_installed("matplotlib"):
        with literal_text():
            save_picture(_figure(history), path, dpi=100)


def _figure(history: Sequence[Record]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    names = list(history[-1]["layers"])
    epochs = [record["epoch"] for record in history]
    figure = Figure(figsize=(10, min(4 + 0.5 * len(names), _HIGHEST)), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [3, *[max(2.0, 0.15 * len(names))] * 3]
    top, *maps = figure.subplots(4, 1, sharex=True, height_ratios=heights)
    _draw_curves(top, history, epochs)
    extent = (epochs[0] - 0.5, epochs[-1] + 0.5, len(names) - 0.5, -0.5)
    shown: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest", "extent": extent}
    for axis, key, label in (
        (maps[0], "entropy", "entropy"),
        (maps[1], "share", "cost of the most probable over dense"),
    ):
        image = axis.imshow(_table(history, names, key), vmin=0, vmax=None if key == "entropy" else 1, **shown)
        figure.colorbar(image, ax=axis, label=label, pad=0.01)
    kinds = np.array([[_kind(record["layers"][name]["choice"]) for record in history] for name in names])
    maps[2].imshow(kinds, cmap=ListedColormap(list(_KINDS.values())), vmin=-0.5, vmax=len(_KINDS) - 0.5, **shown)
    for axis in maps:
        axis.set_yticks(range(len(names)), [brief(name) for name in names], fontsize=6)
    ends = maps[2].twinx()
    ends.set_ylim(maps[2].get_ylim())
    ends.set_yticks(range(len(names)), [history[-1]["layers"][name]["choice"] or "kept" for name in names], fontsize=6)
    present = [index for index in range(len(_KINDS)) if (kinds == index).any()]
    for index in present:
        maps[2].plot([], [], "s", color=list(_KINDS.values())[index], label=list(_KINDS)[index])
    maps[2].legend(fontsize=6, ncols=len(present), loc="upper center", bbox_to_anchor=(0.5, -0.12))
    maps[2].set_xlabel("epoch")
    return figure


def _draw_curves(axis: Any, history: Sequence[Record], epochs: Sequence[int]) -> None:
    axis.plot(epochs, [record["loss"] for record in history], color="C0", label="loss of the drawn candidates")
    axis.plot(epochs, [record["score"] for record in history], color="C2", label="loss of the plan alone")
    axis.set_ylabel("loss")
    cost = axis.twinx()
    cost.plot(epochs, [record["cost"] for record in history], color="C1", label="expected cost over budget")
    cost.axhline(1, color="0.7", linestyle=":")
    cost.set_ylabel("expected cost over budget")
    lines = [*axis.get_lines(), *cost.get_lines()[:1]]
    axis.legend(lines, [line.get_label() for line in lines], fontsize=7, loc="upper right")


def _table(history: Sequence[Record], names: Sequence[str], key: str) -> Any:
    return np.array([[record["layers"][name][key] for record in history] for name in names])


def _kind(choice: str) -> int:
    """The kind of a choice; in a sum, that of the last pair."""
    scheme = choice.rpartition(" + ")[2].rpartition(" ")[0] or "kept"
    kinds = list(_KINDS)
    return kinds.index(scheme) if scheme in kinds else kinds.index("-".join(scheme.split("-")[:2]))
