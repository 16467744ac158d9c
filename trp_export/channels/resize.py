"""Rules of Resize, Upsample and Pad, which name every axis, that of the channels, too."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis, NotUnderstoodError, Rule, whole, zeros
from trp_export.channels.labels import Labels
from trp_export.channels.numbers import set_numbers
from trp_export.channels.steps import Kept, Setting
from trp_export.graph.weights import find_constant, find_numbers


def _resize(analysis: Analysis, node: ir.Node) -> None:
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    axes = node.attributes.get_ints("axes", list(range(labels.rank)))
    place = list(axes).index(labels.axis) if labels.axis in axes else None
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if place is None:
        pass
    elif sizes is None:
        scales = find_constant(node.inputs[-1])
        shape = analysis.shape(node.outputs[0])
        keeps = shape is not None and len(shape) == labels.rank and shape[labels.axis] == len(labels.ids)
        if (scales is not None and scales.array()[place] != 1) or (scales is None and not keeps):
            raise NotUnderstoodError("it resizes channels")
    else:
        _set_size(analysis, node, labels, place)
    analysis.follow(node)


def _set_size(analysis: Analysis, node: ir.Node, labels: Labels, place: int) -> None:
    """A size that is computed must come from the tensor itself, as the leading entries of its shape."""
    numbers = find_numbers(node.inputs[3])
    if numbers is not None:
        if numbers[place] != len(labels.ids):
            raise NotUnderstoodError("it resizes channels")
        count = Setting(labels.ids, lambda kept: set_numbers(analysis, node, 3, {place: int(kept.sum())}))
        analysis.settings.append(count)
        return
    concat = node.inputs[3].producer() if node.inputs[3] is not None else None
    part = concat.inputs[0].producer() if concat is not None and concat.inputs[0] is not None else None
    shape = part.inputs[0].producer() if part is not None and part.inputs[0] is not None else None
    if concat is None or shape is None or shape.op_type != "Shape" or shape.inputs[0] is not node.inputs[0]:
        raise NotUnderstoodError("its sizes are computed")
    analysis.follows.add((concat, 0))


def _upsample(analysis: Analysis, node: ir.Node) -> None:
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    scales = find_constant(node.inputs[1]) if len(node.inputs) > 1 else None
    factors = list(scales.array()) if scales is not None else list(node.attributes.get_floats("scales", ()))
    if len(factors) != labels.rank or factors[labels.axis] != 1:
        raise NotUnderstoodError("it resizes channels")
    analysis.follow(node)


def _pad(analysis: Analysis, node: ir.Node) -> None:
    """Padding of other axes leaves the channels as they are. Zeros around the channels are channels, too."""
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    pads = list(node.attributes.get_ints("pads", ()))
    if len(node.inputs) > 1:
        pads = find_numbers(node.inputs[1]) or []
    axes = list(range(labels.rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = [axis % labels.rank for axis in find_numbers(node.inputs[3]) or []]
    if not pads or len(pads) != 2 * len(axes):
        raise NotUnderstoodError("its pads are computed")
    if labels.axis in axes and any(pads[axes.index(labels.axis) :: len(axes)]):
        _pad_channels(analysis, node, axes.index(labels.axis), pads)
        return
    analysis.follow(node)


def _pad_channels(analysis: Analysis, node: ir.Node, place: int, pads: list[int]) -> None:
    """Channels of zeros before and behind, as a residual network without projections has them."""
    value, labels = analysis.require(node.inputs[0])
    places = (place, place + len(pads) // 2)
    mode, filled = node.attributes.get_string("mode", "constant"), node.attributes.get_float("value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        constant = find_constant(node.inputs[2])
        filled = float(constant.array().reshape(())) if constant is not None else 1.0
    if mode != "constant" or filled or min(pads[end] for end in places) < 0 or len(node.inputs) < 2:
        raise NotUnderstoodError("it pads channels by other values than zeros")
    before, behind = (analysis.ties.fresh(pads[end]) for end in places)
    for ids, end in ((before, places[0]), (behind, places[1])):
        analysis.settings.append(Setting(ids, partial(_set_pad, analysis, node, end)))
    sources = (zeros(len(before)), whole(value, labels), zeros(len(behind)))
    padded = Labels(labels.rank, labels.axis, np.concatenate([before, labels.ids, behind]))
    analysis.pass_on(node, padded, sources, moves=True)


def _set_pad(analysis: Analysis, node: ir.Node, place: int, kept: Kept) -> None:
    set_numbers(analysis, node, 1, {place: int(kept.sum())})


RESIZE: dict[str, Rule] = {"Resize": _resize, "Upsample": _upsample, "Pad": _pad}
