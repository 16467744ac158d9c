"""The rank to which each layer is projected in training: by a rule for each layer, or by a budget of multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi

import numpy as np

from training.settings import RankRule
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Scheme
from trp_export.planning.budgets import Budget, plan_by_macs
from trp_export.planning.curves import Curve, Layer, align_rank
from trp_export.planning.plan import Plan
from trp_export.planning.rules import plan_by_rule
from trp_export.rules import Energy, Macs, Threshold


def ramped(rule: RankRule, ramp: str, progress: float) -> RankRule:
    """The rule at `progress` in [0, 1] of its ramp: without effect at 0, in full effect at 1.

    A budget grows from 1x, an energy falls from 1, a threshold rises from 0. A fixed rank has no ramp.
    """
    if ramp == "none" or progress >= 1:
        return rule
    share = progress if ramp == "linear" else 0.5 * (1 - cos(pi * progress))
    match rule:
        case Macs(ratio):
            return Macs(1.0 + max(1e-9, (ratio - 1.0) * share))
        case Energy(energy):
            return Energy(1.0 - (1.0 - energy) * share)
        case Threshold(value, absolute):
            return Threshold(max(value * share, 1e-12), absolute)
    return rule


@dataclass(frozen=True, slots=True)
class RankChoice:
    """By what ranks are chosen: a rule, and for a budget the multiply-adds of the whole network.

    `weights` say how much lost energy harms in each layer under a budget; layers that are not named have 1. Ranks are
    multiples of `align` where a layer has such ranks.
    """

    rule: RankRule
    total_macs: int
    weights: Mapping[str, float] | None = None
    align: int = 1

    def damage(self, layer: Layer, curve: Curve) -> Float64:
        """How much each rank of a curve harms."""
        return np.asarray((self.weights or {}).get(layer.site.name, 1.0) * (1.0 - curve.energy))


def plan_of_ranks(layers: Sequence[Layer], choice: RankChoice) -> Plan:
    """The plan of a cut at this moment. Raises OptionError where a budget cannot be met."""
    if isinstance(choice.rule, Macs):
        budget = Budget(choice.total_macs, choice.rule.ratio)
        return plan_by_macs(layers, budget, choice.align, choice.damage)
    return plan_by_rule(layers, choice.rule, choice.align)


def projection_ranks(layers: Sequence[Layer], choice: RankChoice) -> dict[str, int]:
    """The rank of each layer with a curve, by name; the full rank where the layer stays dense.

    A rule for each layer projects to its rank even where that does not save anything yet, because the rank is still
    falling. Under a budget, layers that the plan keeps dense are not projected.
    """
    curves = {layer.site.name: layer.curves[0] for layer in layers if layer.curves}
    rule, align = choice.rule, choice.align
    if not isinstance(rule, Macs):
        return {name: align_rank(rule.rank(curve), align, curve.top_rank) for name, curve in curves.items()}
    plan = plan_of_ranks(layers, choice)
    ranks = {change.site.name: change.rank for change in plan.changed}
    return {name: ranks.get(name) or curve.full_rank for name, curve in curves.items()}


def choose_schemes(layers: Sequence[Layer], choice: RankChoice) -> dict[str, Scheme]:
    """One scheme for each layer with curves: the plan's, or for a layer that it keeps the cheapest at full rank."""
    plan = plan_of_ranks(layers, choice)
    planned = {change.site.name: change.scheme for change in plan.changed}
    chosen: dict[str, Scheme] = {}
    for layer in layers:
        if layer.curves:
            fallback = min(layer.curves, key=lambda curve: curve.full_rank * curve.macs_per_rank)
            chosen[layer.site.name] = planned.get(layer.site.name) or fallback.scheme
    return chosen
