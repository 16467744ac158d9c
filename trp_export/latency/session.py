"""From the user's options to a measured network: the device, its table from the cache and from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trp_export.bench.devices.cache import cached
from trp_export.latency.device import DeviceUnderTest
from trp_export.latency.network import NetworkLatency, measure_network
from trp_export.latency.table import Table, cache_file, merged
from trp_export.network import Network
from trp_export.options import Benchmark, Precision, Selection
from trp_export.planning.curves import Layer
from trp_export.system.cpu import block_size

if TYPE_CHECKING:
    from trp_export.system.progress import Progress

# What tables call a precision.
_IN_TABLES: dict[Precision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


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
    """The network on the device that the benchmark names, with everything measured that the table lacked.

    Plans are made for `precision`; what they are measured against is the original as it is.
    Raises DeviceError, LoadError and EnvironmentMismatchError for tables that are none or another device's.
    """
    progress("latency table", 0)
    shapes = {name: tuple(size or 1 for size in shape) for name, shape in network.inputs.items()}
    device = DeviceUnderTest(benchmark.device, benchmark.threads, shapes, _IN_TABLES[precision])
    conditions = device.conditions()
    table = Table(conditions, cache_file(cached("latency"), conditions), merged(_existing(benchmark.table), conditions))
    align = block_size() if selection.align == "auto" else selection.align
    return measure_network(network, layers, device, table, folder, align, progress)


def _existing(file: Path | None) -> tuple[Path, ...]:
    return (file,) if file is not None and file.exists() else ()
