"""A model in normal form, with its layers and what each could become."""

from __future__ import annotations

import difflib
import fnmatch
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from trp_export.channels.thin import ChannelChoice, Thinned, thin
from trp_export.errors import OptionError, UnsupportedError
from trp_export.graph.bounds import require_bounded
from trp_export.graph.cost import count_macs, count_params, name_uncounted
from trp_export.graph.exact import fold_all, in_words, write_operators
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.graph.prepare import LEAST_IR_VERSION, listed_weights, prepare
from trp_export.graph.shapes import Runs, Shape, infer_shapes, infer_value_shapes, node_key
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.graph.statistics import Statistics, mean_inputs, norm_outputs
from trp_export.inputs.description import NetworkInputs, describe_inputs
from trp_export.inputs.spec import Array
from trp_export.load import Source
from trp_export.lowrank.factor import Float64
from trp_export.options import Selection
from trp_export.planning.channels import ChannelDecision
from trp_export.planning.curves import Curve, Layer, make_curve, schemes_for
from trp_export.planning.rules import require_fits
from trp_export.planning.saved_plan import Choice
from trp_export.runtime.data_dependent import data_dependent
from trp_export.runtime.measured_shapes import measure_shapes, measure_value_shapes
from trp_export.runtime.sessions import CannotRunError
from trp_export.system.progress import Progress
from trp_export.system.text import name_some
from trp_export.system.threads import map_layers

# Tried in turn where a model with open sizes does not run at the usual one.
_OTHER_EXTENTS = (256, 64, 32)


@dataclass(frozen=True, slots=True)
class Network:
    """A prepared model, its file, its layers and its cost.

    `original` is the file that results are compared with: the user's own, or the export of their module as it is.
    `params` are those of the normal form, `original_params` those before batch norm was folded. `shapes` are those
    that nodes work on when the model runs; `macs` is None where these are unknown.
    `means` are the mean inputs of layers, by site name, as far as batch norm tells them; `statistics` those of the
    values that batch norm made, by value name, where it was folded. `channels` are the decisions on channel groups;
    where channels were removed, all else describes the network without them, and `thinned` the removal. `wide` is the
    network before channels were removed that it needs, None where just those went that it does not.
    `rewrites` are those without loss that the device runs faster, to be made last of all. `described` are its inputs
    with all sizes known. The model in memory is changed in place by the rewriter; the file
    stays as it is.
    """

    source: Source
    model: ir.Model
    notes: tuple[str, ...]
    file: Path
    original: Path
    original_bytes: int
    original_params: int
    described: NetworkInputs
    shapes: Runs
    located: tuple[LocatedSite, ...]
    macs: int | None
    params: int
    means: Mapping[str, Float64]
    statistics: Mapping[str, Statistics]
    channels: tuple[ChannelDecision, ...] = ()
    thinned: Thinned | None = None
    wide: Network | None = None
    rewrites: tuple[str, ...] = ()

    @property
    def original_macs(self) -> int | None:
        """Multiply-adds before channels were removed."""
        return self.macs if self.thinned is None else self.thinned.macs

    @property
    def fewer_macs(self) -> float:
        """How many times fewer multiply-adds the removal of channels alone left."""
        return self.original_macs / self.macs if self.original_macs and self.macs else 1.0

    @property
    def fewer_params(self) -> float:
        """How many times fewer parameters the removal of channels alone left."""
        return self.thinned.params / self.thinned.params_left if self.thinned is not None else 1.0

    @property
    def inputs(self) -> dict[str, Shape]:
        """The shape of each input by name."""
        return self.described.shapes

    @property
    def not_run(self) -> frozenset[str]:
        """The layers known not to run on the inputs at hand, as in a branch that is not taken."""
        return frozenset(
            place.site.name
            for place in self.located
            if all(self.shapes.get(node_key(node)) == () for node in place.nodes)
        )

    @property
    def budget_macs(self) -> int:
        """What a budget of multiply-adds counts: `macs`, or where they are unknown those per output pixel."""
        return sum(place.site.macs for place in self.located) if self.macs is None else self.macs


def normal_form(source: Source) -> Source:
    """The source with its model in normal form, in which layers and inputs are read. Raises LoadError."""
    if source.normal:
        return source
    listed = listed_weights(source.model) if source.model.ir_version >= LEAST_IR_VERSION else ()
    model = prepare(source.model)
    return replace(source, model=model, notes=(*source.notes, *_unlisted(listed)), normal=True)


def analyse(
    source: Source,
    folder: Path,
    inputs: NetworkInputs | None = None,
    *,
    data: Mapping[str, Array] = MappingProxyType({}),
    fold: bool = False,
    channels: ChannelChoice | None = None,
) -> Network:
    """Find the layers of a model and what they cost.

    `inputs` describe what the network is fed; sizes that they leave open are those of the `data`, one sample by
    input name, or else usual ones. `channels` says which channels are removed before anything else. `fold` folds batch
    norm and constants into layers first: what images say is about outputs as the next layer sees them. The model goes
    to `folder` and is read back lazily, so that weights are in memory only while used.
    """
    source = normal_form(source)
    prepared = source.model
    inputs = inputs or describe_inputs(prepared, source.inputs)
    original, file = source.path or folder / "original.onnx", folder / "dense.onnx"
    usual = inputs.completed(data)
    require_bounded(prepared, infer_value_shapes(prepared, usual.shapes))
    original_params = count_params(prepared)
    decisions, thinned, notes = _thin(prepared, folder, usual, channels)
    if thinned is not None:
        original = source.path or thinned.wide
    means = mean_inputs(find_sites(prepared, infer_shapes(prepared, usual.shapes)))
    statistics: Mapping[str, Statistics] = {}
    if source.path is None and thinned is None:
        save_model(prepared, original, apart=True)
    if fold:
        statistics = norm_outputs(prepared)
    rewritten = fold_all(prepared) if fold else write_operators(prepared)
    # A later fold gives a value another name, as that of a Mul behind batch norm does.
    made = {value.name for node in prepared.graph for value in node.outputs}
    statistics = {name: own for name, own in statistics.items() if name in made}
    save_model(prepared, file, apart=True)
    model = ir.load(file)
    _read_from_disk(prepared, model)
    completed, shapes = _run_or_infer(model, file, inputs, data)
    return Network(
        source=replace(source, model=model),
        model=model,
        notes=(*source.notes, *completed.notes, *notes, *in_words(rewritten), *_uncounted(model, shapes, completed)),
        file=file,
        original=original,
        original_bytes=source.bytes or size_bytes(original),
        original_params=original_params,
        described=completed,
        shapes=shapes,
        located=find_sites(model, shapes),
        macs=count_macs(model, shapes),
        params=count_params(model),
        means=means,
        statistics=statistics,
        channels=decisions,
        thinned=thinned,
    )


def _thin(
    model: ir.Model, folder: Path, inputs: NetworkInputs, choice: ChannelChoice | None
) -> tuple[tuple[ChannelDecision, ...], Thinned | None, tuple[str, ...]]:
    """Remove channels that may go, with the decision on every group, and notes."""
    if choice is None or choice.saved == ():
        return (), None, ()
    decisions, thinned, notes = thin(model, _value_shapes(model, folder, inputs), choice, folder)
    if thinned is None:
        return decisions, None, notes
    wide = ir.load(thinned.wide)
    macs = count_macs(wide, _run_or_infer(wide, thinned.wide, inputs, {})[1])
    return decisions, replace(thinned, macs=macs), notes


def _value_shapes(model: ir.Model, folder: Path, inputs: NetworkInputs) -> Mapping[str, Shape]:
    """The shapes of values by name: inferred, or where that leaves some open, from a run if the model runs."""
    inferred = infer_value_shapes(model, inputs.shapes)
    shapes = [inferred.get(value.name or "") for node in model.graph for value in node.outputs if value.name]
    if all(shape is not None and None not in shape for shape in shapes):
        return inferred
    file = folder / "shapes.onnx"
    save_model(model, file, apart=True)
    try:
        return {**inferred, **measure_value_shapes(file, inputs.shapes, inputs.typical())}
    except (CannotRunError, UnsupportedError):
        return inferred


def _read_from_disk(model: ir.Model, saved: ir.Model) -> None:
    """Give a model the weights of its copy on disk, so that those in memory can go."""
    for name, value in model.graph.initializers.items():
        value.const_value = saved.graph.initializers[name].const_value
    gc.collect()  # Graphs are full of cycles, which hold on to weights.


def measure_layers(
    network: Network, selection: Selection, saved: Sequence[Choice], progress: Progress
) -> tuple[Layer, ...]:
    """Each layer with its curves under the schemes to be tried, or under the one that a saved plan names.

    Layers left out by name carry a refusal. Raises OptionError for a pattern that matches no layer.
    """
    require_matches(network.located, selection)
    by_name = {choice.name: choice for choice in saved}

    def measure(place: LocatedSite) -> Layer:
        site = replace(place.site, refusal=place.site.refusal or left_out(place.site.name, selection))
        curves = () if site.refusal else _curves(place, selection, by_name.get(site.name))
        if place.weight is not None:
            place.release()
        return Layer(site, curves)

    return tuple(map_layers(measure, network.located, partial(progress, "singular values")))


def _curves(place: LocatedSite, selection: Selection, choice: Choice | None) -> tuple[Curve, ...]:
    site, kernel = place.site, place.kernel()
    if choice is None:
        return tuple(make_curve(site, scheme, kernel) for scheme in schemes_for(site, selection.scheme))
    if not choice.branches:
        return ()
    require_fits(site, choice.branches)
    *after, last = choice.branches
    return (make_curve(site, last.scheme, kernel, tuple(after), fitted_at=last.rank),)


def measured_macs(model: ir.Model, inputs: NetworkInputs, file: Path, original: Runs) -> int | None:
    """Multiply-adds of a model on the inputs of the original, whose runs are given; the model is saved to `file`."""
    save_model(model, file, apart=True)
    try:
        runs = measure_shapes(file, inputs.shapes, inputs.typical())
    except (CannotRunError, UnsupportedError):
        runs = infer_shapes(model, inputs.shapes)
    return count_macs(model, _as_often(model, runs, original))


def _as_often(model: ir.Model, runs: Runs, original: Runs) -> Runs:
    """The runs with every body that ran in both models run as often as in the original.

    How often a loop runs may depend on the network's answers, which are not quite the same.
    """
    times: dict[ir.Graph | ir.Function | None, int] = {}
    nodes = [node for node in model.graph.all_nodes() if node.graph is not model.graph and runs.get(node_key(node))]
    for node in nodes:
        if original.get(node_key(node)):
            times[node.graph] = len(original[node_key(node)])
    bodies = [node for node in nodes if node.graph in times]
    return {
        **runs,
        **{node_key(node): tuple(islice(cycle(runs[node_key(node)]), times[node.graph])) for node in bodies},
    }


def _run_or_infer(
    model: ir.Model, file: Path, inputs: NetworkInputs, data: Mapping[str, Array]
) -> tuple[NetworkInputs, Runs]:
    """The inputs with all sizes and the runs of the nodes; of the usual sizes for open ones the first that runs."""
    usual = inputs.completed(data)
    candidates = [usual, *(inputs.completed(data, extent) for extent in _OTHER_EXTENTS)]
    for completed in candidates[:1] if candidates[0].shapes == candidates[1].shapes else candidates:
        try:
            return completed, measure_shapes(file, completed.shapes, completed.typical())
        except (CannotRunError, UnsupportedError):
            continue
    return usual, infer_shapes(model, usual.shapes)


def _unlisted(listed: Sequence[str]) -> tuple[str, ...]:
    if not listed:
        return ()
    what = f"weight {listed[0]}, which the file lists as an input,"
    if len(listed) > 1:
        what = f"the {len(listed)} weights that the file lists as inputs, {listed[0]} first,"
    return (f"{what} cannot be fed any longer",)


def _uncounted(model: ir.Model, shapes: Runs, inputs: NetworkInputs) -> tuple[str, ...]:
    uncounted = name_uncounted(model)
    notes = [f"MACs do not include {uncounted}"] if uncounted else []
    if count_macs(model, shapes) is None:
        notes.append(
            "MACs are unknown: onnxruntime cannot run this model, and its shapes cannot be inferred. Budgets count the "
            "multiply-adds of each layer for one output pixel"
        )
    elif decided := data_dependent(model):
        notes.append(f"what {name_some(decided)} runs depends on the data: MACs are those on {inputs.source}")
    return tuple(notes)


def require_matches(located: Sequence[LocatedSite], selection: Selection) -> None:
    """Raises OptionError, with near names, for a pattern that matches no layer: it would protect nothing."""
    names = [place.site.name for place in located]
    for option, patterns in (("--only", selection.only), ("--skip", selection.skip)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                near = ", ".join(difflib.get_close_matches(pattern, names, 3, 0.3) or names[:3])
                raise OptionError(
                    f"{option} {pattern!r} matches no layer; there are {near} and others (--dry-run lists all)."
                )


def left_out(name: str, selection: Selection) -> str | None:
    if selection.only and not any(fnmatch.fnmatchcase(name, pattern) for pattern in selection.only):
        return "not among --only"
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in selection.skip):
        return "left out by --skip"
    return None
