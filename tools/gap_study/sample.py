"""Plans to try scores on: different ones around the budget, near the planner's and by the search's distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from training.search.choose import choose
from training.search.space import Space
from trp_export.errors import OptionError
from trp_export.lowrank.factor import Float64
from trp_export.planning.knapsack import Menu, allocate
from trp_export.planning.plan import Decision, Plan

# How far plans may be from the budget, as a share of what the whole network then costs.
TOLERANCE = 0.02
# What logits and predicted damages are stirred by, from hardly to thoroughly: plans are to differ in worth.
_NOISE = (0.25, 0.5, 1.0, 2.0)
_TRIES = 50


@dataclass(frozen=True, slots=True)
class Drawn:
    """A plan as the index of a candidate for each space, and where it comes from: "planner" or "search"."""

    source: str
    chosen: tuple[int, ...]

    def cost(self, spaces: Sequence[Space]) -> float:
        return sum(float(space.costs[option]) for space, option in zip(spaces, self.chosen, strict=True))


def draw_plans(
    spaces: Sequence[Space],
    budget: float,
    total: float,
    damages: Sequence[Float64],
    logits: Mapping[str, Float64],
    count: int,
    seed: int,
) -> tuple[Drawn, ...]:
    """`count` different plans, half from each source, the best guess of each source first.

    `budget` is what the spaces may cost, `total` what the whole network then costs; plans are within 2 % of that.
    Raises OptionError where there are not so many.
    """
    sources = {
        "planner": partial(_near_planner, spaces, budget, damages),
        "search": partial(_drawn_by, spaces, budget, logits),
    }
    found: dict[tuple[int, ...], Drawn] = {}
    for number, (source, draw) in enumerate(sources.items()):
        rng, wanted = np.random.default_rng([seed, number]), len(found) + (count + number) // 2
        for attempt in range(_TRIES * count):
            noise = _NOISE[attempt % len(_NOISE)] if attempt else 0.0
            drawn = Drawn(source, draw(noise, rng))
            if abs(drawn.cost(spaces) - budget) <= TOLERANCE * total:
                found.setdefault(drawn.chosen, drawn)
            if len(found) == wanted:
                break
        if len(found) < wanted:
            raise OptionError(f"--count {count}: there are only {len(found)} plans near the budget; ask for fewer.")
    return tuple(found.values())


def _near_planner(
    spaces: Sequence[Space], budget: float, damages: Sequence[Float64], noise: float, rng: np.random.Generator
) -> tuple[int, ...]:
    """The planner's choice, were each layer's damage and each scheme's in it more or less than they are."""
    menus = []
    for space, damage in zip(spaces, damages, strict=True):
        names = [branches[-1].scheme.name if branches else "" for branches in space.candidates]
        factors = {name: np.exp(noise * rng.standard_normal()) for name in dict.fromkeys(names)}
        layer = np.exp(noise * rng.standard_normal())
        menus.append(Menu(space.costs, damage * layer * np.array([factors[name] for name in names])))
    allocation = allocate(menus, budget)
    assert allocation is not None  # The search has found a plan within it.
    return tuple(map(int, allocation.options))


def _drawn_by(
    spaces: Sequence[Space], budget: float, logits: Mapping[str, Float64], noise: float, rng: np.random.Generator
) -> tuple[int, ...]:
    """A draw by the probabilities of the logits (Gumbel-max), at a higher or lower temperature."""
    stirred = {name: own + noise * rng.gumbel(size=own.shape) for name, own in logits.items()}
    return choose(spaces, stirred, budget)


def as_plan(spaces: Sequence[Space], drawn: Drawn) -> Plan:
    decisions = (
        Decision(space.site, space.candidates[option], f"drawn from the {drawn.source}")
        for space, option in zip(spaces, drawn.chosen, strict=True)
    )
    return Plan(tuple(decisions), "drawn")
