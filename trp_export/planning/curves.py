"""The options of each layer: for every scheme the energy that is kept and the cost, rank by rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trp_export.lowrank.branches import factorise_branches, residual
from trp_export.lowrank.factor import Float64, kept_energy, spectrum
from trp_export.lowrank.names import SHORT_NAMES
from trp_export.lowrank.schemes import MATRIX, SCHEMES, Array, Branch, Branches, Scheme
from trp_export.lowrank.site import Site
from trp_export.lowrank.space import all_schemes, sliced_schemes, usual_schemes

# What --scheme takes: one decomposition, or several. Of several the first of equals is kept.
FIXED = {short: SCHEMES[name] for short, name in SHORT_NAMES.items()}
SEVERAL = {"auto": usual_schemes, "sliced": sliced_schemes, "all": all_schemes}


@dataclass(frozen=True, slots=True)
class Curve:
    """One site under one scheme. Index i stands for rank i + 1.

    `singular_values` is (matrices, full rank), `energy` the kept share of squares (full rank,). The pair may be one
    that comes `after` others and is added to them: it factors what they leave, and energy is that of the sum.
    """

    scheme: Scheme
    singular_values: Float64
    energy: Float64
    macs_per_rank: int
    params_per_rank: int
    break_even: int
    after: Branches = ()
    macs_before: int = 0
    params_before: int = 0

    def macs(self, rank: int) -> int:
        return self.macs_before + rank * self.macs_per_rank

    def params(self, rank: int) -> int:
        return self.params_before + rank * self.params_per_rank

    def branches(self, rank: int) -> Branches:
        """The pairs that replace the layer at a rank."""
        return (*self.after, Branch(self.scheme, rank))

    @property
    def full_rank(self) -> int:
        return len(self.energy)

    @property
    def top_rank(self) -> int:
        """The largest rank that still saves multiply-adds; 0 where none does."""
        return min(self.full_rank, self.break_even - 1)


@dataclass(frozen=True, slots=True)
class Layer:
    """A site with its curves; none where the site was refused."""

    site: Site
    curves: tuple[Curve, ...]


def schemes_for(site: Site, choice: str) -> tuple[Scheme, ...]:
    """The decompositions to try for a site under `--scheme`; only the matrix form where all are the same."""
    if choice in SEVERAL:
        return SEVERAL[choice](site)
    return (MATRIX,) if site.is_matrix else (FIXED[choice],)


def make_curve(site: Site, scheme: Scheme, kernel: Array, after: Branches = (), fitted_at: int | None = None) -> Curve:
    """The curve of a scheme; with `after`, the curve of what these branches leave of the kernel.

    Pairs that are added are fitted together once their ranks are known: `fitted_at` such a rank, its energy is exact,
    otherwise the curve says what is kept at the least.
    """
    if not after:
        return curve_of(site, scheme, spectrum(kernel, scheme, site.group))
    together = (*after, Branch(scheme, fitted_at)) if fitted_at else after
    pairs = factorise_branches(kernel, together, site.group)[: len(after)]
    left = residual(kernel, pairs, after, site.group)
    values = spectrum(left, scheme, site.group)
    whole = float(np.sum(np.asarray(kernel, dtype=np.float64) ** 2))
    share = float(np.sum(values**2)) / whole if whole else 0.0
    return replace(
        curve_of(site, scheme, values),
        energy=1.0 - share * (1.0 - kept_energy(values)),
        break_even=site.break_even(scheme, after),
        after=after,
        macs_before=site.macs_of(after),
        params_before=site.params_of(after),
    )


def curve_of(site: Site, scheme: Scheme, singular_values: Float64) -> Curve:
    """The curve that follows from singular values (matrices, full rank)."""
    return Curve(
        scheme=scheme,
        singular_values=singular_values,
        energy=kept_energy(singular_values),
        macs_per_rank=site.macs_per_rank(scheme),
        params_per_rank=site.params_per_rank(scheme),
        break_even=site.break_even(scheme),
    )


def align_rank(rank: int, multiple: int, top_rank: int) -> int:
    """Rounded up to a multiple where that stays at or below `top_rank`, else unchanged."""
    rounded = -(-rank // multiple) * multiple
    return rounded if rounded <= top_rank else rank


def ranks_at(curve: Curve, multiple: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """The ranks to consider: the multiples below break-even, or all ranks below it where there is no multiple."""
    ranks = np.arange(multiple, curve.top_rank + 1, multiple)
    return ranks if len(ranks) else np.arange(1, curve.top_rank + 1)
