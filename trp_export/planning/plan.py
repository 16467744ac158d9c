"""The Plan: for every layer a decision and its reason. A plain value, saved as JSON and carried out elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trp_export.lowrank.schemes import Branches, Scheme
from trp_export.lowrank.site import Site
from trp_export.planning.channels import ChannelDecision

FORMAT = "trp-plan"
VERSION = 4
_VERSION_WITH_CHANNELS = 3
_VERSION_WITH_SUMS = 2
OLDEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class Change:
    """A layer that becomes factors: its site, and the one or more pairs whose sum replaces it."""

    site: Site
    branches: Branches

    @property
    def scheme(self) -> Scheme:
        """The scheme of the first pair."""
        return self.branches[0].scheme

    @property
    def rank(self) -> int:
        """The rank of the first pair."""
        return self.branches[0].rank


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one site. A layer that stays as it is has no `branches`."""

    site: Site
    branches: Branches
    reason: str
    energy: float = 1.0

    def __post_init__(self) -> None:
        schemes = {branch.scheme for branch in self.branches}
        if len(self.branches) > 1 and (self.site.is_matrix or len(schemes) < len(self.branches)):
            raise ValueError(f"{self.site.name}: two pairs of the same scheme are one pair of a higher rank")

    @property
    def macs(self) -> int:
        return self.site.macs_of(self.branches)

    @property
    def params(self) -> int:
        return self.site.params_of(self.branches)


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions in the order of the graph, the rule that made them, and the multiple that ranks are rounded to.

    `channels` are the decisions on channel groups; `decisions` are on layers that have lost those channels already.
    `rewrites` are those without loss that the device runs faster.
    """

    decisions: tuple[Decision, ...]
    rule: str
    align: int = 1
    channels: tuple[ChannelDecision, ...] = ()
    rewrites: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[Change, ...]:
        return tuple(Change(decision.site, decision.branches) for decision in self.decisions if decision.branches)

    @property
    def fits_channels(self) -> bool:
        """Whether channels go that the network uses, so that layers are refitted on images."""
        return any(decision.fitted for decision in self.thinner)

    @property
    def reduction(self) -> str:
        """What makes the network smaller at a loss, in words; empty if nothing does."""
        parts = {"low rank": bool(self.changed), "fewer channels": self.fits_channels}
        return " and ".join(words for words, applies in parts.items() if applies)

    @property
    def thinner(self) -> tuple[ChannelDecision, ...]:
        """The channel groups that lose channels."""
        return tuple(decision for decision in self.channels if decision.removed)

    def to_json(self) -> dict[str, Any]:
        """The plan in the oldest version of the format that can express it.

        Sums of pairs need version 2, channel groups that lose channels version 3, timed rewrites version 4.
        """
        sums = any(len(decision.branches) > 1 for decision in self.decisions)
        layers = [
            {"name": decision.site.name, **_branches_to_json(decision.branches), "reason": decision.reason}
            for decision in self.decisions
        ]
        version = _VERSION_WITH_SUMS if sums else OLDEST_VERSION
        plan = {"format": FORMAT, "version": version, "rule": self.rule, "align": self.align, "layers": layers}
        if self.thinner:
            plan |= {"version": _VERSION_WITH_CHANNELS, "channels": [decision.to_json() for decision in self.thinner]}
        if self.rewrites:
            plan |= {"version": VERSION, "rewrites": list(self.rewrites)}
        return plan


def _branches_to_json(branches: Branches) -> dict[str, Any]:
    if len(branches) > 1:
        return {"branches": [{"scheme": branch.scheme.name, "rank": branch.rank} for branch in branches]}
    return {
        "scheme": branches[0].scheme.name if branches else None,
        "rank": branches[0].rank if branches else None,
    }
