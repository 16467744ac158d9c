"""Refit in closed form: walk the network in order and fit each layer to what the compressed network feeds it.

The original gives the output y that a layer should have, the network compressed so far the input x that it gets.
The best kernel for this is the regression of y on x; the best pair of a rank for it is that kernel, factored
under the moments of x (reduced-rank regression). So each layer and its bias take back what earlier layers lost: those
that become pairs, and on demand those that stay behind the first of them, depthwise convs included.
Where a layer's output is added to a shortcut, the target is the original sum less the shortcut as it now is.
A layer takes what comes nearest to its target on inputs that are held out: a regression, pulled towards the weights as
strongly as does best there, or the factors it had.
Sources: Izenman, "Reduced-rank regression", 1975; He, Zhang and Sun, "Channel Pruning", 2017, section 3.2.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.held_out import take_samples
from trp_export.calibration.layer_inputs import Use, has_readable_inputs
from trp_export.calibration.memory import has_room_for_moments
from trp_export.calibration.moments import by_image, draw_positions, groups_at, row_blocks, together
from trp_export.calibration.output_curves import LayerFactors
from trp_export.calibration.patches import Positions, window
from trp_export.errors import LoadError
from trp_export.graph.bias import add_to_bias, takes_bias
from trp_export.graph.rewrite import set_kernel
from trp_export.graph.sites import DEPTHWISE, LocatedSite, find_sites
from trp_export.graph.weights import apply_values, find_bias
from trp_export.inputs.samples import Batch, Groups
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.site import Site
from trp_export.planning.plan import Change, Plan
from trp_export.recover.batch_norm_statistics import norms_left, renormalise
from trp_export.recover.regression import (
    PULLS,
    Choice,
    LayerState,
    Residuals,
    Samples,
    closest_choice,
    regress,
    sum_residuals,
    with_mean_kept,
)
from trp_export.recover.stand_in import stand_in
from trp_export.runtime.incremental import Walk
from trp_export.system.progress import Share
from trp_export.system.threads import in_background

Array = NDArray[Any]

_MOST_USES = 8
# A layer that stays and reads more would take long.
_MOST_ENTRIES = 1500


def _layers(plan: Plan) -> tuple[Change, ...]:
    """The layers from the first that becomes a pair on; for those that stay, a change to nothing."""
    layers = [Change(decision.site, decision.branches) for decision in plan.decisions]
    first = next((index for index, layer in enumerate(layers) if layer.branches), len(layers))
    return tuple(layers[first:])


def can_refit(model: ir.Model, place: LocatedSite, layer: Change) -> bool:
    """True for a layer in the main graph, with a bias that can move and moments that fit into memory.

    It may be used several times, with the same bias; the network runs on to its last use once for each such layer.
    """
    in_main_graph = all(node.graph is model.graph for node in place.nodes)
    if len(place.nodes) > _MOST_USES or not in_main_graph or place.site.refusal not in (None, DEPTHWISE):
        return False
    if not takes_bias(place) or not has_readable_inputs(place) or not has_room_for_moments(layer.site):
        return False
    if not layer.branches and prod(layer.site.kernel_shape[1:]) > _MOST_ENTRIES:
        return False
    biases = [bias for node in place.nodes if (bias := find_bias(node)) is not None]
    return all(np.array_equal(biases[0], bias) for bias in biases)


def refit(
    model: ir.Model,
    plan: Plan,
    batches: Sequence[Batch],
    fitted: LayerFactors,
    *,
    others: Sequence[LayerFactors] = (),
    held_out: Sequence[Batch] = (),
    stays: bool = False,
    calibrated: Container[str] | None = None,
    owed: Mapping[str, Float64] | None = None,
    room: Sequence[int] = (),
    seed: int = 0,
    progress: Share = lambda share: None,
) -> LayerFactors:
    """Factors and shifts of all the plan's layers, fitted one after the other to `batches` of samples.

    `fitted` says what becomes of the layers that cannot be refitted. With inputs `held_out`, a layer is refitted only
    where that comes nearer to its target on them than the factors in `fitted` and in `others`, and with `stays` layers
    that stay dense are refitted, too: the result's `values` hold their weights. Of the layers that become pairs, only
    those `calibrated` are refitted if that is given. `owed` is what the answers owe to
    output channels, by site name. `room` is the number of images that fit into memory from each node of the main graph
    on; fewer are used where it is smaller. Batch norms that are left in the graph are re-estimated on the way. The
    model stays as it is. Raises LoadError, naming the layer, where the compressed network's values are not finite.
    """
    copy = model.clone()
    places = {place.site.name: place for place in find_sites(model, {})}
    copies = {place.site.name: place for place in find_sites(copy, {})}
    order = {id(node): index for index, node in enumerate(copy.graph)}
    walks = _Walks(model, copy, batches, held_out)
    rng = np.random.default_rng(seed)
    factors, shifts = dict(fitted.factors), dict(fitted.shifts)
    values: dict[str, Array] = dict(fitted.values)
    norms = norms_left(copy)

    def renormalise_before(node: ir.Node | None) -> None:
        """The batch norms that come before a node of the main graph, or all that are left."""
        end = len(order) if node is None else order.get(id(node), 0)
        while norms and order[id(norms[0])] < end:
            renewed = renormalise(walks.original, walks.compressed, norms.pop(0), walks.shown)
            apply_values(copy, renewed)
            values.update(renewed)

    layers = _layers(plan)
    for index, layer in enumerate(layers):
        progress(index / len(layers))
        name, place = layer.site.name, copies[layer.site.name]
        may = calibrated is None or not layer.branches or name in calibrated
        fits = may and can_refit(model, places[name], layer)
        if not layer.branches and not (fits and stays and held_out):
            continue
        if room and place.nodes[0].graph is copy.graph:
            walks.widen(room[order[id(place.nodes[0])]] // len(place.nodes))
        renormalise_before(place.nodes[0])
        samples = _gather(walks, place.nodes, layer.site, rng) if fits else None
        known = [fitted, *others] if held_out else []
        found = _fit(samples, walks.shown, place, layer, (owed or {}).get(name), known) if samples is not None else None
        if found is None:
            _keep(copy, place, layer, fitted)
            continue
        state, choice = found
        _set(copy, place, state, choice)
        if choice.pairs:
            factors[name] = choice.pairs
            shifts.pop(name, None)
        elif choice.kernel is not state.kernel:
            values[place.constant.root.name or ""] = place.constant.stored()
        if choice.shift.any():
            shifts[name] = choice.shift
    renormalise_before(None)
    return LayerFactors(factors, shifts, values)


def _fit(
    samples: Iterator[Iterator[Samples]],
    count: int,
    place: LocatedSite,
    layer: Change,
    owed: Float64 | None,
    known: Sequence[LayerFactors],
) -> tuple[LayerState, Choice] | None:
    """A layer as it is, and what it becomes: what does best on held-out images of its regressions and what is known.

    It is fitted to the first `count` batches of `samples`, and judged on the others. None where one of the two holds no
    rows for the layer, such as those of objects that are found.
    """
    state = LayerState(layer, place.kernel().astype(np.float64), _bias(place), owed)
    shown = sum_residuals(state, chain.from_iterable(islice(samples, count)))
    if shown is None:
        return None
    pulls = PULLS if known else PULLS[:1]
    choices = in_background(lambda: [regress(state, shown, pull) for pull in pulls])
    if known:
        choices += [choice for own in known for choice in _known(own, state, shown)]
        judged = sum_residuals(state, chain.from_iterable(samples))
        return (state, closest_choice(state, choices, judged)) if judged is not None else None
    return state, choices[0]


def _known(known: LayerFactors, state: LayerState, shown: Residuals) -> Iterator[Choice]:
    """What is known already, with a shift fitted to the samples and with the one that belongs to it."""
    if not state.layer.branches or state.layer.site.name in known.factors:
        choice = _as_known(known, state)
        yield with_mean_kept(state, choice.pairs, shown)
        yield choice


def _as_known(known: LayerFactors, state: LayerState) -> Choice:
    """The known factors with their shift; a layer without any stays as it is."""
    name = state.layer.site.name
    pairs = known.factors.get(name, ())
    return Choice(pairs, state.product(pairs), known.shifts.get(name, np.zeros(len(state.kernel))))


def _keep(model: ir.Model, place: LocatedSite, layer: Change, known: LayerFactors) -> None:
    """Give a layer its known factors and shift."""
    name = layer.site.name
    if (shift := known.shifts.get(name)) is not None:
        add_to_bias(model, [place], {name: shift})
    if pairs := known.factors.get(name, ()):
        stand_in(model, layer, place, pairs)


def _set(model: ir.Model, place: LocatedSite, state: LayerState, choice: Choice) -> None:
    """Give a layer the kernel and the bias of a choice."""
    if choice.kernel is not state.kernel:
        set_kernel(place, choice.kernel)
    if choice.shift.any():
        add_to_bias(model, [place], {place.site.name: choice.shift})


def _bias(place: LocatedSite) -> Float64:
    """The number that a layer adds to each channel, zero where it is not constant: (n,)."""
    bias = find_bias(place.nodes[0])
    return np.zeros(place.site.kernel_shape[0]) + (0.0 if bias is None else bias)


class _Walks:
    """Both networks walked side by side with the same images: first those to fit to, then those held out."""

    def __init__(
        self,
        model: ir.Model,
        copy: ir.Model,
        batches: Sequence[Batch],
        held_out: Sequence[Batch],
    ) -> None:
        self._models = model, copy
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
        self.groups = [batch.groups for part in parts for batch in part]
        self.sizes = [len(batch) for part in parts for batch in part]
        self.shown, self.images = len(parts[0]), sum(len(batch) for batch in parts[0])
        self.original, self.compressed = (Walk(model, inputs) for model in self._models)


@dataclass(frozen=True, slots=True, eq=False)
class _Aim:
    """The output of the original in a batch, and the shortcuts that are added to it: as they were and as they are."""

    output: Array
    shortcuts: Sequence[tuple[Array, Array]]

    def at(self, images: slice, positions: Positions) -> Array:
        """What the layer itself should give: (1, images, count, n)."""
        target = _outputs_at(self.output[images], positions)
        for before, now in self.shortcuts:
            # A sum repeats what has fewer axes or extents of 1, such as a number for each channel.
            target += _outputs_at(np.broadcast_to(before, self.output.shape)[images], positions)
            target -= _outputs_at(np.broadcast_to(now, self.output.shape)[images], positions)
        return target.reshape(1, *positions.shape, -1)


def _aim(output: Array, shortcuts: Sequence[tuple[Array, Array]]) -> _Aim:
    """Without shortcuts that make the sum larger than the layer's output."""
    return _Aim(output, [pair for pair in shortcuts if all(_fits(part.shape, output.shape) for part in pair)])


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, whole) == whole
    except ValueError:
        return False


def _gather(
    walks: _Walks, nodes: Sequence[ir.Node], site: Site, rng: np.random.Generator
) -> Iterator[Iterator[Samples]] | None:
    """What all uses of a layer read and should give, for each batch some images at a time.

    None where the two networks do not have the same rows there: their values may decide how many there are. The walks
    stop at the first use.
    """
    original, compressed = walks.original, walks.compressed
    data, output = _input(nodes[0]), _output(nodes[0])
    shortcuts = [_shortcut(node, compressed) for node in nodes]
    compressed.to([data, *shortcuts[0]])
    original.to([output, *shortcuts[0]])
    of_original = [*map(_output, nodes), *(name for names in shortcuts for name in names)]
    of_compressed = [*map(_input, nodes), *(name for names in shortcuts for name in names)]
    wanted, got = _look_ahead(original, of_original), _look_ahead(compressed, of_compressed)
    read = [[Use(part, window(node, site)) for part in got[_input(node)]] for node in nodes]
    made = [part for node in nodes for part in wanted[_output(node)]]
    if not all(_makes(use, site, part) for use, part in zip(chain.from_iterable(read), made, strict=True)):
        return None

    def samples_of(index: int) -> Iterator[Samples]:
        uses, batch = [parts[index] for parts in read], walks.sizes[index]
        drawn = draw_positions(uses, site, batch, walks.images, rng)
        aims = [
            _aim(wanted[_output(node)][index], [(wanted[name][index], got[name][index]) for name in names])
            for node, names in zip(nodes, shortcuts, strict=True)
        ]
        return _some_at_a_time(uses, aims, drawn, site, batch, walks.groups[index])

    return map(samples_of, range(len(got[data])))


def _makes(use: Use, site: Site, output: Array) -> bool:
    """Whether a layer that reads this makes as many outputs as these."""
    return len(output) == use.images and output.size == use.images * use.positions * site.kernel_shape[0]


def _some_at_a_time(
    uses: Sequence[Use],
    aims: Sequence[_Aim],
    drawn: Sequence[Positions],
    site: Site,
    batch: int,
    groups: Groups | None,
) -> Iterator[Samples]:
    """Uses whose number of images differs from that of the first are left out."""
    for rows in row_blocks(uses, site, drawn, batch):
        places = [positions[rows] for positions in drawn]
        read = [use.of_images(rows).patches(at) for use, at in zip(uses, places, strict=True)]
        x = together([by_image(part, use, batch) for part, use in zip(read, uses, strict=True)], axis=2)[0]
        made = [aim.at(rows, positions) for aim, positions in zip(aims, places, strict=True)]
        targets = [by_image(part, use, batch) for part, use in zip(made, uses, strict=True)]
        y = together(targets, axis=2)[0].reshape(-1, targets[0].shape[-1])
        if not (np.isfinite(x.sum()) and np.isfinite(y.sum())):
            raise LoadError(
                f"the values around {site.name} are NaN or infinite on these images. Check the preprocessing."
            )
        yield x, y, groups_at(groups, uses[0], rows, x.shape[1])


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
