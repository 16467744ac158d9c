"""Train vgg8 dense and then for low rank, and fill docs/results/wide.md: low rank and int8 beside int8 alone.

    python tools/wide_results.py train      # dense, then the factors: about 80 minutes on one core
    python tools/wide_results.py export     # the ONNX files, and their accuracy
    python tools/wide_results.py time       # their latency, side by side, on a quiet machine
    python tools/wide_results.py time --device arm      # instructions on an emulated ARM processor
    python tools/wide_results.py write      # tables, picture, and the trained factors in models_zoo/weights

Networks and figures are in runs/wide. Interrupt it at any time: the same command continues. The test images are read
once for each file, after the last epoch. 2,500 training images are held out from the first epoch on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
import torch
from common import IMAGENET, accuracy, draw_images, machine, put_into_page
from frontier import draw
from reproduce_trp import read_results, run

from models_zoo.registry import WEIGHTS
from trp_export.bench import compare, median, ratio
from trp_export.inputs.images import load_images

DOCS = Path(__file__).parents[1] / "docs"
RATIO = "2.5"
FIRST_EPOCHS, DENSE_EPOCHS, FACTOR_EPOCHS = "24", "10", "20"
SGD = ("--schedule", "cosine", "--nesterov", "--weight-decay", "5e-4", "--ema", "0.998")
CALIBRATION, SEED = 1024, 0
CUTS = ("dense", "label-free", "trained")
PRECISIONS = ("fp32", "int8")
DEVICES = ("local", "arm")
SHIPPED = WEIGHTS / f"vgg8-factors-{RATIO}x.pt"
# Of trp-export; the trained network brings its factors along.
OPTIONS = {
    "dense": ("--skip", "*", "--energy", "1"),
    "label-free": ("--macs", RATIO, "--align", "auto", "--keep-slow-pairs"),
    "trained": (),
}
NAMES = {
    "dense": "dense",
    "label-free": "low rank, 1,024 images without labels",
    "trained": f"low rank, trained for {FACTOR_EPOCHS} epochs",
}


@click.group()
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/wide"), show_default=True)
@click.pass_context
def main(context: click.Context, runs: Path) -> None:
    """Accuracy against measured latency of a wide network: low rank and int8 beside int8 alone."""
    runs.mkdir(parents=True, exist_ok=True)
    context.obj = runs


@main.command()
@click.pass_obj
def train(runs: Path) -> None:
    """Train the dense network twice, the second time with itself as teacher, and then the factors of its plan.

    So the dense network has what a teacher gives, too. The ranks are those of the label-free row.
    """
    _train(runs / "first", "--arch", "vgg8", "--epochs", FIRST_EPOCHS, "--lr", "0.1", "--label-smoothing", "0.1")
    _train(runs / "dense", *_taught_by(runs / "first"), "--epochs", DENSE_EPOCHS)
    plan = _exported(runs, "label-free", "fp32").with_suffix(".json")
    _train(runs / "trained", *_taught_by(runs / "dense"), "--plan", str(plan), "--epochs", FACTOR_EPOCHS)


@main.command()
@click.pass_obj
def export(runs: Path) -> None:
    """Write each network in fp32 and int8, and measure its accuracy in onnxruntime."""
    file = runs / "results.json"
    test = load_images(data.cifar10() / "test_half.npz", IMAGENET)
    for cut in CUTS:
        for precision in PRECISIONS:
            name = f"{cut}-{precision}"
            if name in read_results(file):
                continue
            model = _exported(runs, cut, precision)
            report = json.loads(model.with_suffix(".json").read_text())
            result = {
                "macs": report["before"]["macs"] / report["after"]["macs"],
                "bytes": model.stat().st_size,
                "accuracy": accuracy(model, test),
                "images": len(test),
            }
            print(name, result, flush=True)
            _write(file, read_results(file) | {name: result})


@main.command()
@click.option("--budget", default=90.0, show_default=True, help="Seconds of the comparison.")
@click.option("--device", type=click.Choice(DEVICES), default="local", show_default=True)
@click.pass_obj
def time(runs: Path, budget: float, device: str) -> None:
    """Time all files in one comparison, or count their instructions on an emulated ARM processor."""
    names = [f"{cut}-{precision}" for precision in PRECISIONS for cut in CUTS]
    files = [runs / f"{name}.onnx" for name in names]
    comparison = compare(files, device=device, budget_s=budget)
    measurements = dict(zip(names, comparison.measurements, strict=True))
    costs = {
        name: {
            "millions": median(measured) / 1e6,  # Nanoseconds, or instructions.
            "over fp32": str(ratio(measurements["dense-fp32"], measured)),
            "over int8": str(ratio(measurements["dense-int8"], measured)),
        }
        for name, measured in measurements.items()
    }
    _write(runs / f"costs-{device}.json", {"machine": machine(comparison), "costs": costs})
    print(json.dumps(costs, indent=1))


@main.command()
@click.pass_obj
def write(runs: Path) -> None:
    """Write tables and picture into docs, and the trained factors into models_zoo/weights."""
    results = read_results(runs / "results.json")
    timed = {device: costs for device in DEVICES if (costs := read_results(runs / f"costs-{device}.json"))}
    page = DOCS / "results" / "wide.md"
    put_into_page(page, "accuracy", accuracy_table(results))
    put_into_page(page, "costs", "\n\n".join(cost_table(device, costs) for device, costs in timed.items()))
    draw(curves(results, timed["local"]["costs"]), DOCS / "assets" / "wide.svg", "test images")
    torch.save(torch.load(runs / "trained" / "model.pt", weights_only=True) | {"licence": "MIT"}, SHIPPED)


def accuracy_table(results: dict[str, Any]) -> str:
    """Size and accuracy of all files as Markdown."""
    lines = [
        "| network | MACs | bytes, fp32 | bytes, int8 | accuracy, fp32 | accuracy, int8 |",
        "|---|---|---|---|---|---|",
    ]
    for cut in CUTS:
        plain, small = (results[f"{cut}-{precision}"] for precision in PRECISIONS)
        sizes = f"{plain['macs']:.2f}x | {plain['bytes']:,} | {small['bytes']:,}"
        lines.append(f"| {NAMES[cut]} | {sizes} | {plain['accuracy']:.2f} % | {small['accuracy']:.2f} % |")
    return "\n".join(lines)


def cost_table(device: str, timed: dict[str, Any]) -> str:
    """Latency or instructions of all files as Markdown, with the machine."""
    unit = "ms" if device == "local" else "1e6 instructions"
    lines = [f"| network | precision | {unit} | over dense fp32 | over dense int8 |", "|---|---|---|---|---|"]
    for precision in PRECISIONS:
        for cut in CUTS:
            cost = timed["costs"][f"{cut}-{precision}"]
            cells = f"{cost['millions']:.3f} | {cost['over fp32']} | {cost['over int8']}"
            lines.append(f"| {NAMES[cut]} | {precision} | {cells} |")
    return "\n".join([*lines, "", f"{timed['machine']}."])


def curves(results: dict[str, Any], costs: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each precision as the picture takes them: dense first."""
    return {
        precision: [
            {
                "label": f"{RATIO}x, {cut}",
                "ms": costs[f"{cut}-{precision}"]["millions"],
                "after": (share := results[f"{cut}-{precision}"]["accuracy"] / 100),
                "error": (share * (1 - share) / results[f"{cut}-{precision}"]["images"]) ** 0.5,
            }
            for cut in CUTS
        ]
        for precision in PRECISIONS
    }


def _train(folder: Path, *options: str) -> None:
    """Run trp-train to its end, from where it was interrupted if it was."""
    if (folder / "last.pt").exists():
        run("training.cli", "--resume", "-o", str(folder))
        return
    images = ("--data", f"npz:{data.cifar10()}", "--validation", "2500")
    run("training.cli", *images, "--keep", "last", "--amp", *SGD, *options, "-o", str(folder))


def _taught_by(folder: Path) -> tuple[str, ...]:
    """Options of trp-train that go on from the network of a run, with that network as the teacher."""
    return ("--init", str(folder / "model.pt"), "--teacher", str(folder / "model.pt"), "--lr", "0.05")


def _exported(runs: Path, cut: str, precision: str) -> Path:
    """The ONNX file of a row, with its report beside it, made where it is missing."""
    output = runs / f"{cut}-{precision}.onnx"
    if not output.exists():
        images = runs / "calibration.npz"
        if not images.exists():
            np.savez(images, images=draw_images(data.cifar10(), CALIBRATION, SEED))
        model = runs / ("trained" if cut == "trained" else "dense") / "model.pt"
        options = (*OPTIONS[cut], "--calib", str(images), "--precision", precision, "--no-bench", "--quiet")
        run("trp_export.cli.export", str(model), *options, "-o", str(output))
    return output


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
