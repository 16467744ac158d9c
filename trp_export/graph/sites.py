"""Find the layers of a prepared model as Sites with their nodes: every operator whose multiply-adds are counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from trp_export.graph.cost import is_counted, node_macs
from trp_export.graph.kernels import SPATIAL, as_kernel, conv_pads, group_of, is_transposed_matrix, kernel_shape
from trp_export.graph.shapes import Run, Runs, Shape, node_key
from trp_export.graph.weights import Constant, find_constant, find_readers, is_shown, release, spatial_attribute
from trp_export.lowrank.schemes import Array
from trp_export.lowrank.site import Site, Use

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DECIDED_KEY = "trp_export.layers"
_LONGEST_NOTE = 1000
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
# Counted operators that are never factored.
_FIXED = {
    "LSTM": "the matrices of an LSTM are not factored",
    "GRU": "the matrices of a GRU are not factored",
    "RNN": "the matrices of an RNN are not factored",
    "Einsum": "an Einsum is not factored",
    "DeformConv": "a deformable conv is not factored",
}


# The refusal of a layer whose weight could be another one, of the same shape.
DEPTHWISE = "depthwise: nothing to gain"


@dataclass(frozen=True, slots=True)
class LocatedSite:
    """A site and its place in the graph."""

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
        return as_kernel(self.nodes[0], self.constant.array(), self.site.group)

    def release(self) -> None:
        """Let go of the memory that a weight on disk takes since it was used; it can be used again."""
        if self.constant.root.const_value is not None:
            release([self.constant.root.const_value])


def find_sites(model: ir.Model, runs: Runs) -> tuple[LocatedSite, ...]:
    """All layers in graph order, one for each weight; those that cannot be changed carry a refusal."""
    decided = decided_layers(model)
    groups: dict[object, list[ir.Node]] = {}
    for node in model.graph.all_nodes():
        if is_counted(node) and len(node.inputs) > 1:
            weight = find_constant(node.inputs[1]) if node.op_type in OPS else None
            groups.setdefault(weight.root if weight else node, []).append(node)
    taken: set[str] = set()
    located = []
    for nodes in groups.values():
        weight = find_constant(nodes[0].inputs[1]) if nodes[0].op_type in OPS else None
        name = _unique(layer_name(nodes[0], weight), taken)
        refusal = _refusal(nodes, weight)
        if refusal is None and name in decided:
            refusal = f"{decided[name]} by an earlier export; start from the original to change it"
        located.append(LocatedSite(_site(name, nodes, weight, runs, refusal), tuple(nodes), weight))
    return tuple(located)


def layer_name(node: ir.Node, weight: Constant | None) -> str:
    """The name of the weight without `.weight` where it ends so, else the name of the node."""
    name = (weight.root.name if weight else None) or ""
    return name.removesuffix(".weight") if name.endswith(".weight") else node.name or ""


def decided_layers(model: ir.Model) -> dict[str, str]:
    """What an earlier export noted in the model: layer name -> what it decided. Anything else there is ignored."""
    try:
        noted = json.loads(model.metadata_props.get(DECIDED_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    decisions = noted.items() if isinstance(noted, dict) else ()
    return {name: text for name, text in decisions if isinstance(text, str) and _is_note(name) and _is_note(text)}


def _is_note(text: str) -> bool:
    return text.isprintable() and len(text) <= _LONGEST_NOTE


def note_decided(model: ir.Model, decisions: Mapping[str, str]) -> None:
    """Add decisions to the model's metadata, so that a second export leaves these layers alone."""
    model.metadata_props[DECIDED_KEY] = json.dumps({**decisions, **decided_layers(model)}, sort_keys=True)


def _refusal(nodes: list[ir.Node], weight: Constant | None) -> str | None:
    node = nodes[0]
    if node.op_type in _FIXED:
        return _FIXED[node.op_type]
    if weight is None:
        return _computed_weight(node)
    if weight.dtype not in _FLOATS:
        return f"its weight is {weight.dtype.name.lower()}"
    if is_shown(weight.root):
        return "its weight is an output of the model"
    if len(weight.shape) < 2 or (node.op_type not in SPATIAL and len(weight.shape) != 2):
        return f"its weight has {len(weight.shape)} axes"
    if prod(weight.shape) == 0:
        return "its weight is empty"
    others = [reader.op_type for reader, index in find_readers(weight.root) if reader not in nodes or index != 1]
    if others:
        return f"its weight is also read by {others[0]}"
    if len({(each.op_type, group_of(each), is_transposed_matrix(each)) for each in nodes}) > 1:
        return "its weight serves layers of different kinds"
    if node.op_type in SPATIAL and group_of(node) > 1 and _is_depthwise(node, weight.shape):
        return DEPTHWISE
    if any(each.op_type == "ConvTranspose" and "output_shape" in each.attributes for each in nodes):
        return "its attribute output_shape makes the padding depend on the size of its input, which is open"
    return None


def _computed_weight(node: ir.Node) -> str:
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if node.op_type == "MatMul":
        left = find_constant(node.inputs[0]) is not None
        return "its weight is the left factor of the product" if left else "a product of two computed values"
    return f"its weight is computed by {producer.op_type}" if producer else "its weight is an input of the model"


def _is_depthwise(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """True where each group has one input and one output channel."""
    return shape[:2] == (group_of(node), 1)


def _site(name: str, nodes: list[ir.Node], weight: Constant | None, runs: Runs, refusal: str | None) -> Site:
    node = nodes[0]
    axes = 0 if weight is None else len(weight.shape)
    batched = node.op_type not in SPATIAL and axes > 2
    if weight is None or axes < 2 or batched or not all(_is_sound(each, weight.shape) for each in nodes):
        refusal = refusal or "its attributes do not fit its weight"
        macs = [node_macs(each, runs) for each in nodes]
        known = [count for count in macs if count is not None]
        total = sum(known) if len(known) == len(macs) else None
        return Site(name, node.op_type, (), 1, (), refusal, fixed_macs=total, fixed_params=_stored_params(node))
    group = group_of(node)
    shape = kernel_shape(node, weight.shape, group)
    uses = tuple(use for each in nodes for use in _uses(each, shape[2:], runs))
    return Site(name, node.op_type, shape, group, uses, refusal)


def _stored_params(node: ir.Node) -> int:
    constants = [find_constant(value) for value in node.inputs]
    return sum(prod(constant.shape) for constant in constants if constant and constant.dtype.is_floating_point())


def _is_sound(node: ir.Node, shape: tuple[int, ...]) -> bool:
    """False for a conv whose attributes no weight of this shape can have: the ONNX checker lets such files pass."""
    if node.op_type not in SPATIAL:
        return True
    axes, group = len(shape) - 2, group_of(node)
    strides, dilations = (spatial_attribute(node, name, [1] * axes) for name in ("strides", "dilations"))
    return (
        group >= 1
        and shape[0] % group == 0
        and len(strides) == len(dilations) == axes
        and min((*strides, *dilations), default=1) >= 1
        and len(spatial_attribute(node, "pads", [0] * (2 * axes))) == 2 * axes
        and len(spatial_attribute(node, "output_padding", [0] * axes)) == axes
        and spatial_attribute(node, "kernel_shape", shape[2:]) == shape[2:]
    )


def _uses(node: ir.Node, kernel: tuple[int, ...], runs: Runs) -> list[Use]:
    """One for each execution, those of the same shapes together."""
    use_of = _conv_use if node.op_type in SPATIAL else _matrix_use
    counts: dict[Run, int] = {}
    # A layer whose shapes are unknown, or that did not run, is costed per output pixel.
    for run in runs.get(node_key(node)) or (Run((None,), None),):
        counts[run] = counts.get(run, 0) + 1
    return [use_of(node, kernel, run, times) for run, times in counts.items()]


def _conv_use(node: ir.Node, kernel: tuple[int, ...], run: Run, times: int) -> Use:
    """One of a layer with a kernel of these extents."""
    axes = len(kernel)
    strides = spatial_attribute(node, "strides", [1] * axes)
    pads = spatial_attribute(node, "pads", [0] * (2 * axes))
    dilations = spatial_attribute(node, "dilations", [1] * axes)
    data, output = run.inputs[0], run.output
    known = data is not None and output is not None and None not in (*data[2:], *output) and len(data) == axes + 2
    # Of unknown sizes: one output pixel of a conv, one input pixel of a transposed conv.
    in_extents, out_extents = (strides, (1,) * axes) if node.op_type == "Conv" else ((1,) * axes, strides)
    in_extents = _extents(data, in_extents)
    if node.op_type == "Conv":
        auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
        pads = conv_pads(auto_pad, pads, in_extents, kernel, strides, dilations)
    return Use(
        in_extents=in_extents,
        out_extents=_extents(output, out_extents),
        strides=strides,
        pads=pads,
        dilations=dilations,
        repeats=((output[0] or 1) if output else 1) * times,
        known=known,
    )


def _matrix_use(node: ir.Node, kernel: tuple[int, ...], run: Run, times: int) -> Use:
    rows = (run.output or ())[:-1]
    known = bool(run.output) and None not in rows
    return Use(repeats=prod(dim or 1 for dim in rows) * times, known=known)


def _extents(shape: Shape | None, where_unknown: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial part of a shape. The shape that a file declares may have another rank than the kernel."""
    extents = shape[2:] if shape and len(shape) == len(where_unknown) + 2 else where_unknown
    return tuple(dim or other for dim, other in zip(extents, where_unknown, strict=True))


def _unique(name: str, taken: set[str]) -> str:
    unique, count = name, 2
    while unique in taken:
        unique, count = f"{name}#{count}", count + 1
    taken.add(unique)
    return unique
