"""The tables and pictures of docs/results/latency-plans.md: plans by latency, predicted, measured, beside others.

    python tools/bench_plans.py models      dense networks (torchvision, random weights) and their singular values
    python tools/bench_plans.py time        the latency table, plans at several speed-ups, and rivals pushed to 2x
    python tools/bench_plans.py tables      docs/results/latency-plans-measured.md from what was measured

Each step continues where it was stopped, and stops by itself after --seconds. Results are in runs/bench_plans. `time`
needs a quiet machine: every figure is a ratio of interleaved runs in fresh processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_networks import NETWORKS as EXPORTED
from bench_networks import Clock, dense, export_dense, read, write
from common import Listed

from trp_export.bench.runners.python_runner import channel_block
from trp_export.errors import OptionError
from trp_export.graph.sites import LocatedSite
from trp_export.latency.device import DeviceUnderTest
from trp_export.latency.network import NetworkLatency, measure_network
from trp_export.latency.search import plan_for_speedup, predicted_plan
from trp_export.latency.table import Table, cache_file
from trp_export.load import load
from trp_export.lowrank.factor import spectrum
from trp_export.lowrank.schemes import describe as words
from trp_export.network import Network, analyse
from trp_export.options import LoadOptions
from trp_export.planning.budgets import Budget, lost_energy, plan_by_macs
from trp_export.planning.curves import Layer, curve_of, schemes_for
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep, take

ROOT = Path(__file__).parents[1]
WORK = ROOT / "runs" / "bench_plans"
DOCS = ROOT / "docs"
NETWORKS = ("resnet18", "vgg16", "mobilenet_v2", "resnet50", "resnet20")
PREDICTED = (1.25, 1.5, 2.0, 2.5, 3.0)
WISHED = (2.0, 1.5)
RIVALS = ("macs", "channel", "spatial", "pointwise")
RIVALRY = ("resnet18", "vgg16")
GOAL = 2.0
NEAR = 0.02
TRIES = 6


def models(names: Sequence[str], clock: Clock) -> None:
    for name in names:
        if not source(name).is_file():
            export_dense(dense(EXPORTED[name]))
        network = analyse(load(source(name), LoadOptions()), _folder(name))
        for place in network.located:
            if clock.over():
                return
            make_layer(name, place)
        print(name, "done", flush=True)


def source(name: str) -> Path:
    """The trained ResNet-20 that comes with the repository, or torchvision's network with random weights."""
    return dense(EXPORTED[name]).model if name in EXPORTED else ROOT / "models_zoo" / "weights" / f"{name}-cifar10.pt"


def make_layer(name: str, place: LocatedSite) -> Layer:
    """A layer with its curves; singular values are kept, since those of VGG-16's linear layers take a minute."""
    if place.site.refusal:
        return Layer(place.site, ())
    curves = []
    for scheme in schemes_for(place.site, "auto"):
        file = WORK / "spectra" / name / f"{place.site.name}-{scheme.name}.npy"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, spectrum(place.kernel(), scheme, place.site.group))
        curves.append(curve_of(place.site, scheme, np.load(file)))
    return Layer(place.site, tuple(curves))


@dataclass(frozen=True)
class Subject:
    """A network with its layers' curves, and its latency here."""

    name: str
    network: Network
    layers: tuple[Layer, ...]
    latency: NetworkLatency


def measure(names: Sequence[str], clock: Clock) -> None:
    for name in names:
        subject = open_subject(name)
        for what, key, work in list_work(subject):
            if key in load_facts(name):
                continue
            if clock.over():
                return
            facts = work()
            write(WORK / f"{name}.json", {**load_facts(name), key: facts})
            print(name, what, json.dumps({k: v for k, v in facts.items() if k != "layers"}), flush=True)


def list_work(subject: Subject) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """What there is to measure, what matters most first."""
    for ratio in WISHED:
        yield "wished", f"wished {ratio:g}", partial(wish, subject, ratio)
    for rival in RIVALS if subject.name in RIVALRY else ():
        yield "rival", f"rival {rival}", partial(push, subject, rival)
    for ratio in PREDICTED:
        yield "predicted", f"predicted {ratio:g}", partial(predict, subject, ratio)


def predict(subject: Subject, ratio: float) -> dict[str, Any]:
    """The plan that the table alone makes, and what it measures."""
    latency = subject.latency
    plan = predicted_plan(subject.layers, latency, latency.original / ratio, ratio, lost_energy)
    return describe(subject, plan)


def wish(subject: Subject, ratio: float) -> dict[str, Any]:
    """The plan as --speedup makes it, or its refusal."""
    try:
        plan = plan_for_speedup(subject.layers, subject.latency, ratio, lost_energy)
    except OptionError as error:
        return {"refused": str(error)}
    return describe(subject, plan)


def push(subject: Subject, rival: str) -> dict[str, Any]:
    """Another way to plan, its own ratio raised until 2x is measured."""
    low, high, ratio = 1.0, 60.0, GOAL
    best: Plan | None = None
    for _ in range(TRIES):
        plan = rival_plan(subject, rival, ratio)
        found = subject.latency.measured(plan)
        if best is None or abs(found - GOAL) < abs(subject.latency.measured(best) - GOAL):
            best = plan
        if abs(found / GOAL - 1) < NEAR:
            break
        low, high = (ratio, high) if found < GOAL else (low, ratio)
        step = ratio * GOAL / found
        ratio = step if low < step < high else (low * high) ** 0.5
    assert best is not None
    return describe(subject, best)


def rival_plan(subject: Subject, rival: str, ratio: float) -> Plan:
    """The MACs plan with aligned ranks, or one scheme with the same ratio in every layer, aligned too."""
    if rival == "macs":
        return plan_by_macs(subject.layers, Budget(subject.network.budget_macs, ratio), channel_block())
    return Plan(tuple(alike(layer, rival, ratio) for layer in subject.layers), f"{rival} {ratio:.3f}")


def alike(layer: Layer, choice: str, ratio: float) -> Decision:
    schemes = schemes_for(layer.site, choice) if layer.curves else ()
    for curve in layer.curves:
        if curve.scheme in schemes:
            rank = layer.site.macs / ratio / curve.macs_per_rank
            block = channel_block()
            aligned = max(block, round(rank / block) * block) if curve.top_rank >= block else max(1, round(rank))
            if aligned <= curve.top_rank:
                return take(layer.site, curve, aligned, choice)
    return keep(layer.site, "kept")


def describe(subject: Subject, plan: Plan) -> dict[str, Any]:
    latency, before = subject.latency, subject.network.budget_macs
    after = before - sum(decision.site.macs - decision.macs for decision in plan.decisions)
    speedup = latency.measured(plan)
    try:
        predicted: float | None = latency.original / latency.predicted(plan)
    except KeyError:  # a rival's rank that the table does not offer
        predicted = None
    return {
        "rule": plan.rule,
        "original_ms": latency.original,
        "predicted": predicted,
        "measured": speedup,
        "macs": before / after,
        "quotient": speedup / (before / after),
        "damage": sum(1 - decision.energy for decision in plan.decisions),
        "layers": [[decision.site.name, words(decision.branches) or None] for decision in plan.decisions],
    }


def open_subject(name: str) -> Subject:
    network = analyse(load(source(name), LoadOptions()), _folder(name))
    layers = tuple(make_layer(name, place) for place in network.located)
    shapes = {key: tuple(size or 1 for size in shape) for key, shape in network.inputs.items()}
    device = DeviceUnderTest("local", 1, shapes)
    conditions = device.conditions()
    table = Table(conditions, cache_file(WORK / "tables", conditions))
    begin = time.monotonic()

    def progress(step: str, share: float) -> None:
        print(f"{name}: {step} {share:.0%}, {time.monotonic() - begin:.0f} s", flush=True)

    latency = measure_network(network, layers, device, table, _folder(name), 1, progress)
    return Subject(name, network, layers, latency)


def _folder(name: str) -> Path:
    folder = WORK / "work" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_facts(name: str) -> dict[str, Any]:
    return dict(read(WORK / f"{name}.json") or {})


def tables(names: Sequence[str], clock: Clock) -> None:
    """Every figure as a table, and predicted against measured as a picture."""
    found = {name: load_facts(name) for name in names if load_facts(name)}
    lines = ["# Plans by latency, as measured", "", *where(), *predictions(found), *wishes(found), *rivalry(found)]
    (DOCS / "results" / "latency-plans-measured.md").write_text("\n".join(lines) + "\n")
    draw(found)
    print(DOCS / "results" / "latency-plans-measured.md")


def where() -> list[str]:
    """The device, from its table."""
    (file,) = (WORK / "tables").glob("local-*.json")
    conditions = read(file)["conditions"]
    return [
        f"{conditions['cpu']}, {conditions['logical_cores']} cores, {conditions['threads']} thread, onnxruntime "
        f"{conditions['onnxruntime']}; torchvision's networks with random weights, 1x3x224x224, and the trained "
        "resnet20, 1x3x32x32; scheme auto. Made by `tools/bench_plans.py`. Damage is lost energy, summed over layers.",
        "",
    ]


def predictions(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Predicted by the table alone", ""]
    lines += [
        "| network | original, ms | predicted | measured | error | MACs | quotient |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in found.items():
        for one in points(facts):
            lines.append(
                f"| {name} | {one['original_ms']:.2f} | {one['predicted']:.2f}x | {one['measured']:.2f}x | "
                f"{one['predicted'] / one['measured'] - 1:+.1%} | {one['macs']:.2f}x | {one['quotient']:.2f} |"
            )
    return [*lines, ""]


def points(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The plans of the table alone, each once: beyond its reach the fastest plan comes again and again."""
    plans = {json.dumps(one["layers"]): one for key, one in facts.items() if key.startswith("predicted")}
    return list(plans.values())


def wishes(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Wished", "", "| network | wish | measured | MACs | quotient | damage |", "|---|---|---|---|---|---|"]
    for name, facts in found.items():
        for ratio in WISHED:
            one = facts.get(f"wished {ratio:g}")
            if one and "refused" in one:
                lines.append(f"| {name} | {ratio:g}x | refused: {one['refused'].partition(': ')[2]} | | | |")
            elif one:
                lines.append(f"| {name} | {ratio:g}x | {row(one)}")
    return [*lines, ""]


def rivalry(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"## Pushed to {GOAL:g}x measured", ""]
    lines += ["| network | plan | measured | MACs | quotient | damage |", "|---|---|---|---|---|---|"]
    for name, facts in found.items():
        plans = {"latency": facts.get(f"wished {GOAL:g}"), **{rival: facts.get(f"rival {rival}") for rival in RIVALS}}
        lines += [
            f"| {name} | {RIVAL_WORDS[key]} | {row(one)}" for key, one in plans.items() if one and name in RIVALRY
        ]
    return [*lines, ""]


RIVAL_WORDS = {
    "latency": "latency",
    "macs": "MACs, ranks in blocks",
    "channel": "every layer alike, channel-wise",
    "spatial": "every layer alike, spatial-wise",
    "pointwise": "every layer alike, pointwise-first",
}


def row(one: dict[str, Any]) -> str:
    return f"{one['measured']:.3f}x | {one['macs']:.2f}x | {one['quotient']:.3f} | {one['damage']:.2f} |"


def draw(found: dict[str, dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    for (name, facts), marker in zip(found.items(), "os^Dv", strict=False):
        plans = points(facts)
        axes.plot([one["predicted"] for one in plans], [one["measured"] for one in plans], marker, label=name)
    ends = np.array(
        [1.0, max(max(one["measured"], one["predicted"]) for facts in found.values() for one in points(facts))]
    )
    axes.plot(ends, ends, "k-", linewidth=0.8)
    axes.fill_between(ends, ends / 1.1, ends * 1.1, color="0.9", label="within 10 %")
    axes.set_xlabel("predicted speed-up of the whole network")
    axes.set_ylabel("measured speed-up")
    axes.legend()
    figure.savefig(DOCS / "assets" / "latency-predicted.svg", metadata={"Date": None})
    figure.savefig(WORK / "predicted.png", dpi=100)


STEPS = {"models": models, "time": measure, "tables": tables}


@click.command()
@click.argument("step", type=click.Choice(list(STEPS)))
@click.option("--networks", type=Listed(choices=NETWORKS), default=NETWORKS)
@click.option("--seconds", default=36000.0)
def main(step: str, networks: tuple[str, ...], seconds: float) -> None:
    """One step of the tables and pictures of docs/results/latency-plans.md."""
    STEPS[step](networks, Clock(seconds / 60))


if __name__ == "__main__":
    main()
