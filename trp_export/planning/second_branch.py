"""A second pair for the layers of a plan: each layer's own pair gets smaller and another pair is added to it.

Every sum of any two pairs would be thousands of spectra; so, as Yu & Bouganis do, a first choice is made among single
pairs, and the sums that are offered then begin with that choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from trp_export.lowrank.schemes import Array, Branch, Branches
from trp_export.lowrank.site import Site
from trp_export.lowrank.space import all_schemes
from trp_export.planning.curves import Curve, Layer, make_curve
from trp_export.planning.plan import Plan

# Shares of the dense multiply-adds that a first pair may give up; the number of schemes that are fitted with it.
GIVEN_UP = (0.1, 0.2, 0.3)
_FITTED = 2


def second_curves(layers: Sequence[Layer], plan: Plan, kernel: Callable[[str], Array]) -> tuple[Layer, ...]:
    """The layers with the curves of sums alone, none for those that the plan keeps; `kernel` gives a weight by name."""
    chosen = {change.site.name: change.branches[0] for change in plan.changed if not change.site.is_matrix}
    return tuple(
        replace(
            layer,
            curves=_sums(layer.site, chosen[layer.site.name], kernel(layer.site.name))
            if layer.site.name in chosen
            else (),
        )
        for layer in layers
    )


def with_curves(layers: Sequence[Layer], more: Sequence[Layer]) -> tuple[Layer, ...]:
    """The layers with the curves of both."""
    return tuple(
        replace(layer, curves=(*layer.curves, *other.curves)) for layer, other in zip(layers, more, strict=True)
    )


def _sums(site: Site, first: Branch, kernel: Array) -> tuple[Curve, ...]:
    per_rank = site.macs_per_rank(first.scheme)
    curves: list[Curve] = []
    for given_up in sorted({max(1, round(share * site.macs / per_rank)) for share in GIVEN_UP}):
        if given_up < first.rank:
            after = (Branch(first.scheme, first.rank - given_up),)
            curves += _best(site, kernel, after, given_up * per_rank)
    return tuple(curves)


def _best(site: Site, kernel: Array, after: Branches, spare: int) -> list[Curve]:
    """The second pairs that keep most for `spare` multiply-adds, fitted together with the first."""
    schemes = (scheme for scheme in all_schemes(site) if scheme != after[0].scheme)
    found: list[tuple[float, Curve, int]] = []
    for curve in (make_curve(site, scheme, kernel, after) for scheme in schemes):
        rank = min(spare // curve.macs_per_rank, curve.full_rank)
        if rank:
            found.append((float(curve.energy[rank - 1]), curve, rank))
    found.sort(key=lambda entry: -entry[0])
    return [make_curve(site, curve.scheme, kernel, after, fitted_at=rank) for _, curve, rank in found[:_FITTED]]
