"""Carry out a Plan: replace each chosen layer by its factor pair. No choices are made here.

The pair of a conv shares its attributes out by axis: what the first conv covers takes that axis' stride,
pads and dilation, the second has 1, 0 and 1 there, and the other way round. `auto_pad` holds for both,
since an axis with kernel 1 and stride 1 is never padded. The bias goes to the second conv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from trp_export.graph.sites import LocatedSite
from trp_export.graph.weights import add_initializer, set_value, spatial_attribute
from trp_export.lowrank.factor import Factors, product
from trp_export.lowrank.schemes import Array, Scheme, pair_shape
from trp_export.planning.plan import Decision, Plan


def rewrite(
    model: ir.Model, plan: Plan, located: Sequence[LocatedSite], factors: Mapping[str, Factors]
) -> dict[str, tuple[str, str]]:
    """Replace layers in place; `factors` by site name. Returns the names of each pair's weights by site name."""
    places = {place.site.name: place for place in located}
    names: dict[str, tuple[str, str]] = {}
    for decision in plan.changed:
        place = places[decision.site.name]
        reduce, expand = _register(model.graph, decision, place, factors[decision.site.name])
        names[decision.site.name] = (reduce.name or "", expand.name or "")
        for node in place.nodes:
            _replace(node, _make_pair(node, decision, reduce, expand))
    return names


def set_products(model: ir.Model, plan: Plan, located: Sequence[LocatedSite], factors: Mapping[str, Factors]) -> None:
    """Set each chosen layer's kernel to the product of its factors, in place: what the pairs must equal."""
    places = {place.site.name: place for place in located}
    for decision in plan.changed:
        place = places[decision.site.name]
        if decision.scheme is None or place.weight is None:
            raise ValueError(f"{decision.site.name} has no pair")
        kernel = product(factors[decision.site.name], decision.scheme, decision.site.kernel_shape, decision.site.group)
        seen = kernel if _stored_as_kernel(place.nodes[0]) else kernel.T
        stored = seen.transpose([place.weight.axes.index(axis) for axis in range(seen.ndim)])
        set_value(place.weight.root, stored)


def _register(graph: ir.Graph, decision: Decision, place: LocatedSite, factors: Factors) -> tuple[ir.Value, ir.Value]:
    site = decision.site
    if decision.scheme is None or decision.rank is None or place.weight is None:
        raise ValueError(f"{site.name} has no pair")
    shape = pair_shape(decision.scheme, site.kernel_shape, site.group, decision.rank)
    if factors.reduce.shape != shape.reduce or factors.expand.shape != shape.expand:
        raise ValueError(f"{site.name}: factors {factors.reduce.shape}, {factors.expand.shape} are not {shape}")

    def register(part: str, kernel: Array) -> ir.Value:
        stored = kernel if _stored_as_kernel(place.nodes[0]) else kernel.T
        dtype = place.weight.dtype if place.weight else ir.DataType.FLOAT
        return add_initializer(graph, f"{site.name}.{part}.weight", stored, dtype)

    return register("reduce", factors.reduce), register("expand", factors.expand)


def _stored_as_kernel(node: ir.Node) -> bool:
    """False for (c, n) matrices: MatMul, and Gemm without transB."""
    return node.op_type == "Conv" or bool(node.op_type == "Gemm" and node.attributes.get_int("transB", 0))


def _make_pair(node: ir.Node, decision: Decision, reduce: ir.Value, expand: ir.Value) -> tuple[ir.Node, ir.Node]:
    if decision.scheme is None:
        raise ValueError(f"{decision.site.name} has no pair")
    if node.op_type == "Conv":
        first_attributes, second_attributes = _conv_attributes(node, decision, decision.scheme)
    elif node.op_type == "Gemm":
        first_attributes, second_attributes = _gemm_attributes(node)
    else:
        first_attributes, second_attributes = {}, {}
    note = f"{decision.site.name}: {decision.scheme.name}, rank {decision.rank}"
    data, bias = node.inputs[0], node.inputs[2:]
    first = _node(node, "reduce", [data, reduce], first_attributes, note)
    second = _node(node, "expand", [first.outputs[0], expand, *bias], second_attributes, note)
    return first, second


def _node(
    old: ir.Node, part: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object], note: str
) -> ir.Node:
    new = ir.node(old.op_type, inputs, attributes, domain=old.domain, name=f"{old.name}.{part}", version=old.version)  # type: ignore[arg-type]
    output = new.outputs[0]
    output.name = old.outputs[0].name if part == "expand" else f"{old.outputs[0].name}.{part}"
    output.type = old.outputs[0].type
    if part == "expand":
        output.shape = old.outputs[0].shape
    new.metadata_props["trp_export.pair"] = f"{part} of {note}"
    return new


def _conv_attributes(node: ir.Node, decision: Decision, scheme: Scheme) -> tuple[dict[str, object], dict[str, object]]:
    site = decision.site
    axes = len(site.kernel_shape) - 2
    strides = spatial_attribute(node, "strides", [1] * axes)
    dilations = spatial_attribute(node, "dilations", [1] * axes)
    pads = spatial_attribute(node, "pads", [0] * (2 * axes))
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    shape = pair_shape(scheme, site.kernel_shape, site.group, 1)

    def part(covers: Sequence[bool], kernel: Sequence[int], group: int) -> dict[str, object]:
        attributes: dict[str, object] = {
            "kernel_shape": list(kernel),
            "strides": [stride if own else 1 for stride, own in zip(strides, covers, strict=True)],
            "dilations": [dilation if own else 1 for dilation, own in zip(dilations, covers, strict=True)],
            "group": group,
        }
        if auto_pad in ("NOTSET", ""):
            attributes["pads"] = [pad if own else 0 for pad, own in zip(pads, [*covers, *covers], strict=True)]
        else:
            attributes["auto_pad"] = auto_pad
        return attributes

    covered = [axis in scheme.reduce_axes for axis in range(axes)]
    first = part(covered, shape.reduce[2:], shape.reduce_group)
    second = part([not own for own in covered], shape.expand[2:], shape.expand_group)
    return first, second


def _gemm_attributes(node: ir.Node) -> tuple[dict[str, object], dict[str, object]]:
    """alpha and beta stay with the bias, transA with the data."""
    orientation = {"transB": node.attributes.get_int("transB", 0)}
    first: dict[str, object] = {"transA": node.attributes.get_int("transA", 0), **orientation}
    second = {"alpha": node.attributes.get_float("alpha", 1.0), "beta": node.attributes.get_float("beta", 1.0)}
    return first, {**second, **orientation}


def _replace(node: ir.Node, pair: tuple[ir.Node, ir.Node]) -> None:
    graph = node.graph
    if graph is None:
        raise ValueError(f"{node.name} is in no graph")
    ir.convenience.replace_nodes_and_values(graph, node, [node], pair, node.outputs, pair[1].outputs)
