"""The candidates of each layer in a search, and their cost in multiply-adds or in time on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Branch, Branches
from trp_export.lowrank.site import Site
from trp_export.lowrank.space import Candidate, lr_space, second_branches
from trp_export.planning.budgets import LayerTiming
from trp_export.planning.curves import schemes_for
from trp_export.planning.plan import Plan

# Candidates of different schemes count as equally large within this many steps of a layer's dense cost.
SHARES = 20


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """The candidates of one layer, the unchanged layer first, with their costs (k,) and the dense cost."""

    site: Site
    candidates: tuple[Branches, ...]
    costs: Float64
    dense: float

    @property
    def shares(self) -> tuple[int, ...]:
        """The cost of each candidate in steps of the dense one."""
        return tuple(int(share) for share in np.rint(SHARES * self.costs / (self.dense or 1.0)))


def by_macs(sites: Sequence[Site], choice: str) -> tuple[Space, ...]:
    """The dense layers and the pairs of the LR-space under a --scheme."""
    return tuple(_counted(site, _under(choice, site, lr_space(site))) for site in sites)


def by_latency(sites: Sequence[Site], timings: Mapping[str, LayerTiming]) -> tuple[Space, ...]:
    """The dense layers and the pairs that were measured faster, at the ranks measured; costs in the device's unit."""
    spaces = []
    for site in sites:
        timing = timings.get(site.name)
        dense = timing.dense if timing is not None else 0.0
        found: list[tuple[Branches, float]] = [((), dense)]
        for name, (ranks, costs) in (timing.pairs if timing is not None and site.refusal is None else {}).items():
            (scheme,) = (scheme for scheme in schemes_for(site, "all") if scheme.name == name)
            pairs = zip(ranks.tolist(), costs.tolist(), strict=True)
            found += [((Branch(scheme, rank),), cost) for rank, cost in pairs if cost < dense]
        spaces.append(Space(site, tuple(b for b, _ in found), np.array([cost for _, cost in found]), dense))
    return tuple(spaces)


def second_by_macs(plan: Plan, choice: str) -> tuple[Space, ...]:
    """Around a plan of single pairs: each pair unchanged, or a smaller one with a second pair for the rest."""
    spaces = []
    for decision in plan.decisions:
        site, first = decision.site, decision.branches
        sums = second_branches(site, first[0]) if first else ()
        unlike = [one for one in sums if one.branches[-1].scheme != first[0].scheme]
        spaces.append(_counted(site, (Candidate(first, decision.macs), *_under(choice, site, unlike))))
    return tuple(spaces)


def _under(choice: str, site: Site, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    schemes = schemes_for(site, choice)
    return tuple(one for one in candidates if not one.branches or one.branches[-1].scheme in schemes)


def _counted(site: Site, candidates: Sequence[Candidate]) -> Space:
    costs = np.array([float(one.macs) for one in candidates])
    return Space(site, tuple(one.branches for one in candidates), costs, float(site.macs))
