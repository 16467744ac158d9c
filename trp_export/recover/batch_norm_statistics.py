"""Adapt the statistics of batch norms that could not be folded to what the compressed network feeds them.

The new mean and variance give each channel of the output the mean and the variance that it has in the original network
on the same images. Where the stored statistics are those of these images, this is the same as to estimate them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.graph.exact.affine import affine_terms
from trp_export.graph.weights import find_constant, find_readers
from trp_export.lowrank.factor import Float64
from trp_export.runtime.incremental import Walk

Array = NDArray[Any]

# Places among the inputs of a batch norm.
_MEAN, _VARIANCE = 3, 4
# Where a channel varies less than this share of its mean square, the ratio of variances is unknown.
_STILL = 1e-8
# Other images may move a channel that these do not: its gain stays within bounds.
_LEAST, _MOST = 0.01, 100.0


def norms_left(model: ir.Model) -> list[ir.Node]:
    """The batch norms of the main graph, in its order, whose statistics no other node reads."""
    norms = [node for node in model.graph if node.op_type == "BatchNormalization" and not node.domain]
    return [norm for norm in norms if affine_terms(norm) is not None and _owns_statistics(norm)]


def renormalise(original: Walk, compressed: Walk, norm: ir.Node, batches: int | None = None) -> dict[str, Array]:
    """The new mean and variance of a batch norm, by the names of the initializers, from the first `batches` or all."""
    name = norm.inputs[0].name or "" if norm.inputs[0] is not None else ""
    original.to([name])
    compressed.to([name])
    (was_mean, was_variance), (mean, variance) = (
        _moments(walk.values[name][:batches]) for walk in (original, compressed)
    )
    tells = was_variance > _STILL * (was_variance + was_mean**2)
    ratio = np.clip(np.where(tells, variance / np.where(tells, was_variance, 1.0), 1.0), _LEAST, _MOST)
    return {
        **_renewed(norm, _MEAN, lambda stored: mean - (was_mean - stored) * np.sqrt(ratio)),
        **_renewed(norm, _VARIANCE, lambda stored: stored * ratio),
    }


def _owns_statistics(norm: ir.Node) -> bool:
    constants = [find_constant(norm.inputs[index]) for index in (_MEAN, _VARIANCE)]
    return all(one is not None and len(find_readers(one.root)) == 1 for one in constants)


def _renewed(norm: ir.Node, index: int, change: Callable[[Float64], Float64]) -> dict[str, Array]:
    constant = find_constant(norm.inputs[index])
    assert constant is not None
    return {constant.root.name or "": change(constant.array().astype(np.float64))}


def _moments(batches: Sequence[Array]) -> tuple[Float64, Float64]:
    """Mean and variance per channel over all batches (n, c, *)."""
    axes = tuple(axis for axis in range(batches[0].ndim) if axis != 1)
    weights = np.array([len(batch) for batch in batches], dtype=np.float64) / sum(len(batch) for batch in batches)
    mean = weights @ np.stack([batch.mean(axis=axes, dtype=np.float64) for batch in batches])
    square = weights @ np.stack([np.square(batch, dtype=np.float64).mean(axis=axes) for batch in batches])
    return mean, np.maximum(square - mean**2, 0.0)
