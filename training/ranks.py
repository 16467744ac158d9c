"""Which rank each layer is projected to while training: a rule per layer, or a MACs budget shared out afresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, isfinite, pi

import numpy as np

from trp_export.errors import OptionError
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Scheme
from trp_export.planning.budgets import plan_by_macs
from trp_export.planning.curves import Curve, Layer
from trp_export.planning.plan import Plan
from trp_export.planning.rules import LayerRule, plan_by_rule
from trp_export.rules import Energy, Threshold

RAMPS = ("none", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class MacsBudget:
    """The whole network at `ratio` times fewer multiply-adds than dense."""

    ratio: float

    def __post_init__(self) -> None:
        if not self.ratio > 1 or not isfinite(self.ratio):
            raise OptionError(f"--macs {self.ratio:g} must be above 1; 2 halves the multiply-adds.")

    def __str__(self) -> str:
        return f"macs {self.ratio:g}x fewer"


RankRule = LayerRule | MacsBudget


def ramped(rule: RankRule, ramp: str, progress: float) -> RankRule:
    """The rule at `progress` in [0, 1] of its ramp: from doing nothing at 0 to the whole of it at 1.

    A budget grows from 1x, an energy falls from 1, a threshold rises from 0; a fixed rank does not ramp.
    """
    if ramp == "none" or progress >= 1:
        return rule
    share = progress if ramp == "linear" else 0.5 * (1 - cos(pi * progress))
    match rule:
        case MacsBudget(ratio):
            return MacsBudget(1.0 + max(1e-9, (ratio - 1.0) * share))
        case Energy(kept):
            return Energy(1.0 - (1.0 - kept) * share)
        case Threshold(value, absolute):
            return Threshold(max(value * share, 1e-12), absolute)
    return rule


def plan_of_ranks(
    layers: Sequence[Layer], rule: RankRule, total_macs: int, weights: Mapping[str, float] | None = None
) -> Plan:
    """The plan of a cut now. `weights` say how much lost energy hurts in each layer under a budget, 1 where not named.

    Raises OptionError where a budget cannot be met.
    """
    if not isinstance(rule, MacsBudget):
        return plan_by_rule(layers, rule)

    def damage(layer: Layer, curve: Curve) -> Float64:
        return np.asarray((weights or {}).get(layer.site.name, 1.0) * (1.0 - curve.energy))

    return plan_by_macs(layers, total_macs, rule.ratio, damage=damage)


def projection_ranks(
    layers: Sequence[Layer], rule: RankRule, total_macs: int, weights: Mapping[str, float] | None = None
) -> dict[str, int]:
    """The rank of each layer with a curve, by name; its full rank where it is left alone.

    A rule for layers cuts at the rank it asks for even where that does not yet save anything: it is on its way
    there. A budget leaves dense what it wants dense.
    """
    curves = {layer.site.name: layer.curves[0] for layer in layers if layer.curves}
    if not isinstance(rule, MacsBudget):
        return {name: rule.rank(curve) for name, curve in curves.items()}
    plan = plan_of_ranks(layers, rule, total_macs, weights)
    ranks = {change.site.name: change.rank for change in plan.changed}
    return {name: ranks.get(name) or curve.full_rank for name, curve in curves.items()}


def choose_schemes(
    layers: Sequence[Layer], rule: RankRule, total_macs: int, weights: Mapping[str, float] | None = None
) -> dict[str, Scheme]:
    """One scheme for each layer with curves: the plan's where it changes the layer, else the cheapest per rank kept."""
    plan = plan_of_ranks(layers, rule, total_macs, weights)
    planned = {change.site.name: change.scheme for change in plan.changed}
    chosen: dict[str, Scheme] = {}
    for layer in layers:
        if layer.curves:
            fallback = min(layer.curves, key=lambda curve: curve.full_rank * curve.macs_per_rank)
            chosen[layer.site.name] = planned.get(layer.site.name) or fallback.scheme
    return chosen
