"""Read a plan that was saved as JSON, in whatever holds it: choices by the names of layers, not yet of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trp_export.errors import LoadError
from trp_export.lowrank.schemes import SCHEMES, Branch, Branches, scheme_named
from trp_export.planning.channels import ChannelDecision, parse_channels
from trp_export.planning.plan import FORMAT, OLDEST_VERSION, VERSION
from trp_export.system.json_fields import read_json

_MOST_BRANCHES = 2
_MOST_REWRITES = 16
_MOST_BYTES = 2**26
_LONGEST_SHOWN = 80
_SCHEME_NAMES = ", ".join((*SCHEMES, "input-sliced-N", "output-sliced-N"))


@dataclass(frozen=True, slots=True)
class Choice:
    """One layer of a saved plan: its name and the pairs it becomes; none where it is kept."""

    name: str
    branches: Branches
    reason: str


@dataclass(frozen=True, slots=True)
class Choices:
    """What a saved plan says: of layers, of the channel groups that lose channels, and timed rewrites of any name."""

    layers: tuple[Choice, ...] = ()
    channels: tuple[ChannelDecision, ...] = ()
    rewrites: tuple[str, ...] = ()


def read_plan(path: Path) -> Choices:
    """The plan in a file that --json or trp-search wrote. Raises LoadError for any other file."""
    return parse_plan(read_json(path, _MOST_BYTES), str(path))


def parse_plan(document: object, where: str) -> Choices:
    """The choices in a plan, in a report that holds one under `plan`, or in the manifest of a bundle.

    Raises LoadError, which names the document by `where` and the layer at fault.
    """
    plan = _plan_in(document, where)
    return Choices(_parse_layers(plan, where), _parse_groups(plan, where), _parse_rewrites(plan, where))


def _parse_layers(plan: Mapping[str, Any], where: str) -> tuple[Choice, ...]:
    layers = plan.get("layers")
    if not isinstance(layers, list):
        raise LoadError(f'{where}: "layers" must be a list.')
    choices = tuple(_parse_choice(layer, f"{where}, layer {index + 1}") for index, layer in enumerate(layers))
    _require_distinct([choice.name for choice in choices], f"{where} names layer")
    return choices


def _parse_groups(plan: Mapping[str, Any], where: str) -> tuple[ChannelDecision, ...]:
    groups = plan.get("channels", [])
    if not isinstance(groups, list):
        raise LoadError(f'{where}: "channels" must be a list.')
    decisions = tuple(parse_channels(group, f"{where}, channels {index + 1}") for index, group in enumerate(groups))
    _require_distinct([decision.name for decision in decisions], f"{where} names the channels of")
    return decisions


def _parse_rewrites(plan: Mapping[str, Any], where: str) -> tuple[str, ...]:
    rewrites = plan.get("rewrites", [])
    if not isinstance(rewrites, list) or len(rewrites) > _MOST_REWRITES or not all(map(_is_text, rewrites)):
        raise LoadError(f'{where}: "rewrites" must be a list of at most {_MOST_REWRITES} names.')
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
    if not isinstance(version, int) or isinstance(version, bool) or not OLDEST_VERSION <= version <= VERSION:
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
