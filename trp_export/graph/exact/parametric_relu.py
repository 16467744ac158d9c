"""Write a ReLU with slopes for negative values in operators that runtimes run faster.

    x -> PRelu a        becomes   x -> LeakyRelu a                        where all channels share one slope

    x -> PRelu a        becomes   x ------------> Relu -----------> Add   where each channel has its own
                                  x -> Conv -1 -> Relu -> Conv -a ---^

The convs are depthwise and 1x1: x = relu(x) - relu(-x), and only the second part is scaled. Nothing is rounded. On x86
onnxruntime computes PRelu one number at a time and outside the blocked layout of its convs; the convs stay in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.graph.exact.replacement import replace_node
from trp_export.graph.weights import DEFAULT_DOMAINS, find_constant

Slopes = NDArray[np.float32]


def write_leaky_relus(model: ir.Model) -> int:
    """Rewrite those of one slope, in place. Returns their number."""
    found = [(node, slopes) for node, slopes in _parametric_relus(model) if slopes.size == 1]
    for node, slopes in found:
        alpha = {"alpha": float(slopes.reshape(()))}
        replace_node(node, [ir.node("LeakyRelu", node.inputs[:1], alpha, name=node.name)])
    return len(found)


def has_parametric_relus(model: ir.Model) -> bool:
    """Whether `write_parametric_relus` finds any."""
    return any(_is_per_channel(node, slopes) for node, slopes in _parametric_relus(model))


def write_parametric_relus(model: ir.Model) -> int:
    """Rewrite those of one slope for each channel of an image (n, c, h, w), in place. Returns their number."""
    found = [(node, slopes) for node, slopes in _parametric_relus(model) if _is_per_channel(node, slopes)]
    for node, slopes in found:
        _write_as_convs(node, slopes)
    return len(found)


def _parametric_relus(model: ir.Model) -> Iterator[tuple[ir.Node, Slopes]]:
    """Those with constant slopes in float32, the type for which runtimes have the other operators."""
    for node in model.graph.all_nodes():
        if node.op_type != "PRelu" or node.domain not in DEFAULT_DOMAINS:
            continue
        constant = find_constant(node.inputs[1])
        if constant is not None and constant.dtype is ir.DataType.FLOAT:
            yield node, np.asarray(constant.array(), dtype=np.float32)


def _is_per_channel(node: ir.Node, slopes: Slopes) -> bool:
    """True for slopes (c, 1, 1) or (1, c, 1, 1) of images."""
    by_channel = slopes.size > 1 and slopes.ndim in (3, 4) and slopes.size == slopes.shape[-3]
    return by_channel and (slopes.ndim == 4 or _is_image(node.inputs[0]))


def _is_image(value: ir.Value | None) -> bool:
    """True for a value of four axes, as far as the graph or the conv that makes it tells."""
    if value is None:
        return False
    if value.shape is not None:
        return len(value.shape) == 4
    node = value.producer()
    kernel = find_constant(node.inputs[1]) if node is not None and node.op_type == "Conv" else None
    return kernel is not None and len(kernel.shape) == 4


def _write_as_convs(node: ir.Node, slopes: Slopes) -> None:
    (x, _), (y,) = node.inputs, node.outputs
    graph, base = node.graph, y.name
    if graph is None:
        raise ValueError(f"{node.name} is not in a graph")

    def depthwise(value: ir.Value | None, scales: Slopes, part: str) -> ir.Node:
        kernel = ir.Value(name=f"{base}.{part}.scales", const_value=ir.tensor(scales.reshape(-1, 1, 1, 1)))
        graph.register_initializer(kernel)
        conv = ir.node("Conv", [value, kernel], {"group": scales.size, "kernel_shape": [1, 1]}, name=f"{base}.{part}")
        return named(conv, part)

    def named(made: ir.Node, part: str) -> ir.Node:
        out = made.outputs[0]
        out.name, out.shape, out.type = f"{base}.{part}", y.shape, y.type
        return made

    positive = named(ir.node("Relu", [x], name=f"{base}.positive"), "positive")
    mirrored = depthwise(x, -np.ones(slopes.size, np.float32), "mirrored")
    negative = named(ir.node("Relu", mirrored.outputs, name=f"{base}.negative"), "negative")
    scaled = depthwise(negative.outputs[0], -slopes, "scaled")
    total = ir.node("Add", [positive.outputs[0], scaled.outputs[0]], name=node.name)
    replace_node(node, [positive, mirrored, negative, scaled, total])
