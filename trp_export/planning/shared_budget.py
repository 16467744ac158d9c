"""A plan for the whole network under a budget of multiply-adds: one trade-off over all layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.errors import OptionError
from trp_export.lowrank.factor import Float64
from trp_export.planning.budget import Menu, allocate
from trp_export.planning.curves import Curve, Layer, ranks_at
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.rules import keep, take

Damage = Callable[[Layer, Curve], Float64]


def lost_energy(layer: Layer, curve: Curve) -> Float64:
    """The damage of each rank where nothing but the weights is known: the share of energy that is lost."""
    return np.asarray(1.0 - curve.energy)


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
    offers = [_offer(layer, align, damage) for layer in layers]
    menus = [menu for menu, _ in offers]
    fixed = total_macs - sum(layer.site.macs for layer in layers)
    allocation = allocate(menus, total_macs / ratio - fixed)
    if allocation is None:
        least = fixed + sum(float(menu.cost.min()) for menu in menus)
        raise OptionError(f"--macs {ratio:g} is out of reach: at rank 1 everywhere it is {total_macs / least:.2f}.")
    decisions = (
        _decide(layer, options[chosen])
        for layer, (_, options), chosen in zip(layers, offers, allocation.options, strict=True)
    )
    return Plan(tuple(decisions), f"macs {ratio:g}x fewer")


def _offer(layer: Layer, align: int, damage: Damage) -> tuple[Menu, list[_Option]]:
    options = [_Option(None, 0)]
    costs, damages = [np.array([float(layer.site.macs)])], [np.zeros(1)]
    for curve in layer.curves:
        ranks = ranks_at(curve, align)
        options += [_Option(curve, int(rank)) for rank in ranks]
        costs.append(ranks * float(curve.macs_per_rank))
        damages.append(damage(layer, curve)[ranks - 1])
    return Menu(np.concatenate(costs), np.concatenate(damages)), options


def _decide(layer: Layer, option: _Option) -> Decision:
    if option.curve is not None:
        return take(layer.site, option.curve, option.rank)
    return keep(layer.site, layer.site.refusal or "the budget leaves it dense")
