"""Draw what the gates of a network open and close over its iterations.

    python tools/gates_picture.py NETWORK.pt --images models_zoo/images/cifar10-256.npz -o gates.png

NETWORK.pt is a checkpoint of tools/train_gated.py or trp-train. A row is an image, a panel the gate of one stage in one
pass, as the mean over channels: dark where the stage sees little of its input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from common import IMAGENET

from models_zoo import find_architecture
from models_zoo.gated import Gated
from models_zoo.registry import with_iterations


def gates_of(model: Gated, image: np.ndarray) -> list[np.ndarray]:
    """The mean gate (h, w) of each stage, pass after pass; the first pass has none. `image` is uint8 (h, w, 3)."""
    x = (torch.from_numpy(image).float() / 255 - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)
    with torch.no_grad():
        return [gate[0].mean(0).numpy() for _, gates in model.passes(x.permute(2, 0, 1)[None]) for gate in gates]


def draw(model: Gated, images: np.ndarray, labels: list[str], output: Path) -> None:
    rows = [gates_of(model, image) for image in images]
    stages = len(rows[0]) // (model.iterations - 1)
    figure, grid = plt.subplots(len(images), 1 + len(rows[0]), figsize=(1.4 * (1 + len(rows[0])), 1.45 * len(images)))
    for axes in grid.flat:
        axes.set_axis_off()
    low, high = min(gate.min() for row in rows for gate in row), max(gate.max() for row in rows for gate in row)
    drawn: Any = None
    for number, (line, image, gates, label) in enumerate(zip(grid, images, rows, labels, strict=True)):
        line[0].imshow(image)
        line[0].set_title(label, fontsize=8)
        for index, (axes, gate) in enumerate(zip(line[1:], gates, strict=True)):
            drawn = axes.imshow(gate, vmin=low, vmax=high, cmap="magma")
            name = f"pass {index // stages + 2}, stage {index % stages + 1}"
            axes.set_title(f"{name}\n{gate.mean():.2f}" if not number else f"{gate.mean():.2f}", fontsize=8)
    figure.colorbar(drawn, ax=grid, shrink=0.6, label="share of the input that passes")
    figure.savefig(output, dpi=110, bbox_inches="tight")


@click.command()
@click.argument("network", type=click.Path(path_type=Path))
@click.option(
    "--images", "file", type=click.Path(path_type=Path), required=True, help="An .npz with images and labels."
)
@click.option("--iterations", type=int, default=3, help="How often the trunk runs.")
@click.option("--count", default=4, help="The first images of as many classes are drawn.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(network: Path, file: Path, iterations: int, count: int, output: Path) -> None:
    """Draw what the gates of a network open and close over its iterations."""
    checkpoint = torch.load(network, weights_only=True)
    model = find_architecture(with_iterations(checkpoint["arch"], iterations)).build(len(checkpoint["classes"]) or None)
    assert isinstance(model, Gated)  # No other network has iterations.
    model.load_state_dict(checkpoint["state_dict"])
    data = np.load(file)
    chosen = [int(np.flatnonzero(data["labels"] == label)[0]) for label in range(count)]
    names = [checkpoint["classes"][int(data["labels"][index])] for index in chosen]
    draw(model.eval(), data["images"][chosen], names, output)


if __name__ == "__main__":
    main()
