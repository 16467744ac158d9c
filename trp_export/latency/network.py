"""The latency of a network on a device, dense and under any plan: predicted from the table, or measured as a whole.

predicted = the dense network, measured whole + over its layers (pair - dense)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trp_export.bench import median, ratio
from trp_export.bench.devices.base import cached
from trp_export.errors import DeviceError
from trp_export.graph.large_files import read_model
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.latency.candidates import offered_ranks
from trp_export.latency.device import DeviceUnderTest
from trp_export.latency.forecast import Forecast
from trp_export.latency.isolated import measure_alone
from trp_export.latency.layer_key import network_digest, plan_digest, signature
from trp_export.latency.placeholder import make_standin, save_standin
from trp_export.latency.sampling import (
    Sample,
    Subject,
    costs_of,
    dense_key,
    extra_kernels,
    kernel_cost,
    pair_key,
    plans_to_measure,
    take_sample,
)
from trp_export.latency.table import Table, cache_file, merged
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Branch, Scheme
from trp_export.network import Network
from trp_export.options import Benchmark, Precision, Selection
from trp_export.planning.budgets import LayerTiming, Ranks
from trp_export.planning.curves import Layer
from trp_export.planning.plan import Change, Plan
from trp_export.system.progress import Progress

_DENSE = "dense-standin.onnx"


@dataclass(frozen=True, slots=True, eq=False)
class NetworkLatency:
    """A network on a device. `original` is the cost of the user's file as given; `dense` that of its normal form
    without low rank and `timings` those of its layers by site name, both in the precision of the table's conditions;
    all in their unit."""

    network: Network
    device: DeviceUnderTest
    table: Table
    timings: Mapping[str, LayerTiming]
    digest: str
    folder: Path
    original: float
    dense: float
    progress: Progress

    @property
    def unit(self) -> str:
        """What costs are counted in."""
        return self.table.conditions.unit

    def of_layers(self, budget: float) -> float:
        """What the layers with a timing may cost together for the whole network to cost `budget`."""
        return budget - self.dense + sum(timing.dense for timing in self.timings.values())

    @property
    def layer_costs(self) -> Mapping[str, float]:
        """The cost of every layer as it is; of one without a timing by its multiply-adds."""
        sites = [place.site for place in self.network.located]
        timed = sum(site.macs for site in sites if site.name in self.timings)
        rate = sum(timing.dense for timing in self.timings.values()) / max(timed, 1)
        return {
            site.name: self.timings[site.name].dense if site.name in self.timings else site.macs * rate
            for site in sites
        }

    def forecast(self, plan: Plan) -> Forecast:
        """What was predicted of a plan beside what it measures."""
        conditions = self.table.conditions
        what = f"{conditions.device}, {conditions.cpu}, onnxruntime {conditions.onnxruntime}"
        costs = self.original, self.predicted(plan), self.measured(plan)
        return Forecast(what, self.table.name, self.unit, *costs, precision=conditions.precision)

    def predicted(self, plan: Plan) -> float:
        """The cost of the whole network under a plan whose ranks are on offer."""
        return self.dense + sum(self._cost(change) - self.timings[change.site.name].dense for change in plan.changed)

    def measured(self, plan: Plan) -> float:
        """How many times as fast as the original the network is under a plan; measured once, then in the table.

        Raises DeviceError.
        """

        def measure() -> float:
            file = self.folder / "plan.onnx"
            save_standin(self.network, plan, file, self.table.conditions.precision)
            return speedup_of(self.device, self.network.original, file)

        return self.table.once(f"plan {plan_digest(self.digest, plan)}", measure)

    def speedup_of(self, network: Network) -> float:
        """How many times as fast as the original another form of it is without low rank; measured once.

        Raises DeviceError.
        """
        return replace(self, network=network, digest=digest_on(network, self.device)).measured(Plan((), "dense"))

    def _cost(self, change: Change) -> float:
        ranks, costs = self.timings[change.site.name].pairs[change.scheme.name]
        return float(np.interp(change.rank, ranks, costs))


def speedup_of(device: DeviceUnderTest, original: Path, file: Path) -> float:
    """How many times as fast as the original a file is, shortly measured side by side. Raises DeviceError."""
    return ratio(*device.compare([original, file]).measurements).value


def open_latency(
    network: Network,
    layers: Sequence[Layer],
    *,
    selection: Selection,
    benchmark: Benchmark,
    precision: Precision,
    folder: Path,
    progress: Progress,
) -> NetworkLatency:
    """The network on the device that `benchmark` names. What its table and the cache lack is measured.

    Plans are made for `precision`; their speed-up is against the original in its own precision.
    Raises DeviceError, and LoadError or EnvironmentMismatchError for a table that is damaged or of another device.
    """
    progress("latency table", 0)
    device = device_under_test(network, benchmark, precision)
    align = device.block() if selection.align == "auto" else selection.align
    return measure_network(network, layers, device, open_table(device, benchmark), folder, align, progress)


def device_under_test(network: Network, benchmark: Benchmark, precision: Precision) -> DeviceUnderTest:
    """The device of the benchmark, to be fed what the network takes."""
    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    return DeviceUnderTest(benchmark.device, benchmark.threads, shapes, precision)


def digest_on(network: Network, device: DeviceUnderTest) -> str:
    """What stands for a network and the shapes that a device feeds it."""
    fed = str(sorted(device.shapes.items()))
    thinner = (network_digest(network.model, ""),) if network.thinned is not None else ()
    return network_digest(read_model(network.original), "".join((fed, *network.rewrites, *thinner)))


def open_table(device: DeviceUnderTest, benchmark: Benchmark) -> Table:
    """What is known of the device: from the file that the user named, and from the cache.

    Raises DeviceError, and LoadError or EnvironmentMismatchError for a file that is damaged or of another device.
    """
    conditions = device.conditions()
    given = [benchmark.table] if benchmark.table is not None and benchmark.table.exists() else []
    return Table(conditions, cache_file(cached("latency"), conditions), merged(given, conditions))


def measure_network(
    network: Network,
    layers: Sequence[Layer],
    device: DeviceUnderTest,
    table: Table,
    folder: Path,
    align: int,
    progress: Progress,
) -> NetworkLatency:
    """Measure what the table lacks for this network. What is measured is kept even where the device is lost then.

    Raises DeviceError, and LoadError or UnsupportedError for a network that the device cannot run.
    """
    subjects = _subjects(network, layers, align, table.conditions.precision, device)
    try:
        save_standin(network, Plan((), "dense"), folder / _DENSE, table.conditions.precision)
        digest = digest_on(network, device)
        _fill(network, subjects, device, table, digest, folder, progress)
        original, dense = _whole(network, device, table, digest, folder)
    except DeviceError as error:
        raise DeviceError(f"{error}\nWhat was measured so far is kept; the same command goes on from there.") from error
    kernel = table.get(_kernel_key(digest)) or 0.0
    timings = {subject.site.name: timing for subject in subjects if (timing := _timing(subject, table, kernel))}
    return NetworkLatency(network, device, table, timings, digest, folder, original, dense, progress)


def _subjects(
    network: Network, layers: Sequence[Layer], align: int, precision: str, device: DeviceUnderTest
) -> tuple[Subject, ...]:
    """The layers that may become pairs; those that may not as well, where they are timed in the same runs."""
    signatures, block = signatures_of(network, alone=not device.profiled), device.block()
    return tuple(
        Subject(
            layer.site,
            signatures[layer.site.name],
            tuple(
                (curve.scheme, offered_ranks(layer.site, curve.scheme, block, align, precision))
                for curve in layer.curves
            ),
        )
        for layer in layers
        if (layer.curves or device.profiled) and layer.site.name in signatures
    )


def signatures_of(network: Network, *, alone: bool = False) -> dict[str, str]:
    """The signature of each layer that can be timed, by site name, in the network that will run, as it is in fp32."""
    model, _ = make_standin(network.model, Plan((), "dense"))
    places = find_sites(model, infer_shapes(model, network.inputs))
    return {place.site.name: signature(place, alone) for place in places if _can_be_timed(place, alone)}


def _can_be_timed(place: LocatedSite, alone: bool) -> bool:
    """False for layers of unknown or several sizes, and for transposed convs timed alone."""
    return (
        bool(place.site.kernel_shape)
        and len(place.site.uses) == len(place.nodes)
        and not (alone and place.site.op == "ConvTranspose")
    )


def _fill(
    network: Network,
    subjects: Sequence[Subject],
    device: DeviceUnderTest,
    table: Table,
    digest: str,
    folder: Path,
    progress: Progress,
) -> None:
    """Sample by sample, each put down at once; layer by layer where the device has no profiler."""
    if not device.profiled:
        measure_alone(subjects, device, table, folder, lambda share: progress("latency table", share))
        table.once(_dense_key(digest), lambda: median(*device.compare([folder / _DENSE]).measurements) / 1e6)
        return
    sites = [place.site for place in network.located]
    plans = plans_to_measure(subjects, sites, table, _dense_key(digest))
    samples = []
    for index, plan in enumerate(plans):
        progress("latency table", index / len(plans))
        samples.append(take_sample(network, plan, device, folder, table.conditions.precision))
        table.add(costs_of(samples[-1], plan, subjects))
        if not plan.changed:
            table.add({_dense_key(digest): samples[-1].total * _pace(samples[-1], subjects, table)})
    if plans and not plans[0].changed:
        table.add({_kernel_key(digest): kernel_cost(samples)})


def _pace(dense: Sample, subjects: Sequence[Subject], table: Table) -> float:
    """By how much layers took longer when the table was measured than in this sample of the dense network.

    A machine has faster and slower days; a whole and its layers must be of the same.
    """
    seen = [subject for subject in subjects if subject.site.name in dense.costs]
    known = sum(table.get(dense_key(subject)) or 0.0 for subject in seen)
    return known / sum(dense.costs[subject.site.name] for subject in seen) if seen else 1.0


def _dense_key(digest: str) -> str:
    return f"network {digest} dense"


def _original_key(digest: str) -> str:
    return f"network {digest} original"


def _kernel_key(digest: str) -> str:
    return f"network {digest} kernel"


def _whole(network: Network, device: DeviceUnderTest, table: Table, digest: str, folder: Path) -> tuple[float, float]:
    """The original, and its normal form without low rank; the original by its ratio to that."""
    dense = table.get(_dense_key(digest)) or 0.0
    original = table.once(_original_key(digest), lambda: dense * speedup_of(device, network.original, folder / _DENSE))
    return original, dense


def _timing(subject: Subject, table: Table, kernel: float) -> LayerTiming | None:
    """A layer's costs at every rank on offer, interpolated between those measured; None where it was not seen."""
    dense = table.get(dense_key(subject))
    if dense is None:
        return None
    pairs = {
        scheme.name: costs
        for scheme, ranks in subject.offers
        if (costs := _pair_costs(subject, scheme, ranks, table, kernel)) is not None
    }
    return LayerTiming(dense, pairs)


def _pair_costs(
    subject: Subject, scheme: Scheme, ranks: Sequence[int], table: Table, kernel: float
) -> tuple[Ranks, Float64] | None:
    known = {rank: cost for rank in ranks if (cost := table.get(pair_key(subject, scheme, rank))) is not None}
    if not known:
        return None
    offered = np.array([rank for rank in ranks if min(known) <= rank <= max(known)], dtype=np.intp)
    costs = np.interp(offered, list(known), list(known.values()))
    kernels = np.array([extra_kernels(Change(subject.site, (Branch(scheme, int(rank)),))) for rank in offered])
    return offered, np.maximum(costs + kernel * kernels, 1e-6)
