"""Fill docs/results/plan-ranking.md: does the predicted damage rank plans as the true metric does?

    TRP_DATA=SHARED python tools/plan_ranking.py                     # what is missing; a second call continues
    TRP_DATA=SHARED python tools/plan_ranking.py --only yolox
    python tools/plan_ranking.py --write                             # the tables, into the page

For each network 20 plans are made from the same calibration images: budgets of 1.05 to 2 times fewer multiply-adds,
each shared out over all layers and over a random two thirds of them. Each is built in closed form and measured on
images that nothing was fitted to. SHARED is listed in `tools/data.py`; networks and images are those of
`tools/real_networks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import append, put_into_page, read
from real_networks import NETWORKS, Network, arguments
from scipy.stats import spearmanr

from trp_export import Options, TrpError
from trp_export.cli.export import command
from trp_export.flags import build_value
from trp_export.metrics.score import scale
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Plan
from trp_export.rules import Macs
from trp_export.steps.build import build
from trp_export.steps.knowledge import Knowledge, learn
from trp_export.steps.rules import plan_by
from trp_export.workspace import Workspace, open_workspace

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "plan-ranking.md"
ROWS = Path(__file__).resolve().parents[1] / "build" / "plan_ranking.jsonl"
RATIOS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.75, 2.0)
# The share of layers that every second plan may cut.
SHARE = 2 / 3


@click.command(help=(__doc__ or "").split("\n", maxsplit=1)[0])
@click.option("--only", default="", help="Networks whose name contains this.")
@click.option("--write", is_flag=True, help="Put all rows into the page.")
def main(only: str, *, write: bool) -> None:
    ROWS.parent.mkdir(exist_ok=True)
    if write:
        rows = read(ROWS)
        put_into_page(PAGE, "correlations", "\n".join(summary(rows)))
        put_into_page(PAGE, "plans", "\n".join(listing(rows)))
        return
    for network in NETWORKS:
        if only.lower() in network.name.lower():
            measure(network)


def measure(network: Network) -> None:
    """The plans of a network that are not in the file yet, one row each."""
    done = {(row["network"], row["ratio"], row["layers"]) for row in read(ROWS)}
    wanted = [(ratio, layers) for layers in ("all", "two thirds") for ratio in RATIOS]
    wanted = [one for one in wanted if (network.name, *one) not in done]
    if not wanted:
        return
    model, options = options_of(network)
    with open_workspace(model, options, lambda step, share: None) as work:
        knowledge = learn(model, options, work)
        for ratio, layers in wanted:
            row = {"network": network.name, "metric": network.metric, "ratio": ratio, "layers": layers}
            append(ROWS, row | try_plan(ratio, layers, knowledge, options, work))


def options_of(network: Network) -> tuple[Path, Options]:
    """The model and the options of its command in tools/real_networks.py, without refit: that takes the longest."""
    shared = Path(os.environ["TRP_DATA"])
    folders = {"models": shared / "models" / "real", "data": shared / "data" / "real"}
    words = [word.format(**folders) for word in arguments(network, "--macs 1.25", None, "real")[1:]]
    given = command.make_context("trp-export", [*words, "--no-recover"]).params
    return given.pop("model"), build_value(Options, given)


def try_plan(ratio: float, layers: str, knowledge: Knowledge, options: Options, work: Workspace) -> dict[str, Any]:
    """One plan: the damage predicted, the divergence on held-out images, and the metric."""
    chosen = knowledge.layers if layers == "all" else some(knowledge.layers, seed=round(100 * ratio))
    try:
        plan = plan_by(Macs(ratio), replace(knowledge, layers=chosen))
    except TrpError as error:
        return {"error": str(error).splitlines()[0]}
    built = build(plan, knowledge, options.calibration, work.scratch / "candidate.onnx", work)
    score = knowledge.required_evaluator(built.files.result, lambda share: None)
    held_out = built.held_out
    return {
        "predicted": predicted(plan, knowledge),
        "held_out": held_out.divergence if held_out is not None else None,
        "before": score.before,
        "after": score.after,
        "drop": score.drop,
        "error_of_drop": score.error and score.error * scale(score.unit),
        "images": score.images,
    }


def some(layers: Sequence[Layer], seed: int) -> tuple[Layer, ...]:
    """The layers, of which a random third may not be cut."""
    kept = np.random.default_rng(seed).random(len(layers)) < SHARE
    return tuple(layer if keep else replace(layer, curves=()) for layer, keep in zip(layers, kept, strict=True))


def predicted(plan: Plan, knowledge: Knowledge) -> float:
    """The sum of the damage that sensitivities foretell for each pair."""
    data = knowledge.calibration
    sensitivities = data.sensitivities if data is not None else {}
    lost = ((decision.site.name, 1 - decision.energy) for decision in plan.decisions if decision.branches)
    return sum(float(sensitivities[name].at(np.array([share]))[0]) for name, share in lost if name in sensitivities)


def summary(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rank correlations of each network, over plans that differ."""
    yield "| network | plans | metric | predicted and metric | held-out and metric | predicted and held-out |"
    yield "|---|---|---|---|---|---|"
    for name in dict.fromkeys(row["network"] for row in rows):
        # A network of few layers gets the same plan twice.
        own = list({r["predicted"]: r for r in rows if r["network"] == name and "error" not in r}.values())
        foretold, held_out, lost = (np.array([row[key] for row in own]) for key in ("predicted", "held_out", "drop"))
        pairs = ((foretold, lost), (held_out, lost), (foretold, held_out))
        cells = (f"{spearmanr(a, b).statistic:.2f}" for a, b in pairs)
        metric = f"{own[0]['metric']}, {own[0]['images']} images"
        yield f"| {name} | {len(own)} | {metric} | {' | '.join(cells)} |"


def listing(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """All plans."""
    yield "| network | MACs | layers that may be cut | predicted damage | held-out divergence | metric lost |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        start = f"| {row['network']} | {row['ratio']:g}x fewer | {row['layers']} "
        if "error" in row:
            yield f"{start}| {row['error']} | | |"
            continue
        lost = f"{row['drop']:.2f}" + (f" ± {row['error_of_drop']:.2f}" if row["error_of_drop"] is not None else "")
        yield f"{start}| {row['predicted']:.3g} | {row['held_out']:.3g} | {lost} |"


if __name__ == "__main__":
    main()
