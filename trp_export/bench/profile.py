"""Where the time goes: onnxruntime's own profile, mapped back to the layers of the model as it was written.

onnxruntime renames what it fuses: a convolution in the blocked layout is called after its output, the rest keep
their node names, sometimes with a word before or after, in 16 bits after a cast, in 8 bits with a running number. Time
that belongs to no layer is reported as other.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.bench.devices.base import Device, Start
from trp_export.bench.devices.local import LocalDevice, PipeRunner
from trp_export.bench.devices.replies import KernelTime
from trp_export.bench.devices.staging import copy_local
from trp_export.bench.models import BenchModel
from trp_export.bench.providers import HEAVY
from trp_export.errors import DeviceError
from trp_export.graph.model_files import read_proto
from trp_export.system.scratch import Scratch

WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "FusedConv": 1, "FusedGemm": 1, "QLinearConv": 3}
NESTING = ("If", "Loop", "Scan")  # their time contains that of the nodes inside, which are listed themselves
WARM_RUNS = 5
PROFILE_NS = 1.5e9
FEWEST_RUNS = 10
PARTS = (".reduce", ".expand")
# What is added to the names of kernels in 16 and in 8 bits.
ADDED = re.compile(r"^InsertedPrecisionFreeCast_|_token_\d+$")
CHANNELS_LAST = "QLinearConv"  # its output is (N, H, W, C) or (N, C, H, W), never padded


@dataclass(frozen=True, slots=True)
class ProfiledLayer:
    """One layer's cost in one inference. `parts` is 1 for a layer as it was, 2 for a pair of factors."""

    name: str
    op: str
    ms: float
    macs: int
    parts: int

    @property
    def gmacs_per_s(self) -> float:
        """Achieved multiply-adds in 1e9 per second, 0 where no time was seen."""
        return self.macs / self.ms / 1e6 if self.ms else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """All layers with weights in order of execution, and the time of everything else. Times are ms per inference.

    `others` names the kernels behind `other_ms`; `kernels` counts all that ran in one inference.
    """

    model: str
    layers: tuple[ProfiledLayer, ...]
    others: Mapping[str, float]
    kernels: int

    @property
    def other_ms(self) -> float:
        """The time of all kernels that belong to no layer."""
        return sum(self.others.values())

    @property
    def total_ms(self) -> float:
        """All of it."""
        return sum(layer.ms for layer in self.layers) + self.other_ms

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        layers = [
            {
                "name": layer.name,
                "op": layer.op,
                "ms": layer.ms,
                "macs": layer.macs,
                "gmacs_per_s": layer.gmacs_per_s,
                "parts": layer.parts,
            }
            for layer in self.layers
        ]
        return {"model": self.model, "total_ms": self.total_ms, "other_ms": self.other_ms, "layers": layers}


def profile_models(cases: Sequence[BenchModel], start: Start) -> tuple[Profile, ...]:
    """Profile each model in a fresh process on this computer. Raises DeviceError, OutputError."""
    with Scratch() as scratch:
        named = [_with_names(case, scratch.folder / f"model{i}") for i, case in enumerate(cases)]
        device = LocalDevice(scratch.folder)
        device.stage(named)
        return tuple(_profile(device, index, case, start) for index, case in enumerate(named))


def _profile(device: LocalDevice, index: int, case: BenchModel, start: Start) -> Profile:
    runner = device.start(index, replace(start, profile=f"profile{index}"))
    try:
        slowest = max(runner.run(WARM_RUNS, 1).samples)
        runner.run(_within(PROFILE_NS, slowest, 2 * FEWEST_RUNS), 1)
        return read_profile(case, runner.kernel_times())
    finally:
        runner.close()


def profile_and_time(
    device: Device, index: int, case: BenchModel, start: Start, budget_ns: float
) -> tuple[Profile, float]:
    """A shorter profile, and the ms of an inference in the same process once its profiler has stopped.

    Both are means of the faster half. The nodes of `case` need names of their own. Raises DeviceError, which also
    says so of a device whose runner has no profiler.
    """
    runner = device.start(index, replace(start, profile=f"profile{index}"))
    try:
        if not isinstance(runner, PipeRunner):
            raise DeviceError(f"{device.name} has no profiler.")
        slowest = max(runner.run(WARM_RUNS, 1).samples)
        runner.run(_within(budget_ns, slowest, FEWEST_RUNS), 1)
        found = read_profile(case, runner.kernel_times())
        times = runner.run(_within(budget_ns / 4, slowest, FEWEST_RUNS // 2), 1).samples
        return found, _typical([sample / 1e6 for sample in times])
    finally:
        runner.close()


def _within(budget_ns: float, slowest_ns: float, fewest: int) -> int:
    return max(fewest, min(500, int(budget_ns / slowest_ns)))


def read_profile(case: BenchModel, kernel_times: Iterable[KernelTime]) -> Profile:
    """Sum the times of kernels into the layers of `case`."""
    graph = _Graph(read_proto(case.path))
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    operators: dict[tuple[str, str], str] = {}
    outputs: dict[tuple[str, str], tuple[int, ...]] = {}
    for kernel in kernel_times:
        if kernel.operator in NESTING:
            continue
        key = (ADDED.sub("", kernel.name), kernel.node_index)
        durations[key].append(kernel.us / 1e3)
        operators[key] = kernel.operator
        outputs[key] = kernel.output_shape
    runs = max((len(times) for times in durations.values()), default=1)
    layers: dict[str, ProfiledLayer] = {}
    others: dict[str, float] = defaultdict(float)
    kernels = 0
    for key, times in durations.items():
        times_each = max(1, round(len(times) / runs))
        kernels += times_each
        ms = _typical(times[WARM_RUNS:] or times) * times_each
        node = graph.find(key[0]) if any(word in operators[key] for word in HEAVY) else None
        if node is None:
            others[key[0]] += ms
            continue
        name, macs = graph.layer(node), graph.macs(node, outputs[key], operators[key])
        old = layers.get(name, ProfiledLayer(name, node.op_type, 0.0, 0, 0))
        layers[name] = ProfiledLayer(name, old.op, old.ms + ms, old.macs + macs, old.parts + 1)
    return Profile(case.label, tuple(layers.values()), others, kernels)


def _typical(times: Sequence[float]) -> float:
    """The mean of the faster half: undisturbed, and finer than a median of the profile's whole microseconds."""
    return float(np.sort(times)[: (len(times) + 1) // 2].mean())


class _Graph:
    """Names and weights of a model as written."""

    def __init__(self, model: Any) -> None:
        self.sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.sizes[node.output[0]] = tuple(attribute.t.dims)
        self.by_name = {node.name: node for node in model.graph.node if node.name}
        self.producer = {output: node for node in model.graph.node for output in node.output if output}
        self.dequantized = {
            node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"
        }

    def find(self, name: str) -> Any:
        """The node with weights that the profile's `name` stands for, or None."""
        for candidate in (name, name.removesuffix("_nchwc"), name.removeprefix("fused "), name.rpartition("/")[0]):
            node = self.by_name.get(candidate) or self.producer.get(candidate)
            while node is not None:
                if node.op_type in WEIGHTED:
                    return node if self.weight(node) in self.sizes else None
                if not name.endswith("_nchwc"):
                    break  # a node of its own, not one that a convolution swallowed
                node = self.producer.get(node.input[0]) if node.input else None
        return None

    def weight(self, node: Any) -> str:
        name = node.input[WEIGHTED[node.op_type]]
        return str(self.dequantized.get(name, name))

    def layer(self, node: Any) -> str:
        """The layer's name: its weight's path, shared by the two factors of a pair, else the node's name."""
        weight = self.weight(node).removesuffix(".int8")
        for part in PARTS:
            if weight.endswith(f"{part}.weight"):
                return weight.removesuffix(f"{part}.weight")
        return weight.removesuffix(".weight") if weight.endswith(".weight") else str(node.name)

    def macs(self, node: Any, output: Sequence[int], kernel: str) -> int:
        """Multiply-adds for an output of that shape; a channel axis that was padded to a block does not matter."""
        shape = self.sizes[self.weight(node)]
        size = int(np.prod(shape))
        if kernel == CHANNELS_LAST:
            return int(size * np.prod(output)) // int(shape[0])
        if node.op_type in ("Gemm", "MatMul", "FusedGemm"):
            return size * int(np.prod(output[:-1]))
        if node.op_type == "ConvTranspose":
            strides = next((a.ints for a in node.attribute if a.name == "strides"), [1] * (len(output) - 2))
            return size * int(output[0] * np.prod(output[2:]) / np.prod(strides)) if output else 0
        return size * int(output[0] * np.prod(output[2:])) if output else 0


def _with_names(case: BenchModel, folder: Path) -> BenchModel:
    """`case` itself where every node has a name of its own, else a copy of the model in which it has."""
    model = read_proto(case.path)
    uses = Counter(node.name for node in model.graph.node)
    if "" not in uses and all(number == 1 for number in uses.values()):
        return case
    import onnx

    copy = copy_local(case, folder)
    model = read_proto(copy)
    for index, node in enumerate(model.graph.node):
        if not node.name or uses[node.name] > 1:
            node.name = f"{node.op_type}_{index}"
    onnx.save(model, copy)
    return replace(case, path=copy)
