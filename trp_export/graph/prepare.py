"""Bring any ONNX model into the one form that the rest works on.

1. Functions are inlined: inside them a weight is a formal input without a value.
2. Initializers listed as graph inputs (IR 3) are plain initializers; IR 4 is the least that allows it.
3. Constant nodes become initializers, and those of subgraphs move to the main graph.
4. What nothing reads is removed.
5. Names lose local paths. Names of the model's inputs and outputs stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from trp_export.errors import LoadError
from trp_export.graph.metadata import name_without_paths
from trp_export.graph.weights import find_readers

LEAST_IR_VERSION = 4
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def prepare(model: ir.Model) -> ir.Model:
    """The model in normal form, changed in place. Raises LoadError for weights that are not finite."""
    common.InlinePass()(model)
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, LEAST_IR_VERSION)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    remove_unused(model)
    name_without_paths(model)
    name_nodes(model)
    require_finite_weights(model)
    return model


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads."""
    common.RemoveUnusedNodesPass()(model)


def name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own, keeping those that are one already."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.all_nodes()):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}"
        taken.add(node.name)


def require_finite_weights(model: ir.Model) -> None:
    """Infinity is refused only where it is a weight: as a bound of Clip or in a mask it has its place."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        array = tensor.numpy()
        if np.isfinite(array).all():
            continue
        if np.isnan(array).any() or any(node.op_type in _LAYERS for node, _ in find_readers(value)):
            layer = name.removesuffix(".weight")
            raise LoadError(f"{layer} has NaN or infinite weights ({name}). Export the model from a sound checkpoint.")
