"""A second pair for the layers of a plan: what each could become if its own pair were smaller and another were added.

Every sum of any two pairs would be thousands of spectra; so, as Yu & Bouganis do, a first choice is made among single
pairs, and the sums that are offered then begin with that choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from trp_export.lowrank.schemes import Array, Branch
from trp_export.lowrank.site import Site
from trp_export.lowrank.space import all_schemes
from trp_export.planning.curves import Curve, Layer, make_curve
from trp_export.planning.plan import Plan

# Shares of the dense multiply-adds that a first pair may give up.
GIVEN_UP = (0.1, 0.2, 0.3)


def with_second_branches(layers: Sequence[Layer], plan: Plan, kernel: Callable[[str], Array]) -> tuple[Layer, ...]:
    """The same layers, those that the plan changes with further curves; `kernel` gives a layer's weight by its name."""
    chosen = {change.site.name: change.branches for change in plan.changed}
    return tuple(
        replace(layer, curves=(*layer.curves, *_sums(layer.site, chosen[layer.site.name][0], kernel)))
        if layer.site.name in chosen and not layer.site.is_matrix
        else layer
        for layer in layers
    )


def _sums(site: Site, first: Branch, kernel: Callable[[str], Array]) -> list[Curve]:
    own = kernel(site.name)
    per_rank = site.macs_per_rank(first.scheme)
    ranks = {first.rank - max(1, round(share * site.macs / per_rank)) for share in GIVEN_UP}
    return [
        make_curve(site, scheme, own, (Branch(first.scheme, rank),))
        for rank in sorted(ranks)
        if rank >= 1
        for scheme in all_schemes(site)
        if scheme != first.scheme
    ]
