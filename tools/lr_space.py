"""Fill the table of docs/results/finer-decompositions.md: lost energy and accuracy at equal multiply-adds, with one
scheme for all layers, the usual five, the whole LR-space, and sums of two pairs.

    python tools/lr_space.py [--networks resnet20] [--images 0,1024] [--seconds 150] [--report]

Accuracy is on 2,500 images of training file 5; --images are drawn from files 1 to 4, without their labels. Each result
is a line of the file --out, written as soon as it is known; a second call continues.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
from common import CIFAR_RESNETS, IMAGENET, Listed, Workshop, accuracy, append, missing, read

from trp_export import Benchmark, Calibration, LoadOptions, Macs, Options, Preprocessing, Selection
from trp_export.calibration.output_curves import calibrated_layers
from trp_export.errors import OptionError
from trp_export.inputs.images import load_images
from trp_export.lowrank.schemes import describe
from trp_export.planning.curves import FIXED, Layer, schemes_for
from trp_export.planning.plan import Plan
from trp_export.planning.second_branch import second_curves, with_curves
from trp_export.steps.rules import plan_by

VALIDATION = 2500
SUM = "all + second"
METHODS = (*FIXED, "auto", "all", SUM)


@click.command()
@click.option("--networks", type=Listed(choices=CIFAR_RESNETS), default=("resnet20",), help="resnet20,resnet32")
@click.option("--images", "counts", type=Listed(int), default=(0, 1024), help="How many images calibrate; 0 for none.")
@click.option("--ratios", type=Listed(float), default=(1.5, 2.0, 3.0), help="Times fewer multiply-adds.")
@click.option("--seconds", default=float("inf"), help="Begin nothing new after this time.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/lr_space.jsonl"), show_default=True)
@click.option("--report", "only_report", is_flag=True, help="Print the table.")
def main(
    networks: tuple[str, ...],
    counts: tuple[int, ...],
    ratios: tuple[float, ...],
    seconds: float,
    out: Path,
    only_report: bool,
) -> None:
    """Lost energy and accuracy under each choice of decompositions."""
    if only_report:
        print(report(read(out)))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    for name in networks:
        for images in counts:
            jobs = missing(
                out,
                [
                    {"network": name, "images": images, "method": method, "ratio": ratio}
                    for ratio in ratios
                    for method in METHODS
                ],
            )
            if jobs and time.monotonic() < end:
                with tempfile.TemporaryDirectory() as folder:
                    bench = Bench(name, images, Path(folder))
                    for job in jobs:
                        if time.monotonic() < end:
                            append(out, {**job, **bench.run(job["method"], job["ratio"])})


class Bench:
    """One network with or without images: its curves under all schemes, made once."""

    def __init__(self, name: str, images: int, folder: Path) -> None:
        started = time.monotonic()
        calibration = Calibration(draw(images, folder)) if images else None
        options = Options(
            rule=Macs(2),
            load=LoadOptions(arch=name),
            selection=Selection(scheme="all"),
            calibration=calibration,
            preprocessing=IMAGENET if images else Preprocessing(),
            benchmark=Benchmark(run=False),
        )
        self.shop = Workshop(data.network(name), options, folder, fold=images > 0)
        network = self.shop.knowledge.network
        self.kernels = {place.site.name: place.kernel for place in network.located if place.weight}
        self.validation = load_images(data.cifar10() / "train_5.npz", IMAGENET, count=VALIDATION, seed=0)
        print(f"{name}, {images} images: curves after {time.monotonic() - started:.1f} s", flush=True)

    def run(self, method: str, ratio: float) -> dict[str, Any]:
        """Lost energy, accuracy and cost of a method at a ratio."""
        started = time.monotonic()
        try:
            plan = self.plan(method, ratio)
        except OptionError as error:
            return {"refused": str(error)}
        seconds = time.monotonic() - started
        built = self.shop.build(plan)
        return {
            "lost": sum(1 - decision.energy for decision in plan.decisions),
            "accuracy": accuracy(built.files.result, self.validation),
            "macs": self.shop.macs_ratio(built),
            "planning_s": seconds,
            "layers": {d.site.name: describe(d.branches) for d in plan.decisions},
        }

    def plan(self, method: str, ratio: float) -> Plan:
        """The plan of one --scheme, or of sums of two pairs."""
        knowledge, rule = self.shop.knowledge, Macs(ratio)

        def plan_among(layers: Sequence[Layer]) -> Plan:
            return plan_by(rule, replace(knowledge, layers=tuple(layers)))

        if method != SUM:
            return plan_among(under(knowledge.layers, method))
        single = plan_among(knowledge.layers)
        sums = second_curves(knowledge.layers, single, lambda name: self.kernels[name]())
        if knowledge.calibration is not None:
            sums = calibrated_layers(sums, knowledge.network.located, knowledge.calibration.moments)
        return plan_among(with_curves(knowledge.layers, sums))


def under(layers: Sequence[Layer], choice: str) -> list[Layer]:
    """The layers with the curves of one --scheme alone."""
    return [
        replace(layer, curves=tuple(c for c in layer.curves if c.scheme in schemes_for(layer.site, choice)))
        for layer in layers
    ]


def draw(count: int, folder: Path) -> Path:
    """A file of images of the training files 1 to 4, without labels."""
    random = np.random.default_rng(0)
    parts = []
    for shard in range(1, 5):
        with np.load(data.cifar10() / f"train_{shard}.npz") as file:
            parts.append(file["images"][np.sort(random.choice(10_000, count // 4, replace=False))])
    path = folder / "images.npz"
    np.savez(path, images=np.concatenate(parts))
    return path


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table for each network: of the fixed schemes the best at each ratio."""
    text = []
    for name, images in dict.fromkeys((line["network"], line["images"]) for line in lines):
        of = [line for line in lines if (line["network"], line["images"]) == (name, images) and "lost" in line]
        ratios = sorted({line["ratio"] for line in of})
        what = f"{images:,} images" if images else "no images"
        text += [f"| {name}, {what} | " + " | ".join(f"{ratio:g}x" for ratio in ratios) + " |"]
        text += ["|---" * (len(ratios) + 1) + "|"]
        rows = {"best fixed scheme": tuple(FIXED), **{method: (method,) for method in METHODS if method not in FIXED}}
        for row, methods in rows.items():
            cells = []
            for ratio in ratios:
                found = [line for line in of if line["ratio"] == ratio and line["method"] in methods]
                best = max(found, key=lambda line: line["accuracy"], default=None)
                named = f" ({best['method']})" if best and len(methods) > 1 else ""
                cells.append(f"{best['accuracy']:.2f}{named}, lost {best['lost']:.3f}" if best else "")
            text.append(f"| {row} | " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    main()
