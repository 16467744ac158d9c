"""Constants in the graph: find them, read them, set them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Array

_LARGE_BYTES = 1 << 20
_PIECE_BYTES = 1 << 26
_MOST_NUMBERS = 1 << 20
DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Constant:
    """An initializer that a node reads, perhaps through Identity and Transpose.

    `axes[i]` is the stored axis that the node sees as axis i.
    """

    root: ir.Value
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self._tensor.shape.numpy()
        return tuple(int(stored[axis]) for axis in self.axes)

    @property
    def dtype(self) -> ir.DataType:
        return self._tensor.dtype

    def array(self) -> Array:
        return np.asarray(self._tensor.numpy()).transpose(self.axes)

    def stored(self) -> Array:
        """The value with its axes in the order in which it is stored."""
        return np.asarray(self._tensor.numpy())

    def as_stored(self, array: Array) -> Array:
        """An array as the node sees it, with its axes in the order in which the constant is stored."""
        return array.transpose([self.axes.index(axis) for axis in range(array.ndim)])

    @property
    def _tensor(self) -> ir.TensorProtocol:
        tensor = self.root.const_value
        if tensor is None:
            raise ValueError(f"{self.root.name} has no value")
        return tensor


class _Unordered(ir.Tensor[Any]):
    """A weight whose axes may lie in any order in memory. Writing it puts a piece at a time into order."""

    def tofile(self, file: BinaryIO) -> None:
        array = self.numpy()
        for rows in pieces(array):
            file.write(array[rows].tobytes())


def make_tensor(array: Array, dtype: ir.DataType, name: str | None) -> ir.TensorProtocol:
    """A tensor of an array, which is copied only where its type differs."""
    array = np.asarray(array, dtype.numpy())
    kind = ir.tensor if array.flags.c_contiguous else _Unordered
    return kind(array, dtype=dtype, name=name)


def pieces(array: NDArray[Any]) -> list[Any]:
    """Indices of an array's rows, some megabytes at a time."""
    if array.nbytes <= _PIECE_BYTES:
        return [...]
    rows = max(1, _PIECE_BYTES * len(array) // array.nbytes)
    return [slice(start, start + rows) for start in range(0, len(array), rows)]


def large_weights(model: ir.Model) -> list[ir.TensorProtocol]:
    """The weights of more than a megabyte, which are worth a call of `release`."""
    weights = (value.const_value for value in model.graph.initializers.values())
    return [weight for weight in weights if weight is not None and weight.nbytes > _LARGE_BYTES]


def release(weights: Iterable[ir.TensorProtocol]) -> None:
    """Let go of the memory that weights on disk take since they were used; they can be used again.

    The system would do so itself when memory runs short; until then it counts as memory of this process.
    """
    for weight in weights:
        mapped = getattr(weight, "raw", None)
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def find_constant(value: ir.Value | None) -> Constant | None:
    """The constant that a value is, or None where it is computed or an input of the model."""
    if value is None:
        return None
    if value.is_initializer() and value.const_value is not None and not value.is_graph_input():
        return Constant(value, tuple(range(len(value.const_value.shape))))
    node = value.producer()
    if node is None or node.domain not in DEFAULT_DOMAINS or node.op_type not in ("Identity", "Transpose"):
        return None
    inner = find_constant(node.inputs[0])
    if inner is None or node.op_type == "Identity":
        return inner
    order = node.attributes.get_ints("perm", list(range(len(inner.axes)))[::-1])
    return Constant(inner.root, tuple(inner.axes[axis] for axis in order))


def find_numbers(value: ir.Value | None) -> list[int] | None:
    """The whole numbers of a constant, flattened; None where it is computed or holds anything else."""
    constant = find_constant(value)
    if constant is None or constant.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    return [int(number) for number in constant.array().reshape(-1)] if prod(constant.shape) <= _MOST_NUMBERS else None


def find_scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, whatever its rank; None where it is computed or holds more."""
    constant = find_constant(value)
    return float(constant.array().reshape(())) if constant is not None and prod(constant.shape) == 1 else None


def find_bias(node: ir.Node) -> Float64 | None:
    """The number that a layer adds to each output channel: (n,), or (1,) for all; None where it is not constant."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return np.zeros(1)
    constant = find_constant(value)
    if constant is None or prod(constant.shape[:-1]) != 1:  # A Gemm's bias may differ by row.
        return None
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.asarray(beta * constant.array().astype(np.float64).reshape(-1))


def find_readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """The nodes that read a value, perhaps through Identity and Transpose, and the index of that input."""
    readers: list[tuple[ir.Node, int]] = []
    for node, index in value.uses():
        seen_through = node.op_type in ("Identity", "Transpose") and find_constant(node.outputs[0]) is not None
        readers += find_readers(node.outputs[0]) if seen_through else [(node, index)]
    return readers


def is_shown(value: ir.Value) -> bool:
    """True where a constant is an output of the model, perhaps through Identity and Transpose."""
    through = (node.outputs[0] for node in value.consumers() if find_constant(node.outputs[0]) is not None)
    return value.is_graph_output() or any(map(is_shown, through))


def add_initializer(graph: ir.Graph, name: str, array: Array, dtype: ir.DataType) -> ir.Value:
    """Register a new initializer; its name gets a number where another has it already."""
    unique, count = name, 1
    while unique in graph.initializers:
        unique, count = f"{name}.{count}", count + 1
    tensor = make_tensor(array, dtype, unique)
    value = ir.Value(name=unique, type=ir.TensorType(dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def add_integers(graph: ir.Graph, name: str, numbers: NDArray[np.int64]) -> ir.Value:
    """Register a new initializer of whole numbers, as indices or a shape."""
    return add_initializer(graph, name, numbers, ir.DataType.INT64)  # type: ignore[arg-type]


def set_value(value: ir.Value, array: Array) -> None:
    """Replace the value of an initializer; its name and type stay, and its shape follows."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no value")
    dtype = value.const_value.dtype
    value.shape = ir.Shape(array.shape)
    value.const_value = make_tensor(array, dtype, value.name)


def set_later(value: ir.Value, make: Callable[[], Array]) -> None:
    """Replace the value of an initializer by what `make` returns whenever it is used; its name, type and shape stay."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no value")
    dtype, shape = value.const_value.dtype, ir.Shape(value.const_value.shape.numpy())

    def evaluate() -> ir.TensorProtocol:
        return make_tensor(make(), dtype, value.name)

    value.const_value = ir.LazyTensor(evaluate, dtype, shape, name=value.name)


def apply_values(model: ir.Model, values: Mapping[str, Array]) -> None:
    """Set initializers by name, in place; names that the model lacks are ignored."""
    for name, array in values.items():
        if name in model.graph.initializers:
            set_value(model.graph.initializers[name], array)


def spatial_attribute(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints(name, list(default)) or default)
