"""What a model costs: parameters and multiply-adds, as pure functions of the graph and the shapes of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod

import onnx_ir as ir

from trp_export.graph.shapes import Run, Runs, Shape, node_key
from trp_export.graph.weights import DEFAULT_DOMAINS

Count = Callable[[ir.Node, Run], int | None]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs; `macs` is None where shapes are unknown, `bytes` before the files exist."""

    params: int
    macs: int | None
    bytes: int | None


def count_params(model: ir.Model) -> int:
    """Elements of all floating-point initializers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())


def count_macs(model: ir.Model, runs: Runs) -> int | None:
    """Multiply-adds of one inference in all operators of COUNTED; None where the shapes of one are unknown."""
    total = 0
    for node in model.graph.all_nodes():
        if is_counted(node):
            macs = node_macs(node, runs)
            if macs is None:
                return None
            total += macs
    return total


def node_macs(node: ir.Node, runs: Runs) -> int | None:
    """Multiply-adds of all executions of a counted node in one inference; None where shapes are unknown."""
    executions = runs.get(node_key(node))
    if executions is None:
        return None
    counts = [COUNTED[node.op_type](node, run) for run in executions]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def is_counted(node: ir.Node) -> bool:
    return node.domain in DEFAULT_DOMAINS and node.op_type in COUNTED


def is_layer(node: ir.Node) -> bool:
    """True for a node whose constants are weights: one that is counted, or a normalisation."""
    return is_counted(node) or node.op_type.endswith("Normalization")


def name_uncounted(model: ir.Model) -> str | None:
    """The operators that multiply and are not counted, with how many nodes there are of each; None without any."""
    found = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in DEFAULT_DOMAINS else node.op_type
        for node in model.graph.all_nodes()
        if node.domain not in DEFAULT_DOMAINS or node.op_type in _UNCOUNTED
    )
    listed = [f"{count} {name}" for name, count in islice(found.most_common(), _MOST_NAMED)]
    rest = len(found) - len(listed)
    return ", ".join(listed) + (f" and {rest} other operators" if rest else "") if found else None


_MOST_NAMED = 4
_UNCOUNTED = ("Attention", "DFT", "STFT", "Det", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")


def _static_shape(node: ir.Node, run: Run, index: int) -> tuple[int, ...] | None:
    """The shape of an input, from the value that is stored in the file where there is one."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(int(dim) for dim in value.const_value.shape.numpy())
    return _known(run.inputs[index] if index < len(run.inputs) else None)


def _known(shape: Shape | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    dims = tuple(dim for dim in shape if dim is not None)
    return dims if len(dims) == len(shape) else None


def _conv(node: ir.Node, run: Run) -> int | None:
    weight, output = _static_shape(node, run, 1), _known(run.output)
    return None if weight is None or output is None else prod(weight[1:]) * prod(output)


def _conv_transpose(node: ir.Node, run: Run) -> int | None:
    data, weight = _static_shape(node, run, 0), _static_shape(node, run, 1)
    return None if weight is None or data is None else prod(weight[1:]) * prod(data)


def _matrix(node: ir.Node, run: Run) -> int | None:
    data, output = _static_shape(node, run, 0), _known(run.output)
    if data is None or output is None or not data:
        return None
    transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
    return (data[0] if transposed else data[-1]) * prod(output)


def _einsum(node: ir.Node, run: Run) -> int | None:
    """One product over all indices for each operand after the first."""
    terms = node.attributes.get_string("equation", "").replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = _static_shape(node, run, index)
        if shape is None or "..." in term or len(term) != len(shape):
            return None
        sizes |= zip(term, shape, strict=True)
    return prod(sizes.values()) * (len(terms) - 1)


def _recurrent(node: ir.Node, run: Run) -> int | None:
    """Each step multiplies every entry of the two weights, W and R, once for each sequence of the batch."""
    shapes = [_static_shape(node, run, index) for index in range(3)]
    data, inner, outer = shapes
    if data is None or inner is None or outer is None:
        return None
    return prod(data[:2]) * (prod(inner) + prod(outer))


COUNTED: Mapping[str, Count] = {
    "Conv": _conv,
    "DeformConv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _matrix,
    "MatMul": _matrix,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
