"""Fill the table: whole networks with every layer under one scheme at one level, profiled layer by layer.

One run tells the cost of every layer at once, in the caches and the layout that it has inside a network; how many runs
there are does not depend on the depth. Nothing that the table knows is measured again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from trp_export.graph.rewrite import WeightNames, path_count
from trp_export.latency.candidates import sampled_ranks
from trp_export.latency.placeholder import save_standin
from trp_export.latency.table import Table
from trp_export.lowrank.schemes import Branch, Branches, Scheme
from trp_export.lowrank.site import Site
from trp_export.network import Network
from trp_export.planning.plan import Change, Decision, Plan

if TYPE_CHECKING:
    from trp_export.bench.profile import Profile
    from trp_export.latency.device import DeviceUnderTest

# What one more kernel can add or take at most beside what its profile says, in ms; more is a disturbance.
_MOST_PER_KERNEL = 0.001


@dataclass(frozen=True, slots=True)
class Subject:
    """A layer to be measured: its site and signature, and the ranks on offer under each scheme."""

    site: Site
    signature: str
    offers: tuple[tuple[Scheme, tuple[int, ...]], ...]


def dense_key(subject: Subject) -> str:
    return f"{subject.signature} | dense"


def pair_key(subject: Subject, scheme: Scheme, rank: int) -> str:
    return branches_key(subject, (Branch(scheme, rank),))


def branches_key(subject: Subject, branches: Branches) -> str:
    """Of a layer that becomes one pair, or a sum of pairs."""
    return f"{subject.signature} | {' + '.join(f'{branch.scheme.name} {branch.rank}' for branch in branches)}"


def extra_kernels(change: Change) -> int:
    """Kernels that run beyond the one of the dense layer."""
    return 3 * sum(path_count(change.site, branch) for branch in change.branches) - 2


def plans_to_measure(
    subjects: Sequence[Subject], network_sites: Sequence[Site], table: Table, network_key: str
) -> list[Plan]:
    """The networks whose profiles fill the table: the dense one, then scheme by scheme, level by level.

    Each holds the pairs not known yet, all other layers dense; one that would tell nothing new is left out. The dense
    one tells the whole network's cost as well, for which the table holds `network_key`.
    """
    plans = []
    if any(key not in table for key in (network_key, *map(dense_key, subjects))):
        plans.append(_plan(network_sites, {}))
    planned: set[str] = set()
    for changes in _levels(subjects):
        new = {
            subject.site.name: change
            for subject, change in changes
            if pair_key(subject, change.scheme, change.rank) not in table
            and pair_key(subject, change.scheme, change.rank) not in planned
        }
        planned |= {
            pair_key(subject, change.scheme, change.rank) for subject, change in changes if subject.site.name in new
        }
        if new:
            plans.append(_plan(network_sites, new))
    return plans


def _levels(subjects: Sequence[Subject]) -> Iterator[list[tuple[Subject, Change]]]:
    """For each scheme and level what every layer becomes; a layer with fewer schemes is not in the later ones."""
    for index in range(max((len(subject.offers) for subject in subjects), default=0)):
        sampled = [
            (subject, scheme, sampled_ranks(ranks))
            for subject in subjects
            for scheme, ranks in subject.offers[index : index + 1]
            if ranks
        ]
        for level in range(max((len(ranks) for _, _, ranks in sampled), default=0)):
            yield [
                (subject, Change(subject.site, (Branch(scheme, ranks[level]),))) for subject, scheme, ranks in sampled
            ]


def _plan(sites: Sequence[Site], changes: Mapping[str, Change]) -> Plan:
    decisions = (
        Decision(site, change.branches, "sampled") if (change := changes.get(site.name)) else Decision(site, (), "kept")
        for site in sites
    )
    return Plan(tuple(decisions), "sample")


@dataclass(frozen=True, slots=True)
class Sample:
    """One profiled network: cost by site name, kernels that ran, and the whole without the profiler."""

    costs: Mapping[str, float]
    kernels: int
    total: float


def take_sample(network: Network, plan: Plan, device: DeviceUnderTest, folder: Path, precision: str) -> Sample:
    """Profile the network as the plan would have it. Raises DeviceError."""
    file = folder / "sample.onnx"
    names = save_standin(network, plan, file, precision)
    profile, total = device.profile(file)
    return Sample(_by_site(network, profile, names), profile.kernels, total)


def _by_site(network: Network, profile: Profile, names: WeightNames) -> dict[str, float]:
    """What the profile tells of each layer: its own kernels, and the sums of a decoupled one."""
    owner = {reduce.removesuffix(".reduce.weight"): site for site, paths in names.items() for reduce, _ in paths}
    owner |= {
        f"{node.name}.{index}.sum": place.site.name
        for place in network.located
        for node in place.nodes
        for index in range(1, len(names.get(place.site.name, ())))
    }
    costs: dict[str, float] = defaultdict(float)
    for layer in profile.layers:
        costs[owner.get(layer.name, layer.name)] += layer.ms
    for name, ms in profile.others.items():
        if name in owner:
            costs[owner[name]] += ms
    return costs


def costs_of(sample: Sample, plan: Plan, subjects: Sequence[Subject]) -> dict[str, float]:
    """The keys that one sample tells; layers of one signature share their median."""
    changes = {change.site.name: change for change in plan.changed}
    found: dict[str, list[float]] = defaultdict(list)
    for subject in subjects:
        cost = sample.costs.get(subject.site.name)
        if cost:
            change = changes.get(subject.site.name)
            found[branches_key(subject, change.branches) if change else dense_key(subject)].append(cost)
    return {key: median(costs) for key, costs in found.items()}


def kernel_cost(samples: Sequence[Sample]) -> float:
    """What one more kernel adds to the whole beside its own profiled time, by least squares through the dense network.

    It can be negative: being profiled costs a kernel about half a microsecond, which matters where it takes five.
    """
    if len(samples) < 2:
        return 0.0
    dense, *others = samples
    extra = np.array([other.kernels - dense.kernels for other in others], dtype=np.float64)
    between = np.array([_between(other) - _between(dense) for other in others])
    slope = float(extra @ between / max(extra @ extra, 1.0))
    return min(max(slope, -_MOST_PER_KERNEL), _MOST_PER_KERNEL)


def _between(sample: Sample) -> float:
    return sample.total - sum(sample.costs.values())
