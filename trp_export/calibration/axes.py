"""Follow an axis, or a part of a value along an axis, backwards through operators that move values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from trp_export.graph.shapes import Shape
from trp_export.graph.weights import find_numbers

Shapes = Mapping[str, Shape]
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Part:
    """The entries of a value from `start` on along an axis; the others are not read."""

    axis: int
    start: int
    length: int


def sources(
    node: ir.Node, value: ir.Value, part: Part | None, data: Iterable[ir.Value], shapes: Shapes
) -> Iterator[tuple[ir.Value, Part | None]]:
    """The inputs among `data` that a part of an output needs, each with the part that it needs; None for all of it."""
    data = list(data)
    if node.op_type in ("Split", "Slice"):
        own = _cut(node, value, shapes)
        inside = part is not None and own is not None and part.axis == own.axis
        yield data[0], Part(own.axis, own.start + part.start, part.length) if inside and own and part else own
        yield from ((source, None) for source in data[1:])
    elif node.op_type == "Concat" and part is not None and _concat_axis(node, value, shapes) == part.axis:
        yield from _joined(data, part, shapes)
    else:
        yield from ((source, _moved(node, value, source, part, shapes)) for source in data)


def axis_before(node: ir.Node, value: ir.Value, source: ir.Value, axis: int, shapes: Shapes) -> int | None:
    """The axis of an input that an axis of an output is; None where it is none alone, or not known."""
    after, before = shapes.get(value.name or ""), shapes.get(source.name or "")
    if after is None or before is None:
        return None
    axis %= len(after)
    if node.op_type == "Transpose":
        return int(node.attributes.get_ints("perm", range(len(after))[::-1])[axis])
    if node.op_type in _RESHAPES:
        return _axis_reshaped(before, after, axis)
    moved = axis - (len(after) - len(before))
    return moved if moved >= 0 else None


def splits_axis(source: ir.Value, axis: int, value: ir.Value, part: int, shapes: Shapes) -> bool:
    """Whether a Reshape splits an axis of its input over several axes of its output, of which `part` is one."""
    before, after = shapes.get(source.name or ""), shapes.get(value.name or "")
    if before is None or after is None or not _keeps_batches(before, after):
        return False
    in_front = _splits(before[1 : axis + 1], after[1 : part + 1])  # Batches stay in front.
    return in_front or _splits(before[axis:][::-1], after[part:][::-1])


def _keeps_batches(before: Shape, after: Shape) -> bool:
    """Whether a Reshape leaves the first axis alone, as far as sizes tell."""
    if None in (*before[1:], *after[1:]):
        return len(after) > len(before)
    return _count(before[1:]) == _count(after[1:])


def _splits(before: Shape, after: Shape) -> bool:
    """Whether the last axis of `after` is one of those into which a Reshape splits the last axis of `before`.

    Both begin at the same side of the tensor. False where a size is not known.
    """
    if not before or not after or None in (*before, *after) or 0 in (*before, *after):
        return False
    return _count(after[:-1]) % _count(before[:-1]) == 0 and _count(before) % _count(after) == 0


def _axis_reshaped(before: Shape, after: Shape, axis: int) -> int | None:
    """The axis as long as this one, with as many entries in front of it. Batches stay in front."""
    if axis == 0 and len(after) > 1:
        return 0
    if (len(after), axis) == (2, 1) and all(extent == 1 for extent in before[2:]):
        return 1
    ahead, extent = after[1:axis], after[axis]
    for place in range(1, len(before)):
        own = before[1:place]
        if before[place] == extent is not None and None not in (*own, *ahead) and _count(own) == _count(ahead):
            return place
    return None


def _count(extents: Shape) -> int:
    return prod(extent or 0 for extent in extents)


def _moved(node: ir.Node, value: ir.Value, source: ir.Value, part: Part | None, shapes: Shapes) -> Part | None:
    if part is None or _reorders(node, value, part.axis, shapes):
        return None
    axis = axis_before(node, value, source, part.axis, shapes)
    if axis is None or axis >= len(shapes[source.name or ""]):
        return None
    same = shapes[source.name or ""][axis] == shapes[value.name or ""][part.axis] is not None
    return replace(part, axis=axis) if same else None


def _reorders(node: ir.Node, value: ir.Value, axis: int, shapes: Shapes) -> bool:
    """Whether an operator puts the entries of an axis into another order."""
    shape = shapes.get(value.name or "")
    if not shape or node.op_type not in ("Gather", "GatherElements", "TopK"):
        return False
    return node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0) % len(shape) == axis


def _joined(data: Sequence[ir.Value], part: Part, shapes: Shapes) -> Iterator[tuple[ir.Value, Part | None]]:
    """The inputs of a Concat that a part along its axis touches; all of them where an extent is not known."""
    extents = [_extent(source, part.axis, shapes) for source in data]
    if None in extents:
        yield from ((source, None) for source in data)
        return
    start = 0
    for source, extent in zip(data, extents, strict=True):
        first, last = max(part.start, start), min(part.start + part.length, start + (extent or 0))
        if first < last:
            own = Part(part.axis, first - start, last - first)
            yield source, own if own.length < (extent or 0) else None
        start += extent or 0


def _extent(value: ir.Value, axis: int, shapes: Shapes) -> int | None:
    shape = shapes.get(value.name or "")
    return shape[axis] if shape else None


def _concat_axis(node: ir.Node, value: ir.Value, shapes: Shapes) -> int | None:
    shape = shapes.get(value.name or "")
    return node.attributes.get_int("axis", 0) % len(shape) if shape else None


def _cut(node: ir.Node, value: ir.Value, shapes: Shapes) -> Part | None:
    """The part of its input that an output of Split or a Slice along one axis is; None where that is not known."""
    shape, whole = shapes.get(value.name or ""), shapes.get(node.inputs[0].name or "") if node.inputs[0] else None
    if not shape or not whole:
        return None
    axis = node.attributes.get_int("axis", 0) % len(shape) if node.op_type == "Split" else _slice_axis(node, len(shape))
    if axis is None or shape[axis] is None or whole[axis] is None:
        return None
    start = _split_start(node, value, axis, shapes) if node.op_type == "Split" else _slice_start(node, whole[axis])
    return Part(axis, start, int(shape[axis] or 0)) if start is not None else None


def _split_start(node: ir.Node, value: ir.Value, axis: int, shapes: Shapes) -> int | None:
    start = 0
    for output in node.outputs:
        if output is value:
            return start
        extent = _extent(output, axis, shapes)
        if extent is None:
            return None
        start += extent
    return None


def _slice_numbers(node: ir.Node, place: int, name: str) -> list[int] | None:
    """The starts, axes or steps of a Slice, from an input or, before opset 10, an attribute."""
    if name in node.attributes:
        return list(node.attributes.get_ints(name))
    return find_numbers(node.inputs[place]) if place < len(node.inputs) else None


def _slice_axis(node: ir.Node, rank: int) -> int | None:
    """The one axis that is cut, step by step."""
    starts, axes, steps = (_slice_numbers(node, *field) for field in ((1, "starts"), (3, "axes"), (4, "steps")))
    if starts is None or len(starts) != 1 or (steps or [1]) != [1]:
        return None
    return axes[0] % rank if axes else 0


def _slice_start(node: ir.Node, extent: int | None) -> int | None:
    starts = _slice_numbers(node, 1, "starts")
    if not starts or extent is None:
        return None
    return min(max(starts[0] if starts[0] >= 0 else starts[0] + extent, 0), extent)
