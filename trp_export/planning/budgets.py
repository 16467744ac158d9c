"""A plan for the whole network under a budget: one trade-off over all layers, in MACs, parameters or latency."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import OptionError
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.site import Site
from trp_export.planning.curves import Curve, Layer, ranks_at
from trp_export.planning.knapsack import Allocation, Menu, allocate
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep, take
from trp_export.planning.sensitivity import Sensitivity, damage_of

Damage = Callable[[Layer, Curve], Float64]
Ranks = NDArray[np.intp]
NO_RANKS: Ranks = np.zeros(0, dtype=np.intp)
# Layers that a message names: those that hold at least this share, the largest of them.
_LARGE_SHARE = 0.05
_MOST_NAMED = 3


def lost_energy(layer: Layer, curve: Curve) -> Float64:
    """The damage of each rank where only the weights are known: the share of energy that is lost.

    With calibrated curves this is the share of the output's variance that is lost.
    """
    return np.asarray(1.0 - curve.energy)


def measured_damage(sensitivities: Mapping[str, Sensitivity]) -> Damage:
    """The damage of each rank to the network's output, for curves whose energy is the output variance that is kept."""
    return lambda layer, curve: damage_of(layer.site.name, np.maximum(1.0 - curve.energy, 0.0), sensitivities)


@dataclass(frozen=True, slots=True, eq=False)
class LayerTiming:
    """The time of one layer on a device, in the device's unit: dense, and by scheme name at the ranks on offer.

    A pair is a tuple of ranks, ascending, and their costs.
    """

    dense: float
    pairs: Mapping[str, tuple[Ranks, Float64]]


@dataclass(frozen=True, slots=True)
class _Option:
    curve: Curve | None
    rank: int


@dataclass(frozen=True, slots=True)
class _Offer:
    """The options of one layer, with the cost and the damage of each."""

    layer: Layer
    options: tuple[_Option, ...]
    menu: Menu


# The ranks to consider for a curve of a layer, and what each costs.
Costs = Callable[[Layer, Curve], tuple[Ranks, Float64]]


@dataclass(frozen=True, slots=True)
class Budget:
    """A network of `total` that is to become `ratio` times smaller, `already` times of which are done."""

    total: int
    ratio: float
    already: float = 1.0

    @property
    def left(self) -> float:
        """What the layers together may have."""
        return self.total * self.already / self.ratio


@dataclass(frozen=True, slots=True, eq=False)
class BudgetedLayers:
    """Layers with what each of their options costs and harms, and what they may cost together, in the same unit."""

    offers: tuple[_Offer, ...]
    budget: float


def layers_in_macs(
    layers: Sequence[Layer], budget: Budget, align: int = 1, damage: Damage = lost_energy
) -> BudgetedLayers:
    """Layers under a budget of multiply-adds, which count the whole network."""
    return _counted(
        layers, budget, align, damage, lambda site: site.macs, lambda curve: (curve.macs_before, curve.macs_per_rank)
    )


def layers_in_params(
    layers: Sequence[Layer], budget: Budget, align: int = 1, damage: Damage = lost_energy
) -> BudgetedLayers:
    """Layers under a budget of parameters; no layer gets more multiply-adds."""
    return _counted(
        layers,
        budget,
        align,
        damage,
        lambda site: site.params,
        lambda curve: (curve.params_before, curve.params_per_rank),
    )


def _counted(
    layers: Sequence[Layer],
    budget: Budget,
    align: int,
    damage: Damage,
    dense: Callable[[Site], int],
    of_pairs: Callable[[Curve], tuple[int, int]],
) -> BudgetedLayers:
    """Layers whose pairs cost something at any rank, and the same more for each rank."""

    def costs(layer: Layer, curve: Curve) -> tuple[Ranks, Float64]:
        ranks, (before, per_rank) = ranks_at(curve, align), of_pairs(curve)
        return ranks, before + ranks * np.float64(per_rank)

    offers = tuple(_offer(layer, dense(layer.site), costs, damage) for layer in layers)
    return BudgetedLayers(offers, budget.left - _beside(offers, budget))


def layers_in_time(
    layers: Sequence[Layer], timings: Mapping[str, LayerTiming], budget: float, damage: Damage = lost_energy
) -> BudgetedLayers:
    """Layers that may take at most `budget` together.

    `timings` by site name; a layer without one stays as it is and is not counted. A pair is on offer only where it is
    faster than its layer.
    """

    def costs(layer: Layer, curve: Curve) -> tuple[Ranks, Float64]:
        known = {} if curve.after else timings[layer.site.name].pairs  # Sums of pairs are not measured.
        ranks, taken = known.get(curve.scheme.name, (NO_RANKS, np.zeros(0)))
        faster = (taken < timings[layer.site.name].dense) & (ranks <= curve.full_rank)
        return ranks[faster], taken[faster]

    offers = tuple(
        _offer(layer, timings[layer.site.name].dense, costs, damage)
        if layer.site.name in timings
        else _offer(Layer(layer.site, ()), 0.0, costs, damage)
        for layer in layers
    )
    return BudgetedLayers(offers, budget)


def plan_by_macs(layers: Sequence[Layer], budget: Budget, align: int = 1, damage: Damage = lost_energy) -> Plan:
    """The plan of least damage within a budget of multiply-adds, which count the whole network.

    Raises OptionError where no plan is small enough. It names the best ratio and the layers that hold the rest.
    """
    return _plan(layers_in_macs(layers, budget, align, damage), "macs", budget)


def plan_by_params(layers: Sequence[Layer], budget: Budget, align: int = 1, damage: Damage = lost_energy) -> Plan:
    """The plan of least damage within a budget of parameters; no layer gets more multiply-adds."""
    return _plan(layers_in_params(layers, budget, align, damage), "params", budget)


def plan_by_latency(
    layers: Sequence[Layer],
    timings: Mapping[str, LayerTiming],
    budget: float,
    unit: str,
    rule: str,
    damage: Damage = lost_energy,
) -> Plan:
    """The plan of least damage whose layers take at most `budget` together, or the fastest where none does.

    `unit` is the unit of the costs, `rule` the rule as the plan states it.
    """
    offers = layers_in_time(layers, timings, budget, damage).offers
    allocation = allocate([offer.menu for offer in offers], max(budget, _least(offers) * (1 + 1e-9)))
    if allocation is None:
        raise ValueError("the budget is below the least cost")
    decisions = (
        replace(decision, reason=_timed(offer, int(chosen), unit)) if decision.branches else decision
        for decision, offer, chosen in zip(_decisions(offers, allocation), offers, allocation.options, strict=True)
    )
    return Plan(tuple(decisions), rule)


def share_out(layers: BudgetedLayers, savings: Sequence[Menu]) -> tuple[tuple[int, ...], float]:
    """The option of each of `savings` where a budget is shared out over pairs and these, and the damage of it all.

    Costs of savings are 0 or negative. What pair and saving save of one layer is added up, which is a little too much.
    Where the budget is out of reach, the largest saving of each, and infinite damage.
    """
    allocation = allocate([*(offer.menu for offer in layers.offers), *savings], layers.budget)
    if allocation is None:
        return tuple(len(menu.cost) - 1 for menu in savings), math.inf
    return tuple(allocation.options[len(layers.offers) :].tolist()), allocation.damage


def least_damage(layers: BudgetedLayers) -> float:
    """The damage of the plan of pairs that does least within a budget; infinite where no plan is small enough."""
    return share_out(layers, ())[1]


def _timed(offer: _Offer, chosen: int, unit: str) -> str:
    return f"{offer.menu.cost[0]:.3g} to {offer.menu.cost[chosen]:.3g} {unit}"


def _plan(layers: BudgetedLayers, counted: str, budget: Budget) -> Plan:
    offers = layers.offers
    if not offers or not budget.total:
        nothing = "no layer runs on these inputs" if offers else "the network has no layer to cut"
        raise OptionError(f"--{counted} {budget.ratio:g} is out of reach: {nothing}.")
    allocation = allocate([offer.menu for offer in offers], layers.budget)
    if allocation is None:
        why = why_none([offer.layer.site for offer in offers if len(offer.options) == 1], len(offers))
        reached = budget.already * budget.total / (_beside(offers, budget) + _least(offers))
        best = f"at the lowest ranks it is {reached:.2f}{_holders(offers, budget.total)}"
        raise OptionError(f"--{counted} {budget.ratio:g} is out of reach: {why or best}.")
    return Plan(_decisions(offers, allocation), f"{counted} {budget.ratio:g}x fewer")


def _beside(offers: Sequence[_Offer], budget: Budget) -> float:
    """What the network costs beside the layers on offer."""
    return budget.total - sum(float(offer.menu.cost[0]) for offer in offers)


def why_none(refused: Sequence[Site], of: int) -> str | None:
    """Where all layers are refused, the commonest reason, without the details of single layers in brackets."""
    reasons = Counter(re.sub(r" \(.*\)", "", site.refusal) for site in refused if site.refusal)
    if not reasons or len(refused) < of:
        return None
    ((reason, count),) = reasons.most_common(1)
    return f"no layer can be cut ({count} of {of}: {reason})" if count > 1 else f"no layer can be cut: {reason}"


def _holders(offers: Sequence[_Offer], total: int) -> str:
    """The layers that stay as they are and hold most of the total, each with its share and the reason."""
    kept = [offer for offer in offers if len(offer.options) == 1 and offer.menu.cost[0] >= _LARGE_SHARE * total]
    kept.sort(key=lambda offer: -float(offer.menu.cost[0]))
    return "".join(
        f"; {offer.layer.site.name} holds {float(offer.menu.cost[0]) / total:.0%} and is kept: "
        f"{offer.layer.site.refusal or 'no pair is smaller'}"
        for offer in kept[:_MOST_NAMED]
    )


def _least(offers: Sequence[_Offer]) -> float:
    return sum(float(offer.menu.cost.min()) for offer in offers)


def _offer(layer: Layer, dense: float, costs: Costs, damage: Damage) -> _Offer:
    options = [_Option(None, 0)]
    all_costs, damages = [np.array([float(dense)])], [np.zeros(1)]
    for curve in layer.curves:
        ranks, taken = costs(layer, curve)
        options += [_Option(curve, int(rank)) for rank in ranks]
        all_costs.append(taken)
        damages.append(damage(layer, curve)[ranks - 1])
    return _Offer(layer, tuple(options), Menu(np.concatenate(all_costs), np.concatenate(damages)))


def _decisions(offers: Sequence[_Offer], allocation: Allocation) -> tuple[Decision, ...]:
    return tuple(
        _decide(offer.layer, offer.options[chosen]) for offer, chosen in zip(offers, allocation.options, strict=True)
    )


def _decide(layer: Layer, option: _Option) -> Decision:
    if option.curve is not None:
        return take(layer.site, option.curve, option.rank)
    return keep(layer.site, layer.site.refusal or "the budget is met without it")
