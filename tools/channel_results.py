"""Train ResNet-20 to fewer channels by C-SGD, by Dagger and by magnitude on one schedule: docs/results/channels.md.

    python tools/channel_results.py -o runs/channels --epochs 12 [--write] [ROW ...]

All start from the pretrained weights and have the same teacher. Interrupt it at any time: the same command continues,
and a finished row is not trained again. The test images are read once per row, after its last epoch, through the
exported ONNX file in onnxruntime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import data
from common import IMAGENET, put_into_page
from reproduce_trp import Row, carry_out, read_results

from trp_export.inputs.images import load_images

PAGE = Path(__file__).parents[1] / "docs" / "results" / "channels.md"
SCHEDULE = ("--lr", "0.05", "--schedule", "cosine", "--nesterov", "--weight-decay", "5e-4")
WIDTHS = ("--widths", "0.625")
METHODS = {
    "csgd": ("C-SGD, k-means clusters, 5/8 of every width", ("csgd", *WIDTHS, "--strength", "0.015")),
    "dagger": ("Dagger, our form, budget of 2.54x", ("dagger", "--macs", "2.54")),
    "dagger-widths": ("Dagger, our form, 5/8 of every width", ("dagger", *WIDTHS)),
    "magnitude": ("smallest filters removed, 5/8 of every width", ("magnitude", *WIDTHS)),
}


@click.command()
@click.option("--epochs", default=12, help="Epochs of every row.")
@click.option("--write", is_flag=True, help="Write the table into docs/results/channels.md.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.argument("rows", nargs=-1, type=click.Choice(list(METHODS)))
def main(epochs: int, write: bool, output: Path, rows: tuple[str, ...]) -> None:
    """The rows of the table, trained where they are not yet."""
    images, weights = data.cifar10(), data.network("resnet20")
    output.mkdir(parents=True, exist_ok=True)
    results_file = output / "results.json"
    test = load_images(images / "test_half.npz", IMAGENET)
    for method in rows or METHODS:
        name, (kind, *options) = f"{method}-{epochs}", METHODS[method][1]
        if name not in read_results(results_file):
            row = Row(name, ("--method", kind, *options, *SCHEDULE, "--epochs", str(epochs)), teacher="resnet20")
            found = carry_out(row, images, weights, 1_000, False, output, test)
            results = read_results(results_file) | {name: found | {"method": method, "epochs": epochs}}
            results_file.write_text(json.dumps(results, indent=2) + "\n")
    text = table(read_results(results_file))
    print(text)
    if write:
        put_into_page(PAGE, "methods", text)


def table(results: dict[str, Any]) -> str:
    """All finished rows as Markdown."""
    lines = ["| method | epochs | accuracy, % | MACs |", "|---|---|---|---|"]
    for result in sorted(
        results.values(), key=lambda result: (result["epochs"], list(METHODS).index(result["method"]))
    ):
        lines.append(
            f"| {METHODS[result['method']][0]} | {result['epochs']} | {100 * result['accuracy']:.2f} "
            f"| {result['macs_ratio']:.2f}x |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
