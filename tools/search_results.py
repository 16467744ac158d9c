"""Fill the tables of docs/results/search.md: plans that were searched, beside those of the planner.

    python tools/search_results.py [--networks resnet20,resnet32] [--ratios 1.5,2,3] [--draws 1] [--seconds 150]
    python tools/search_results.py --report

Each result is a line of the file --out, written as soon as it is known. A second call continues, also in the middle of
a search.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import data
import numpy as np
from common import CIFAR_RESNETS, IMAGENET, Listed, Workshop, accuracy, append, draw_images, missing, read, silent

from training.search.options import SearchOptions
from training.search.run import read_search, run_search
from trp_export import Benchmark, Calibration, LoadOptions, Macs, Options, Preprocessing, Selection
from trp_export.inputs.images import load_images
from trp_export.lowrank.schemes import describe
from trp_export.options import SYNTHETIC
from trp_export.planning.plan import Plan

IMAGES = 1024


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the tables: the decompositions, the images, and for a search how many pairs make a layer."""

    scheme: str = "all"
    images: str = "real"
    branches: int = 0
    epochs: int | None = None


METHODS = {
    "channel-wise": Method("channel"),
    "spatial-wise": Method("spatial"),
    "planner, auto": Method("auto"),
    "planner, all": Method("all"),
    "search": Method(branches=1),
    "search, 800 steps": Method(branches=1, epochs=25),
    "search, second branch": Method(branches=2),
    "channel-wise, no data": Method("channel", SYNTHETIC),
    "spatial-wise, no data": Method("spatial", SYNTHETIC),
    "planner, auto, no data": Method("auto", SYNTHETIC),
    "planner, all, no data": Method("all", SYNTHETIC),
    "search, no data": Method(images=SYNTHETIC, branches=1),
}


@click.command()
@click.option("--networks", type=Listed(choices=CIFAR_RESNETS), default=CIFAR_RESNETS, help="resnet20,resnet32")
@click.option("--methods", multiple=True, type=click.Choice(list(METHODS)), default=list(METHODS), help="repeatable")
@click.option("--ratios", type=Listed(float), default=(1.5, 2.0, 3.0), help="Times fewer multiply-adds.")
@click.option("--draws", default=1, show_default=True, help="How many draws of images.")
@click.option("--seconds", default=float("inf"), help="Begin nothing new after this time.")
@click.option("--test", default="test_half", show_default=True, help="The file of CIFAR-10 that accuracy is of.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/search.jsonl"), show_default=True)
@click.option("--report", "only_report", is_flag=True, help="Print the tables.")
def main(
    networks: tuple[str, ...],
    methods: tuple[str, ...],
    ratios: tuple[float, ...],
    draws: int,
    seconds: float,
    test: str,
    out: Path,
    only_report: bool,
) -> None:
    """Plans that were searched, beside those of the planner."""
    if only_report:
        print(report(read(out)))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    images = load_images(data.cifar10() / f"{test}.npz", IMAGENET)
    for name, draw, kind in product(networks, range(draws), ("real", SYNTHETIC)):
        jobs = [
            {"network": name, "method": method, "ratio": ratio, "draw": draw}
            for ratio in ratios
            for method in methods
            if METHODS[method].images == kind
        ]
        jobs = missing(out, jobs)
        if jobs and time.monotonic() < end:
            bench = Bench(out.parent / "search", name, draw, kind)
            for job in jobs:
                if time.monotonic() < end:
                    append(out, {**job, **bench.run(job, images)})


class Bench:
    """One network and one draw of images, real or synthetic; what they tell is gathered once for each scheme."""

    def __init__(self, folder: Path, network: str, draw: int, kind: str) -> None:
        self.folder, self.network, self.draw, self.kind = folder, network, draw, kind
        folder.mkdir(parents=True, exist_ok=True)
        self.images = folder / f"{kind}-{network}-{draw}.npz"
        if kind == "real" and not self.images.exists():
            np.savez(self.images, images=draw_images(data.cifar10(), IMAGES, draw))
        self.shops: dict[str, Workshop] = {}

    def run(self, job: Mapping[str, Any], images: Any) -> dict[str, Any]:
        """Seconds, accuracy with calibrated and with refitted factors, cost, and the plan."""
        method, started = METHODS[job["method"]], time.monotonic()
        shop = self.workshop(method.scheme)
        plan = self._search(method, job["ratio"]) if method.branches else shop.plan(job["ratio"])
        seconds = time.monotonic() - started
        saved = sum(decision.site.macs - decision.macs for decision in plan.decisions)
        return {
            "seconds": seconds,
            **{how: self._accuracy(shop, plan, how == "refit", images) for how in ("calibrated", "refit")},
            "macs": shop.knowledge.macs / (shop.knowledge.macs - saved),
            "layers": {decision.site.name: describe(decision.branches) for decision in plan.decisions},
        }

    def workshop(self, scheme: str) -> Workshop:
        """The network with the curves of a scheme."""
        if scheme not in self.shops:
            place = self.folder / f"{self.network}-{self.draw}-{self.kind}-{scheme}"
            place.mkdir(exist_ok=True)
            options = Options(
                rule=Macs(2),
                load=LoadOptions(arch=self.network),
                selection=Selection(scheme=scheme),
                calibration=Calibration(
                    self.images if self.kind == "real" else SYNTHETIC, count=IMAGES, seed=self.draw
                ),
                preprocessing=IMAGENET if self.kind == "real" else Preprocessing(),
                benchmark=Benchmark(run=False),
            )
            self.shops[scheme] = Workshop(data.network(self.network), options, place)
        return self.shops[scheme]

    def _search(self, method: Method, ratio: float) -> Plan:
        options, single = self._options(method, ratio), self._options(replace(method, branches=1, epochs=None), ratio)
        if method.branches == 2 and single.folder.exists() and not options.folder.exists():
            shutil.copytree(single.folder, options.folder)  # Second pairs are searched around the plan of this search.
        saved = read_search(options.folder) if (options.folder / "last.pt").exists() else None
        return run_search(data.network(self.network), options, silent, show, saved=saved)[0]

    def _options(self, method: Method, ratio: float) -> SearchOptions:
        longer = f"-{method.epochs}" if method.epochs else ""
        name = f"{self.network}-{self.kind}-{self.draw}-{ratio:g}-{method.branches}{longer}.json"
        return SearchOptions(
            rule=Macs(ratio),
            output=self.folder / name,
            arch=self.network,
            data=str(self.images) if self.kind == "real" else None,
            no_data=self.kind != "real",
            mean=IMAGENET.mean,
            std=IMAGENET.std,
            branches=method.branches,
            epochs=method.epochs,
            seed=self.draw,
        )

    @staticmethod
    def _accuracy(shop: Workshop, plan: Plan, refit: bool, images: Any) -> float:
        calibration = shop.options.calibration
        assert calibration is not None
        shop.options = replace(shop.options, calibration=replace(calibration, recover=refit))
        return accuracy(shop.build(plan).files.result, images)


def show(record: Mapping[str, Any]) -> None:
    """Print every fifth epoch."""
    if record["epoch"] % 5 == 0:
        print({name: value for name, value in record.items() if name != "layers"}, flush=True)


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table for each network: accuracy with calibrated and with refitted factors, and the longest time of a plan.

    Calibration is counted for the first plan of a planner, and serves the others.
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


if __name__ == "__main__":
    main()
