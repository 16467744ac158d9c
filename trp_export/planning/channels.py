"""What a plan decides on channel groups, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trp_export.errors import LoadError


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal channels of a group: `kept` stays, and its readers add their weights for `merged` to those for it."""

    kept: int
    merged: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChannelDecision:
    """What happens to one channel group, named after the first layer that makes its `channels`.

    Channels are counted in the order of that layer. A group that stays has no `clusters` and drops none. `fitted`: what
    is dropped was not zero, and the layer that read it is refitted on images.
    """

    name: str
    channels: int
    clusters: tuple[Cluster, ...]
    dropped: tuple[int, ...]
    reason: str
    fitted: bool = False

    def __post_init__(self) -> None:
        gone = [*self.dropped, *(channel for cluster in self.clusters for channel in cluster.merged)]
        named = [*gone, *(cluster.kept for cluster in self.clusters)]
        if any(not 0 <= channel < self.channels for channel in named):
            raise ValueError(f"{self.name} has {self.channels} channels, counted from 0")
        if len(set(named)) < len(named):
            raise ValueError(f"{self.name}: a channel is named twice")
        if len(gone) >= self.channels > 0:
            raise ValueError(f"{self.name}: no channel would be left")

    @property
    def removed(self) -> int:
        """How many channels go."""
        return len(self.dropped) + sum(len(cluster.merged) for cluster in self.clusters)

    @property
    def kept(self) -> int:
        """How many channels stay."""
        return self.channels - self.removed

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "channels": self.channels,
            "kept": self.kept,
            "merged": [[cluster.kept, *cluster.merged] for cluster in self.clusters],
            "dropped": list(self.dropped),
            "reason": self.reason,
            **({"fitted": True} if self.fitted else {}),
        }


def parse_channels(document: object, where: str) -> ChannelDecision:
    """A decision from a saved plan. Raises LoadError, which names the document by `where`."""
    if not isinstance(document, Mapping) or not isinstance(document.get("name"), str):
        raise LoadError(f'{where}: "name" must be a string.')
    where = f"{where} ({document['name']!r:.80})"
    channels = document.get("channels")
    if not isinstance(channels, int) or not _is_count(channels):
        raise LoadError(f'{where}: "channels" must be a whole number.')
    merged, dropped = document.get("merged", []), document.get("dropped", [])
    if not isinstance(merged, list) or not all(_are_counts(cluster) and len(cluster) > 1 for cluster in merged):
        raise LoadError(f'{where}: "merged" must be a list of lists of two or more channels.')
    if not _are_counts(dropped):
        raise LoadError(f'{where}: "dropped" must be a list of channels.')
    clusters = tuple(Cluster(kept, tuple(others)) for kept, *others in merged)
    reason, fitted = document.get("reason", ""), document.get("fitted", False)
    if not isinstance(fitted, bool):
        raise LoadError(f'{where}: "fitted" must be true or false.')
    try:
        return ChannelDecision(
            document["name"], channels, clusters, tuple(dropped), reason if isinstance(reason, str) else "", fitted
        )
    except ValueError as error:
        raise LoadError(f"{where}: {error}.") from error


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))
