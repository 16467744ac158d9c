"""Carry out a Plan: replace each chosen layer by its factors. No choices are made here.

The two convs of a pair share the attributes by axis: on the axes that the first conv covers, it has the stride, pads,
output padding and dilation of the layer, and the second conv has 1, 0, 0 and 1; on the other axes it is the reverse.
`auto_pad` holds for both, since an axis with kernel 1 and stride 1 is never padded. The bias goes to the second conv.

Where every channel is a slice of its own, of the output (network decoupling) or of the input, one of the two convs
would be grouped with one channel a group on one side and several on the other, which onnxruntime runs slowly; the pair
then becomes one path per rank, each with a depthwise conv, and the paths are summed. So are the paths of all pairs
where a layer becomes several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod

import numpy as np
import onnx_ir as ir

from trp_export.graph.kernels import SPATIAL, as_kernel, as_weight, group_of, kernel_axes
from trp_export.graph.sites import LocatedSite
from trp_export.graph.weights import add_initializer, find_constant, set_later, set_value, spatial_attribute
from trp_export.lowrank.branches import Pairs, stored_kernel
from trp_export.lowrank.factor import Factors
from trp_export.lowrank.schemes import Array, Branch, Scheme, describe, pair_shape
from trp_export.lowrank.site import Site
from trp_export.planning.plan import Change, Plan

LEAST_GEMM_WITHOUT_BIAS = 11  # opset

Attributes = dict[str, object]
# By site name, for each path the names of the weights of its reduce and its expand.
WeightNames = Mapping[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class _Path:
    """The weights of one reduce and one expand; a single pair has a single path, unless it is decoupled.

    `zero` is the bias of a reduce that must have one: of a Gemm before opset 11.
    """

    name: str
    scheme: Scheme
    reduce: ir.Value
    expand: ir.Value
    zero: ir.Value | None


def rewrite(model: ir.Model, plan: Plan, located: Sequence[LocatedSite], factors: Mapping[str, Pairs]) -> WeightNames:
    """Replace layers in place; `factors` by site name. Returns the names of the new weights."""
    places = {place.site.name: place for place in located}
    return {
        change.site.name: rewrite_layer(model, change, places[change.site.name], factors[change.site.name])
        for change in plan.changed
    }


def rewrite_layer(model: ir.Model, change: Change, place: LocatedSite, pairs: Pairs) -> tuple[tuple[str, str], ...]:
    """Replace one layer in place. Returns the names of the new weights, path by path."""
    paths = _register(model, change, place, pairs)
    for node in place.nodes:
        _replace(node, _make_nodes(node, change, paths))
    return tuple((path.reduce.name or "", path.expand.name or "") for path in paths)


def set_products(model: ir.Model, plan: Plan, located: Sequence[LocatedSite], factors: Mapping[str, Pairs]) -> None:
    """Set each chosen layer's kernel to the product of its factors, in place: the reference for the pairs.

    Products are computed when they are used.
    """
    places = {place.site.name: place for place in located}
    for change in plan.changed:
        set_product(change, places[change.site.name], factors[change.site.name])


def set_product(change: Change, place: LocatedSite, pairs: Pairs) -> None:
    """The same for one layer."""
    set_later(place.constant.root, partial(_product, place, pairs, change))


def _product(place: LocatedSite, pairs: Pairs, change: Change) -> Array:
    return as_stored(place, stored_kernel(pairs, change.branches, place.site.kernel_shape, place.site.group))


def set_kernel(place: LocatedSite, kernel: Array) -> None:
    """Give a layer another kernel (n, c/group, *k), stored as its weight is."""
    set_value(place.constant.root, as_stored(place, kernel))


def as_stored(place: LocatedSite, kernel: Array) -> Array:
    """A kernel (n, c/group, *k) as the layer's weight is stored."""
    return place.constant.as_stored(as_weight(place.nodes[0], kernel, place.site.group))


def stored_order(place: LocatedSite) -> tuple[int, ...]:
    """The axes of a layer's kernel in the order in which its weight is stored.

    Raises ValueError for a transposed conv with groups, whose weight is not a permutation of its kernel.
    """
    if place.nodes[0].op_type == "ConvTranspose" and place.site.group > 1:
        raise ValueError(f"{place.site.name} is a transposed conv with groups")
    axes = place.constant.axes
    kernel = kernel_axes(place.nodes[0], len(axes))
    return tuple(kernel[axes.index(axis)] for axis in range(len(axes)))


def read_factors(model: ir.Model, plan: Plan, names: WeightNames) -> dict[str, Pairs]:
    """The factors of every rewritten layer as they stand in the graph, by site name: the inverse of `rewrite`."""
    found = {}
    for change in plan.changed:
        paths = iter(names[change.site.name])
        counts = [path_count(change.site, branch) for branch in change.branches]
        found[change.site.name] = tuple(_read_pair(model, list(islice(paths, count))) for count in counts)
    return found


def _read_pair(model: ir.Model, paths: Sequence[tuple[str, str]]) -> Factors:
    reduces, expands = (
        [_as_kernel(model.graph.initializers[name]) for name in part] for part in zip(*paths, strict=True)
    )
    return Factors(_interleave(reduces, axis=0), _interleave(expands, axis=1))


def _interleave(parts: Sequence[Array], axis: int) -> Array:
    """Path i of a decoupled layer holds every rank-th channel, from the i-th on."""
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return np.stack(parts, axis=axis + 1).reshape(shape)


def _as_kernel(value: ir.Value) -> Array:
    constant = find_constant(value)
    if constant is None:
        raise ValueError(f"{value.name} has no value")
    node = value.consumers()[0]
    return as_kernel(node, constant.array(), group_of(node))


def tag_nodes(model: ir.Model, plan: Plan, names: WeightNames) -> None:
    """Note in the metadata of every new node which layer it came from."""
    for change in plan.changed:
        for name in (name for path in names[change.site.name] for name in path):
            weight = model.graph.initializers.get(name)
            for node in weight.consumers() if weight is not None else ():
                node.metadata_props["trp_export.layer"] = f"{change.site.name}: {describe(change.branches)}"


def path_count(site: Site, branch: Branch) -> int:
    """One, or one for each rank of a pair that has a depthwise conv on either side."""
    unit = pair_shape(branch.scheme, site.kernel_shape, site.group, 1)
    first = unit.reduce_group > 1 and unit.reduce[1] == 1 and prod(unit.reduce[2:]) > 1
    last = len(unit.expand) > 2 and unit.expand_group == unit.expand[0]
    return branch.rank if first or last else 1


def _register(model: ir.Model, change: Change, place: LocatedSite, pairs: Pairs) -> tuple[_Path, ...]:
    """The weights of all paths, numbered where there are several."""
    site = change.site

    def register(name: str, kernel: Array, group: int) -> ir.Value:
        weight = as_weight(place.nodes[0], kernel, group)
        return add_initializer(model.graph, f"{name}.weight", weight, place.constant.dtype)

    zero = None
    if site.op == "Gemm" and model.opset_imports.get("", LEAST_GEMM_WITHOUT_BIAS) < LEAST_GEMM_WITHOUT_BIAS:
        zero = add_initializer(model.graph, f"{site.name}.reduce.bias", np.zeros(1), place.constant.dtype)
    parts = [
        (branch.scheme, reduce, expand)
        for branch, factors in zip(change.branches, pairs, strict=True)
        for reduce, expand in _paths(site, branch, factors)
    ]
    labels = [""] if len(parts) == 1 else [f".{index}" for index in range(len(parts))]
    return tuple(
        _Path(
            name=label,
            scheme=scheme,
            reduce=register(f"{site.name}{label}.reduce", reduce, unit.reduce_group),
            expand=register(f"{site.name}{label}.expand", expand, unit.expand_group),
            zero=zero,
        )
        for label, (scheme, reduce, expand) in zip(labels, parts, strict=True)
        for unit in [pair_shape(scheme, site.kernel_shape, site.group, 1)]
    )


def _paths(site: Site, branch: Branch, factors: Factors) -> list[tuple[Array, Array]]:
    """The kernels of one pair, path by path."""
    shape = pair_shape(branch.scheme, site.kernel_shape, site.group, branch.rank)
    if factors.reduce.shape != shape.reduce or factors.expand.shape != shape.expand:
        raise ValueError(f"{site.name}: factors {factors.reduce.shape}, {factors.expand.shape} are not {shape}")
    count = path_count(site, branch)
    return [(factors.reduce[index::count], factors.expand[:, index::count]) for index in range(count)]


def _make_nodes(node: ir.Node, change: Change, paths: Sequence[_Path]) -> list[ir.Node]:
    """The nodes that take the place of one, the last of them giving its output."""
    nodes: list[ir.Node] = []
    total: ir.Value | None = None
    for path in paths:
        first, second = _attributes(node, change.site, path.scheme)
        inputs = [node.inputs[0], path.reduce, *([path.zero] if path.zero else [])]
        reduce = _node(node, f"{path.name}.reduce", node.op_type, inputs, first)
        bias = [] if nodes else node.inputs[2:]
        expand = _node(node, f"{path.name}.expand", node.op_type, [reduce.outputs[0], path.expand, *bias], second)
        nodes += [reduce, expand]
        if total is not None:
            nodes.append(_node(node, f"{path.name}.sum", "Add", [total, expand.outputs[0]], {}))
        total = nodes[-1].outputs[0]
    last = nodes[-1].outputs[0]
    last.name, last.shape = node.outputs[0].name, node.outputs[0].shape
    return nodes


def _node(
    old: ir.Node, part: str, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object]
) -> ir.Node:
    new = ir.node(op_type, inputs, attributes, domain=old.domain, name=f"{old.name}{part}", version=old.version)  # type: ignore[arg-type]
    new.outputs[0].name = f"{old.outputs[0].name}{part}"
    new.outputs[0].type = old.outputs[0].type
    return new


def _attributes(node: ir.Node, site: Site, scheme: Scheme) -> tuple[Attributes, Attributes]:
    if node.op_type in SPATIAL:
        return _conv_attributes(node, site, scheme)
    return _gemm_attributes(node) if node.op_type == "Gemm" else ({}, {})


def _conv_attributes(node: ir.Node, site: Site, scheme: Scheme) -> tuple[Attributes, Attributes]:
    axes = len(site.kernel_shape) - 2
    strides = spatial_attribute(node, "strides", [1] * axes)
    dilations = spatial_attribute(node, "dilations", [1] * axes)
    pads = spatial_attribute(node, "pads", [0] * (2 * axes))
    output_padding = spatial_attribute(node, "output_padding", [0] * axes)
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    shape = pair_shape(scheme, site.kernel_shape, site.group, 1)

    def part(covers: Sequence[bool], kernel: Sequence[int], group: int) -> Attributes:
        attributes: Attributes = {
            "kernel_shape": list(kernel),
            "strides": [stride if covered else 1 for stride, covered in zip(strides, covers, strict=True)],
            "dilations": [dilation if covered else 1 for dilation, covered in zip(dilations, covers, strict=True)],
            "group": group,
        }
        if auto_pad in ("NOTSET", ""):
            attributes["pads"] = [pad if covered else 0 for pad, covered in zip(pads, [*covers, *covers], strict=True)]
        else:
            attributes["auto_pad"] = auto_pad
        if any(output_padding):
            attributes["output_padding"] = [
                size if covered else 0 for size, covered in zip(output_padding, covers, strict=True)
            ]
        return attributes

    by_reduce = [axis in scheme.reduce_axes for axis in range(axes)]
    first = part(by_reduce, shape.reduce[2:], shape.reduce_group)
    second = part([not covered for covered in by_reduce], shape.expand[2:], shape.expand_group)
    return first, second


def _gemm_attributes(node: ir.Node) -> tuple[Attributes, Attributes]:
    """alpha and beta stay with the bias, transA with the data."""
    orientation = {"transB": node.attributes.get_int("transB", 0)}
    first: Attributes = {"transA": node.attributes.get_int("transA", 0), **orientation}
    second = {"alpha": node.attributes.get_float("alpha", 1.0), "beta": node.attributes.get_float("beta", 1.0)}
    return first, {**second, **orientation}


def _replace(node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    graph = node.graph
    if graph is None:
        raise ValueError(f"{node.name} is not in a graph")
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
