"""Accuracy on test images against measured latency, all methods on one machine: docs/results/accuracy-and-latency.md.

    python tools/all_methods.py make            # the ONNX files, those that are missing: an hour with tuning
    python tools/all_methods.py time            # their latency, side by side, on a quiet machine
    python tools/all_methods.py write           # table and picture

Nothing is trained: weights are those that are shipped and those of the original networks, and thinner networks are
taken from the runs of tools/channel_results.py where there are any. Test images are read once for each file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
from common import IMAGENET, accuracy, draw_images, machine, put_into_page
from device_costs import AS_IT_IS
from frontier import read
from reproduce_trp import run

from models_zoo.registry import WEIGHTS
from trp_export.bench import compare, median, ratio
from trp_export.inputs.images import load_images

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "results" / "accuracy-and-latency.md", ROOT / "docs" / "assets" / "all-methods.svg"
CALIBRATION, SEED = 1024, 0
INT8 = ("--precision", "int8")
PREPARE = ("--scale", "1/255", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--shape", "1,3,32,32")
UNLABELLED, TUNED, CHANNELS = "low rank, no labels", "low rank, no labels, tuned", "fewer channels, trained"
TRAINED, DENSE = "low rank, trained (TRP)", "dense"


@dataclass(frozen=True, slots=True)
class Form:
    """One file: the method it belongs to, its weights, and the options of trp-export that make it."""

    method: str
    name: str
    weights: Path
    options: tuple[str, ...] = ()
    images: int = CALIBRATION

    def file(self, runs: Path) -> Path:
        """The ONNX file of the form."""
        return runs / f"{self.name.replace(' ', '-').replace(',', '')}.onnx"


def forms(thinner: Path) -> list[Form]:
    """All forms whose weights are at hand; the first is the reference."""
    originals = {name: data.network(name) for name in ("resnet20", "resnet32")}
    named = {name: ("--arch", name) for name in originals}
    found = [Form(DENSE, name, path, (*named[name], *AS_IT_IS)) for name, path in originals.items()]
    for name, path in originals.items():
        for times in ("1.5", "2", "3"):
            found.append(Form(UNLABELLED, f"{name} {times}x", path, (*named[name], "--macs", times)))
    for scheme in ("channel-2.17x", "spatial-2.84x", "spatial-2.85x"):
        found.append(Form(TRAINED, f"resnet20 TRP {scheme}", WEIGHTS / f"resnet20-trp-{scheme}.pt"))
    found.append(Form(TRAINED, "resnet32 TRP spatial-3.4x", WEIGHTS / "resnet32-trp-spatial-3.4x.pt"))
    for model in sorted(thinner.glob("*/model.pt")):
        found.append(Form(CHANNELS, f"resnet20 {model.parent.name}", model))
    rounded = ("resnet20", "resnet32", "resnet20 2x", "resnet20 TRP spatial-2.84x")
    eight_bits = [form for form in found if form.name in rounded or form.method == CHANNELS]
    found += [
        Form(f"{form.method}, int8", f"{form.name} int8", form.weights, (*form.options, *INT8)) for form in eight_bits
    ]
    for times in ("1.5", "2", "3"):
        options = (*named["resnet20"], "--macs", times, "--tune", "3300steps")
        found.append(Form(TUNED, f"resnet20 {times}x tuned", originals["resnet20"], options))
    many = (*named["resnet20"], "--macs", "2", "--tune", "6000steps", "--calib-count", "10000")
    found.append(Form(TUNED, "resnet20 2x tuned, 10000 images", originals["resnet20"], many, images=10_000))
    return found


@click.group()
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/all_methods"), show_default=True)
@click.option("--thinner", type=click.Path(path_type=Path), default=Path("runs/channels"), show_default=True)
@click.pass_context
def main(context: click.Context, runs: Path, thinner: Path) -> None:
    """Accuracy against measured latency of all methods."""
    runs.mkdir(parents=True, exist_ok=True)
    context.obj = runs, thinner


@main.command()
@click.pass_obj
def make(folders: tuple[Path, Path]) -> None:
    """Make the files that are missing, and measure their accuracy."""
    runs, all_forms = folders[0], forms(folders[1])
    test = load_images(data.cifar10() / "test_half.npz", IMAGENET)
    for form in all_forms:
        file = form.file(runs)
        prepare = PREPARE if "--arch" in form.options else ()
        if not file.exists():
            images = str(_calibration(runs, form.images))
            words = (str(form.weights), *form.options, *prepare, "--calib", images, "--no-bench", "--quiet")
            run("trp_export.cli.export", *words, "-o", str(file))
        results = _read(runs)
        if file.name not in results:
            row = {"accuracy": accuracy(file, test) / 100, "images": len(test)}
            _save(runs, results | {file.name: row})
            print(file.name, row, flush=True)


def _calibration(runs: Path, count: int) -> Path:
    """A file of so many training images without labels."""
    file = runs / f"calibration-{count}.npz"
    if not file.exists():
        np.savez(file, images=draw_images(data.cifar10(), count, SEED))
    return file


@main.command()
@click.option("--budget", default=240.0, show_default=True, help="Seconds of the comparison.")
@click.pass_obj
def time(folders: tuple[Path, Path], budget: float) -> None:
    """Time all files in one comparison."""
    runs, all_forms = folders[0], forms(folders[1])
    files = [form.file(runs) for form in all_forms]
    comparison = compare(files, budget_s=budget)
    reference, *_ = comparison.measurements
    results = _read(runs) | {"machine": f"{machine(comparison)}; n = {len(reference.processes)} processes"}
    for file, one in zip(files, comparison.measurements, strict=True):
        results[file.name] |= {"ms": median(one) / 1e6, "ratio": str(ratio(reference, one))}
    _save(runs, results)


@main.command()
@click.pass_obj
def write(folders: tuple[Path, Path]) -> None:
    """Put the table into the page, and draw the picture."""
    runs, all_forms = folders[0], forms(folders[1])
    results = _read(runs)
    lines = ["| method | network | accuracy, % | latency | times as fast as dense ResNet-20 |", "|---|---|---|---|---|"]
    for form in all_forms:
        row = results[form.file(runs).name]
        share, error = 100 * row["accuracy"], _error(row)
        lines.append(
            f"| {form.method} | {form.name} | {share:.2f} ± {error:.2f} | {row['ms']:.3f} ms | {row['ratio']} |"
        )
    count = results[all_forms[0].file(runs).name]["images"]
    note = f"{results['machine']}. n = {count:,} test images; ± is the standard error."
    put_into_page(PAGE, "methods", "\n".join([*lines, "", note]))
    _draw(all_forms, runs, results)


def _draw(all_forms: list[Form], runs: Path, results: dict[str, Any]) -> None:
    """Accuracy by latency, a colour for each method; int8 has open marks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    methods = list(dict.fromkeys(form.method.removesuffix(", int8") for form in all_forms))
    for method in dict.fromkeys(form.method for form in all_forms):
        rows = [results[form.file(runs).name] for form in all_forms if form.method == method]
        is_int8, colour = method.endswith(", int8"), f"C{methods.index(method.removesuffix(', int8'))}"
        axis.errorbar(
            [row["ms"] for row in rows], [100 * row["accuracy"] for row in rows], [_error(row) for row in rows],
            marker="s" if is_int8 else "o", markersize=5, capsize=2, linestyle="", color=colour,
            markerfacecolor="white" if is_int8 else colour, label=method,
        )  # fmt: skip
    axis.set_xlabel("latency in ms, one thread, one image")
    axis.set_ylabel("top-1 in percent, 5,000 test images of CIFAR-10")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.savefig(PICTURE, metadata={"Date": None})


def _error(row: dict[str, Any]) -> float:
    """The standard error of an accuracy, in percent."""
    return 100 * float(np.sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["images"]))


def _read(runs: Path) -> dict[str, Any]:
    return read(runs / "results.json")


def _save(runs: Path, results: dict[str, Any]) -> None:
    (runs / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
