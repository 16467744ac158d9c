"""Run an ONNX graph in torch, so that it can be trained: each node becomes a torch function.

Operators outside the table, and nodes that torch cannot run, are refused by name. The caller checks on real inputs that
the module computes what onnxruntime computes (`require_sound`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trp_export.calibration.answers import Answer
from trp_export.errors import UnsupportedError, is_out_of_memory
from trp_export.graph.weights import find_constant, release
from trp_export.recover.torch_ops import RULES, channels_last

Array = NDArray[Any]

# A node, what computes it, the values that this reads, and the names of those that nothing reads afterwards.
_Step = tuple[ir.Node, Callable[[ir.Node, list[Any]], Any], Sequence[ir.Value | None], Sequence[str]]

_TRAINED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class TorchGraph(nn.Module):
    """A module whose parameters are the weights and biases of convs and matrix products, in the order of `names`.

    A weight may be read through Transpose, and an input that has a default keeps it. The module contains only the part
    of the graph that the outputs need. Raises UnsupportedError for unknown operators in it and, when it is called, for
    nodes that torch cannot run.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self.inputs = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
        self.outputs = list(outputs or [value.name or "" for value in model.graph.outputs])
        nodes = needed(model, self.outputs)
        unknown = sorted({f"{node.domain}:{node.op_type}".lstrip(":") for node in nodes if not _known(node)})
        if unknown:
            raise _refused(", ".join(unknown))
        self._nodes, self._steps = nodes, _steps(nodes, self.outputs)
        read = {value for node in nodes for value in node.inputs}
        weights = [value for node in nodes if node.op_type in _TRAINED for value in node.inputs[1:3]]
        trained = {constant.root for value in weights if (constant := find_constant(value)) is not None}
        self.names: list[str] = []
        parameters = []
        self._constants: dict[str, Tensor] = {}
        for name, value in model.graph.initializers.items():
            if value.const_value is None or not (value in read or name in self.outputs):
                continue
            tensor = as_tensor(np.array(value.const_value.numpy()), name)
            release([value.const_value])
            if value in trained and tensor.is_floating_point():
                self.names.append(name)
                # Channels last: convs of few channels take half the time.
                parameters.append(nn.Parameter(channels_last(tensor)))
            else:
                self._constants[name] = tensor
        self.weights = nn.ParameterList(parameters)

    def narrow_to(self, outputs: Sequence[str]) -> None:
        """Give these of the outputs alone, and keep no other values."""
        self.outputs, self._steps = list(outputs), _steps(self._nodes, outputs)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values: dict[str, Any] = {**self._constants, **dict(zip(self.names, self.weights, strict=True))}
        values |= zip(self.inputs, map(channels_last, inputs), strict=True)
        for node, rule, read, last in self._steps:
            try:
                given = [values[value.name or ""] if value is not None else None for value in read]
                made = rule(node, given)
            except Exception as error:  # A form of the operator that its rule does not know, or torch does not run.
                if isinstance(error, UnsupportedError) or is_out_of_memory(error):
                    raise
                raise _refused(f"{node.op_type} ({node.name})") from error
            made = made if isinstance(made, (list, tuple)) else [made]
            values |= {out.name or "": result for out, result in zip(node.outputs, made, strict=False)}
            for name in last:
                del values[name]
        missing = next((name for name in self.outputs if name not in values), None)
        if missing is not None:  # A second output of an operator that its rule does not make.
            raise _refused(missing)
        return [values[name] for name in self.outputs]


def workers(count: int, threads: int = 1) -> ThreadPoolExecutor:
    """A pool of so many workers, each of which runs the operators of torch on so many threads."""
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))


def as_tensor(array: Array, name: str) -> Tensor:
    """An array as torch computes with it: floats in float32. Raises UnsupportedError for types that torch lacks."""
    try:
        return torch.from_numpy(np.asarray(array, np.float32) if array.dtype.kind == "f" else array)
    except TypeError as error:
        raise _refused(f"{name} of type {array.dtype}") from error


def answer_in(value: Tensor, answer: Answer) -> Tensor:
    """An answer out of its value, with its channels on axis 1. A value with a number for each image has one channel."""
    if value.ndim < 2:
        return value.reshape(-1, 1)
    channels_first = value.movedim(answer.axis, 1) if value.ndim > 2 else value
    return channels_first if answer.channels is None else channels_first[:, list(answer.channels)]


def require_sound(own: Mapping[str, Array], wanted: Mapping[str, Array], largest: float) -> None:
    """Raises UnsupportedError where an answer of torch is further from that of onnxruntime than a share of its norm."""
    for name, reference in ((name, array.astype(np.float64)) for name, array in wanted.items()):
        gap = np.inf
        if own[name].size == reference.size:
            apart = np.linalg.norm(own[name].reshape(reference.shape) - reference)
            gap = float(apart) / max(float(np.linalg.norm(reference)), 1e-30)
        if not gap < largest:
            raise UnsupportedError(
                f"torch gives {name} {gap:.2g} apart from onnxruntime on this model; leave --tune out."
            )


def _refused(what: str) -> UnsupportedError:
    return UnsupportedError(f"{what} cannot be run in torch, which --tune and --calib synthetic need: leave them out.")


def needed(model: ir.Model, outputs: Sequence[str]) -> list[ir.Node]:
    """The nodes that these values are computed by, in the order of the graph."""
    wanted, nodes = set(outputs), []
    for node in reversed(list(model.graph)):
        if any(value.name in wanted for value in node.outputs):
            nodes.append(node)
            wanted |= {value.name or "" for value in node.inputs if value is not None}
    return nodes[::-1]


def _steps(nodes: Sequence[ir.Node], outputs: Sequence[str]) -> list[_Step]:
    """What computes each node, from which values, and which of these nothing reads afterwards.

    x times the sigmoid of x is one step where nothing else reads the sigmoid: with its gradient that takes far less
    time.
    """
    gates = {node: gate for node in nodes if (gate := _own_gate(node)) is not None}
    gates = {node: gate for node, gate in gates.items() if gate.outputs[0].name not in outputs}
    done, kept = set(gates.values()), set(outputs)
    steps: list[_Step] = []
    for node in (node for node in reversed(nodes) if node not in done):
        rule, read = (_silu, gates[node].inputs) if node in gates else (RULES[node.op_type], node.inputs)
        last = {value.name or "" for value in read if value is not None} - kept
        kept |= last
        steps.append((node, rule, read, sorted(last)))
    return steps[::-1]


def _own_gate(node: ir.Node) -> ir.Node | None:
    """The Sigmoid whose output a Mul, and nothing else, multiplies by what it reads."""
    if node.op_type != "Mul":
        return None
    for value, other in zip(node.inputs, reversed(node.inputs), strict=True):
        gate = value.producer() if value is not None else None
        if (
            gate is not None
            and gate.op_type == "Sigmoid"
            and gate.inputs[0] is other
            and len(gate.outputs[0].uses()) == 1
        ):
            return gate
    return None


def _silu(node: ir.Node, given: list[Any]) -> Tensor:
    return functional.silu(given[0])


def _known(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in RULES
