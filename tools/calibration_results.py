"""Fill the tables of docs/results/calibration.md: accuracy against multiply-adds, with 1,024 unlabelled images.

    python tools/calibration_results.py [--networks resnet20,resnet32] [--ratios 1.5,2,3] [--draws 3] [--tune-steps N]
    python tools/calibration_results.py --report docs/assets      # tables on stdout, pictures in the folder

Each result is a line of the file --out, written as soon as it is known; a second call continues. tools/data.py fetches
data and networks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import data
import numpy as np
from common import CIFAR_RESNETS, IMAGENET, Listed, Workshop, accuracy, append, draw_images, missing, read

from trp_export import (
    Benchmark,
    Calibration,
    Energy,
    LoadOptions,
    Macs,
    Options,
    Preprocessing,
    Selection,
    Tuning,
    compress,
)
from trp_export.inputs.images import load_images
from trp_export.lowrank.schemes import describe
from trp_export.options import SYNTHETIC
from trp_export.planning.budgets import lost_energy

IMAGES = 1024
# In place of images: what the command does where the user does not mention any.
UNASKED = "unasked"


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the tables: which schemes, which images, how ranks are chosen, and whether layers are refitted.

    `images` None: without images, but with batch norm folded as it is with images.
    """

    scheme: str = "auto"
    images: str | None = "real"
    sensitivity: bool = True
    refit: bool = True
    fold: bool = True


METHODS = {
    "all of it": Method(),
    "plain SVD, spatial-wise": Method("spatial", None),
    "plain SVD, auto": Method(images=None),
    "calibrated": Method(refit=False),
    "calibrated, no sensitivity": Method(sensitivity=False),
    "calibrated, spatial-wise": Method("spatial"),
    "synthetic images": Method(images=SYNTHETIC),
    "nothing said of images": Method(images=UNASKED),
    "no images": Method(images=None, fold=False),
}
# Every draw of images is measured with these methods, the first one with the others.
DRAWN = ("all of it", "synthetic images")


@click.command()
@click.option("--networks", type=Listed(choices=CIFAR_RESNETS), default=CIFAR_RESNETS, help="resnet20,resnet32")
@click.option("--methods", multiple=True, type=click.Choice(list(METHODS)), default=list(METHODS), help="repeatable")
@click.option("--ratios", type=Listed(float), default=(1.5, 2.0, 3.0), help="1.5,2,3: times fewer multiply-adds")
@click.option("--draws", default=3, show_default=True, help="How many draws of images.")
@click.option("--tune-steps", type=int, help="Also distil for N steps.")
@click.option("--test", default="test_half", show_default=True, help="The file of CIFAR-10 that accuracy is of.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/calibration.jsonl"), show_default=True)
@click.option("--report", type=click.Path(path_type=Path), help="Print the tables; draw pictures into this folder.")
def main(
    networks: tuple[str, ...],
    methods: tuple[str, ...],
    ratios: tuple[float, ...],
    draws: int,
    tune_steps: int | None,
    test: str,
    out: Path,
    report: Path | None,
) -> None:
    """Accuracy of both networks, cut by each method."""
    if report is not None:
        write_report(out, report)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    images = load_images(data.cifar10() / f"{test}.npz", IMAGENET)
    for network in networks:
        for job in missing(out, [{"network": network, "method": "dense", "ratio": 1.0, "draw": 0, "tuned": 0}]):
            append(out, {**job, "accuracy": dense_accuracy(network, images)})
        for draw in range(draws):
            for method in methods:
                tunings = (0, tune_steps) if tune_steps and method == "all of it" else (0,)
                jobs = [
                    {"network": network, "method": method, "ratio": ratio, "draw": draw, "tuned": steps}
                    for steps in tunings
                    for ratio in ratios
                    if draw == 0 or method in DRAWN
                ]
                for result in run(missing(out, jobs), images):
                    append(out, result)


def run(jobs: Sequence[Mapping[str, Any]], images: Any) -> Iterator[dict[str, Any]]:
    """The jobs of one network, method and draw, which share what the images tell."""
    if not jobs:
        return
    with TemporaryDirectory() as folder:
        shop = workshop(jobs[0]["network"], METHODS[jobs[0]["method"]], jobs[0]["draw"], Path(folder))
        for job in jobs:
            started = time.monotonic()
            plan = shop.plan(job["ratio"])
            built = tuned(shop, job["tuned"]).build(plan)
            yield {
                **job,
                "accuracy": accuracy(built.files.result, images),
                "macs_ratio": shop.macs_ratio(built),
                "seconds": time.monotonic() - started,
                "layers": [(d.site.name, describe(d.branches) or None, d.macs, d.site.macs) for d in plan.decisions],
            }


def _calibration(path: Any, method: Method, draw: int) -> Calibration:
    if path == UNASKED:
        return Calibration(SYNTHETIC, seed=draw, unasked=True)
    return Calibration(path, count=IMAGES, seed=draw, recover=method.refit)


def workshop(network: str, method: Method, draw: int, folder: Path) -> Workshop:
    """The network and what a draw of images tells about it."""
    path: Any = method.images
    if method.images == "real":
        path = folder / "images.npz"
        np.savez(path, images=draw_images(data.cifar10(), IMAGES, draw))
    options = Options(
        rule=Macs(2),
        load=LoadOptions(arch=network),
        selection=Selection(scheme=method.scheme),
        calibration=_calibration(path, method, draw) if path else None,
        preprocessing=IMAGENET if isinstance(path, Path) else Preprocessing(),
        benchmark=Benchmark(run=False),
    )
    shop = Workshop(data.network(network), options, folder, fold=method.fold)
    if shop.knowledge.calibration is not None and not method.sensitivity:
        known = replace(shop.knowledge.calibration, damage=lost_energy)
        shop.knowledge = replace(shop.knowledge, calibration=known)
    if method.images is None and method.fold:  # Plain SVD: without the bias shifts that batch norm statistics allow.
        bare = replace(shop.knowledge.network, means={}, statistics={})
        shop.knowledge = replace(shop.knowledge, network=bare)
    return shop


def tuned(shop: Workshop, steps: int) -> Workshop:
    """The same workshop, which also distils for some steps."""
    calibration = shop.options.calibration
    if calibration is not None:
        shop.options = replace(
            shop.options, calibration=replace(calibration, tune=Tuning(steps=steps) if steps else None)
        )
    return shop


def dense_accuracy(network: str, images: Any) -> float:
    """Accuracy of the network without low rank."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "dense.onnx"
        compress(
            data.network(network),
            Options(
                rule=Energy(1),
                load=LoadOptions(arch=network),
                selection=Selection(skip=("*",)),
                benchmark=Benchmark(run=False),
                output=output,
            ),
        )
        return accuracy(output, images)


def write_report(path: Path, folder: Path) -> None:
    """The tables as Markdown on stdout, the pictures as SVG in `folder`."""
    lines = read(path)
    for network in dict.fromkeys(line["network"] for line in lines):
        own = [line for line in lines if line["network"] == network]
        print(table(network, own))
        draw_layers(own, folder / f"{network}-layers.svg")
        draw_frontier(own, folder / f"{network}-frontier.svg")


def table(network: str, lines: Sequence[Mapping[str, Any]]) -> str:
    dense = next(line["accuracy"] for line in lines if line["method"] == "dense")
    ratios = sorted({line["ratio"] for line in lines if line["method"] != "dense"})
    rows = [
        f"| {network}, {dense:.2f} dense | " + " | ".join(f"{ratio:g}x" for ratio in ratios) + " |",
        "|---" * (len(ratios) + 1) + "|",
    ]
    for method, tuned in dict.fromkeys((line["method"], line["tuned"]) for line in lines if line["method"] != "dense"):
        cells = []
        for ratio in ratios:
            found = [x["accuracy"] for x in lines if (x["method"], x["tuned"], x["ratio"]) == (method, tuned, ratio)]
            cells.append(f"{np.mean(found):.2f} ({np.mean(found) - dense:+.2f}, n={len(found)})" if found else "")
        label = f"{method}, tuned for {tuned:,} steps" if tuned else method
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def draw_layers(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """For each ratio the share of its multiply-adds that every layer keeps, coloured by scheme."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    chosen = [x for x in lines if x["method"] == "all of it" and x["draw"] == 0 and not x["tuned"]]
    if not chosen:
        return
    colours = {"spatial-wise": "C0", "spatial-wise-transposed": "C9", "pointwise-first": "C1", "channel-wise": "C2",
               "network-decoupling": "C4", "matrix": "C5", "dense": "0.8"}  # fmt: skip
    figure = Figure(figsize=(9, 2.2 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 1, squeeze=False, sharex=True)[:, 0]
    used = set()
    for axis, line in zip(axes, chosen, strict=True):
        for index, (_, pair, macs, dense) in enumerate(line["layers"]):
            scheme, _, rank = (pair or "dense").partition(" ")
            used.add(scheme)
            axis.bar(index, macs / dense, color=colours[scheme])
            axis.text(index, macs / dense, rank, ha="center", va="bottom", fontsize=6)
        axis.set_ylabel(f"{line['ratio']:g}x: share of MACs", fontsize=7)
        axis.set_ylim(0, 1.15)
    axes[-1].set_xticks(range(len(chosen[-1]["layers"])), [x[0] for x in chosen[-1]["layers"]], rotation=90, fontsize=6)
    shown = [Patch(color=colour, label=scheme) for scheme, colour in colours.items() if scheme in used]
    figure.legend(handles=shown, fontsize=6, ncols=len(shown), loc="outside upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_frontier(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    dense = next(line["accuracy"] for line in lines if line["method"] == "dense")
    axis.axhline(dense, color="0.6", linestyle=":", label="dense")
    for method, tuned in dict.fromkeys((x["method"], x["tuned"]) for x in lines if x["method"] != "dense"):
        ratios = sorted({x["ratio"] for x in lines if (x["method"], x["tuned"]) == (method, tuned)})
        means = [
            np.mean([x["accuracy"] for x in lines if (x["method"], x["tuned"], x["ratio"]) == (method, tuned, ratio)])
            for ratio in ratios
        ]
        axis.plot(ratios, means, marker="o", markersize=3, label=f"{method}, tuned" if tuned else method)
    axis.set_xlabel("times fewer MACs")
    axis.set_ylabel("top-1 in percent")
    axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
