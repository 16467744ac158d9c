"""Products with a weight that say MatMul in other words: an Einsum, or a weight (1, ..., 1, k, n)."""

from __future__ import annotations

import onnx_ir as ir

from trp_export.graph.shapes import infer_value_shapes
from trp_export.graph.weights import DEFAULT_DOMAINS, Constant, find_constant, find_readers, is_shown, set_value

_DOTS = "..."


def make_products_plain(model: ir.Model) -> None:
    """Write such products as a MatMul with a weight (k, n), in place. What is no plain product stays as it is."""
    products = [node for node in model.graph.all_nodes() if node.domain in DEFAULT_DOMAINS]
    for node in [node for node in products if node.op_type == "Einsum"]:
        _as_matmul(node)
    _squeeze_weights(model, [node for node in products if node.op_type == "MatMul" and _has_leading_ones(node)])


def _as_matmul(node: ir.Node) -> None:
    """Put a MatMul in the place of an Einsum that contracts the last axis of its data with a matrix."""
    places = [place for place, value in enumerate(node.inputs) if find_constant(value) is not None]
    if len(node.inputs) != 2 or len(places) != 1 or node.graph is None:
        return
    data, weight = node.inputs[1 - places[0]], node.inputs[places[0]]
    left, arrow, output = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2:
        return
    turned = _orientation(terms[1 - places[0]], terms[places[0]], output)
    if turned is None:
        return
    nodes = []
    if turned:
        nodes.append(ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{node.name}.transposed"))
        weight = nodes[0].outputs[0]
        weight.name = f"{node.outputs[0].name}.transposed"
    nodes.append(ir.node("MatMul", [data, weight], name=node.name))
    made, old = nodes[-1].outputs[0], node.outputs[0]
    made.name, made.shape, made.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, [old], [made])


def _orientation(data: str, weight: str, output: str) -> bool | None:
    """True where the weight is (n, k), False where it is (k, n), None where the product is no MatMul."""
    rows, summed = data[:-1], data[-1:]
    letters = rows.removeprefix(_DOTS) + summed
    if not letters.isalpha() or len(set(letters)) != len(letters) or len(data) < 2:
        return None
    if len(weight) != 2 or not weight.isalpha() or summed not in weight or output[:-1] != rows:
        return None
    new = output[-1]
    if new in letters or sorted(weight) != sorted((summed, new)):
        return None
    return weight[1] == summed


def _has_leading_ones(node: ir.Node) -> bool:
    weight = find_constant(node.inputs[1])
    return weight is not None and len(weight.shape) > 2 and set(weight.shape[:-2]) == {1}


def _squeeze_weights(model: ir.Model, nodes: list[ir.Node]) -> None:
    """Drop leading axes of 1 from the weights of MatMuls whose data have as many axes: results keep theirs."""
    shapes = infer_value_shapes(model, {}) if nodes else {}
    weights: dict[Constant, list[ir.Node]] = {}
    for node in nodes:
        weight, data = find_constant(node.inputs[1]), node.inputs[0]
        if weight is not None and data is not None and len(shapes.get(data.name or "", ())) >= len(weight.shape):
            weights.setdefault(weight, []).append(node)
    for weight, readers in weights.items():
        if is_shown(weight.root) or find_readers(weight.root) != [(reader, 1) for reader in readers]:
            continue
        set_value(weight.root, weight.array().reshape(weight.shape[-2:]))
        for reader in readers:
            reader.replace_input_with(1, weight.root)
