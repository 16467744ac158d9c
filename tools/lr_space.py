"""What a finer space of decompositions buys: lost energy and accuracy of one scheme for all layers, of the usual five,
of the whole LR-space, and of sums of two pairs, at the same multiply-adds.

Fills the table of docs/results/finer-decompositions.md.

    python tools/lr_space.py --data ../shared/data/cifar10 --models ../shared/models [--networks resnet20]
        [--images 0 1024] [--seconds 150] [--out runs/lr_space.jsonl] [--report]

Accuracy is on 2,500 images of training shard 5; --images are drawn from shards 1 to 4, without their labels. Each
result is a line of the file as soon as it is there, and a second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import append, missing, read

from trp_export.calibration.output_curves import calibrated_layers
from trp_export.errors import OptionError
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.load import load
from trp_export.lowrank.schemes import describe
from trp_export.network import Network, analyse, measure_layers
from trp_export.options import Calibration, LoadOptions, Selection
from trp_export.planning.budgets import Damage, lost_energy, plan_by_macs
from trp_export.planning.curves import FIXED, Layer, schemes_for
from trp_export.planning.plan import Plan
from trp_export.planning.second_branch import second_curves, with_curves
from trp_export.rules import Macs
from trp_export.steps.build import build
from trp_export.steps.calibrate import CalibrationData, calibrate

CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
NORMALISED = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
VALIDATION = 2500
SUM = "all + second"
METHODS = (*FIXED, "auto", "all", SUM)


def main() -> None:
    options = parse_options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.report:
        print(report(read(options.out)))
        return
    end = time.monotonic() + options.seconds
    for name in options.networks:
        for images in options.images:
            jobs = [
                {"network": name, "images": images, "method": method, "ratio": ratio}
                for ratio in options.ratios
                for method in METHODS
            ]
            jobs = missing(options.out, jobs)
            if jobs and time.monotonic() < end:
                with tempfile.TemporaryDirectory() as folder:
                    bench = Bench(options, name, images, Path(folder))
                    for job in jobs:
                        if time.monotonic() < end:
                            append(options.out, {**job, **bench.run(job["method"], job["ratio"])})


class Bench:
    """One network with or without images: its curves under all schemes, made once."""

    def __init__(self, options: argparse.Namespace, name: str, images: int, folder: Path) -> None:
        started = time.monotonic()
        source = load(options.models / CHECKPOINTS[name], LoadOptions(arch=name))
        self.folder = folder
        self.network: Network = analyse(source, folder, fold=images > 0)
        self.layers = measure_layers(self.network, Selection(scheme="all"), (), lambda step, share: None)
        self.calibration: Calibration | None = None
        self.known: CalibrationData | None = None
        self.damage: Damage = lost_energy
        self.kernels = {place.site.name: place.kernel for place in self.network.located if place.weight}
        if images:
            self.calibration = Calibration(draw(options.data, images, folder), NORMALISED, count=None)
            self.known, self.layers = calibrate(self.network, self.layers, self.calibration, Macs(2.0), quiet)
            self.damage = self.known.damage
        self.validation = load_images(options.data / "train_5.npz", NORMALISED, count=VALIDATION, seed=0)
        print(f"{name}, {images} images: curves after {time.monotonic() - started:.1f} s", flush=True)

    def run(self, method: str, ratio: float) -> dict[str, Any]:
        started = time.monotonic()
        try:
            plan = self.plan(method, ratio)
        except OptionError as error:
            return {"refused": str(error)}
        planned = time.monotonic() - started
        result = self.folder / "result.onnx"
        made = build(self.network, plan, self.known, self.calibration, result, self.folder, quiet)
        return {
            "lost": sum(1 - decision.energy for decision in plan.decisions),
            "accuracy": accuracy(result, self.validation),
            "macs": self.network.macs / made.cost.macs,
            "planning_s": planned,
            "layers": {d.site.name: describe(d.branches) for d in plan.decisions},
        }

    def plan(self, method: str, ratio: float) -> Plan:
        if method != SUM:
            return plan_by_macs(under(self.layers, method), self.network.macs, ratio, 1, self.damage)
        single = plan_by_macs(self.layers, self.network.macs, ratio, 1, self.damage)
        sums = second_curves(self.layers, single, lambda name: self.kernels[name]())
        if self.known is not None:
            sums = calibrated_layers(sums, self.network.located, self.known.moments)
        return plan_by_macs(with_curves(self.layers, sums), self.network.macs, ratio, 1, self.damage)


def under(layers: Sequence[Layer], choice: str) -> list[Layer]:
    """The layers with the curves of one --scheme alone."""
    return [
        replace(layer, curves=tuple(c for c in layer.curves if c.scheme in schemes_for(layer.site, choice)))
        for layer in layers
    ]


def draw(data: Path, count: int, folder: Path) -> Path:
    """Images of shards 1 to 4 as they lie there, without labels."""
    rng = np.random.default_rng(0)
    parts = []
    for shard in range(1, 5):
        with np.load(data / f"train_{shard}.npz") as held:
            parts.append(held["images"][np.sort(rng.choice(10_000, count // 4, replace=False))])
    file = folder / "images.npz"
    np.savez(file, images=np.concatenate(parts))
    return file


def accuracy(model: Path, images: ImageSet) -> float:
    """Top-1 in percent."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    logits = np.concatenate([session.run(None, {name: batch})[0] for batch in images.batches(100)])
    return 100 * float((logits.argmax(axis=1) == images.labels).mean())


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


def silent(share: float) -> None:
    """No progress."""


def quiet(step: str, share: float) -> None:
    """No progress."""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--networks", nargs="+", default=["resnet20"], choices=CHECKPOINTS)
    parser.add_argument("--images", nargs="+", type=int, default=[0, 1024])
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/lr_space.jsonl"))
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
