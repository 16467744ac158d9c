"""From logits to a plan: the most probable candidate of each layer, changed as little as the budget requires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from training.search.space import Space
from trp_export.errors import OptionError
from trp_export.lowrank.factor import Float64
from trp_export.planning.budgets import why_none
from trp_export.planning.knapsack import Menu, allocate
from trp_export.planning.plan import Decision, Plan

# The least share of the budget that a choice must use, and the range of rewards for using it, per whole budget.
_USED = 0.98
_LEAST, _DEAREST = 1e-3, 1e6


def choose(spaces: Sequence[Space], logits: Mapping[str, Float64], budget: float) -> tuple[int, ...]:
    """A candidate for each space with a high product of probabilities, at a total cost of `budget` or a little less.

    If the most probable candidates cost that, they are chosen. If they cost less, the budget is still used: each choice
    then maximises log-probability plus cost at one common price. Raises ValueError where nothing is cheap enough.
    """
    found = [_log_probabilities(logits.get(space.site.name), len(space.costs)) for space in spaces]
    reward = _reward(spaces, found, budget)
    while True:
        allocation = allocate(_menus(spaces, found, reward), budget)
        if allocation is None:
            raise ValueError("no choice is within the budget")
        if allocation.cost >= _USED * budget or reward > _DEAREST / budget:
            return tuple(map(int, allocation.options))
        # Where costs of candidates are far apart, the rest of the budget goes to less probable ones.
        reward = 4 * reward or _LEAST / budget


def plan_of_logits(spaces: Sequence[Space], logits: Mapping[str, Float64], budget: float, rule: str) -> Plan:
    """The plan of the candidates that `choose` returns."""
    chosen = zip(spaces, choose(spaces, logits, budget), strict=True)
    return Plan(tuple(_decide(space, logits.get(space.site.name), option) for space, option in chosen), rule)


def _decide(space: Space, logits: Float64 | None, option: int) -> Decision:
    site, count = space.site, len(space.candidates)
    reason = site.refusal or "nothing to choose from"
    if count > 1:
        probability = np.exp(_log_probabilities(logits, count)[option])
        reason = f"searched: probability {probability:.2g} among {count} candidates"
    return Decision(site, space.candidates[option], reason)


def _reward(spaces: Sequence[Space], found: Sequence[Float64], budget: float) -> float:
    """The reward for cost that is needed to use the budget; 0 where the most probable candidates use it."""

    def reached(reward: float) -> float:
        return sum(float(menu.cost[np.argmin(menu.damage)]) for menu in _menus(spaces, found, reward))

    if reached(0.0) >= budget:
        return 0.0
    low, high = 0.0, 1.0 / budget
    while reached(high) < budget and high < _DEAREST / budget:
        low, high = high, 4 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < budget else (low, middle)
    return high


def _menus(spaces: Sequence[Space], found: Sequence[Float64], reward: float) -> list[Menu]:
    pairs = zip(spaces, found, strict=True)
    return [Menu(space.costs, reward * (space.costs.max() - space.costs) - own) for space, own in pairs]


def require_reachable(spaces: Sequence[Space], fixed: float, total: float, ratio: float, option: str) -> None:
    """Raise OptionError, naming the largest possible ratio, where the cheapest candidates cost above total / ratio."""
    least = fixed + sum(float(space.costs.min()) for space in spaces)
    if least * ratio > total:
        why = why_none([space.site for space in spaces if len(space.candidates) == 1], len(spaces))
        best = f"with the smallest candidates it is {total / least:.2f}"
        raise OptionError(f"{option} {ratio:g} is out of reach: {why or best}.")


def _log_probabilities(logits: Float64 | None, count: int) -> Float64:
    if logits is None:
        return np.zeros(count)
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted))))
