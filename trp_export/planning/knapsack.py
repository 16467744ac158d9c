"""One global choice under a budget: the multiple-choice knapsack, by a Lagrangian and a greedy fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trp_export.lowrank.factor import Float64


@dataclass(frozen=True, slots=True)
class Menu:
    """The options of one layer, as columns of costs and damages. Exactly one is taken."""

    cost: Float64
    damage: Float64


@dataclass(frozen=True, slots=True)
class Allocation:
    """An option per menu. `gap` bounds how far the total damage is above the best possible, as a share of it."""

    options: NDArray[np.intp]
    cost: float
    damage: float
    gap: float


def allocate(menus: Sequence[Menu], budget: float) -> Allocation | None:
    """Least total damage within the budget, or None where even the cheapest options exceed it.

    Bisection on the price of cost finds the best corner of the lower convex hull and a lower bound on the
    damage; the rest of the budget is then spent on the most profitable upgrades.
    """
    if sum(float(menu.cost.min()) for menu in menus) > budget:
        return None
    dear, bound = _price_that_fits(menus, budget)
    options = _fill(menus, _cheapest_at(menus, dear), budget)
    damage = _total(menus, options, "damage")
    gap = 0.0 if damage == 0 else max(0.0, damage - bound) / damage
    return Allocation(options, _total(menus, options, "cost"), damage, gap)


def _cheapest_at(menus: Sequence[Menu], price: float) -> NDArray[np.intp]:
    return np.array([_argmin(menu.damage + price * menu.cost, menu.cost) for menu in menus])


def _argmin(score: Float64, cost: Float64) -> int:
    """The best score; among equals the lowest cost."""
    best = np.flatnonzero(score <= score.min())
    return int(best[np.argmin(cost[best])])


def _price_that_fits(menus: Sequence[Menu], budget: float) -> tuple[float, float]:
    """The lowest price found at which the choice fits, and the best lower bound on the damage seen."""
    bound = sum(float(menu.damage.min()) for menu in menus)
    if _total(menus, _cheapest_at(menus, 0.0), "cost") <= budget:
        return 0.0, bound
    low, high = 0.0, 1.0 / (abs(budget) or 1.0)  # What is saved elsewhere may leave less than nothing.
    while _total(menus, _cheapest_at(menus, high), "cost") > budget:
        low, high = high, high * 4
        if not np.isfinite(high):
            break
    for _ in range(100):
        price = (low + high) / 2
        options = _cheapest_at(menus, price)
        cost = _total(menus, options, "cost")
        bound = max(bound, _total(menus, options, "damage") + price * (cost - budget))
        low, high = (price, high) if cost > budget else (low, price)
        if high - low <= 1e-12 * high:
            break
    return high, bound


def _fill(menus: Sequence[Menu], options: NDArray[np.intp], budget: float) -> NDArray[np.intp]:
    """Spend the rest of the budget, upgrade by upgrade, on the largest reduction of damage per cost."""
    options = options.copy()
    left = budget - _total(menus, options, "cost")
    while True:
        best: tuple[float, int, int] | None = None
        for index, menu in enumerate(menus):
            extra = menu.cost - menu.cost[options[index]]
            saved = menu.damage[options[index]] - menu.damage
            usable = np.flatnonzero((extra <= left) & (saved > 0))
            if not len(usable):
                continue
            worth = saved[usable] / np.maximum(extra[usable], 1e-300)
            top = int(np.argmax(worth))
            if best is None or worth[top] > best[0]:
                best = float(worth[top]), index, int(usable[top])
        if best is None:
            return options
        _, index, option = best
        left -= float(menus[index].cost[option] - menus[index].cost[options[index]])
        options[index] = option


def _total(menus: Sequence[Menu], options: NDArray[np.intp], column: str) -> float:
    return float(sum(getattr(menu, column)[option] for menu, option in zip(menus, options, strict=True)))
