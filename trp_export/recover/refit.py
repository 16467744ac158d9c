"""Refit in closed form: walk the network in order and fit each pair to what the compressed network feeds it.

The original gives the output y that a layer should have, the network compressed so far the input x that it gets.
The best kernel for this is the regression of y on x; the best pair of a rank for it is that kernel, factored
under the moments of x (reduced-rank regression). Both factors and the bias so take back what earlier layers lost.
Where a layer's output is added to a shortcut, the target is the original sum less the shortcut as it now is.
A layer takes what comes nearest to its target on inputs that are held out: the regression, or the factors it had.
Sources: Izenman, "Reduced-rank regression", 1975; He, Zhang and Sun, "Channel Pruning", 2017, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.held_out import take_samples
from trp_export.calibration.layer_inputs import Use
from trp_export.calibration.memory import has_room_for_moments
from trp_export.calibration.moments import MomentSums, draw_positions, is_tapped, together
from trp_export.calibration.output_curves import LayerFactors
from trp_export.calibration.patches import Positions, window
from trp_export.errors import LoadError
from trp_export.graph.bias import add_to_bias, takes_bias
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.graph.weights import apply_values, find_bias
from trp_export.inputs.samples import Batch
from trp_export.lowrank.branches import Pairs, calibrate_branches, sum_products
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.metric import ErrorMetric, channel_roots, weigh
from trp_export.lowrank.site import Site
from trp_export.planning.plan import Change, Plan
from trp_export.recover.batch_norm_statistics import norms_left, renormalise
from trp_export.runtime.incremental import Walk
from trp_export.system.progress import Share

Array = NDArray[Any]

# Pulls the regression towards the kernel as it was, as a share of the mean variance of the inputs.
RIDGE = 1e-3
_MOST_USES = 8


@dataclass(frozen=True, slots=True)
class _Samples:
    """What one layer reads and should give at sampled positions, batch by batch.

    `x` (group, images, positions, d) and `y` (images * positions, n).
    """

    x: Sequence[Array]
    y: Sequence[Array]


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """What a layer may become: its factors, their kernel (n, c/group, *k), and the shift of its bias."""

    pairs: Pairs
    kernel: Float64
    shift: Float64


def can_refit(model: ir.Model, place: LocatedSite, change: Change) -> bool:
    """True for a layer in the main graph, with a bias that can move and moments that fit into memory.

    It may be used several times, with the same bias; the network runs on to its last use once for each such layer.
    """
    if len(place.nodes) > _MOST_USES or not takes_bias(place) or not is_tapped(model, place):
        return False
    biases = [bias for node in place.nodes if (bias := find_bias(node)) is not None]
    return has_room_for_moments(change.site) and all(np.array_equal(biases[0], bias) for bias in biases)


def refit(
    model: ir.Model,
    plan: Plan,
    batches: Sequence[Batch],
    fitted: LayerFactors,
    *,
    others: Sequence[LayerFactors] = (),
    held_out: Sequence[Batch] = (),
    owed: Mapping[str, Float64] | None = None,
    room: Sequence[int] = (),
    seed: int = 0,
    threads: int = 0,
    progress: Share = lambda share: None,
) -> LayerFactors:
    """Factors and shifts of all the plan's layers, fitted one after the other to `batches` of samples.

    `fitted` says what becomes of the layers that cannot be refitted. With inputs `held_out`, a layer is refitted only
    where that comes nearer to its target on them than the factors in `fitted` and in `others`. `owed` is what the
    answers owe to output channels, by site name. `room` is the number of images that fit into memory from each node of
    the main graph on; fewer are used where it is smaller. Batch norms that are left in the graph are re-estimated on
    the way. The model stays as it is. Raises LoadError, naming the layer, where the compressed network's values are
    not finite.
    """
    copy = model.clone()
    places = {place.site.name: place for place in find_sites(model, {})}
    copies = {place.site.name: place for place in find_sites(copy, {})}
    order = {id(node): index for index, node in enumerate(copy.graph)}
    walks = _Walks(model, copy, batches, held_out, threads)
    rng = np.random.default_rng(seed)
    factors, shifts, values = dict(fitted.factors), dict(fitted.shifts), dict(fitted.values)
    norms = norms_left(copy)

    def renormalise_before(node: ir.Node | None) -> None:
        """The batch norms that come before a node of the main graph, or all that are left."""
        end = len(order) if node is None else order.get(id(node), 0)
        while norms and order[id(norms[0])] < end:
            renewed = renormalise(walks.original, walks.compressed, norms.pop(0), walks.shown)
            apply_values(copy, renewed)
            values.update(renewed)

    for index, change in enumerate(plan.changed):
        progress(index / len(plan.changed))
        name, place = change.site.name, copies[change.site.name]
        if room and place.nodes[0].graph is copy.graph:
            walks.widen(room[order[id(place.nodes[0])]] // len(place.nodes))
        renormalise_before(place.nodes[0])
        if can_refit(model, places[name], change):
            samples = _gather(walks, place.nodes, change.site, rng)
            shown = _Samples(samples.x[: walks.shown], samples.y[: walks.shown])
            channels = (owed or {}).get(name)
            choices = [_regress(shown, place, change, channels)]
            if held_out:
                judged = _Samples(samples.x[walks.shown :], samples.y[walks.shown :])
                choices += [own for known in (fitted, *others) for own in _choices(known, shown, place, change)]
                scores = [_error(choice, judged, place, channels) for choice in choices]
                choices = [choices[int(np.argmin(scores))]]
            factors[name], shifts[name] = choices[0].pairs, choices[0].shift
        if name in factors:
            site = change.site
            set_kernel(place, sum_products(factors[name], change.branches, site.kernel_shape, site.group))
            add_to_bias(copy, [place], {name: shifts[name]} if name in shifts else {})
    renormalise_before(None)
    return LayerFactors(factors, shifts, values)


class _Walks:
    """Both networks walked side by side with the same images: first those to fit to, then those held out."""

    def __init__(
        self,
        model: ir.Model,
        copy: ir.Model,
        batches: Sequence[Batch],
        held_out: Sequence[Batch],
        threads: int,
    ) -> None:
        self._models, self._threads = (model, copy), threads
        self._batches, self._held_out = batches, held_out
        self._total = sum(len(batch) for batch in (*batches, *held_out))
        self._count = 0
        self.widen(self._total)

    def widen(self, room: int) -> None:
        """Begin anew with as many images as there is room for, if these are fewer or at least twice as many."""
        count = min(room, self._total)
        if self._count <= count < 2 * self._count:
            return
        self._count = count
        share = count / self._total
        parts = [
            take_samples(part, max(1, round(share * sum(len(batch) for batch in part)))) if part else []
            for part in (self._batches, self._held_out)
        ]
        inputs = [batch.arrays for part in parts for batch in part]
        self.shown, self.images = len(parts[0]), sum(len(batch) for batch in parts[0])
        self.original, self.compressed = (Walk(model, inputs, self._threads) for model in self._models)


def _gather(walks: _Walks, nodes: Sequence[ir.Node], site: Site, rng: np.random.Generator) -> _Samples:
    """The samples of all uses of a layer together; the walks stop at the first."""
    original, compressed = walks.original, walks.compressed
    data, output = _input(nodes[0]), _output(nodes[0])
    shortcuts = [_shortcut(node, compressed) for node in nodes]
    compressed.to([data, *shortcuts[0]])
    original.to([output, *shortcuts[0]])
    of_original = [*map(_output, nodes), *(name for names in shortcuts for name in names)]
    of_compressed = [*map(_input, nodes), *(name for names in shortcuts for name in names)]
    wanted, got = _look_ahead(original, of_original), _look_ahead(compressed, of_compressed)
    x, y = [], []
    for index in range(len(got[data])):
        uses = [Use(got[_input(node)][index], window(node, site)) for node in nodes]
        images = uses[0].images
        drawn = draw_positions(uses, site, images, walks.images, rng)
        targets = []
        for node, positions, names in zip(nodes, drawn, shortcuts, strict=True):
            target = _outputs_at(wanted[_output(node)][index], positions)
            for name in names:
                target += _outputs_at(wanted[name][index], positions)
                target -= _outputs_at(got[name][index], positions)
            targets.append(target.reshape(1, *positions.shape, -1))
        # Uses whose number of images differs from that of the first are left out.
        x.append(together([use.patches(at) for use, at in zip(uses, drawn, strict=True)], axis=2)[0])
        y.append(together(targets, axis=2)[0].reshape(-1, targets[0].shape[-1]))
    if not all(np.isfinite(part.sum()) for part in (*x, *y)):
        raise LoadError(f"the values around {site.name} are NaN or infinite on these images. Check the preprocessing.")
    return _Samples(x, y)


def _look_ahead(walk: Walk, names: Sequence[str]) -> Mapping[str, Sequence[Array]]:
    """Values at hand and further on; the walk stays where it is."""
    further = [name for name in dict.fromkeys(names) if name not in walk.values]
    return {**walk.values, **(walk.run(further) if further else {})}


def _input(node: ir.Node) -> str:
    return (node.inputs[0].name if node.inputs[0] is not None else None) or ""


def _output(node: ir.Node) -> str:
    return node.outputs[0].name or ""


def _shortcut(node: ir.Node, walk: Walk) -> list[str]:
    """The value that a layer's output is added to and nothing else, if the walk has it by then."""
    users = list(node.outputs[0].consumers())
    if len(users) != 1 or users[0].op_type != "Add" or users[0].domain not in ("", "ai.onnx"):
        return []
    others = [value for value in users[0].inputs if value is not None and value is not node.outputs[0]]
    if len(others) != 1 or others[0].is_initializer() or others[0].name is None:
        return []
    return [others[0].name] if walk.knows(others[0].name, by=[_input(node)]) else []


def _outputs_at(values: Array, positions: Positions) -> Array:
    """(images, n, *extents) or (images, *, n) at flat positions -> (images x count, n)."""
    rows = np.moveaxis(values, 1, -1) if values.ndim > 2 else values
    rows = rows.reshape(len(rows), -1, rows.shape[-1])
    taken = rows[np.arange(len(rows))[:, None], positions]
    return np.ascontiguousarray(taken.reshape(-1, rows.shape[-1]), dtype=np.float32)


def _regress(samples: _Samples, place: LocatedSite, change: Change, owed: Float64 | None) -> _Choice:
    """Reduced-rank regression: the factors, and the shift of the bias that goes with them.

    What the images do not show stays as it was: the ridge pulls towards the kernel, as strongly as the covariance is
    shrunk towards the identity.
    """
    group, kernel = change.site.group, place.kernel().astype(np.float64)
    sums = MomentSums(samples.x[0].mean(axis=(1, 2), dtype=np.float64))
    count = sum(len(part) for part in samples.y)
    y_mean = sum(part.sum(axis=0, dtype=np.float64) for part in samples.y) / count
    cross = np.zeros(kernel.reshape(group, len(kernel) // group, -1).shape)
    for x, y in zip(samples.x, samples.y, strict=True):
        sums.add(x)
        apart = (y - y_mean).reshape(len(y), group, -1).transpose(1, 2, 0)
        cross += apart @ (x.reshape(group, len(y), -1) - sums.reference[:, None, :])
    moments = sums.moments()
    cross /= count
    share = np.maximum(moments.shrinkage, RIDGE)[:, None, None]
    size = cross.shape[2]
    covariance = moments.covariance
    spread = np.trace(covariance, axis1=1, axis2=2)[:, None, None] / size
    # A layer whose inputs never change keeps its kernel.
    ridge = np.where(spread > 0, share * spread, 1.0)
    shrunk = (1 - share) * covariance + ridge * np.eye(size)
    pulled = (1 - share) * cross + ridge * kernel.reshape(cross.shape)
    regression = np.linalg.solve(shrunk, pulled.transpose(0, 2, 1)).transpose(0, 2, 1)
    pairs = calibrate_branches(regression.reshape(kernel.shape), change.branches, group, ErrorMetric(shrunk, owed))
    return _choose(pairs, moments.mean, y_mean, place, change)


def _choices(known: LayerFactors, samples: _Samples, place: LocatedSite, change: Change) -> Iterator[_Choice]:
    """Factors that are known already, with the shift that belongs to them and with one fitted to the samples."""
    name = change.site.name
    if name not in known.factors:
        return
    count = sum(len(part) for part in samples.y)
    x_mean = sum(part.sum(axis=(1, 2), dtype=np.float64) for part in samples.x) / count
    y_mean = sum(part.sum(axis=0, dtype=np.float64) for part in samples.y) / count
    choice = _choose(known.factors[name], x_mean, y_mean, place, change)
    yield choice
    yield replace(choice, shift=known.shifts.get(name, np.zeros(len(choice.kernel))))


def _choose(pairs: Pairs, x_mean: Float64, y_mean: Float64, place: LocatedSite, change: Change) -> _Choice:
    """With the shift of the bias that gives the mean output."""
    site = change.site
    kernel = sum_products(pairs, change.branches, site.kernel_shape, site.group)
    flat = kernel.reshape(site.group, len(kernel) // site.group, -1)
    bias = y_mean - np.einsum("gnd,gd->gn", flat, x_mean).reshape(-1)
    return _Choice(pairs, kernel, bias - find_bias(place.nodes[0]))


def _error(choice: _Choice, samples: _Samples, place: LocatedSite, owed: Float64 | None) -> float:
    """Sum of squared errors over all samples and channels, each as much as the answers owe to it."""
    roots = channel_roots(owed)
    own = find_bias(place.nodes[0])
    assert own is not None  # Only layers with a bias that can move are refitted.
    bias = own + choice.shift
    total = 0.0
    for x, y in zip(samples.x, samples.y, strict=True):
        flat = x.reshape(len(x), len(y), -1)
        kernel = choice.kernel.reshape(len(x), -1, flat.shape[2]).astype(np.float32)
        made = (flat @ kernel.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(y.shape)
        total += float(np.square(weigh((made + bias - y).T, roots)).sum())
    return total
