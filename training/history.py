"""The history of a run for people to read: a line of JSON per epoch, a plot, TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trp_export.errors import OptionError, OutputError
from trp_export.system.extras import is_installed
from trp_export.system.files import atomic_write
from trp_export.system.pictures import literal_text, save_picture
from trp_export.system.text import brief

Record = dict[str, Any]


def write_history(history: Sequence[Record], folder: Path, *, tensorboard: bool) -> None:
    """Write history.jsonl and history.png, and events of the last epoch with `tensorboard`. Raises OutputError."""
    try:
        write_jsonl(history, folder / "history.jsonl")
        if history:
            plot(history, folder / "history.png")
            if tensorboard:
                write_tensorboard(history[-1], folder / "tensorboard")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error


def write_jsonl(history: Sequence[Record], path: Path) -> None:
    """Write a line of JSON for each record. Raises OutputError."""
    with atomic_write(path) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")


def require_tensorboard() -> None:
    """Raise OptionError where TensorBoard is not installed."""
    if not is_installed("tensorboard"):
        raise OptionError(
            "--tensorboard needs TensorBoard: pip install tensorboard. history.jsonl has the same figures without it."
        )


def write_tensorboard(record: Record, folder: Path) -> None:
    """The scalars of one epoch, and the rank of each layer. Raises OutputError where the folder is a link."""
    if folder.is_symlink():
        raise OutputError(f"{folder} cannot be written: it is a link.")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for key, value in record.items():
            if isinstance(value, (int, float)) and key != "epoch":
                writer.add_scalar(key, value, record["epoch"])
        for name, rank in record["ranks"].items():
            writer.add_scalar(f"rank/{name}", rank, record["epoch"])


def plot(history: Sequence[Record], path: Path) -> None:
    """Above, the accuracy of the network and of its cut; below, the rank of each layer; both over the epochs.

    Without matplotlib, which is an extra, nothing is drawn. Raises OutputError.
    """
    if is_installed("matplotlib"):
        with literal_text():
            save_picture(_figure(history), path, dpi=100)


def _figure(history: Sequence[Record]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [record["epoch"] for record in history]
    marker = "o" if len(history) == 1 else None  # A line through one point would be invisible.
    for key, label in (("accuracy", "not cut"), ("cut_accuracy", "when cut")):
        above.plot(epochs, [100 * record[key] for record in history], label=label, marker=marker)
    above.set_ylabel("validation accuracy, %")
    above.legend()
    names = list(history[-1]["ranks"])
    for index, name in enumerate(names):
        colour = (index / max(1, len(names) - 1), 0.3, 1 - index / max(1, len(names) - 1))
        ranks = [record["ranks"].get(name) for record in history]
        below.plot(epochs, ranks, color=colour, label=brief(name), marker=marker)
    below.set_ylabel("rank when cut")
    below.set_xlabel("epoch")
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if names:
        below.legend(fontsize=6, ncols=2, loc="upper right")
    return figure
