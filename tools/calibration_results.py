"""Fill the tables of docs/results/calibration.md: accuracy against multiply-adds, with 1,024 unlabelled images.

    python tools/calibration_results.py --data ../shared/data/cifar10 --models ../shared/models \
        [--networks resnet20 resnet32] [--ratios 1.5 2 3] [--draws 3] [--tune-steps 0] [--out runs/calibration.jsonl]

Every result is a line of the JSON file as soon as it is there; a second call goes on where the first one ended. With
--report the file is turned into the tables and pictures of the document.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from common import append, missing, read

import trp_export
from trp_export.calibration.moments import Moments, gather_moments
from trp_export.calibration.output_curves import LayerFactors, calibrated_factors, calibrated_layers
from trp_export.calibration.sensitivities import measure_sensitivities
from trp_export.graph.batch_norm import fold_batch_norm
from trp_export.graph.bias import add_to_bias
from trp_export.graph.cost import count_macs
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.rewrite import rewrite
from trp_export.graph.shapes import infer_shapes, input_shapes
from trp_export.graph.sites import find_sites
from trp_export.graph.statistics import norm_outputs
from trp_export.graph.weights import apply_values
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.lowrank.branches import factorise_branches
from trp_export.lowrank.schemes import describe
from trp_export.options import Benchmark, LoadOptions, Options
from trp_export.planning.budgets import lost_energy, measured_damage, plan_by_macs
from trp_export.planning.curves import Layer, make_curve, schemes_for
from trp_export.planning.plan import Plan
from trp_export.recover.refit import refit
from trp_export.recover.synthetic import synthesise
from trp_export.recover.tune import tune
from trp_export.rules import Macs
from trp_export.runtime.partial import Tap

CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
IMAGES = 1024
SENSITIVITY_IMAGES = 256
BATCH = 64

# Rows of the tables: what is calibrated, how ranks are chosen, which schemes, and whether layers are refitted. Images
# are real ones where nothing is said; without any, the method is that of the command.
METHODS: dict[str, dict[str, Any]] = {
    "all of it": {"calibrated": True, "scheme": "auto", "sensitivity": True, "refit": True},
    "plain SVD, spatial-wise": {"calibrated": False, "scheme": "spatial", "sensitivity": False, "refit": False},
    "plain SVD, auto": {"calibrated": False, "scheme": "auto", "sensitivity": False, "refit": False},
    "calibrated": {"calibrated": True, "scheme": "auto", "sensitivity": True, "refit": False},
    "calibrated, no sensitivity": {"calibrated": True, "scheme": "auto", "sensitivity": False, "refit": True},
    "calibrated, spatial-wise": {"calibrated": True, "scheme": "spatial", "sensitivity": True, "refit": True},
    "synthetic images": {"calibrated": True, "scheme": "auto", "sensitivity": True, "refit": True, "synthetic": True},
    "no images": {},
}
# Those of which every draw is measured.
DRAWN = ("all of it", "synthetic images")


def main() -> None:
    options = parse_options()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.report:
        write_report(options.out, options.report)
        return
    test = load_images(options.data / options.test, IMAGENET)
    for network in options.networks:
        model = load_network(network, options.models / CHECKPOINTS[network])
        dense = {"network": network, "method": "dense", "ratio": 1.0, "draw": 0, "tuned": 0}
        for job in missing(options.out, [dense]):
            append(options.out, {**job, "accuracy": accuracy(model, test)})
        for draw in range(options.draws):
            run_draw(options, network, model, draw, test)


def run_draw(options: argparse.Namespace, network: str, model: ir.Model, draw: int, test: ImageSet) -> None:
    jobs = [
        {"network": network, "method": method, "ratio": ratio, "draw": draw, "tuned": 0}
        for method in options.methods
        for ratio in options.ratios
        if draw == 0 or method in DRAWN
    ]
    if options.tune_steps:
        jobs += [
            {"network": network, "method": "all of it", "ratio": ratio, "draw": draw, "tuned": options.tune_steps}
            for ratio in options.ratios
        ]
    workshops: dict[bool, Workshop] = {}
    for job in missing(options.out, jobs):
        if job["method"] == "no images":
            checkpoint = options.models / CHECKPOINTS[network]
            append(options.out, {**job, **export(checkpoint, network, job["ratio"], test)})
            continue
        synthetic = METHODS[job["method"]].get("synthetic", False)
        if synthetic not in workshops:
            images = make_images(options, network, draw) if synthetic else draw_images(options.data, draw)
            workshops[synthetic] = Workshop(model, images)
        append(options.out, {**job, **evaluate(workshops[synthetic], job, test)})


class Workshop:
    """What one draw of images tells about one network, gathered when first asked for."""

    def __init__(self, model: ir.Model, images: np.ndarray) -> None:
        self.model, self.images = model, images
        self.shapes = infer_shapes(model, input_shapes(model))
        self.located = find_sites(model, self.shapes)
        self.macs = count_macs(model, self.shapes)
        self._moments: Mapping[str, Moments] | None = None
        self._layers: dict[tuple[str, bool], Sequence[Layer]] = {}
        self._sensitivities: Any = None

    @property
    def batches(self) -> list[np.ndarray]:
        return [self.images[start : start + BATCH] for start in range(0, len(self.images), BATCH)]

    @property
    def moments(self) -> Mapping[str, Moments]:
        if self._moments is None:
            images = ImageSet("drawn", self.images, None, Preprocessing(), 3, None, ())
            self._moments = gather_moments(self.model, self.located, images)
        return self._moments

    def layers(self, scheme: str, calibrated: bool) -> Sequence[Layer]:
        if (scheme, calibrated) not in self._layers:
            plain = [
                Layer(
                    place.site,
                    tuple(make_curve(place.site, s, place.kernel()) for s in schemes_for(place.site, scheme)),
                )
                for place in self.located
            ]
            own = calibrated_layers(plain, self.located, self.moments) if calibrated else plain
            self._layers[scheme, calibrated] = own
        return self._layers[scheme, calibrated]

    def sensitivities(self) -> Any:
        if self._sensitivities is None:
            batches = self.batches[: SENSITIVITY_IMAGES // BATCH]
            layers = self.layers("auto", True)
            self._sensitivities = measure_sensitivities(self.model, layers, self.moments, batches)
        return self._sensitivities


def evaluate(workshop: Workshop, job: Mapping[str, Any], test: ImageSet) -> dict[str, Any]:
    started = time.monotonic()
    model, plan = compress(workshop, METHODS[job["method"]], job["ratio"])
    result: dict[str, Any] = {}
    if job["tuned"]:
        tuned = tune(workshop.model, model, workshop.images, steps=job["tuned"], seed=job["draw"])
        apply_values(model, tuned.values)
    seconds = time.monotonic() - started
    macs = count_macs(model, infer_shapes(model, input_shapes(model)))
    layers = [(d.site.name, describe(d.branches) or None, d.macs, d.site.macs) for d in plan.decisions]
    return {
        **result,
        "accuracy": accuracy(model, test),
        "macs_ratio": workshop.macs / macs,
        "seconds": seconds,
        "layers": layers,
    }


def compress(workshop: Workshop, method: Mapping[str, Any], ratio: float) -> tuple[ir.Model, Plan]:
    """The rewritten model of a method at a ratio, and its plan."""
    damage = lost_energy
    if method["sensitivity"]:
        damage = measured_damage(workshop.sensitivities())
    plan = plan_by_macs(workshop.layers(method["scheme"], method["calibrated"]), workshop.macs, ratio, 1, damage)
    model = workshop.model.clone()
    located = find_sites(model, workshop.shapes)
    if method["calibrated"]:
        fitted = calibrated_factors(plan, located, workshop.moments) if not method["refit"] else LayerFactors({}, {})
        if method["refit"]:
            fitted = refit(workshop.model, plan, workshop.batches, fitted)
        add_to_bias(model, located, fitted.shifts)
        factors = fitted.factors
    else:
        places = {place.site.name: place for place in located}
        factors = {
            c.site.name: factorise_branches(places[c.site.name].kernel(), c.branches, c.site.group)
            for c in plan.changed
        }
    rewrite(model, plan, located, factors)
    remove_unused(model)
    return model, plan


def export(checkpoint: Path, network: str, ratio: float, test: ImageSet) -> dict[str, Any]:
    """What `trp-export --macs` makes of the weights alone."""
    with TemporaryDirectory() as folder:
        options = Options(
            rule=Macs(ratio),
            load=LoadOptions(arch=network),
            benchmark=Benchmark(run=False),
            output=Path(folder) / "small.onnx",
        )
        started = time.monotonic()
        report = trp_export.compress(checkpoint, options)
        assert report.after is not None
        return {
            "seconds": time.monotonic() - started,
            "accuracy": accuracy(ir.load(options.output), test),
            "macs_ratio": report.before.macs / report.after.macs,
        }


def make_images(options: argparse.Namespace, network: str, draw: int) -> np.ndarray:
    """1,024 images out of the network alone; kept beside the results, since they take a minute or two."""
    path: Path = options.out.with_name(f"synthetic-{network}-{draw}.npy")
    if not path.exists():
        model = load_network(network, options.models / CHECKPOINTS[network], fold=False)
        statistics = norm_outputs(model)
        started = time.monotonic()
        images = synthesise(model, statistics, (1, 3, 32, 32), IMAGES, seed=draw)
        print(f"{IMAGES} images of {network} synthesised in {time.monotonic() - started:.0f} s", flush=True)
        np.save(path, images)
    return np.load(path)


def accuracy(model: ir.Model, images: ImageSet) -> float:
    """Top-1 in percent."""
    tap = Tap(model, [model.graph.inputs[0].name or ""], [model.graph.outputs[0].name or ""])
    logits = np.concatenate([tap({tap.inputs[0]: batch})[tap.outputs[0]] for batch in images.batches(100)])
    return 100 * float((logits.argmax(axis=1) == images.labels).mean())


def draw_images(data: Path, draw: int) -> np.ndarray:
    """1,024 images out of the training shards, without their labels."""
    shards = [load_images(data / f"train_{index}.npz", IMAGENET, count=IMAGES // 4, seed=draw) for index in range(1, 5)]
    return np.concatenate([shard.inputs for shard in shards])


def load_network(name: str, checkpoint: Path, fold: bool = True) -> ir.Model:
    """The network as ONNX, batch norm folded or not."""
    import torch
    from onnxscript import optimizer

    from models_zoo.cifar_resnet import CifarResNet

    network = CifarResNet(int(name.removeprefix("resnet"))).eval()
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network, (torch.zeros(2, 3, 32, 32),), dynamo=True, dynamic_shapes=({0: batch},), optimize=False, verbose=False
    )
    optimizer.fold_constants(program.model)
    model = prepare(program.model)
    if fold:
        fold_batch_norm(model)
        remove_unused(model)
    return model


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


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    parser.add_argument("--test", default="test_half.npz", help="the file under --data that is looked at in the end")
    parser.add_argument("--networks", nargs="+", default=list(CHECKPOINTS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--ratios", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--tune-steps", type=int, default=0, help="steps of distillation on top; 0 for none")
    parser.add_argument("--out", type=Path, default=Path("runs/calibration.jsonl"))
    parser.add_argument("--report", type=Path, help="a folder for pictures: print the tables of what is done so far")
    return parser.parse_args()


if __name__ == "__main__":
    main()
