"""Convert a model to 8 bits: equalise channels, measure ranges on images, and leave in float what damages the answer.

Most images give the ranges. The others decide between methods to choose grids, and which units stay in float. Operators
that only decode the answer (Softmax, a Concat of boxes and scores) stay in float: they take little time, and one scale
would have to serve parts of very different ranges.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from trp_export.calibration.answers import Answer, decoding_nodes, find_answers, reference_to, run_answers
from trp_export.calibration.divergence import Reference
from trp_export.calibration.held_out import with_room
from trp_export.errors import TrpError, UnsupportedError, first_line
from trp_export.graph.cost import node_macs
from trp_export.graph.shapes import infer_shapes
from trp_export.graph.skeleton import fill_skeleton, make_skeleton
from trp_export.graph.weights import find_constant
from trp_export.inputs.samples import Batch
from trp_export.precision.equalise import equalise
from trp_export.precision.grids import Grid
from trp_export.precision.quantisable import WITH_WEIGHT, QuantisableOp, Types, find_units, known_types
from trp_export.precision.ranges import METHODS, Spread, gather_spreads
from trp_export.precision.rounding import LEAST_OPSET, ROUNDED, round_model, rounded_values
from trp_export.system.progress import Share

Batches = Sequence[Batch]

LEAST_IMAGES = 16
MOST_IMAGES = 256
_HELD_OUT = 4
_ENOUGH = 1e-2  # the divergence up to which no layer is left in float
_MOST_IN_FLOAT = 0.5  # the share of the multiply-adds that may stay in float
_NEARLY = 1.25  # what is left in float may do this many times the damage of all that is affordable


class UselessImagesError(TrpError):
    """Activation ranges cannot be measured on these images."""


@dataclass(frozen=True, slots=True, eq=False)
class Int8:
    """The model in 8 bits, the method that chose its grids, and the units left in float."""

    model: ir.Model
    method: str
    in_float: tuple[str, ...]
    divergence: float


def to_int8(model: ir.Model, batches: Batches, progress: Share = lambda share: None) -> Int8:
    """A copy of the model in 8 bits.

    Raises UselessImagesError where the images do not show ranges, UnsupportedError where no layer can run in 8 bits.
    """
    _require_telling(batches)
    shown, tested = shown_and_held_out(batches)
    tested = with_room(model, tested)
    model = raise_opset(model.clone())
    answers = find_answers(model)
    decoding = frozenset(node.name or "" for node in decoding_nodes(model, answers))
    types = known_types(model)  # Found once: hundreds of copies are rounded.
    if not _in_8_bits(model, decoding, types):
        if _in_half(model):
            raise UnsupportedError("its weights are float16. Start from the float32 file that it was made from.")
        raise UnsupportedError("no layer of this model can run in 8 bits.")
    reference = reference_to(answers, run_answers(model, answers, tested))
    equalise(model, shown)
    progress(0.1)
    spreads = gather_spreads(model, sorted(set(rounded_values(model, decoding, types).values())), shown)
    progress(0.4)
    trials = [
        _Trial(model, name, _grids(spreads, name), tested, answers, reference, decoding, types) for name in METHODS
    ]
    best = min(trials, key=lambda trial: trial.damage(()))
    progress(0.6)
    kept = best.keep_float(progress)
    if not _in_8_bits(model, decoding.union(kept), types):
        raise UnsupportedError("every layer of this model does too much damage in 8 bits.")
    made = model.clone()
    round_model(made, best.grids, decoding.union(kept), types)
    return Int8(made, best.method, kept, best.damage(kept))


def _in_8_bits(model: ir.Model, kept: Collection[str], types: Types) -> bool:
    """True where a layer with weights remains beside the units `kept` in float."""
    return any(unit.weight is not None and unit.name not in kept for unit in find_units(model, types))


def _in_half(model: ir.Model) -> bool:
    """True where the weights of layers are float16."""
    weights = (find_constant(node.inputs[1]) for node in model.graph if node.op_type in WITH_WEIGHT)
    return any(weight is not None and weight.dtype == ir.DataType.FLOAT16 for weight in weights)


def shown_and_held_out(batches: Batches) -> tuple[Batches, Batches]:
    """The batches that give ranges, and those that decide: one batch in four, or one sample in four of few batches.

    Each part has about MOST_IMAGES at most: in measurements 64 gave ranges as good as 768.
    """
    if len(batches) < _HELD_OUT and batches[0].fixed:
        return batches[1:] or batches, batches[:1]
    if len(batches) < _HELD_OUT:
        shown = [batch[np.arange(len(batch)) % _HELD_OUT > 0] for batch in batches]
        return [batch for batch in shown if len(batch)], [batch[::_HELD_OUT] for batch in batches]
    most = -(-MOST_IMAGES // len(batches[0]))
    return [batch for index, batch in enumerate(batches) if index % _HELD_OUT][:most], batches[::_HELD_OUT][:most]


def _require_telling(batches: Batches) -> None:
    images = sum(len(batch) for batch in batches)
    if images < LEAST_IMAGES:
        raise UselessImagesError(f"too few calibration images for int8: {images} of at least {LEAST_IMAGES}.")
    if not any(batch.varies for batch in batches):
        raise UselessImagesError("each calibration image has one colour only: activation ranges cannot be measured.")


def raise_opset(model: ir.Model) -> ir.Model:
    """The model in an opset with one scale per channel."""
    if model.opset_imports.get("", LEAST_OPSET) >= LEAST_OPSET:
        return model
    skeleton = make_skeleton(model)
    try:
        raised = fill_skeleton(
            replace(skeleton, proto=onnx.version_converter.convert_version(skeleton.proto, LEAST_OPSET))
        )
    except Exception as error:  # The converter raises many kinds.
        raise UnsupportedError(
            f"int8 needs opset {LEAST_OPSET}, and this model could not be converted: {first_line(error)}"
        ) from error
    raised.metadata_props.update(model.metadata_props)
    # The converter writes what were attributes, such as the bounds of a Clip, as Constant nodes.
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(raised)
    return raised


def _grids(spreads: Mapping[str, Spread], method: str) -> dict[str, Grid]:
    return {name: METHODS[method](spread) for name, spread in spreads.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One method to choose grids, and what it does to the answers on the images that decide."""

    model: ir.Model
    method: str
    grids: Mapping[str, Grid]
    tested: Batches
    answers: Sequence[Answer]
    reference: Reference
    decoding: frozenset[str]
    types: Types
    known: dict[frozenset[str], float] = field(default_factory=dict)

    def damage(self, kept: Collection[str]) -> float:
        """Divergence from the float model with the units `kept` in float, beside those that decode; measured once."""
        units = frozenset(kept)
        if units not in self.known:
            copy = self.model.clone()
            round_model(copy, self.grids, self.decoding | units, self.types)
            outcome = run_answers(copy, self.answers, self.tested, ROUNDED)
            self.known[units] = self.reference.divergence(outcome)
        return self.known[units]

    def keep_float(self, progress: Share) -> tuple[str, ...]:
        """The units that stay in float: the fewest of those that do most damage alone, until the rest does little.

        They take at most half of the multiply-adds. Where that is not enough, the fewest that do nearly as well.
        """
        whole = self.damage(())
        if whole <= _ENOUGH:
            return ()
        units = {unit.name: unit for unit in find_units(self.model, self.types) if unit.name not in self.decoding}
        alone = {}
        for index, name in enumerate(units):
            progress(0.6 + 0.3 * index / len(units))
            alone[name] = self.damage([other for other in units if other != name])
        order = self._affordable(sorted(units.values(), key=lambda unit: -alone[unit.name]))
        limit = max(_ENOUGH, _NEARLY * self.damage(order))
        return order[: bisect_left(range(len(order)), True, key=lambda count: self.damage(order[:count]) <= limit)]

    def _affordable(self, units: Sequence[QuantisableOp]) -> tuple[str, ...]:
        """The names of the first units, without those that would take the share of multiply-adds in float too high."""
        runs = infer_shapes(self.model, {name: a.shape for name, a in self.tested[0].first(1).arrays.items()})
        macs = {unit.name: (node_macs(unit.node, runs) or 0) if unit.weight is not None else 0 for unit in units}
        room = _MOST_IN_FLOAT * sum(macs.values())
        names = []
        for unit in units:
            if macs[unit.name] <= room:
                room -= macs[unit.name]
                names.append(unit.name)
        return tuple(names)
