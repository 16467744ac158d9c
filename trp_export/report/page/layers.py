"""The layers of a plan: a table of what each becomes and why, and pictures of what the ranks keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from trp_export.lowrank.schemes import describe
from trp_export.planning.curves import Curve, Layer
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import describe_energy
from trp_export.report.page.charts import bars, energy_picture
from trp_export.report.page.markup import Markup, element, join
from trp_export.report.wording import count, kernel, shorten, times
from trp_export.system.text import name_some

MOST_ROWS = 400
MOST_PICTURES = 120
_NAME = 90
_REASON = 240
_MOST_NAMED = 3
_T = TypeVar("_T")
Times = Mapping[str, tuple[float, float]]  # ms by layer, dense and in the result


def table(plan: Plan, layer_ms: Times | None = None) -> Markup:
    """One row per layer, in the order of the graph: what it becomes, what that costs, and why."""
    kept_macs = sum(decision.site.macs for decision in plan.decisions if not decision.branches)
    all_macs = sum(decision.site.macs for decision in plan.decisions)
    kept = f" The others hold {kept_macs / all_macs:.0%} of the MACs." if kept_macs and all_macs else ""
    listed = _costliest(plan.decisions, MOST_ROWS, lambda decision: decision.site.macs)
    largest = max((max(decision.site.macs, decision.macs) for decision in listed), default=1)
    intro = f"{len(plan.changed)} of {len(plan.decisions)} layers become factor pairs under the rule “{plan.rule}”."
    left_out = f" Only the {MOST_ROWS} costliest are listed." if len(listed) < len(plan.decisions) else ""
    timed = layer_ms or {}
    slowest = max((max(timed.get(decision.site.name, (0.0, 0.0))) for decision in listed), default=0.0)
    names = [("layer", None), ("becomes", "becomes"), ("MACs, dense above pair", "macs"), ("why", "why")]
    if timed:
        names.insert(3, ("ms, dense above pair", "ms"))
    head = element("tr", *(element("th", name, scope="col", class_=class_) for name, class_ in names))
    rows = (_row(decision, largest, _milliseconds(decision, timed, slowest) if timed else None) for decision in listed)
    return join(
        element("p", intro, kept, left_out),
        element("p", _sum_of(listed, timed)) if timed else None,
        element(
            "table",
            element("thead", head),
            element("tbody", *rows),
            class_="layers timed" if timed else "layers",
        ),
    )


def pictures(plan: Plan, layers: Sequence[Layer], layer_ms: Times | None = None) -> Markup | None:
    """A picture for each layer that can be factored; None if there is none."""
    by_name = {layer.site.name: layer for layer in layers}
    pairs = [
        (decision, curve)
        for decision in plan.decisions
        if (curve := _curve(decision, by_name.get(decision.site.name))) is not None
    ]
    if not pairs:
        return None
    shown = _costliest(pairs, MOST_PICTURES, lambda pair: pair[0].site.macs)
    left_out = f" Only the {MOST_PICTURES} costliest layers are drawn." if len(shown) < len(pairs) else ""
    cards = (_card(decision, curve, (layer_ms or {}).get(decision.site.name)) for decision, curve in shown)
    return join(
        element("p", _INTRO, left_out),
        _key(),
        element("div", *cards, class_="pictures"),
    )


_INTRO = (
    "Energy is the share of the squared singular values that a rank keeps. A pair saves work only below the break-even "
    "rank, where it costs as many MACs as the dense layer."
)


def _row(decision: Decision, largest: int, milliseconds: Markup | None) -> Markup:
    site = decision.site
    kept = not decision.branches
    detail = f"{site.op} {kernel(site.kernel_shape, site.group)}" if site.kernel_shape else site.op
    name = element("th", shorten(site.name, _NAME), element("small", shorten(detail, _NAME)), scope="row")
    if kept:
        becomes = element("td", "kept", class_="becomes kept")
        costs = count(site.macs)
    else:
        names = " + ".join(branch.scheme.name for branch in decision.branches)
        ranks = " + ".join(f"{branch.rank} of {site.full_rank(branch.scheme)}" for branch in decision.branches)
        becomes = element("td", names, element("small", f"rank {ranks}"), class_="becomes")
        costs = f"{count(site.macs)} → {count(decision.macs)}, {times(site.macs, decision.macs)}"
    drawing = bars(site.macs, None if kept else decision.macs, largest)
    macs = element("td", drawing, element("small", costs), class_="macs")
    why = element("td", shorten(decision.reason, _REASON), class_="why kept" if kept else "why")
    return element("tr", name, becomes, macs, milliseconds, why, class_="refused" if kept and not site.macs else None)


def _milliseconds(decision: Decision, timed: Times, slowest: float) -> Markup:
    """The time of the layer before and after; a dash if the profile does not separate it from others."""
    if decision.site.name not in timed:
        return element("td", element("small", "-"), class_="ms")
    dense, pair = timed[decision.site.name]
    label = _dense_and_pair(dense, pair) if decision.branches else f"{dense:.3g} ms"
    drawing = bars(dense, pair if decision.branches else None, slowest)
    return element("td", drawing, element("small", label), class_="ms")


def _dense_and_pair(dense: float, pair: float) -> str:
    return f"{dense:.3g} → {pair:.3g} ms, {times(dense, pair)}"


def _sum_of(decisions: Sequence[Decision], timed: Times) -> str:
    """How the times of single layers were measured, their sums, and how many pairs gain nothing."""
    changed = [timed[layer.site.name] for layer in decisions if layer.branches and layer.site.name in timed]
    dense, pairs = sum(before for before, _ in changed), sum(after for _, after in changed)
    slower = sum(after >= before for before, after in changed)
    useless = f" {slower} of {len(changed)} pairs took as long as their layer or longer." if slower else ""
    return (
        "The times of single layers, in float32, come from onnxruntime's profiler, with one process per network; they "
        f"are less exact than those of whole networks. The changed layers took {dense:.3g} ms before and {pairs:.3g} "
        f"ms as pairs.{_left_of(decisions, timed)}{useless}"
    )


def _left_of(decisions: Sequence[Decision], timed: Times) -> str:
    """What the pairs would take at the rate of the layers that they replace, and where most of the rest is."""
    over = {}
    bound = 0.0
    for decision in decisions:
        if decision.branches and decision.site.name in timed and decision.site.macs:
            dense, pair = timed[decision.site.name]
            least = dense * decision.macs / decision.site.macs
            bound += least
            over[decision.site.name] = pair - least
    left = sum(over.values())
    if left <= 0:
        return ""
    most = [name for name in sorted(over, key=lambda name: -over[name])[:_MOST_NAMED] if over[name] > 0]
    return (
        f" At the rate of the layers that they replace, the pairs would take {bound:.3g} ms: {left:.3g} ms are left, "
        f"most of them in {name_some([shorten(name, _NAME) for name in most])}."
    )


def _curve(decision: Decision, layer: Layer | None) -> Curve | None:
    """The curve of the chosen scheme; for a layer that is kept, the curve that loses least while it saves MACs."""
    if layer is None or not layer.curves:
        return None
    if decision.branches:
        *after, last = decision.branches
        matches = (curve for curve in layer.curves if curve.scheme == last.scheme and curve.after == tuple(after))
        return next(matches, None)
    return max(layer.curves, key=_best_energy)


def _best_energy(curve: Curve) -> float:
    return float(curve.energy[curve.top_rank - 1]) if curve.top_rank else 0.0


def _card(decision: Decision, curve: Curve, times_ms: tuple[float, float] | None) -> Markup:
    name = shorten(decision.site.name, _NAME)
    caption = _caption(decision, curve)
    if times_ms is not None and decision.branches:
        caption = f"{caption}; {_dense_and_pair(*times_ms)}"
    rank = decision.branches[-1].rank if decision.branches else None
    return element(
        "figure",
        element("h3", name),
        energy_picture(f"{name}: {caption}", curve, rank),
        element("figcaption", caption),
    )


def _caption(decision: Decision, curve: Curve) -> str:
    if decision.branches:
        last = decision.branches[-1]
        first = f"{describe(curve.after)} + " if curve.after else ""
        cut = f"{first}{curve.scheme.name}, rank {last.rank} of {curve.full_rank}"
        return f"{cut}: {_energy(curve, last.rank)}, {times(decision.site.macs, decision.macs)} fewer MACs"
    reason = shorten(decision.reason, _REASON)
    if not curve.top_rank:
        return f"kept: {reason}"
    best = f"{curve.scheme.name} at rank {curve.top_rank}, the largest that saves MACs, keeps"
    return f"kept: {reason} ({best} {_energy(curve, curve.top_rank)})"


def _energy(curve: Curve, rank: int) -> str:
    return describe_energy(float(curve.energy[rank - 1]))


def _key() -> Markup:
    """The meaning of the lines and areas in the pictures."""
    entries = (
        ("energy", element("path", d="M1 10L8 4L21 2", class_="line")),
        ("singular values kept", element("rect", width=22, height=12, class_="kept")),
        ("dropped", element("rect", width=22, height=12, class_="dropped")),
        ("the cut", element("path", d="M11 0V12", class_="cutline")),
        ("break-even", element("path", d="M11 0V12", class_="dash")),
    )
    swatch = {"viewBox": "0 0 22 12", "aria_hidden": "true"}
    return element(
        "ul", *(element("li", element("svg", shape, **swatch), name) for name, shape in entries), class_="key"
    )


def _costliest(items: Iterable[_T], most: int, macs: Callable[[_T], int]) -> list[_T]:
    """At most `most` items: the costliest, in their order."""
    listed = list(items)
    kept = sorted(range(len(listed)), key=lambda index: -macs(listed[index]))[:most]
    return [listed[index] for index in sorted(kept)]
