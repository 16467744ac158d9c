"""The table of a small network as this computer really is; no figure is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from trp_export.errors import DeviceError
from trp_export.latency.device import DeviceUnderTest
from trp_export.latency.network import measure_network
from trp_export.latency.table import Table, cache_file
from trp_export.load import load
from trp_export.network import analyse, measure_layers
from trp_export.options import LoadOptions, Selection

from .test_network import chain

# Of layers that take less than a microsecond the profiler says that they take nothing.
WIDTH, EXTENT = 96, 16


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_every_layer_is_seen_by_the_profiler_and_measured_once(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = analyse(load(chain(tmp_path, 2, width=WIDTH, extent=EXTENT), LoadOptions()), tmp_path)
    layers = measure_layers(network, Selection(scheme="channel"), (), lambda step, share: None)
    device = DeviceUnderTest("local", 1, {"x": (1, WIDTH, EXTENT, EXTENT)}, precision)
    conditions = device.conditions()
    assert (conditions.device, conditions.unit, conditions.threads) == ("local", "ms", 1)
    assert conditions.precision == precision

    def measure() -> None:
        table = Table(conditions, cache_file(tmp_path, conditions))
        latency = measure_network(network, layers, device, table, tmp_path, 1, lambda step, share: None)
        assert set(latency.timings) == {"conv0", "conv1", "head"}
        assert latency.original > 0
        assert latency.dense > 0
        for timing in latency.timings.values():
            assert timing.dense > 0
            assert timing.pairs
            for ranks, costs in timing.pairs.values():
                assert len(ranks) == len(costs)
                assert (costs > 0).all()

    measure()

    def gone(*whatever: object) -> None:
        raise DeviceError("must not be asked again")

    monkeypatch.setattr(DeviceUnderTest, "profile", gone)
    monkeypatch.setattr(DeviceUnderTest, "compare", gone)
    measure()
