"""The Plan: for every layer a decision and its reason. A plain value, saved as JSON, carried out elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trp_export.errors import LoadError
from trp_export.lowrank.schemes import SCHEMES, Scheme, scheme_named
from trp_export.lowrank.site import Site

FORMAT = "trp-plan"
VERSION = 1
_SCHEME_NAMES = ", ".join((*SCHEMES, "input-sliced-N", "output-sliced-N"))


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one site. `scheme` and `rank` are None where the layer stays as it is."""

    site: Site
    scheme: Scheme | None
    rank: int | None
    reason: str
    energy: float = 1.0

    def __post_init__(self) -> None:
        if (self.scheme is None) != (self.rank is None):
            raise ValueError(f"{self.site.name}: a scheme needs a rank, and a rank a scheme")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"{self.site.name}: rank {self.rank} is below 1")

    @property
    def macs(self) -> int:
        if self.scheme is None or self.rank is None:
            return self.site.macs
        return self.rank * self.site.macs_per_rank(self.scheme)

    @property
    def params(self) -> int:
        if self.scheme is None or self.rank is None:
            return self.site.params
        return self.rank * self.site.params_per_rank(self.scheme)

    @property
    def full_rank(self) -> int | None:
        return None if self.scheme is None else self.site.full_rank(self.scheme)


@dataclass(frozen=True, slots=True)
class Change:
    """A layer that becomes factors: its site, the scheme and the rank, each there for certain."""

    site: Site
    scheme: Scheme
    rank: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All decisions, in the order of the graph, the rule that made them in the user's words, and the multiple that
    ranks were rounded up to."""

    decisions: tuple[Decision, ...]
    rule: str
    align: int = 1

    @property
    def changed(self) -> tuple[Change, ...]:
        return tuple(
            Change(decision.site, decision.scheme, decision.rank)
            for decision in self.decisions
            if decision.scheme is not None and decision.rank is not None
        )

    def to_json(self) -> dict[str, Any]:
        layers = [
            {
                "name": decision.site.name,
                "scheme": decision.scheme.name if decision.scheme else None,
                "rank": decision.rank,
                "reason": decision.reason,
            }
            for decision in self.decisions
        ]
        return {"format": FORMAT, "version": VERSION, "rule": self.rule, "align": self.align, "layers": layers}


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of a saved plan: a layer's name with its scheme and rank, or neither."""

    name: str
    scheme: Scheme | None
    rank: int | None
    reason: str


def parse_plan(document: object, where: str) -> tuple[Choice, ...]:
    """The choices in a plan, in a report that holds one under `plan`, or in the manifest of a bundle.

    Raises LoadError, naming `where` and the line at fault.
    """
    for name in ("provenance", "plan"):
        if isinstance(document, Mapping) and isinstance(document.get(name), Mapping):
            document = document[name]
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise LoadError(f'{where} holds no plan: "format": "{FORMAT}" is missing. Make one with --dry-run --json.')
    if document.get("version") != VERSION:
        raise LoadError(f"{where}: plan version {document.get('version')!r} is unknown; this program reads {VERSION}.")
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise LoadError(f'{where}: "layers" must be a list.')
    choices = tuple(_parse_choice(layer, f"{where}, layer {index + 1}") for index, layer in enumerate(layers))
    names = [choice.name for choice in choices]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LoadError(f"{where} names {twice[0]} more than once.")
    return choices


def _parse_choice(layer: object, where: str) -> Choice:
    if not isinstance(layer, Mapping) or not isinstance(layer.get("name"), str):
        raise LoadError(f'{where}: "name" must be a text.')
    name, scheme, rank = layer["name"], layer.get("scheme"), layer.get("rank")
    if (scheme is None) != (rank is None):
        raise LoadError(f"{where} ({name}): give both scheme and rank, or neither.")
    known = scheme_named(scheme) if isinstance(scheme, str) else None
    if scheme is not None and known is None:
        raise LoadError(f"{where} ({name}): unknown scheme {scheme!r}; one of {_SCHEME_NAMES}.")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise LoadError(f"{where} ({name}): rank must be a whole number of at least 1, not {rank!r}.")
    reason = layer.get("reason", "")
    return Choice(name, known, rank, reason if isinstance(reason, str) else "")
