"""What a layer's time depends on, as text: layers of one signature share their measurements, in any network."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from trp_export.graph.sites import LocatedSite
from trp_export.lowrank.site import Use
from trp_export.planning.plan import Plan

# What onnxruntime may compute in the same kernel as the layer before it.
_FUSED = ("Add", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Mul")
_MOST_FUSED = 2
# A layer that is used in very many places is told apart by a digest.
_LONGEST = 400


def signature(place: LocatedSite, alone: bool = False) -> str:
    """Of a layer in the graph that runs, batch norm folded, so that its bias is there; or of the layer `alone`."""
    site = place.site
    kernel = "x".join(map(str, site.kernel_shape)) + (f"/{site.group}" if site.group > 1 else "")
    uses = "; ".join(
        _use(use) if alone else f"{_use(use)}{_company(node)}" for use, node in zip(site.uses, place.nodes, strict=True)
    )
    text = f"{site.op} {kernel} {uses}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} {hashlib.sha256(text.encode()).hexdigest()}"


def _use(use: Use) -> str:
    parts = [
        f"{key}={'x'.join(map(str, values))}"
        for key, values in (("in", use.in_extents), ("s", use.strides), ("p", use.pads), ("d", use.dilations))
        if values
    ]
    return " ".join((f"n={use.repeats}", *parts))


def _company(node: ir.Node) -> str:
    """Its bias, and the operators that alone read one another, from the layer's output on."""
    found = ["bias"] if len(node.inputs) > 2 and node.inputs[2] is not None else []
    for _ in range(_MOST_FUSED):
        readers = {reader for reader, _ in node.outputs[0].uses()}
        if len(readers) != 1 or (node := next(iter(readers))).op_type not in _FUSED:
            break
        found.append(node.op_type)
    return "".join(f" {word}" for word in found)


def network_digest(model: ir.Model, inputs: str) -> str:
    """Of a network's structure: operators, attributes and shapes, not the values of weights."""
    lines = [inputs]
    for node in model.graph.all_nodes():
        shapes = [_shape(value) for value in node.inputs]
        attributes = sorted(_attribute(attribute) for attribute in node.attributes.values())
        lines.append(f"{node.domain}.{node.op_type} {attributes} {shapes}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def plan_digest(network: str, plan: Plan) -> str:
    """Of a plan on a network of that digest."""
    choices = [
        f"{change.site.name}={'+'.join(f'{branch.scheme.name}@{branch.rank}' for branch in change.branches)}"
        for change in plan.changed
    ]
    return hashlib.sha256("\n".join([network, *choices]).encode()).hexdigest()[:32]


def _shape(value: ir.Value | None) -> str:
    if value is None or value.const_value is None:
        return "-" if value is None else "?"
    return "x".join(map(str, value.const_value.shape.numpy()))


def _attribute(attribute: ir.Attr) -> str:
    tensors = (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH, ir.AttributeType.TENSORS, ir.AttributeType.GRAPHS)
    return f"{attribute.name}={'' if attribute.type in tensors else attribute.value}"
