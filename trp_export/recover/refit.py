"""Refit in closed form: walk the network in order and fit each pair to what the compressed network feeds it.

The original gives the output y that a layer should have, the network compressed so far the input x that it gets.
The best kernel for this is the regression of y on x; the best pair of a rank for it is that kernel, factored
under the moments of x (reduced-rank regression). Both factors and the bias so take back what earlier layers lost.
Where a layer's output is added to a shortcut, the target is the original sum less the shortcut as it now is.
Sources: Izenman, "Reduced-rank regression", 1975; He, Zhang and Sun, "Channel Pruning", 2017, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.moments import is_tapped, samples_per_image
from trp_export.calibration.output_curves import LayerFactors
from trp_export.calibration.patches import Positions, count_positions, gather_patches, sample_positions, window
from trp_export.errors import LoadError
from trp_export.graph.bias import add_to_bias, takes_bias
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.graph.weights import apply_values, find_bias
from trp_export.lowrank.branches import Pairs, calibrate_branches, sum_products
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.site import Site
from trp_export.planning.plan import Change, Plan
from trp_export.recover.batch_norm_statistics import norms_left, renormalise
from trp_export.runtime.incremental import Walk
from trp_export.system.progress import Share

Array = NDArray[Any]

# Pulls the regression towards the kernel as it was, as a share of the mean variance of the inputs.
RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class _Samples:
    """What one layer gets and should give at sampled positions: x (group, p, d), y (p, n)."""

    x: Array
    y: Array


def can_refit(model: ir.Model, place: LocatedSite, change: Change) -> bool:
    """True for a layer applied once, in the main graph, with a bias that can move."""
    return is_tapped(model, place) and len(place.nodes) == 1 and takes_bias(place)


def refit(
    model: ir.Model,
    plan: Plan,
    batches: Sequence[Array],
    fitted: LayerFactors,
    *,
    seed: int = 0,
    threads: int = 0,
    progress: Share = lambda share: None,
) -> LayerFactors:
    """Factors and shifts of all the plan's layers, fitted one after the other to `batches` of inputs.

    `fitted` says what becomes of the layers that cannot be refitted. Batch norms that are left in the graph are
    re-estimated on the way. The model stays as it is. Raises LoadError, naming the layer, where the compressed
    network's values are not finite.
    """
    copy = model.clone()
    places = {place.site.name: place for place in find_sites(model, {})}
    copies = {place.site.name: place for place in find_sites(copy, {})}
    original, compressed = Walk(model, batches, threads), Walk(copy, batches, threads)
    rng = np.random.default_rng(seed)
    images = sum(len(batch) for batch in batches)
    factors, shifts, values = dict(fitted.factors), dict(fitted.shifts), dict(fitted.values)
    norms, order = norms_left(copy), {id(node): index for index, node in enumerate(copy.graph)}

    def renormalise_before(node: ir.Node | None) -> None:
        """The batch norms that come before a node of the main graph, or all that are left."""
        end = len(order) if node is None else order.get(id(node), 0)
        while norms and order[id(norms[0])] < end:
            found = renormalise(original, compressed, norms.pop(0))
            apply_values(copy, found)
            values.update(found)

    for index, change in enumerate(plan.changed):
        progress(index / len(plan.changed))
        name, place = change.site.name, copies[change.site.name]
        renormalise_before(place.nodes[0])
        if can_refit(model, places[name], change):
            samples = _gather(original, compressed, place.nodes[0], change.site, rng, images)
            factors[name], shifts[name] = _fit(samples, place, change)
        if name in factors:
            site = change.site
            set_kernel(place, sum_products(factors[name], change.branches, site.kernel_shape, site.group))
            add_to_bias(copy, [place], {name: shifts[name]} if name in shifts else {})
    renormalise_before(None)
    return LayerFactors(factors, shifts, values)


def _gather(
    original: Walk, compressed: Walk, node: ir.Node, site: Site, rng: np.random.Generator, images: int
) -> _Samples:
    data, output = (node.inputs[0].name or "" if node.inputs[0] else ""), node.outputs[0].name or ""
    shortcut = _shortcut(node, compressed, data)
    compressed.to([data, *shortcut])
    original.to([output, *shortcut])
    seen_by = window(node, site)
    x, y = [], []
    for index, batch in enumerate(compressed.values[data]):
        wanted = samples_per_image(site, images)
        positions = sample_positions(rng, len(batch), count_positions(seen_by, batch.shape), wanted)
        x.append(gather_patches(batch, seen_by, positions))
        target = _outputs_at(original.values[output][index], positions)
        for name in shortcut:
            target += _outputs_at(original.values[name][index], positions)
            target -= _outputs_at(compressed.values[name][index], positions)
        y.append(target)
    samples = _Samples(np.concatenate(x, axis=1), np.concatenate(y))
    if not (np.isfinite(samples.x.sum()) and np.isfinite(samples.y.sum())):
        raise LoadError(f"the values around {site.name} are NaN or infinite on these images. Check the preprocessing.")
    return samples


def _shortcut(node: ir.Node, walk: Walk, data: str) -> list[str]:
    """The value that a layer's output is added to and nothing else, if the walk has it by then."""
    users = list(node.outputs[0].consumers())
    if len(users) != 1 or users[0].op_type != "Add" or users[0].domain not in ("", "ai.onnx"):
        return []
    others = [value for value in users[0].inputs if value is not None and value is not node.outputs[0]]
    if len(others) != 1 or others[0].is_initializer() or others[0].name is None:
        return []
    return [others[0].name] if walk.knows(others[0].name, by=[data]) else []


def _outputs_at(values: Array, positions: Positions) -> Array:
    """(images, n, *extents) or (images, *, n) at flat positions -> (images x count, n)."""
    rows = np.moveaxis(values, 1, -1) if values.ndim > 2 else values
    rows = rows.reshape(len(rows), -1, rows.shape[-1])
    taken = rows[np.arange(len(rows))[:, None], positions]
    return np.ascontiguousarray(taken.reshape(-1, rows.shape[-1]), dtype=np.float32)


def _fit(samples: _Samples, place: LocatedSite, change: Change) -> tuple[Pairs, Float64]:
    """Reduced-rank regression: the factors, and the shift of the bias that goes with them."""
    shape, group = change.site.kernel_shape, change.site.group
    count = samples.x.shape[1]
    x_mean, y_mean = samples.x.mean(axis=1, dtype=np.float64), samples.y.mean(axis=0, dtype=np.float64)
    outer = np.matmul(samples.x.transpose(0, 2, 1), samples.x).astype(np.float64) / count
    covariance = outer - x_mean[:, :, None] * x_mean[:, None, :]
    y = samples.y.reshape(count, group, -1).transpose(1, 2, 0)
    cross = np.matmul(y, samples.x).astype(np.float64) / count
    cross -= y_mean.reshape(group, -1, 1) * x_mean[:, None, :]
    regression = _regress(covariance, cross, place.kernel().astype(np.float64).reshape(cross.shape))
    pairs = calibrate_branches(regression.reshape(shape), change.branches, group, covariance)
    kernel = sum_products(pairs, change.branches, shape, group).reshape(cross.shape)
    bias = y_mean - np.einsum("gnd,gd->gn", kernel, x_mean).reshape(-1)
    return pairs, bias - find_bias(place.nodes[0])


def _regress(covariance: Float64, cross: Float64, kernel: Float64) -> Float64:
    """(group, n, d), with a ridge towards the kernel: what the images do not show stays as it was."""
    size = covariance.shape[1]
    ridge = RIDGE * np.trace(covariance, axis1=1, axis2=2)[:, None, None] / size
    # A layer whose inputs never change keeps its kernel.
    ridge = np.where(ridge > 0, ridge, 1.0)
    solved = np.linalg.solve(covariance + ridge * np.eye(size), (cross + ridge * kernel).transpose(0, 2, 1))
    return np.asarray(solved.transpose(0, 2, 1))
