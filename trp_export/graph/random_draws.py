"""Operators that draw random numbers: which a model has, and the same draws in every run."""

from __future__ import annotations

import onnx_ir as ir

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


def random_operators(model: ir.Model) -> tuple[str, ...]:
    """The operators of a model that may draw random numbers."""
    return tuple(dict.fromkeys(node.op_type for node in model.graph.all_nodes() if _draws(node)))


def _draws(node: ir.Node) -> bool:
    """A Dropout draws in training mode alone, which is its third input."""
    in_use = node.op_type != "Dropout" or (len(node.inputs) > 2 and node.inputs[2] is not None)
    return node.op_type in _RANDOM and not node.domain and in_use


def set_seeds(model: ir.Model) -> None:
    """Give every operator that draws random numbers the same seed, in place."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            if node.op_type in _RANDOM and not node.domain:
                node.attributes["seed"] = (
                    ir.AttrInt64("seed", 1) if node.op_type == "Dropout" else ir.AttrFloat32("seed", 1.0)
                )
