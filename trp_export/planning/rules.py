"""Make a plan from the curves of the layers: by a rule for each layer, or from a saved plan. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from trp_export.errors import OptionError
from trp_export.lowrank.schemes import Branches
from trp_export.lowrank.site import Site
from trp_export.planning.curves import Curve, Layer, align_rank
from trp_export.planning.plan import Decision, Plan
from trp_export.planning.saved_plan import Choice


class LayerRule(Protocol):
    """The rank of a layer under one scheme; `str` of the rule is its name in the plan."""

    def rank(self, curve: Curve) -> int: ...


def plan_by_rule(layers: Sequence[Layer], rule: LayerRule, align: int = 1) -> Plan:
    """For each layer the rank that the rule asks for under every scheme, then the scheme with the fewest MACs."""
    return Plan(tuple(_decide(layer, rule, align) for layer in layers), str(rule))


def plan_by_choices(layers: Sequence[Layer], choices: Sequence[Choice], rule: str) -> Plan:
    """A saved plan, replayed on this model, which may lack layers that the plan keeps.

    Raises OptionError where the two do not fit.
    """
    by_name = {choice.name: choice for choice in choices}
    changed = {choice.name for choice in choices if choice.branches}
    unknown = sorted(changed - {layer.site.name for layer in layers})
    if unknown:
        present = _few([layer.site.name for layer in layers])
        raise OptionError(f"the plan names {_few(unknown)}, which this model lacks; its layers are {present}.")
    return Plan(tuple(_replay(layer, by_name) for layer in layers), rule)


def require_fits(site: Site, branches: Branches) -> None:
    """Raises OptionError for pairs that a site cannot become."""
    if len(branches) > 1 and (site.is_matrix or len({branch.scheme for branch in branches}) < len(branches)):
        raise OptionError(
            f"the plan adds two pairs of one scheme for {site.name}: use one pair with the sum of the ranks."
        )
    inside, out = site.kernel_shape[1], site.kernel_shape[0] // site.group
    for scheme, rank in ((branch.scheme, branch.rank) for branch in branches):
        if not scheme.divides(site.kernel_shape, site.group):
            raise OptionError(
                f"the plan wants {scheme.name} for {site.name}, whose {inside} input and {out} output channels "
                "do not divide so."
            )
        full = site.full_rank(scheme)
        if rank > full:
            raise OptionError(f"the plan wants rank {rank} for {site.name}, whose full rank is {full}.")


def keep(site: Site, reason: str) -> Decision:
    return Decision(site, (), reason)


def take(site: Site, curve: Curve, rank: int, reason: str | None = None) -> Decision:
    energy = float(curve.energy[rank - 1])
    return Decision(site, curve.branches(rank), reason or describe_energy(energy), energy)


def describe_energy(energy: float) -> str:
    return "energy 1" if energy == 1 else f"energy {energy:.4g}" if energy < 0.999 else f"energy 1 - {1 - energy:.2g}"


def _decide(layer: Layer, rule: LayerRule, align: int) -> Decision:
    if layer.site.refusal:
        return keep(layer.site, layer.site.refusal)
    wanted = [(curve, rule.rank(curve)) for curve in layer.curves]
    gainful = [(curve, rank) for curve, rank in wanted if rank <= curve.top_rank]
    if not gainful:
        curve, rank = min(wanted, key=lambda pair: pair[1] / pair[0].break_even)
        return keep(layer.site, f"rank {rank} is not below break-even {curve.break_even}")
    aligned = [(curve, align_rank(rank, align, curve.top_rank)) for curve, rank in gainful]
    curve, rank = min(aligned, key=lambda pair: pair[0].macs(pair[1]))
    return take(layer.site, curve, rank)


def _replay(layer: Layer, by_name: Mapping[str, Choice]) -> Decision:
    site, choice = layer.site, by_name.get(layer.site.name)
    if choice is None:
        return keep(site, "not in the plan")
    if not choice.branches:
        return keep(site, choice.reason or "kept by the plan")
    if site.refusal:
        raise OptionError(f"the plan factors {site.name}, which cannot be factored: {site.refusal}.")
    require_fits(site, choice.branches)
    *after, last = choice.branches
    found = (curve for curve in layer.curves if curve.scheme == last.scheme and curve.after == tuple(after))
    curve = next(found, None)
    if curve is None:
        usual = ", ".join(curve.scheme.name for curve in layer.curves)
        raise OptionError(f"the plan wants {last.scheme.name} for {site.name}, where only {usual} applies.")
    return take(site, curve, last.rank, choice.reason or None)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
