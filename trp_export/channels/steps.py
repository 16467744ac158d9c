"""What a node does to channels, as values: the analysis writes them, the search and the removal read them.

A node that is understood has a step for each output that carries channels:

`Each`   computes every output channel from one channel of each input and from the parameters of that channel.
`Mix`    multiplies all input channels by a constant kernel: Conv, ConvTranspose, Gemm, MatMul.

Beside the steps there are the parts of the graph that depend on the number of channels: entries of weights (`Rows`),
kernels (`Mix`), columns that are summed (`Columns`), and numbers in attributes and shapes (`Setting`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.channels.labels import Ids
from trp_export.graph.kernels import as_kernel, as_weight, group_of, is_padded, kernel_axes
from trp_export.graph.weights import Constant
from trp_export.lowrank.schemes import Array

# True for each position that stays.
Kept = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The position of `value` that each output channel is computed from; zeros where it is None."""

    value: ir.Value | None
    positions: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A constant with one entry for each channel along an axis, as the node that reads it sees it."""

    node: ir.Node
    constant: Constant
    axis: int
    ids: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Each:
    """Output channel i is a function of channel `positions[i]` of each source, of row `positions[i]` of each parameter
    and of `tags[i]`, which tells positions apart that read the same. Where `moves`, it is the one source itself."""

    node: ir.Node
    output: ir.Value
    sources: tuple[Source, ...]
    parameters: tuple[tuple[Rows, Ids], ...] = ()
    tags: Ids | None = None
    moves: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """A layer whose kernel (n, c/group, *k) reads the channels `inputs` (c) and makes the channels `outputs` (n).

    `data` is None where the channels that it reads are unknown; they stay.
    """

    node: ir.Node
    data: ir.Value | None
    weight: Constant
    inputs: Ids | None
    outputs: Ids

    @property
    def output(self) -> ir.Value:
        return self.node.outputs[0]

    @property
    def kind(self) -> object:
        """Layers of one kind can share a weight: each of its axes means the same to both."""
        axes = self.weight.axes
        return self.node.op_type, self.group, len(self.outputs), axes, kernel_axes(self.node, len(axes))

    @property
    def group(self) -> int:
        return group_of(self.node)

    @property
    def is_padded(self) -> bool:
        """Whether the input is extended by zeros at its border, or a stride leaves zeros between its entries."""
        return self.node.op_type == "ConvTranspose" or (self.node.op_type == "Conv" and is_padded(self.node))

    @property
    def alpha(self) -> float:
        """What a Gemm multiplies its products by."""
        return self.node.attributes.get_float("alpha", 1.0) if self.node.op_type == "Gemm" else 1.0

    def kernel(self) -> Array:
        """(group, n/group, c/group, k): the kernel with its spatial axes flattened."""
        kernel = as_kernel(self.node, self.weight.array(), self.group)
        return kernel.reshape(self.group, len(self.outputs) // self.group, kernel.shape[1], prod(kernel.shape[2:]))

    def as_stored(self, kernel: Array) -> Array:
        """The inverse for a kernel of fewer channels: in the layout in which the weight is stored."""
        spatial = as_kernel(self.node, self.weight.array(), self.group).shape[2:]
        group, outputs, inputs, _ = kernel.shape
        weight = as_weight(self.node, kernel.reshape(group * outputs, inputs, *spatial), group)
        return self.weight.as_stored(weight)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A weight of which the columns along an axis multiply the channels `inputs` of `data`, as in an LSTM.

    What the layer makes stays: it has no `outputs` to speak of.
    """

    node: ir.Node
    data: ir.Value
    weight: Constant
    axis: int
    inputs: Ids
    outputs: Ids = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def kind(self) -> object:
        return self.weight.axes, self.axis


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """A number in an attribute or a shape that counts the channels `ids`; `apply` sets it for those that are kept."""

    ids: Ids
    apply: Callable[[Kept], None]


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """Rows of channels (rows, n) of which equally many must stay: the groups of a grouped conv."""

    rows: Ids


Step = Each | Mix
