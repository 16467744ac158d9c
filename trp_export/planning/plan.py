"""The Plan: for every layer a decision and its reason. A plain value, saved as JSON and carried out elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trp_export.errors import LoadError
from trp_export.lowrank.schemes import SCHEMES, Branch, Branches, Scheme, scheme_named
from trp_export.lowrank.site import Site
from trp_export.planning.channels import ChannelDecision, parse_channels
from trp_export.system.json_fields import read_json

FORMAT = "trp-plan"
VERSION = 4
_VERSION_WITH_CHANNELS = 3
_VERSION_WITH_SUMS = 2
_OLDEST_VERSION = 1
_MOST_BRANCHES = 2
_MOST_REWRITES = 16
_MOST_BYTES = 2**26
_LONGEST_SHOWN = 80
_SCHEME_NAMES = ", ".join((*SCHEMES, "input-sliced-N", "output-sliced-N"))


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
        version = _VERSION_WITH_SUMS if sums else _OLDEST_VERSION
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


@dataclass(frozen=True, slots=True)
class Choice:
    """One layer of a saved plan: its name and the pairs it becomes; none where it is kept."""

    name: str
    branches: Branches
    reason: str


def read_plan(path: Path) -> tuple[Choice, ...]:
    """The choices in a file that --json or trp-search wrote. Raises LoadError for any other file."""
    return parse_plan(read_json(path, _MOST_BYTES), str(path))


def parse_plan(document: object, where: str) -> tuple[Choice, ...]:
    """The choices in a plan, in a report that holds one under `plan`, or in the manifest of a bundle.

    Raises LoadError, which names the document by `where` and the layer at fault.
    """
    document = _plan_in(document, where)
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise LoadError(f'{where}: "layers" must be a list.')
    choices = tuple(_parse_choice(layer, f"{where}, layer {index + 1}") for index, layer in enumerate(layers))
    _require_distinct([choice.name for choice in choices], f"{where} names layer")
    return choices


def read_channels(path: Path) -> tuple[ChannelDecision, ...]:
    """The channel groups of a plan that lose channels. Raises LoadError as `read_plan` does."""
    return parse_channel_groups(read_json(path, _MOST_BYTES), str(path))


def parse_channel_groups(document: object, where: str) -> tuple[ChannelDecision, ...]:
    """The channel groups of a plan that lose channels. Raises LoadError as `parse_plan` does."""
    groups = _plan_in(document, where).get("channels", [])
    if not isinstance(groups, list):
        raise LoadError(f'{where}: "channels" must be a list.')
    decisions = tuple(parse_channels(group, f"{where}, channels {index + 1}") for index, group in enumerate(groups))
    _require_distinct([decision.name for decision in decisions], f"{where} names the channels of")
    return decisions


def read_rewrites(path: Path) -> tuple[str, ...]:
    """The timed rewrites of a plan, of any name. Raises LoadError as `read_plan` does."""
    rewrites = _plan_in(read_json(path, _MOST_BYTES), str(path)).get("rewrites", [])
    if not isinstance(rewrites, list) or len(rewrites) > _MOST_REWRITES or not all(map(_is_text, rewrites)):
        raise LoadError(f'{path}: "rewrites" must be a list of at most {_MOST_REWRITES} names.')
    return tuple(dict.fromkeys(rewrites))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _require_distinct(names: Sequence[str], what: str) -> None:
    ((name, count),) = Counter(names).most_common(1) or [("", 0)]
    if count > 1:
        raise LoadError(f"{what} {_shown(name)} more than once.")


def _plan_in(document: object, where: str) -> Mapping[str, Any]:
    """The plan in a document. Raises LoadError where there is none, or one of an unknown version."""
    for name in ("provenance", "plan"):
        if isinstance(document, Mapping) and isinstance(document.get(name), Mapping):
            document = document[name]
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise LoadError(f'{where} holds no plan: "format": "{FORMAT}" is missing. Make one with --dry-run --json.')
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not _OLDEST_VERSION <= version <= VERSION:
        raise LoadError(f"{where}: plan version {_shown(version)} is unknown; this program reads up to {VERSION}.")
    return document


def _shown(value: object) -> str:
    """A value for a message: short, and without characters that a terminal acts on."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _parse_choice(layer: object, where: str) -> Choice:
    if not isinstance(layer, Mapping) or not isinstance(layer.get("name"), str):
        raise LoadError(f'{where}: "name" must be a string.')
    where, reason = f"{where} ({_shown(layer['name'])})", layer.get("reason", "")
    listed = layer.get("branches")
    if listed is None:
        kept = layer.get("scheme") is None and layer.get("rank") is None
        listed = [] if kept else [layer]
    elif not isinstance(listed, list) or not 1 <= len(listed) <= _MOST_BRANCHES:
        raise LoadError(f'{where}: "branches" must be a list of 1 to {_MOST_BRANCHES} pairs.')
    branches = tuple(_parse_branch(branch, where) for branch in listed)
    return Choice(layer["name"], branches, reason if isinstance(reason, str) else "")


def _parse_branch(branch: object, where: str) -> Branch:
    if not isinstance(branch, Mapping) or branch.get("scheme") is None or branch.get("rank") is None:
        raise LoadError(f"{where}: give both scheme and rank, or neither.")
    name, rank = branch["scheme"], branch["rank"]
    scheme = scheme_named(name) if isinstance(name, str) else None
    if scheme is None:
        raise LoadError(f"{where}: unknown scheme {_shown(name)}; one of {_SCHEME_NAMES}.")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise LoadError(f"{where}: rank must be a whole number of at least 1, not {_shown(rank)}.")
    return Branch(scheme, rank)
