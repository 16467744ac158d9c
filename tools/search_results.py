"""Fill the tables of docs/results/search.md: plans that were searched beside those of the planner.

    python tools/search_results.py --data ../shared/data/cifar10 --models ../shared/models \
        [--networks resnet20 resnet32] [--ratios 1.5 2 3] [--draws 1] [--seconds 150] [--out runs/search.jsonl]

Every result is a line of the JSON file as soon as it is there; a second call goes on where the first one ended, and a
search that was cut short goes on where it was. With --report the file is turned into the tables of the document.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calibration_results import CHECKPOINTS, IMAGENET, Workshop, accuracy, draw_images, make_images
from common import append, missing, read

from training.search.options import SearchOptions
from training.search.run import calibrate_for_search, run_search
from trp_export.calibration.output_curves import calibrated_factors
from trp_export.graph.bias import add_to_bias
from trp_export.graph.prepare import remove_unused
from trp_export.graph.rewrite import rewrite
from trp_export.graph.sites import find_sites
from trp_export.inputs.images import ImageSet, load_images
from trp_export.lowrank.schemes import describe
from trp_export.planning.budgets import measured_damage, plan_by_macs
from trp_export.planning.plan import Plan
from trp_export.recover.refit import refit
from trp_export.system.scratch import Scratch

# Rows of the tables: who makes the plan, from which decompositions, with which images.
METHODS: dict[str, dict[str, Any]] = {
    "channel-wise": {"scheme": "channel", "images": "real"},
    "spatial-wise": {"scheme": "spatial", "images": "real"},
    "planner, auto": {"scheme": "auto", "images": "real"},
    "planner, all": {"scheme": "all", "images": "real"},
    "search": {"search": 1, "images": "real"},
    "search, 800 steps": {"search": 1, "images": "real", "epochs": 25},
    "search, second branch": {"search": 2, "images": "real"},
    "channel-wise, no data": {"scheme": "channel", "images": "made"},
    "spatial-wise, no data": {"scheme": "spatial", "images": "made"},
    "planner, auto, no data": {"scheme": "auto", "images": "made"},
    "planner, all, no data": {"scheme": "all", "images": "made"},
    "search, no data": {"search": 1, "images": "made"},
}


def main() -> None:
    options = parse_options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.report:
        print(report(read(options.out)))
        return
    end = time.monotonic() + options.seconds
    test = load_images(options.data / options.test, IMAGENET)
    for name in options.networks:
        for draw in range(options.draws):
            for images in ("real", "made"):
                jobs = [
                    {"network": name, "method": method, "ratio": ratio, "draw": draw}
                    for ratio in options.ratios
                    for method in options.methods
                    if METHODS[method]["images"] == images
                ]
                jobs = missing(options.out, jobs)
                if not jobs or time.monotonic() > end:
                    continue
                bench = Bench(options, name, draw, images)
                for job in jobs:
                    if time.monotonic() < end:
                        append(options.out, {**job, **bench.run(job, test)})


class Bench:
    """One network and one draw of images, real or made: what they tell is gathered once."""

    def __init__(self, options: argparse.Namespace, name: str, draw: int, images: str) -> None:
        self.options, self.name, self.draw = options, name, draw
        self.checkpoint = options.models / CHECKPOINTS[name]
        self.folder = options.out.parent / "search"
        self.folder.mkdir(exist_ok=True)
        self.images = images
        pixels = self._images(images)
        with Scratch() as scratch:
            self.seen = calibrate_for_search(self._options(2.0, 1), scratch.folder, lambda step, share: None)
        self.workshop = Workshop(self.seen.network.model, pixels)
        self.workshop._moments = self.seen.moments

    def _images(self, kind: str) -> np.ndarray:
        if kind == "made":
            images = make_images(self.options, self.name, self.draw)
        else:
            images = draw_images(self.options.data, self.draw)
        self.file = self.folder / f"{kind}-{self.name}-{self.draw}.npy"
        np.save(self.file, images)
        return images

    def run(self, job: Mapping[str, Any], test: ImageSet) -> dict[str, Any]:
        method, started = METHODS[job["method"]], time.monotonic()
        if "search" in method:
            plan = self._search(method["search"], job["ratio"], method.get("epochs"))
        else:
            damage = measured_damage(self.workshop.sensitivities())
            layers = self.workshop.layers(method["scheme"], True)
            plan = plan_by_macs(layers, self.workshop.macs, job["ratio"], 1, damage)
        seconds = time.monotonic() - started
        return {
            "seconds": seconds,
            **{how: self._accuracy(plan, how, test) for how in ("calibrated", "refit")},
            "macs": self.workshop.macs / self._macs(plan),
            "layers": {decision.site.name: describe(decision.branches) for decision in plan.decisions},
        }

    def _options(self, ratio: float, branches: int, epochs: int | None = None) -> SearchOptions:
        longer = f"-{epochs}" if epochs else ""
        return SearchOptions(
            model=self.checkpoint,
            output=self.folder / f"{self.name}-{self.images}-{self.draw}-{ratio:g}-{branches}{longer}.json",
            arch=self.name,
            data=str(self.file),
            macs=ratio,
            branches=branches,
            epochs=epochs,
            seed=self.draw,
        )

    def _search(self, branches: int, ratio: float, epochs: int | None) -> Plan:
        options, single = self._options(ratio, branches, epochs), self._options(ratio, 1).folder
        if branches == 2 and single.exists() and not options.folder.exists():
            shutil.copytree(single, options.folder)  # The second pairs are searched around the plan of this search.
        going_on = (options.folder / "last.pt").exists()
        return run_search(options, lambda step, share: None, show, going_on, self.seen)[0]

    def _accuracy(self, plan: Plan, how: str, test: ImageSet) -> float:
        """Top-1 in percent of the plan with calibrated factors, or refitted on top."""
        model = self.workshop.model.clone()
        located = find_sites(model, self.workshop.shapes)
        fitted = calibrated_factors(plan, located, self.workshop.moments)
        if how == "refit":
            fitted = refit(self.workshop.model, plan, self.workshop.batches, fitted)
        add_to_bias(model, located, fitted.shifts)
        rewrite(model, plan, located, fitted.factors)
        remove_unused(model)
        return accuracy(model, test)

    def _macs(self, plan: Plan) -> int:
        return self.workshop.macs + sum(decision.macs - decision.site.macs for decision in plan.decisions)


def show(record: Mapping[str, Any]) -> None:
    """A line for each epoch in five."""
    if record["epoch"] % 5 == 0:
        print({name: value for name, value in record.items() if name != "layers"}, flush=True)


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table for each network: accuracy with calibrated factors and refitted, and the most seconds that a plan took.

    What images tell a planner is gathered for the first of its plans and serves the others.
    """
    text = []
    for name in dict.fromkeys(line["network"] for line in lines):
        own = [line for line in lines if line["network"] == name]
        ratios = sorted({line["ratio"] for line in own})
        text += [f"| {name} | " + " | ".join(f"{ratio:g}x" for ratio in ratios) + " | seconds |"]
        text += ["|---" * (len(ratios) + 2) + "|"]
        for method in (method for method in METHODS if any(line["method"] == method for line in own)):
            cells, seconds = [], []
            for ratio in ratios:
                found = [line for line in own if (line["method"], line["ratio"]) == (method, ratio)]
                hows = ("calibrated", "refit") if found else ()
                cells.append(" / ".join(f"{np.mean([line[how] for line in found]):.2f}" for how in hows))
                seconds += [line["seconds"] for line in found]
            text.append(f"| {method} | " + " | ".join(cells) + f" | {max(seconds):.0f} |")
        text.append("")
    return "\n".join(text)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--test", default="test_half.npz", help="the file under --data that is looked at in the end")
    parser.add_argument("--networks", nargs="+", default=list(CHECKPOINTS), choices=CHECKPOINTS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/search.jsonl"))
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
