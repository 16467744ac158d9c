"""Costs where a device has no profiler: each layer alone, dense beside its pairs.

What the ends of a layer alone cost, such as a change of layout, is the same dense or as a pair, and only differences
between the two are ever used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from trp_export.bench import median, ratio
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.sites import find_sites
from trp_export.latency.candidates import sampled_ranks
from trp_export.latency.device import DeviceUnderTest
from trp_export.latency.placeholder import numbers, save_model_as
from trp_export.latency.sampling import Subject, dense_key, pair_key
from trp_export.latency.table import Table
from trp_export.lowrank.schemes import Branch, Scheme
from trp_export.lowrank.site import Site
from trp_export.planning.plan import Decision, Plan

# Without caches and padding in play a cost is nearly a straight line in the rank.
_LEVELS = 3
_NAME = "layer"
_OPSET = 17


def measure_alone(
    subjects: Sequence[Subject], device: DeviceUnderTest, table: Table, folder: Path, progress: Callable[[float], None]
) -> None:
    """Fill the table, scheme by scheme; each is put down at once. Raises DeviceError."""
    wanted = [
        (subject, scheme, ranks)
        for subject in subjects
        for scheme, offered in subject.offers
        if (ranks := tuple(sorted(set(sampled_ranks(offered, _LEVELS)))))
    ]
    for index, (subject, scheme, ranks) in enumerate(wanted):
        progress(index / len(wanted))
        ranks = tuple(rank for rank in ranks if pair_key(subject, scheme, rank) not in table)
        if ranks:
            _measure(subject, scheme, ranks, device, table, folder)


def _measure(
    subject: Subject, scheme: Scheme, ranks: Sequence[int], device: DeviceUnderTest, table: Table, folder: Path
) -> None:
    model, shapes = layer_alone(subject.site)
    files = [folder / f"alone{index}.onnx" for index in range(len(ranks) + 1)]
    for file, rank in zip(files, (None, *ranks), strict=True):
        located = find_sites(model, infer_shapes(model, shapes))
        decisions = (Decision(located[0].site, (Branch(scheme, rank),) if rank else (), "alone"),)
        save_model_as(model, shapes, Plan(decisions, "alone"), file, table.conditions.precision)
    fed = {name: tuple(size or 1 for size in shape) for name, shape in shapes.items()}
    dense, *pairs = device.feeding(fed).compare(files).measurements
    table.add({dense_key(subject): median(dense) / 1e6})
    cost = table.get(dense_key(subject)) or 0.0
    table.add(
        {
            pair_key(subject, scheme, rank): cost / ratio(dense, one).value
            for rank, one in zip(ranks, pairs, strict=True)
        }
    )


def layer_alone(site: Site) -> tuple[ir.Model, dict[str, tuple[int | None, ...]]]:
    """A model of nothing but a site, a node for every place that applies it, and the shapes of its inputs."""
    stored = site.kernel_shape if site.op == "Conv" else site.kernel_shape[::-1]
    weight = ir.Value(
        name=f"{_NAME}.weight",
        shape=ir.Shape(stored),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(numbers(stored), name=f"{_NAME}.weight"),
    )
    nodes, inputs, outputs = [], [], []
    shapes: dict[str, tuple[int | None, ...]] = {}
    for index, use in enumerate(site.uses):
        is_conv = site.op == "Conv"
        fed = (use.repeats, site.kernel_shape[1] * site.group, *use.in_extents)
        made = (use.repeats, site.kernel_shape[0], *use.out_extents)
        attributes: dict[str, object] = {
            "group": site.group,
            "strides": list(use.strides),
            "pads": list(use.pads),
            "dilations": list(use.dilations),
        }
        data = _value(f"x{index}", fed)
        node = ir.node("Conv" if is_conv else "MatMul", [data, weight], attributes if is_conv else {}, name=f"n{index}")  # type: ignore[arg-type]
        node.outputs[0].name = f"y{index}"
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(made), ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        inputs.append(data)
        outputs.append(node.outputs[0])
        shapes[f"x{index}"] = fed
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=[weight], opset_imports={"": _OPSET}, name=_NAME)
    return ir.Model(graph, ir_version=8), shapes


def _value(name: str, shape: Sequence[int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
