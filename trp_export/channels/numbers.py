"""Whole numbers that nodes read as inputs, such as the sizes of a Split or the shape of a Reshape: read and set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis, NotUnderstoodError
from trp_export.channels.counts import counts_channels
from trp_export.channels.labels import Ids
from trp_export.graph.weights import add_initializer, find_constant, find_numbers


def set_numbers(
    analysis: Analysis, node: ir.Node, index: int, numbers: Mapping[int, int], *, length: int | None = None
) -> None:
    """Set entries of a constant input of a node, or of the part of a Concat that makes it. Other readers keep theirs.

    Entries 0 and -1 of a shape stay: they follow the input. With `length`, the input is made anew.
    """
    value = node.inputs[index] if len(node.inputs) > index else None
    constant = find_constant(value)
    if length is not None:
        dtype = constant.dtype if constant is not None else ir.DataType.INT64
        array = np.array([numbers[place] for place in range(length)])
    elif constant is not None:
        dtype, array = constant.dtype, np.array(constant.array())
        for place, number in numbers.items():
            if array[place] > 0 or node.op_type not in ("Reshape", "Concat"):
                array[place] = number
    else:
        ((place, number),) = numbers.items()
        concat, part, inside = _part(analysis, node, index, place)
        set_numbers(analysis, concat, part, {inside: number})
        return
    name = f"{node.name}.{index}"
    node.resize_inputs(max(len(node.inputs), index + 1))
    node.replace_input_with(index, add_initializer(analysis.model.graph, name, array, dtype))


def require_entry_can_change(analysis: Analysis, node: ir.Node, index: int, place: int, copied: int, ids: Ids) -> bool:
    """Whether the entry of a shape that counts the channels `ids` must be set; else it follows by itself.

    An entry 0 stands for the size of the input on the same axis: it may be that of the channels, `copied`, alone.
    Raises NotUnderstoodError where the entry is computed otherwise.
    """
    numbers = find_numbers(node.inputs[index])
    if numbers is None:
        concat, part, inside = _part(analysis, node, index, place)
        if find_numbers(concat.inputs[part]) is not None:
            return True
        if not counts_channels(analysis, concat.inputs[part], inside, ids):
            raise NotUnderstoodError("its shape is computed")
        analysis.follows.add((concat, part))
        return False
    if place != copied and 0 in (numbers[place], *numbers[copied : copied + 1]):
        raise NotUnderstoodError("its shape copies the size of another axis")
    return True


def _part(analysis: Analysis, node: ir.Node, index: int, place: int) -> tuple[ir.Node, int, int]:
    """The Concat that makes the shape that a node reads, which of its inputs has the entry, and where in it."""
    value = node.inputs[index]
    concat = value.producer() if value is not None else None
    if value is None or concat is None or concat.op_type != "Concat" or len(value.uses()) > 1:
        raise NotUnderstoodError("its shape is computed")
    for part, each in enumerate(concat.inputs):
        numbers, shape = find_numbers(each), analysis.shape(each)
        length = len(numbers) if numbers is not None else shape[0] if shape is not None and len(shape) == 1 else None
        if length is None:
            break
        if place < length:
            return concat, part, place
        place -= length
    raise NotUnderstoodError("its shape is computed")
