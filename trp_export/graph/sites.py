"""Find the layers of a prepared model: every Conv, Gemm and MatMul with a weight, as Sites with their nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from trp_export.graph.shapes import Shape, Shapes
from trp_export.graph.weights import Constant, find_constant, find_readers, spatial_attribute
from trp_export.lowrank.schemes import Array
from trp_export.lowrank.site import Site, Use

OPS = ("Conv", "Gemm", "MatMul")
DECIDED_KEY = "trp_export.layers"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class LocatedSite:
    """A site and where it sits in the graph."""

    site: Site
    nodes: tuple[ir.Node, ...]
    weight: Constant | None

    @property
    def constant(self) -> Constant:
        """The weight of a site that was not refused."""
        if self.weight is None:
            raise ValueError(f"{self.site.name} has no constant weight")
        return self.weight

    def kernel(self) -> Array:
        """The weight as (n, c/group, *k)."""
        return _as_kernel(self.nodes[0], self.constant.array())


def find_sites(model: ir.Model, shapes: Shapes) -> tuple[LocatedSite, ...]:
    """All layers in graph order, one per weight; those that cannot be touched carry a refusal."""
    decided = decided_layers(model)
    groups: dict[object, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and node.op_type in OPS and len(node.inputs) > 1:
            weight = find_constant(node.inputs[1])
            groups.setdefault(weight.root if weight else node, []).append(node)
    taken: set[str] = set()
    located = []
    for nodes in groups.values():
        weight = find_constant(nodes[0].inputs[1])
        if weight is None and nodes[0].op_type == "MatMul":
            continue  # A product of two activations is no layer.
        name = _unique(layer_name(nodes[0], weight), taken)
        refusal = _refusal(nodes, weight)
        if refusal is None and name in decided:
            refusal = f"{decided[name]} by an earlier export; start from the original to change it"
        located.append(LocatedSite(_site(name, nodes, weight, shapes, refusal), tuple(nodes), weight))
    return tuple(located)


def layer_name(node: ir.Node, weight: Constant | None) -> str:
    """The path of the weight without `.weight` where it has such a name, else the node's name."""
    name = (weight.root.name if weight else None) or ""
    return name.removesuffix(".weight") if name.endswith(".weight") else node.name or ""


def decided_layers(model: ir.Model) -> dict[str, str]:
    """What an earlier export noted in the model: layer name -> what became of it."""
    try:
        noted = json.loads(model.metadata_props.get(DECIDED_KEY, "{}"))
    except ValueError:
        return {}
    return {str(name): str(word) for name, word in noted.items()} if isinstance(noted, dict) else {}


def note_decided(model: ir.Model, words: Mapping[str, str]) -> None:
    """Leave a note for the next export, added to what is there: a second run finds nothing left to decide."""
    model.metadata_props[DECIDED_KEY] = json.dumps({**words, **decided_layers(model)}, sort_keys=True)


def _refusal(nodes: list[ir.Node], weight: Constant | None) -> str | None:
    if weight is None:
        producer = nodes[0].inputs[1].producer() if nodes[0].inputs[1] else None
        return f"its weight is computed by {producer.op_type}" if producer else "its weight is an input of the model"
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype.name.lower()}"
    if weight.root.is_graph_output():
        return "its weight is an output of the model"
    if len(weight.shape) < 2 or (nodes[0].op_type != "Conv" and len(weight.shape) != 2):
        return f"its weight has {len(weight.shape)} axes"
    if prod(weight.shape) == 0:
        return "its weight is empty"
    others = [node.op_type for node, index in find_readers(weight.root) if node not in nodes or index != 1]
    if others:
        return f"its weight is also read by {others[0]}"
    if len({(node.op_type, _group(node), _orientation(node)) for node in nodes}) > 1:
        return "its weight serves layers of different kinds"
    if nodes[0].op_type == "Conv" and _group(nodes[0]) > 1 and weight.shape[:2] == (_group(nodes[0]), 1):
        return "depthwise: nothing to gain"
    return None


def _site(name: str, nodes: list[ir.Node], weight: Constant | None, shapes: Shapes, refusal: str | None) -> Site:
    node = nodes[0]
    if weight is None or len(weight.shape) < 2:
        return Site(name, node.op_type, (), 1, (), refusal)
    if not all(_is_sound(n, weight.shape) for n in nodes):
        return Site(name, node.op_type, (), 1, (), "its attributes do not fit its weight")
    shape, group = _kernel_shape(node, weight.shape), _group(node)
    is_conv = node.op_type == "Conv"
    uses = tuple(_conv_use(n, len(shape) - 2, shapes) if is_conv else _matrix_use(n, shapes) for n in nodes)
    return Site(name, node.op_type, shape, group, uses, refusal)


def _is_sound(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """False for a Conv whose attributes no weight of this shape can have: the checker lets such files pass."""
    if node.op_type != "Conv":
        return True
    axes, group = len(shape) - 2, _group(node)
    strides, dilations = (spatial_attribute(node, name, [1] * axes) for name in ("strides", "dilations"))
    return (
        group >= 1
        and shape[0] % group == 0
        and len(strides) == len(dilations) == axes
        and min((*strides, *dilations), default=1) >= 1
        and len(spatial_attribute(node, "pads", [0] * (2 * axes))) == 2 * axes
        and spatial_attribute(node, "kernel_shape", shape[2:]) == shape[2:]
    )


def _conv_use(node: ir.Node, axes: int, shapes: Shapes) -> Use:
    strides = spatial_attribute(node, "strides", [1] * axes)
    in_shape, out_shape = _shape_of(node.inputs[0], shapes), _shape_of(node.outputs[0], shapes)
    known = in_shape and out_shape and None not in in_shape[2:] and None not in out_shape[2:]
    return Use(
        # Unknown sizes: count per output pixel, so that layers at least compare within themselves.
        in_extents=_extents(in_shape, strides),
        out_extents=_extents(out_shape, (1,) * axes),
        strides=strides,
        pads=spatial_attribute(node, "pads", [0] * (2 * axes)),
        dilations=spatial_attribute(node, "dilations", [1] * axes),
        repeats=(out_shape[0] or 1) if out_shape else 1,
        known=bool(known),
    )


def _matrix_use(node: ir.Node, shapes: Shapes) -> Use:
    out_shape = _shape_of(node.outputs[0], shapes) or ()
    return Use(repeats=prod(dim or 1 for dim in out_shape[:-1]), known=bool(out_shape) and None not in out_shape)


def _shape_of(value: ir.Value | None, shapes: Shapes) -> Shape | None:
    return shapes.get(value.name or "") if value is not None else None


def _extents(shape: Shape | None, where_unknown: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial part of a shape. What the file declares may be of another length than the kernel."""
    known = shape[2:] if shape and len(shape) == len(where_unknown) + 2 else where_unknown
    return tuple(dim or other for dim, other in zip(known, where_unknown, strict=True))


def _group(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1


def _orientation(node: ir.Node) -> bool:
    """True where the stored matrix is (n, c) already."""
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _kernel_shape(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if node.op_type == "Conv" or _orientation(node) else shape[::-1]


def _as_kernel(node: ir.Node, array: Array) -> Array:
    return array if node.op_type == "Conv" or _orientation(node) else array.T


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 2
    while unique in taken:
        unique, count = f"{name}#{count}", count + 1
    taken.add(unique)
    return unique
