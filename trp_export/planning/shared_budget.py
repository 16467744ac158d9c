"""A plan for the whole network under a budget of multiply-adds or parameters: one trade-off over all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.errors import OptionError
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.site import Site
from trp_export.planning.budget import Menu, allocate
from trp_export.planning.curves import Curve, Layer, ranks_at
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep, take
from trp_export.planning.sensitivity import Sensitivity

Damage = Callable[[Layer, Curve], Float64]


def lost_energy(layer: Layer, curve: Curve) -> Float64:
    """The damage of each rank where nothing but the weights is known: the share of energy that is lost.

    With calibrated curves this is the share of the output's variance that is lost.
    """
    return np.asarray(1.0 - curve.energy)


def measured_damage(sensitivities: Mapping[str, Sensitivity]) -> Damage:
    """The damage of each rank to the network's output, for curves whose energy is kept output variance.

    A layer without a sensitivity counts as the median of the others.
    """

    def damage(layer: Layer, curve: Curve) -> Float64:
        errors = np.maximum(1.0 - curve.energy, 0.0)
        own = sensitivities.get(layer.site.name)
        if own is not None:
            return own.at(errors)
        others = [other.at(errors) for other in sensitivities.values()]
        return np.asarray(np.median(others, axis=0)) if others else errors

    return damage


@dataclass(frozen=True, slots=True)
class _Budget:
    """What is counted: its option, its words, and how to read it off a site and a curve."""

    option: str
    words: str
    of_site: Callable[[Site], int]
    per_rank: Callable[[Curve], int]


_MACS = _Budget("--macs", "macs", lambda site: site.macs, lambda curve: curve.macs_per_rank)
_PARAMS = _Budget("--params", "params", lambda site: site.params, lambda curve: curve.params_per_rank)


@dataclass(frozen=True, slots=True)
class _Option:
    curve: Curve | None
    rank: int


def plan_by_macs(
    layers: Sequence[Layer], total_macs: int, ratio: float, align: int = 1, damage: Damage = lost_energy
) -> Plan:
    """The plan of least damage with at most total_macs / ratio. `total_macs` counts the whole network.

    Raises OptionError, naming the best that can be reached, where no plan is small enough.
    """
    return _plan(layers, _MACS, total_macs, ratio, align, damage)


def plan_by_params(
    layers: Sequence[Layer], total_params: int, ratio: float, align: int = 1, damage: Damage = lost_energy
) -> Plan:
    """The same with at most total_params / ratio parameters; no layer takes more multiply-adds than before."""
    return _plan(layers, _PARAMS, total_params, ratio, align, damage)


def _plan(layers: Sequence[Layer], budget: _Budget, total: int, ratio: float, align: int, damage: Damage) -> Plan:
    offers = [_offer(layer, budget, align, damage) for layer in layers]
    menus = [menu for menu, _ in offers]
    fixed = total - sum(budget.of_site(layer.site) for layer in layers)
    allocation = allocate(menus, total / ratio - fixed)
    if allocation is None:
        least = fixed + sum(float(menu.cost.min()) for menu in menus)
        raise OptionError(f"{budget.option} {ratio:g} is out of reach: at rank 1 everywhere it is {total / least:.2f}.")
    decisions = (
        _decide(layer, options[chosen])
        for layer, (_, options), chosen in zip(layers, offers, allocation.options, strict=True)
    )
    return Plan(tuple(decisions), f"{budget.words} {ratio:g}x fewer")


def _offer(layer: Layer, budget: _Budget, align: int, damage: Damage) -> tuple[Menu, list[_Option]]:
    options = [_Option(None, 0)]
    costs, damages = [np.array([float(budget.of_site(layer.site))])], [np.zeros(1)]
    for curve in layer.curves:
        ranks = ranks_at(curve, align)
        options += [_Option(curve, int(rank)) for rank in ranks]
        costs.append(ranks * float(budget.per_rank(curve)))
        damages.append(damage(layer, curve)[ranks - 1])
    return Menu(np.concatenate(costs), np.concatenate(damages)), options


def _decide(layer: Layer, option: _Option) -> Decision:
    if option.curve is not None:
        return take(layer.site, option.curve, option.rank)
    return keep(layer.site, layer.site.refusal or "the budget leaves it dense")
