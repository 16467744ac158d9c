"""Run an ONNX graph in torch, so that it can be trained: each node becomes a torch function.

Operators outside the table are refused by name. The caller checks on real inputs that the module computes what
onnxruntime computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from trp_export.errors import UnsupportedError
from trp_export.graph.weights import release
from trp_export.recover.torch_ops import RULES, channels_last

_TRAINED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class TorchGraph(nn.Module):
    """A module whose parameters are the weights and biases of convs and matrix products, in the order of `names`.

    It contains only the part of the graph that the outputs need. Raises UnsupportedError for unknown operators in it.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self.inputs = [value.name or "" for value in model.graph.inputs]
        self._outputs = list(outputs or [value.name or "" for value in model.graph.outputs])
        self._nodes = _needed(model, self._outputs)
        unknown = sorted({f"{node.domain}:{node.op_type}".lstrip(":") for node in self._nodes if not _known(node)})
        if unknown:
            raise UnsupportedError(
                f"{', '.join(unknown)} cannot be run in torch, which --tune and --calib synthetic need: leave them out."
            )
        trained = {value for node in self._nodes if node.op_type in _TRAINED for value in node.inputs[1:3]}
        self.names: list[str] = []
        parameters = []
        self._constants: dict[str, Tensor] = {}
        for name, value in model.graph.initializers.items():
            if value.const_value is None:
                continue
            tensor = torch.from_numpy(np.array(value.const_value.numpy()))
            release([value.const_value])
            if tensor.is_floating_point():
                tensor = tensor.float()
            if value in trained and tensor.is_floating_point():
                self.names.append(name)
                # Channels last: convs of few channels take half the time.
                parameters.append(nn.Parameter(channels_last(tensor)))
            else:
                self._constants[name] = tensor
        self.weights = nn.ParameterList(parameters)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        values: dict[str, Any] = {**self._constants, **dict(zip(self.names, self.weights, strict=True))}
        values |= zip(self.inputs, map(channels_last, inputs), strict=True)
        for node in self._nodes:
            given = [values[value.name or ""] if value is not None else None for value in node.inputs]
            made = RULES[node.op_type](node, given)
            made = made if isinstance(made, (list, tuple)) else [made]
            values |= {out.name or "": result for out, result in zip(node.outputs, made, strict=False)}
        return [values[name] for name in self._outputs]


def _needed(model: ir.Model, outputs: Sequence[str]) -> list[ir.Node]:
    wanted, needed = set(outputs), []
    for node in reversed(list(model.graph)):
        if any(value.name in wanted for value in node.outputs):
            needed.append(node)
            wanted |= {value.name or "" for value in node.inputs if value is not None}
    return needed[::-1]


def _known(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in RULES
