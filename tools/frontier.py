"""Fill docs/results/accuracy-and-latency.md: accuracy against measured latency of ResNet-20 and ResNet-32 at several
budgets, on training images that did not calibrate.

    python tools/frontier.py make --data CIFAR10 --models MODELS    # the networks, with images
    python tools/frontier.py time                                   # their latency, side by side, on a quiet machine
    python tools/frontier.py report --out docs/assets          # table and picture

Networks, images and figures are in runs/frontier; existing files are used again. 1,024 images of the training files 1
to 4 calibrate, 2,500 of file 5 evaluate. The networks were trained on those too, so the figures compare networks but
say nothing about accuracy on new images. No test image is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
from common import CIFAR_RESNETS, IMAGENET, machine

from trp_export import Benchmark, Energy, Images, MaxDrop, Options, Selection, compress
from trp_export.bench import compare, median, ratio
from trp_export.metrics.score import change
from trp_export.options import Calibration, LoadOptions
from trp_export.rules import Minimise

RATIOS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0)
CALIBRATION, EVALUATION, SEED = 1024, 2500, 0
DENSE = "dense"

networks_option = click.option("--networks", multiple=True, default=CIFAR_RESNETS, type=click.Choice(CIFAR_RESNETS))


@click.group()
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/frontier"), show_default=True)
@click.pass_context
def main(context: click.Context, runs: Path) -> None:
    """Accuracy against measured latency of ResNet-20 and ResNet-32."""
    runs.mkdir(parents=True, exist_ok=True)
    context.obj = runs


@main.command()
@click.option("--by", type=click.Choice(["macs", "params", "latency"]), default="macs", help="What ratios are of.")
@networks_option
@click.pass_obj
def make(runs: Path, by: Minimise, networks: tuple[str, ...]) -> None:
    """Export each network at each ratio, and dense as the reference."""
    calibration, evaluation = draw_images(runs)
    for network in networks:
        for times in (None, *RATIOS):
            output = runs / (f"{network}-{DENSE}.onnx" if times is None else f"{network}-{by}-{times:g}.onnx")
            if output.exists():
                continue
            options = Options(
                rule=Energy(1) if times is None else MaxDrop(0, by).budget(times),
                load=LoadOptions(arch=network),
                selection=Selection(skip=("*",) if times is None else ()),
                images=Images(evaluation),
                calibration=Calibration("none") if times is None else Calibration(calibration, seed=SEED),
                preprocessing=IMAGENET,
                benchmark=Benchmark(run=False),
                output=output,
            )
            report = compress(data.network(network), options)
            print(output.name, report.deviation.score if report.deviation else None, flush=True)


@main.command()
@networks_option
@click.option("--budget", default=60.0, show_default=True, help="Seconds for each network.")
@click.pass_obj
def time(runs: Path, networks: tuple[str, ...], budget: float) -> None:
    """Time all versions of a network in one comparison."""
    for network in networks:
        files = [runs / f"{network}-{DENSE}.onnx", *sorted(runs.glob(f"{network}-*-*.onnx"))]
        done = read(runs / f"{network}.json")
        if not set(files) - {runs / name for name in done.get("latency", {})}:
            continue
        comparison = compare(files, budget_s=budget, shapes={"x": (1, 3, 32, 32)})
        dense, *_ = comparison.measurements
        found = {
            file.name: {"ms": median(one) / 1e6, "ratio": str(ratio(dense, one))}
            for file, one in zip(files, comparison.measurements, strict=True)
        }
        (runs / f"{network}.json").write_text(json.dumps({"machine": machine(comparison), "latency": found}, indent=1))


@main.command()
@networks_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for the picture.")
@click.pass_obj
def report(runs: Path, networks: tuple[str, ...], out: Path) -> None:
    """The table as Markdown on stdout, the picture as an SVG."""
    found = {network: rows(runs, network) for network in networks}
    print("| network | MACs | accuracy | change | latency | times as fast |\n|---|---|---|---|---|---|")
    for network, own in found.items():
        for row in own:
            moved = "" if row["name"] == DENSE else change(row["before"], row["after"], row["error"], "%")
            cells = f"{row['macs']:.2f}x | {row['after']:.2%} | {moved} | {row['ms']:.3f} ms"
            print(f"| {network} {row['name']} | {cells} | {'' if row['name'] == DENSE else row['ratio']} |")
    machines = {read(runs / f"{network}.json")["machine"] for network in networks}
    print(f"\n{'; '.join(sorted(machines))}. n = {EVALUATION:,} images; ± is the standard error of the change.")
    draw(found, out / "frontier.svg", "validation")


def rows(runs: Path, network: str) -> list[dict[str, Any]]:
    """The results of each file of a network: the dense one first, then by latency."""
    found = []
    for name, timed in read(runs / f"{network}.json")["latency"].items():
        document = read((runs / name).with_suffix(".json"))
        score, macs = document["deviation"]["score"], document["before"]["macs"] / document["after"]["macs"]
        found.append(
            {
                "name": name.removeprefix(f"{network}-").removesuffix(".onnx"),
                "macs": macs,
                "label": f"{macs:.2f}x",
                "before": score["before"],
                "after": score["after"],
                "error": score["error"],
                **timed,
            }
        )
    return sorted(found, key=lambda row: (row["name"] != DENSE, -row["ms"]))


def draw(found: Mapping[str, list[dict[str, Any]]], path: Path, images: str) -> None:
    """Accuracy on `images` by latency, a curve for each network, the dense network as a star."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for index, (network, (dense, *others)) in enumerate(found.items()):
        colour = f"C{index}"
        axis.plot(dense["ms"], 100 * dense["after"], "*", markersize=12, color=colour, label=f"{network}, dense")
        axis.errorbar(
            [row["ms"] for row in others],
            [100 * row["after"] for row in others],
            [100 * row["error"] for row in others],
            marker="o", markersize=4, capsize=2, linestyle=":", color=colour, label=f"{network}, cut",
        )  # fmt: skip
        for row in others:
            axis.annotate(
                row["label"], (row["ms"], 100 * row["after"]), (5, -9), textcoords="offset points", fontsize=7
            )
    axis.set_xlabel("latency in ms, one thread, one image; labels: times fewer MACs")
    axis.set_ylabel(f"top-1 in percent, {images}")
    axis.margins(x=0.1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def draw_images(runs: Path) -> tuple[Path, Path]:
    """The files of images that calibrate, without labels, and that evaluate, with labels."""
    calibration, evaluation = runs / "calibration.npz", runs / "evaluation.npz"
    if not (calibration.exists() and evaluation.exists()):
        rng = np.random.default_rng(SEED)
        shards = [np.load(data.cifar10() / f"train_{index}.npz") for index in range(1, 6)]
        images = np.concatenate([shard["images"] for shard in shards[:4]])
        np.savez(calibration, images=images[np.sort(rng.permutation(len(images))[:CALIBRATION])])
        chosen = np.sort(rng.permutation(len(shards[4]["images"]))[:EVALUATION])
        np.savez(evaluation, images=shards[4]["images"][chosen], labels=shards[4]["labels"][chosen])
    return calibration, evaluation


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    main()
