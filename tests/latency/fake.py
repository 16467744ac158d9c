"""A device whose costs are known: each node costs a little and something per multiply-add, nothing else matters.

In int8 a multiply-add costs a quarter, and ten times that where the channels that a conv reads are no multiple of four.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from trp_export.bench import Comparison, Environment, Measurement, Process
from trp_export.bench.profile import Profile, ProfiledLayer
from trp_export.errors import DeviceError
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import find_sites
from trp_export.latency.table import Conditions

CONDITIONS = Conditions("fake", "test CPU", "test machine", 1, (0,), 1, "test provider", "1.0", "ms")
PER_NODE = 0.01
PER_MAC = 1e-6
INT8 = 0.25
ODD = 10
OTHER = 0.05


@dataclass
class FakeDevice:
    """Stands in for DeviceUnderTest. `scale` changes what whole networks take, `pace` everything; `dies_after` that
    many profiles."""

    shapes: dict[str, tuple[int, ...]]
    scale: float = 1.0
    pace: float = 1.0
    per_node: float = PER_NODE
    dies_after: int = 1000
    specification: str = "fake"
    precision: str = "fp32"
    profiled: bool = True
    profiles: int = 0
    comparisons: int = 0
    files: list[str] = field(default_factory=list)

    def block(self) -> int:
        return 16

    def conditions(self) -> Conditions:
        return replace(CONDITIONS, precision=self.precision)

    def profile(self, file: Path) -> tuple[Profile, float]:
        if self.profiles >= self.dies_after:
            raise DeviceError("the device was lost.")
        self.profiles += 1
        costs = self.costs(file)
        layers = tuple(ProfiledLayer(name, "Conv", ms, 0, 1) for name, ms in costs.items())
        return Profile(file.name, layers, {"pool": OTHER * self.pace}, len(layers) + 1), sum(
            costs.values()
        ) + OTHER * self.pace

    def compare(self, files: Sequence[Path]) -> Comparison:
        self.comparisons += 1
        taken = [OTHER * self.pace + sum(self.costs(file).values()) for file in files]
        taken[1:] = [one * self.scale for one in taken[1:]]
        environment = Environment("fake", "", "", "", 1, "", (0,), 1, "", "", "")
        measurements = (
            Measurement(file.name, "", 0, _alike(round(ms * 1e6)), None, {})
            for file, ms in zip(files, taken, strict=True)
        )
        return Comparison(environment, tuple(measurements), (), 0.0)

    def feeding(self, shapes: Mapping[str, tuple[int, ...]]) -> FakeDevice:
        return AloneDevice(dict(shapes), owner=self)

    def costs(self, file: Path) -> dict[str, float]:
        """By layer, the factors of a pair together, as a profile tells them."""
        model = ir.load(file)
        if any(node.op_type == "QuantizeLinear" for node in model.graph):
            return self._costs_int8(model)
        shapes = infer_shapes(model, self.shapes)
        costs: dict[str, float] = {}
        for place in find_sites(model, shapes):
            name = place.site.name.removesuffix(".reduce").removesuffix(".expand")
            costs[name] = costs.get(name, 0.0) + self.pace * (self.per_node + PER_MAC * place.site.macs)
        return costs

    def _costs_int8(self, model: ir.Model) -> dict[str, float]:
        """Of the chain, whose convs all keep the extent."""
        costs: dict[str, float] = {}
        for node in (node for node in model.graph if node.op_type in ("Conv", "Gemm")):
            weight = node.inputs[1].producer().inputs[0]  # type: ignore[union-attr]
            assert weight.dtype == ir.DataType.INT8
            name = weight.name.removesuffix(".int8").removesuffix(".weight")
            name = name.removesuffix(".reduce").removesuffix(".expand")
            area = math.prod(next(iter(self.shapes.values()))[2:]) if node.op_type == "Conv" else 1
            slow = ODD if node.op_type == "Conv" and weight.shape[1] % 4 and weight.shape[1] > 1 else 1
            taken = PER_NODE + PER_MAC * INT8 * slow * area * math.prod(weight.shape)
            costs[name] = costs.get(name, 0.0) + self.pace * taken
        return costs


@dataclass
class AloneDevice(FakeDevice):
    """The same device, fed other inputs; its comparisons count as those of its owner, unscaled."""

    owner: FakeDevice | None = None

    def compare(self, files: Sequence[Path]) -> Comparison:
        assert self.owner is not None
        self.owner.comparisons += 1
        return super().compare(files)


def _alike(sample: int) -> tuple[Process, ...]:
    return tuple(Process(index, 0.0, 0, 0, (sample,)) for index in range(4))
