"""The mean inputs of layers, derived from batch norm without any image.

A BatchNormalization has outputs of mean beta and variance gamma^2 over its training data. Taken as normal and
followed through activations, additions and poolings, this gives the mean input of the layers behind it, and so
what truncating a kernel does to the mean of its output: the bias can take that back.
Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from trp_export.graph.sites import LocatedSite
from trp_export.graph.weights import find_constant, find_scalar
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.site import Site, Use

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(99)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and variance per channel; no variance where averaging has changed it in an unknown way."""

    mean: Float64
    variance: Float64 | None


def mean_inputs(located: Sequence[LocatedSite]) -> dict[str, Float64]:
    """Site name -> mean input patch (group, d), for the sites behind batch norm whose inputs can be derived."""
    known: dict[ir.Value, Statistics | None] = {}
    means = {}
    for place in located:
        channels = place.site.kernel_shape[1] * place.site.group if place.site.kernel_shape else 0
        values = [node.inputs[0] for node in place.nodes]
        statistics = [_statistics(value, known) for value in values if value is not None]
        own = [each.mean for each in statistics if each is not None and each.mean.size == channels]
        if len(own) == len(place.nodes) and (len(own) == 1 or len(own) == len(place.site.uses)):
            means[place.site.name] = _over_uses(own, place)
    return means


def _over_uses(means: Sequence[Float64], place: LocatedSite) -> Float64:
    """The mean input patch of all uses together: each counts as often as it runs."""
    uses = place.site.uses[: len(means)]
    patches = [_over_patch(mean, place.site, use) for mean, use in zip(means, uses, strict=True)]
    return np.asarray(np.average(patches, axis=0, weights=[prod(use.out_extents) * use.repeats for use in uses]))


def norm_outputs(model: ir.Model) -> dict[str, Statistics]:
    """Value name -> mean and variance that the output of each BatchNormalization had over the training data.

    A network whose running statistics were never gathered (mean 0 and variance 1 everywhere) gives none. Folding batch
    norm away keeps the names and the values.
    """
    outputs: dict[str, Statistics] = {}
    gathered = False
    for node in model.graph:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        constants = [find_constant(value) for value in node.inputs[1:5]]
        gamma, beta, mean, variance = (c.array().astype(np.float64) if c is not None else None for c in constants)
        if gamma is None or beta is None or mean is None or variance is None:
            continue
        gathered |= bool(mean.any() or (variance != 1).any())
        share = variance / (variance + node.attributes.get_float("epsilon", 1e-5))
        outputs[node.outputs[0].name or ""] = Statistics(beta, gamma**2 * share)
    return outputs if gathered else {}


def _over_patch(mean: Float64, site: Site, use: Use) -> Float64:
    """A tap beyond the border reads zero: its mean is lower by the share of positions where it does."""
    patch = mean.reshape(site.group, -1)
    coverage = _coverage_of_outputs if site.op == "ConvTranspose" else _coverage
    for axis, extent in enumerate(site.kernel_shape[2:]):
        patch = patch[..., None] * coverage(use, axis, extent)
    return patch.reshape(site.group, -1)


def _coverage(use: Use, axis: int, extent: int) -> Float64:
    """For each tap of an axis the share of output positions at which it reads inside the input."""
    if not use.known:
        return np.ones(extent)
    starts = np.arange(use.out_extents[axis]) * use.strides[axis] - use.pads[axis]
    reads = starts[:, None] + np.arange(extent) * use.dilations[axis]
    return np.asarray(((reads >= 0) & (reads < use.in_extents[axis])).mean(axis=0))


def _coverage_of_outputs(use: Use, axis: int, extent: int) -> Float64:
    """For each tap of a transposed conv the share of output positions that it adds an input to."""
    if not use.known:
        return np.ones(extent) / use.strides[axis]
    starts = np.arange(use.in_extents[axis]) * use.strides[axis] - use.pads[axis]
    writes = starts[:, None] + np.arange(extent) * use.dilations[axis]
    inside = (writes >= 0) & (writes < use.out_extents[axis])
    return np.asarray(inside.sum(axis=0) / use.out_extents[axis])


def _statistics(value: ir.Value, known: dict[ir.Value, Statistics | None]) -> Statistics | None:
    """Walk back without recursion, since networks are deeper than Python's stack."""
    pending = [value]
    while pending:
        current = pending[-1]
        node = current.producer()
        if current in known:
            pending.pop()
            continue
        sources = _sources(node) if node is not None else []
        missing = [source for source in sources if source not in known]
        if missing:
            pending += missing
            continue
        pending.pop()
        known[current] = _apply(node, [known[source] for source in sources]) if node is not None else None
    return known[value]


def _sources(node: ir.Node) -> list[ir.Value]:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _RULES:
        return []
    inputs = node.inputs if node.op_type in ("Add", "Concat") else node.inputs[:1]
    return [] if node.op_type == "BatchNormalization" else [value for value in inputs if value is not None]


def _apply(node: ir.Node, inputs: list[Statistics | None]) -> Statistics | None:
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    known = [statistics for statistics in inputs if statistics is not None]
    return rule(node, known) if rule is not None and len(known) == len(inputs) else None


def _batch_norm(node: ir.Node, _: Sequence[Statistics]) -> Statistics | None:
    gamma, beta = find_constant(node.inputs[1]), find_constant(node.inputs[2])
    if gamma is None or beta is None:
        return None
    return Statistics(beta.array().astype(np.float64), gamma.array().astype(np.float64) ** 2)


def _activation(function: Callable[[ir.Node, Float64], Float64]) -> Callable[..., Statistics | None]:
    """Moments of a function of a normal variable, by Gauss-Hermite quadrature."""

    def rule(node: ir.Node, inputs: Sequence[Statistics]) -> Statistics | None:
        (source,) = inputs
        if source.variance is None:
            return None
        outputs = function(node, source.mean[:, None] + np.sqrt(source.variance)[:, None] * _NODES)
        mean = outputs @ _WEIGHTS
        return Statistics(mean, (outputs - mean[:, None]) ** 2 @ _WEIGHTS)

    return rule


def _clip(node: ir.Node, x: Float64) -> Float64:
    bounds = [find_scalar(value) for value in (*node.inputs[1:3], None, None)[:2]]
    low, high = (
        bound if bound is not None else node.attributes.get_float(name, default)
        for bound, name, default in zip(bounds, ("min", "max"), (-np.inf, np.inf), strict=True)
    )
    return np.clip(x, low, high)


def _add(_: ir.Node, inputs: Sequence[Statistics]) -> Statistics | None:
    first, second = inputs
    if first.mean.shape != second.mean.shape or first.variance is None or second.variance is None:
        return None
    return Statistics(first.mean + second.mean, first.variance + second.variance)


def _concat(node: ir.Node, inputs: Sequence[Statistics]) -> Statistics | None:
    variances = [source.variance for source in inputs if source.variance is not None]
    if node.attributes.get_int("axis", 1) != 1 or len(variances) < len(inputs):
        return None
    return Statistics(np.concatenate([source.mean for source in inputs]), np.concatenate(variances))


def _average(_: ir.Node, inputs: Sequence[Statistics]) -> Statistics:
    return Statistics(inputs[0].mean, None)


def _same(_: ir.Node, inputs: Sequence[Statistics]) -> Statistics:
    return inputs[0]


def _slice(node: ir.Node, inputs: Sequence[Statistics]) -> Statistics | None:
    axes = find_constant(node.inputs[3]) if len(node.inputs) > 3 else None
    return inputs[0] if axes is not None and 1 not in axes.array() else None


def _pad(node: ir.Node, inputs: Sequence[Statistics]) -> Statistics | None:
    """Channels of zeros before and after, and no other padding."""
    pads = find_constant(node.inputs[1]) if len(node.inputs) > 1 else None
    amounts = pads.array().astype(int) if pads is not None else np.zeros(0, dtype=int)
    others = np.delete(amounts, [1, 1 + amounts.size // 2]) if amounts.size == 8 else np.ones(1)
    if others.any() or inputs[0].variance is None:
        return None
    around = (int(amounts[1]), int(amounts[5]))
    return Statistics(np.pad(inputs[0].mean, around), np.pad(inputs[0].variance, around))


_RULES: Mapping[str, Callable[..., Statistics | None]] = {
    "BatchNormalization": _batch_norm,
    "Relu": _activation(lambda _, x: np.maximum(x, 0)),
    "LeakyRelu": _activation(lambda node, x: np.where(x > 0, x, node.attributes.get_float("alpha", 0.01) * x)),
    "Sigmoid": _activation(lambda _, x: 1 / (1 + np.exp(-x))),
    "HardSwish": _activation(lambda _, x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Tanh": _activation(lambda _, x: np.tanh(x)),
    "Clip": _activation(_clip),
    "Add": _add,
    "Concat": _concat,
    "AveragePool": _average,
    "GlobalAveragePool": _average,
    "ReduceMean": _average,
    "Flatten": _same,
    "Identity": _same,
    "Dropout": _same,
    "Slice": _slice,
    "Pad": _pad,
}
