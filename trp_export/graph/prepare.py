"""Bring any ONNX model into the one form that the rest works on.

1. Functions are inlined: inside them a weight is a formal input without a value.
2. Weights that are listed as graph inputs, as IR 3 demands, are plain initializers; inputs with a default stay inputs.
3. Constant nodes become initializers, and those of subgraphs move to the main graph.
4. Every value and every node has a name of its own.
5. Constant expressions that end in a weight are folded, products that are a MatMul in other words become one, and
   transposed and dilated convs get explicit padding.
6. What nothing reads is removed.
7. Names lose local paths. Names of the model's inputs and outputs stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from trp_export.errors import LoadError
from trp_export.graph.cost import is_layer
from trp_export.graph.explicit_pads import make_pads_explicit
from trp_export.graph.fold import fold_weights
from trp_export.graph.inline import inline_functions
from trp_export.graph.metadata import name_without_paths
from trp_export.graph.plain_products import make_products_plain
from trp_export.graph.quantised import require_float, require_unfused
from trp_export.graph.weights import find_readers

LEAST_IR_VERSION = 4
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
# These may leave what they read aside.
_CHOOSING = ("Where", "Expand", "Identity", "Cast")


def prepare(model: ir.Model) -> ir.Model:
    """The model in normal form, changed in place.

    Raises LoadError for weights that are not finite, UnsupportedError for a quantised network and for functions that
    stand for too many nodes.
    """
    prepare_unfolded(model)
    fold_weights(model)
    make_products_plain(model)
    make_pads_explicit(model)
    remove_unused(model)
    name_without_paths(model)
    name_nodes(model)
    require_finite_weights(model)
    return model


def prepare_unfolded(model: ir.Model) -> ir.Model:
    """The first steps of `prepare`, before constant expressions are folded."""
    inline_functions(model)
    require_unfused(model)
    unlist_weights(model)
    model.ir_version = max(model.ir_version, LEAST_IR_VERSION)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    name_values(model)
    require_float(model)
    return model


def listed_weights(model: ir.Model) -> tuple[str, ...]:
    """The graph inputs that are weights: exporters once listed every initializer, and before IR 4 they had to.

    Where only some initializers are listed, these are inputs with a default, which a user may feed.
    """
    listed = [value for value in model.graph.inputs if value.is_initializer()]
    are_all = len(listed) == len(model.graph.initializers)
    has_weight = any(node.op_type in _LAYERS and index == 1 for value in listed for node, index in value.uses())
    is_habit = model.ir_version < LEAST_IR_VERSION or (are_all and has_weight)
    return tuple(value.name or "" for value in listed) if is_habit else ()


def unlist_weights(model: ir.Model) -> None:
    """Take `listed_weights` off the graph inputs, in place."""
    weights = set(listed_weights(model))
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads."""
    common.RemoveUnusedNodesPass()(model)


def name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own, keeping those that are unique already."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.all_nodes()):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}_{index}"
        taken.add(node.name)


def name_values(model: ir.Model) -> None:
    """Give every output of a node a name of its own: two branches of an If may use the same names."""
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    taken |= {output.name for node in model.graph for output in node.outputs if output.name}
    count = 0
    for node in model.graph.all_nodes():
        for output in node.outputs if node.graph is not model.graph else ():
            if output.name and output.name in taken:
                base = output.name
                while output.name in taken:
                    count += 1
                    output.name = f"{base}.{count}"
            if output.name:
                taken.add(output.name)


def require_finite_weights(model: ir.Model) -> None:
    """Raises LoadError for texts in place of weights, and for weights that are NaN or infinite.

    As a bound of Clip or in a mask infinity is sound, and so is NaN in what a Where chooses.
    """
    for name, value in model.graph.initializers.items():
        tensor, readers = value.const_value, [node for node, _ in find_readers(value)]
        if tensor is None:
            continue
        layer, of_layer = name.removesuffix(".weight"), any(map(is_layer, readers))
        if tensor.dtype == ir.DataType.STRING and of_layer:
            raise LoadError(f"{layer} has texts in place of weights ({name}).")
        if not tensor.dtype.is_floating_point() or np.isfinite(array := tensor.numpy()).all():
            continue
        is_chosen = all(node.op_type in _CHOOSING for node in readers)
        if of_layer or (np.isnan(array).any() and not is_chosen):
            raise LoadError(f"{layer} has NaN or infinite weights ({name}). Export the model from a sound checkpoint.")
