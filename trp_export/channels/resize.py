"""Rules of Resize, Upsample and Pad, which name every axis, that of the channels, too."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from trp_export.channels.analysis import Analysis, NotUnderstoodError, Rule, whole, zeros
from trp_export.channels.labels import Labels
from trp_export.channels.numbers import require_entry_can_change, set_numbers
from trp_export.channels.steps import Kept, Setting
from trp_export.graph.weights import find_constant, find_numbers


def _resize(analysis: Analysis, node: ir.Node) -> None:
    labels = analysis.tracked(node.inputs[0])
    if labels is None:
        return
    axes = [axis % labels.rank for axis in node.attributes.get_ints("axes", range(labels.rank))]
    if labels.axis in axes:
        _keep_channels(analysis, node, labels, axes.index(labels.axis))
    analysis.follow(node)


def _keep_channels(analysis: Analysis, node: ir.Node, labels: Labels, place: int) -> None:
    """The entry of the scales or of the sizes that is for the channels must leave as many as there are."""
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    scales = find_constant(node.inputs[-1]) if sizes is None else None
    shape = analysis.shape(node.outputs[0])
    keeps = shape is not None and len(shape) == labels.rank and shape[labels.axis] == len(labels.ids)
    if not (keeps if scales is None else scales.array()[place] == 1):
        raise NotUnderstoodError("it resizes channels")
    if sizes is not None and require_entry_can_change(analysis, node, 3, place, place, labels.ids):
        count = Setting(labels.ids, lambda kept: set_numbers(analysis, node, 3, {place: int(kept.sum())}))
        analysis.settings.append(count)


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
