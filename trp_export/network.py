"""A model in normal form, with its layers and what each could become."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import onnx_ir as ir

from trp_export.errors import OptionError, UnsupportedError
from trp_export.graph.batch_norm import fold_batch_norm
from trp_export.graph.cost import count_macs, count_params
from trp_export.graph.model_files import save_model, size_bytes
from trp_export.graph.prepare import prepare, remove_unused
from trp_export.graph.shapes import OPEN_EXTENT, Shape, Shapes, infer_shapes, input_shapes, open_extents
from trp_export.graph.sites import LocatedSite, find_sites
from trp_export.graph.statistics import Statistics, mean_inputs, norm_outputs
from trp_export.load import Source
from trp_export.lowrank.factor import Float64
from trp_export.options import Selection
from trp_export.planning.curves import Curve, Layer, make_curve, schemes_for
from trp_export.planning.plan import Choice
from trp_export.planning.rules import require_fits
from trp_export.system.progress import Progress
from trp_export.system.threads import map_layers

# An untrusted file must not make onnxruntime allocate without bounds.
_MOST_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class Network:
    """A prepared model, its file, its layers and its cost.

    `original` is the file that results are compared with: the user's own, or the export of their module as it is.
    `params` are those of the normal form, `original_params` those before batch norm was folded.
    `means` are the mean inputs of layers, by site name, as far as batch norm tells them; `statistics` those of the
    values that batch norm made, by value name, where it was folded.
    The model in memory is changed in place by the rewriter; the file stays as it is.
    """

    source: Source
    model: ir.Model
    notes: tuple[str, ...]
    file: Path
    original: Path
    original_bytes: int
    original_params: int
    inputs: Mapping[str, Shape]
    shapes: Shapes
    located: tuple[LocatedSite, ...]
    macs: int
    params: int
    means: Mapping[str, Float64]
    statistics: Mapping[str, Statistics]


def analyse(source: Source, folder: Path, fold: bool = False) -> Network:
    """Bring the model into normal form and find its layers.

    `fold` folds batch norm first: what images tell is about outputs as the next layer sees them. The normal form
    goes to `folder` and is read back lazily, so that weights are in memory only while used.
    """
    original = source.path or folder / "dense.onnx"
    file = folder / ("folded.onnx" if fold else "dense.onnx")
    prepared = prepare(source.model)
    shapes = infer_shapes(prepared, input_shapes(prepared, source.input_shape))
    _require_bounded(shapes)
    means = mean_inputs(find_sites(prepared, shapes))
    original_params = count_params(prepared)
    statistics: Mapping[str, Statistics] = {}
    if fold:
        if source.path is None:
            save_model(prepared, original, apart=True)
        statistics = norm_outputs(prepared)
        fold_batch_norm(prepared)
        remove_unused(prepared)
    save_model(prepared, file, apart=True)
    model = ir.load(file)
    inputs = input_shapes(model, source.input_shape)
    shapes = infer_shapes(model, inputs)
    return Network(
        source=replace(source, model=model),
        model=model,
        notes=(*source.notes, *_assumed(model, source)),
        file=file,
        original=original,
        original_bytes=source.bytes or size_bytes(original),
        original_params=original_params,
        inputs=inputs,
        shapes=shapes,
        located=find_sites(model, shapes),
        macs=count_macs(model, shapes),
        params=count_params(model),
        means=means,
        statistics=statistics,
    )


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
        return Layer(site, () if site.refusal else _curves(place, selection, by_name.get(site.name)))

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


def _assumed(model: ir.Model, source: Source) -> tuple[str, ...]:
    names = open_extents(model, source.input_shape)
    if not names:
        return ()
    return (f"{', '.join(names)} leaves its height or width open: {OPEN_EXTENT} is taken; --shape says otherwise",)


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


def _require_bounded(shapes: Shapes) -> None:
    for name, shape in shapes.items():
        if prod(float(dim or 1) for dim in shape) * 4 > _MOST_BYTES:
            raise UnsupportedError(
                f"{name} has shape {list(shape)}: more than {_MOST_BYTES // 2**30} GiB in one tensor."
            )
