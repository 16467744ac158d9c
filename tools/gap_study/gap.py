"""The optimisation gap: how well scores that cost little rank plans by what these are worth once they are recovered.

Plans are drawn around the budget, near the planner's and by the search's distribution. Each gets its scores, is
recovered on two draws of images, and judged on others. The second recovery is the noise ceiling: no score can be
expected to rank plans better than the same work done again on other images does.
Source: Xie et al., "Weight-Sharing Neural Architecture Search", arXiv 2008.01475.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from recovery import DRAWS, Recovery, images_needed, split_images
from sample import Drawn, as_plan, draw_plans
from trust import Estimate, Trust, bootstrap, kendall, measure_trust

from training.search.calibrated import LABELLED, MOST_IMAGES, calibrate_for_search, labelled_images
from training.search.loop import Search
from training.search.options import SearchOptions
from training.search.run import SavedSearch, open_search
from training.search.space import Space, by_macs
from trp_export.calibration.moments import Moments
from trp_export.calibration.output_curves import calibrated_layers
from trp_export.calibration.sensitivities import measure_sensitivities
from trp_export.errors import LoadError, OptionError
from trp_export.inputs.calibration import image_samples
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.lowrank.factor import Float64
from trp_export.network import Network, measure_layers
from trp_export.options import Selection
from trp_export.planning.budgets import Damage, lost_energy, measured_damage
from trp_export.planning.curves import Layer
from trp_export.rules import Macs
from trp_export.system.extras import require
from trp_export.system.files import atomic_write
from trp_export.system.progress import Progress
from trp_export.system.scratch import Scratch

# The best fifth of eleven plans holds three, the fewest that have a rank correlation.
FEWEST_PLANS = 11
# Images on which sensitivities are measured.
_MEASURED_ON = 256
CEILING = "the same recovery on other images"
SEARCHED, PREDICTED = "loss in the super-network", "damage that the planner predicts"
VARIANCE, ENERGY = "lost output variance", "lost energy"
_FORMAT = "trp-gap-1"


@dataclass(frozen=True, slots=True, eq=False)
class Gap:
    """Plans with their cost over the budget's (plans,), their scores, less being better, and their accuracy in percent
    after recovery on each draw (plans, draws). `measure` is "accuracy" or "agreement"."""

    plans: tuple[Drawn, ...]
    costs: Float64
    scores: Mapping[str, Float64]
    accuracy: Float64
    measure: str
    images: Mapping[str, int]

    def trust(self) -> dict[str, Trust]:
        """Of each score, and of the ceiling."""
        first, second = self.accuracy[:, 0], self.accuracy[:, 1]
        return {name: measure_trust(-score, first) for name, score in self.scores.items()} | {
            CEILING: measure_trust(second, first)
        }

    def within(self) -> dict[str, dict[str, Estimate]]:
        """Kendall's tau-b of each score, and of the ceiling, among the plans of one source: score -> source -> tau-b.

        Plans that were chosen by a score look better by it than they are, beside plans that were not.
        """
        sources = np.array([plan.source for plan in self.plans])
        shown = {name: -score for name, score in self.scores.items()} | {CEILING: self.accuracy[:, 1]}
        return {
            name: {
                str(source): bootstrap(kendall, score[sources == source], self.accuracy[sources == source, 0], 0)
                for source in dict.fromkeys(sources)
            }
            for name, score in shown.items()
        }

    def to_json(self) -> dict[str, Any]:
        plans = [
            {
                "source": plan.source,
                "chosen": list(plan.chosen),
                "cost": float(self.costs[index]),
                "scores": {name: float(score[index]) for name, score in self.scores.items()},
                self.measure: self.accuracy[index].tolist(),
            }
            for index, plan in enumerate(self.plans)
        ]
        return {
            "format": _FORMAT,
            "measure": self.measure,
            "images": dict(self.images),
            "trust": {name: asdict(own) for name, own in self.trust().items()},
            "within": {name: {s: asdict(tau) for s, tau in own.items()} for name, own in self.within().items()},
            "plans": plans,
        }


def measure_gap(model: Path, options: SearchOptions, saved: SavedSearch, count: int, progress: Progress) -> Gap:
    """Measure the gap of a finished search with `count` plans. Writes gap.json, gap.md and gap.png into its folder.

    Raises OptionError where plans or images are too few, or the search is of a kind that is not supported.
    """
    require_measurable(options, count)
    ratio = options.rule.ratio
    with Scratch() as scratch:
        seen = calibrate_for_search(model, options, scratch.folder, progress)
        network, sites = seen.network, [place.site for place in seen.network.located]
        fixed = network.budget_macs - sum(site.macs for site in sites)
        budget = network.budget_macs / ratio - fixed
        spaces = by_macs(sites, options.scheme)
        # What its logits started from is over.
        search = open_search(replace(options, start="uniform"), seen, spaces, budget, progress)
        search.load_state_dict(saved.searches[0])
        batches = tuple(image_samples(seen.images, network.described).batches())
        few = batches[: -(-_MEASURED_ON // len(batches[0]))]
        lost = predict(network, spaces, seen.moments, few, options.scheme, progress)
        plans = draw_plans(
            spaces, budget, network.budget_macs / ratio, lost[PREDICTED], search.logits(), count, options.seed
        )
        progress("score plans", 0)
        scores = score(search, plans, lost)
        images, labelled = _more_images(options, network)
        recovery = Recovery(network, split_images(images, seen.images, options.seed), labelled)
        accuracy = recover(recovery, spaces, plans, options.folder / "recovered.json", progress)
    costs = np.array([(fixed + plan.cost(spaces)) * ratio / network.budget_macs for plan in plans])
    gap = Gap(plans, costs, scores, accuracy, recovery.measure, recovery.counts)
    _save(gap, options.folder)
    return gap


def require_measurable(options: SearchOptions, count: int) -> None:
    """Raise OptionError for a search whose gap cannot be measured."""
    if count < FEWEST_PLANS:
        raise OptionError(f"--count {count}: at least {FEWEST_PLANS} plans are needed.")
    if options.data is None:
        raise OptionError("plans are judged on images: the search must have used --data.")
    if not isinstance(options.rule, Macs) or options.branches > 1:
        raise OptionError("the search must have used --macs and single pairs.")


def _more_images(options: SearchOptions, network: Network) -> tuple[ImageSet, bool]:
    """Images beyond those of the search, and whether they have labels."""
    assert options.data is not None
    count, seed = images_needed(options.count or MOST_IMAGES), options.seed + 1
    preprocessing = Preprocessing(options.mean, options.std).or_else(network.source.mean, network.source.std)
    if options.data.startswith(LABELLED):
        return labelled_images(options.data, network, preprocessing, count, seed), True
    spec = network.described.image
    return load_images(Path(options.data), preprocessing, spec=spec, count=count, seed=seed), False


def predict(
    network: Network,
    spaces: Sequence[Space],
    moments: Mapping[str, Moments],
    batches: Sequence[Any],
    scheme: str,
    progress: Progress,
) -> dict[str, list[Float64]]:
    """What each candidate of each space loses: by the planner's damage, in output variance, and in energy alone."""
    plain = measure_layers(network, Selection(scheme), (), progress)
    layers = calibrated_layers(plain, network.located, moments, partial(progress, "output errors"))
    sensitivities = measure_sensitivities(
        network.model, layers, moments, batches, progress=partial(progress, "sensitivities")
    )
    return {
        PREDICTED: _lost(spaces, layers, measured_damage(sensitivities)),
        VARIANCE: _lost(spaces, layers, lost_energy),
        ENERGY: _lost(spaces, plain, lost_energy),
    }


def _lost(spaces: Sequence[Space], layers: Sequence[Layer], damage: Damage) -> list[Float64]:
    by_name = {layer.site.name: layer for layer in layers}
    lost = []
    for space in spaces:
        layer = by_name[space.site.name]
        curves = {curve.scheme: damage(layer, curve) for curve in layer.curves}
        options = [curves[b[0].scheme][b[0].rank - 1] if b else 0.0 for b in space.candidates]
        lost.append(np.array(options, dtype=np.float64))
    return lost


def score(search: Search, plans: Sequence[Drawn], lost: Mapping[str, Sequence[Float64]]) -> dict[str, Float64]:
    """Of each plan, without recovering it; less is better."""
    scores = {SEARCHED: np.array([search.score(plan.chosen) for plan in plans])}
    for name, own in lost.items():
        scores[name] = np.array([sum(float(a[k]) for a, k in zip(own, plan.chosen, strict=True)) for plan in plans])
    return scores


def recover(
    recovery: Recovery, spaces: Sequence[Space], plans: Sequence[Drawn], path: Path, progress: Progress
) -> Float64:
    """Accuracy in percent of each plan on each draw (plans, draws). What is done is kept at `path`."""
    known = _read(path)
    for index, plan in enumerate(plans):
        for draw in range(DRAWS):
            progress(f"recover plan {index + 1} of {len(plans)}", (index + draw / DRAWS) / len(plans))
            if (plan.chosen, draw) not in known:
                known[plan.chosen, draw] = recovery.judge(as_plan(spaces, plan), draw)
                _write(path, known)
    return np.array([[known[plan.chosen, draw] for draw in range(DRAWS)] for plan in plans])


def _read(path: Path) -> dict[tuple[tuple[int, ...], int], float]:
    """Raises LoadError where something else lies there."""
    if not path.exists():
        return {}
    try:
        return {(tuple(chosen), draw): value for chosen, draw, value in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise LoadError(f"{path} is damaged ({error}); remove it, and its plans are recovered again.") from error


def _write(path: Path, known: Mapping[tuple[tuple[int, ...], int], float]) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps([[*key, value] for key, value in known.items()]), encoding="utf-8")


def _save(gap: Gap, folder: Path) -> None:
    with atomic_write(folder / "gap.json") as part:
        part.write_text(json.dumps(gap.to_json(), indent=1) + "\n", encoding="utf-8")
    with atomic_write(folder / "gap.md") as part:
        part.write_text(table(gap), encoding="utf-8")
    with atomic_write(folder / "gap.png") as part:
        draw_gap(gap, part)


def table(gap: Gap) -> str:
    """In Markdown: a line for each score."""
    found, within = gap.trust(), gap.within()
    first = next(iter(found.values()))
    head = ["score", "tau-b", "rho", "tau-b, top fifth", "rho, top fifth"]
    head += [f"tau-b, from the {source}" for source in within[CEILING]]
    head += [f"regret, best of {k}" for k, _ in first.regret]
    lines = [head, ["---"] * len(head)]
    for name, own in found.items():
        estimates = [own.kendall, own.spearman, own.kendall_top, own.spearman_top, *within[name].values()]
        lines.append([name, *map(_shown, estimates), *(_shown(estimate) for _, estimate in own.regret)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(gap: Gap) -> str:
    """What of the table fits a terminal: how the scores rank all plans and the best, and the cost of following them."""
    lines = [["", "tau-b", "tau-b, top fifth", "regret, best of 1"]]
    for name, own in gap.trust().items():
        lines.append([name, *map(_shown, (own.kendall, own.kendall_top, own.regret[0][1]))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"{row.rstrip()}\n" for row in rows)


def _shown(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def draw_gap(gap: Gap, path: Path) -> None:
    """Every score against accuracy, a point for each plan; those far below the others lie on the lower edge."""
    require("gap.png", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    low, high = np.quantile(gap.accuracy[:, 0], 0.1), gap.accuracy[:, 0].max()
    edge = low - (high - low)
    accuracy = np.maximum(gap.accuracy, edge)
    shown = {**gap.scores, CEILING: accuracy[:, 1]}
    figure = Figure(figsize=(3.2 * len(shown), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    trust, sources = gap.trust(), np.array([plan.source for plan in gap.plans])
    for axis, (name, values) in zip(figure.subplots(1, len(shown), sharey=True), shown.items(), strict=True):
        for colour, source in enumerate(dict.fromkeys(sources)):
            own = sources == source
            axis.scatter(values[own], accuracy[own, 0], s=12, color=f"C{colour}", label=f"from the {source}")
        if name != CEILING:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
        tau = trust[name].kendall.value
        axis.set_title(f"tau-b {tau:.2f}" if tau is not None else "tau-b undefined", fontsize=9)
        axis.set_xlabel(name if name != CEILING else f"{gap.measure}, {name}, %", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.axes[0].set_ylabel(f"{gap.measure} after recovery, %", fontsize=8)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120, format="png")
