"""What each pair of a plan costs beside the layer that it replaces: measured on the device, or estimated."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import ClassVar, Protocol

from trp_export.bench import ratio
from trp_export.graph.rewrite import path_count
from trp_export.latency.device import DeviceUnderTest
from trp_export.latency.layer_key import plan_digest
from trp_export.latency.network import device_under_test, digest_on, open_table, signatures_of, speedup_of
from trp_export.latency.placeholder import save_standin
from trp_export.latency.sampling import Sample, Subject, branches_key, costs_of, dense_key, take_sample
from trp_export.latency.table import Table
from trp_export.lowrank.schemes import Branch, pair_shape
from trp_export.lowrank.site import Site, Use
from trp_export.network import Network
from trp_export.options import Benchmark, Precision
from trp_export.planning.plan import Change, Plan

_DENSE = Plan((), "dense")
# A pair must save this share of its layer's time: below it, two profiles of one network differ as much.
_LEAST_GAIN = 0.03
# Multiply-adds that take as long as writing and reading one element of the tensor between two convs.
_MACS_PER_ELEMENT = 16


@dataclass(frozen=True, slots=True)
class PairCost:
    """The cost of a layer and of the pairs that replace it, both in `unit`; None where they are estimated."""

    dense: float
    pair: float
    unit: str | None

    @property
    def highest(self) -> float:
        """The cost up to which pairs are cheaper than the layer by more than costs vary."""
        return self.dense * (1 - _LEAST_GAIN)

    @property
    def is_lower(self) -> bool:
        """Whether the pairs are cheaper than the layer by more than costs vary."""
        return self.pair <= self.highest

    def __str__(self) -> str:
        return f"{self.dense:.3g} to {self.pair:.3g} {self.unit or 'estimated'}"


class PairCosts(Protocol):
    """What tells the costs of pairs; `source` says how."""

    @property
    def source(self) -> str: ...

    def costs(self, plan: Plan) -> Mapping[str, PairCost]:
        """The costs of a plan's pairs by site name, as far as they are known."""

    def whole(self, plan: Plan) -> float:
        """The cost of the whole network without the plan's pairs, in the unit of these costs."""

    def speedup(self, plan: Plan) -> float | None:
        """How many times as fast the plan's network is as the network without low rank; None where it is unknown."""

    def speedup_by_channels(self, network: Network) -> float:
        """How many times as fast as with all channels the network of these costs is, both without low rank."""


@dataclass(frozen=True, slots=True)
class EstimatedCosts:
    """Costs in multiply-adds, to which each element of a tensor that only the pairs make adds some.

    Layers of unknown size are left out.
    """

    source: ClassVar[str] = "estimated"

    def costs(self, plan: Plan) -> dict[str, PairCost]:
        return {
            change.site.name: PairCost(change.site.macs, _estimate(change), None)
            for change in plan.changed
            if change.site.is_known
        }

    def whole(self, plan: Plan) -> float:
        return float(sum(decision.site.macs for decision in plan.decisions if decision.site.is_known))

    def speedup(self, plan: Plan) -> None:
        return None

    def speedup_by_channels(self, network: Network) -> float:
        return network.fewer_macs


def _estimate(change: Change) -> float:
    return change.site.macs_of(change.branches) + _MACS_PER_ELEMENT * _elements(change)


def _elements(change: Change) -> int:
    """Elements of the tensors that the pairs make and the layer does not: between two convs, and of partial sums."""
    site, total = change.site, 0
    sums = sum(path_count(site, branch) for branch in change.branches) - 1
    for use in site.uses:
        outputs = site.kernel_shape[0] * prod(use.out_extents)
        between = sum(_middle(site, branch, use) for branch in change.branches)
        total += (between + sums * outputs) * use.repeats
    return total


def _middle(site: Site, branch: Branch, use: Use) -> int:
    """Elements between the two convs of a branch; the first has done its work on the axes that it covers."""
    channels = pair_shape(branch.scheme, site.kernel_shape, site.group, branch.rank).reduce[0]
    done = branch.scheme.reduce_axes
    extents = zip(use.in_extents, use.out_extents, strict=True)
    return channels * prod(after if axis in done else before for axis, (before, after) in enumerate(extents))


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredCosts:
    """Times the pairs of a network on a device that has a profiler; what the table holds is not timed again.

    `signatures` are those of the layers that can be timed, `digest` is that of the network on its inputs, `untold` are
    the keys of what a profile did not tell.
    """

    network: Network
    device: DeviceUnderTest
    table: Table
    folder: Path
    signatures: Mapping[str, str]
    digest: str
    untold: set[str] = field(default_factory=set)
    source: ClassVar[str] = "timed"

    def costs(self, plan: Plan) -> dict[str, PairCost]:
        """The costs of a plan's pairs, by site name. At most two networks are profiled. Raises DeviceError."""
        branches_of = {
            Subject(change.site, self.signatures[change.site.name], ()): change.branches
            for change in plan.changed
            if change.site.name in self.signatures
        }
        subjects = tuple(branches_of)
        self._require(map(dense_key, subjects), _DENSE, subjects)
        self._require(itertools.starmap(branches_key, branches_of.items()), plan, subjects)
        costs = {
            subject.site.name: (self.table.get(dense_key(subject)), self.table.get(branches_key(subject, branches)))
            for subject, branches in branches_of.items()
        }
        unit = self.table.conditions.unit
        return {name: PairCost(dense, pair, unit) for name, (dense, pair) in costs.items() if dense and pair}

    def whole(self, plan: Plan) -> float:
        """The cost of the network without low rank, profiled once. Raises DeviceError."""
        return self.table.once(self._whole_key, lambda: self._sample(_DENSE).total)

    def speedup(self, plan: Plan) -> float:
        """How many times as fast the plan's network is as the network without low rank. Raises DeviceError."""

        def measure() -> float:
            # Other networks are timed in this folder, too: those with fewer channels.
            dense, file = self.folder / f"dense-{self.digest}.onnx", self.folder / "plan.onnx"
            if not dense.exists():
                save_standin(self.network, _DENSE, dense, self.table.conditions.precision)
            save_standin(self.network, plan, file, self.table.conditions.precision)
            return speedup_of(self.device, dense, file)

        return self.table.once(f"pairs beside none {plan_digest(self.digest, plan)}", measure)

    def speedup_by_channels(self, network: Network) -> float:
        """The same, timed side by side where channels went by images, as far as it is sure. Raises DeviceError."""
        wide = network.wide
        if wide is None:
            return network.fewer_macs

        def measure() -> float:
            files = [self.folder / "wide-standin.onnx", self.folder / "thin-standin.onnx"]
            for one, file in zip((wide, network), files, strict=True):
                save_standin(one, _DENSE, file, self.table.conditions.precision)
            measured = ratio(*self.device.compare(files).measurements)
            return min(max(1.0, measured.low), measured.high)  # Of the interval, what is nearest to no change.

        return self.table.once(f"without channels {self.digest}", measure)

    def _require(self, keys: Iterable[str], plan: Plan, subjects: Sequence[Subject]) -> None:
        """Profile a plan's network where the table lacks any of the keys that a profile may tell."""
        wanted = {key for key in keys if key not in self.table} - self.untold
        if wanted:
            self._profile(plan, subjects)
            self.untold.update(key for key in wanted if key not in self.table)

    def _profile(self, plan: Plan, subjects: Sequence[Subject]) -> None:
        sample = self._sample(plan)
        whole = {} if plan.changed else {self._whole_key: sample.total}
        self.table.add(costs_of(sample, plan, subjects) | whole)

    def _sample(self, plan: Plan) -> Sample:
        return take_sample(self.network, plan, self.device, self.folder, self.table.conditions.precision)

    @property
    def _whole_key(self) -> str:
        return f"profiled {self.digest}"


def open_pair_costs(network: Network, benchmark: Benchmark, precision: Precision, folder: Path) -> PairCosts:
    """Measured on the benchmark's device where it runs and has a profiler, else estimated.

    Raises DeviceError, and LoadError or EnvironmentMismatchError for a latency table that cannot be used.
    """
    if not benchmark.run:
        return EstimatedCosts()
    device = device_under_test(network, benchmark, precision)
    if not device.profiled:
        return EstimatedCosts()
    table, digest = open_table(device, benchmark), digest_on(network, device)
    return MeasuredCosts(network, device, table, folder, signatures_of(network), digest)
