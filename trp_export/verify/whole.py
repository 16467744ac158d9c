"""Compare whole models, as far as rounding lets two sound models agree.

An operator with steps (TopK, NonMaxSuppression, ArgMax, Round) may turn a difference of one unit in the last place
into another answer; so what it reads is compared. A sigmoid or softmax at the end hides what happens before it, and is
exact to 1e-7 only absolutely; so its input is compared. How much the values in front of them may differ is measured on
the model itself: its weights and inputs are moved by one unit in the last place and onnxruntime's optimisations are
left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_export.errors import VerifyError
from trp_export.graph.large_files import read_model
from trp_export.graph.model_files import save_model
from trp_export.graph.random_draws import set_seeds
from trp_export.graph.weights import large_weights, release
from trp_export.runtime.distance import Distance, distance_of, largest
from trp_export.runtime.partial import outer_reads, subgraphs
from trp_export.runtime.sessions import Array, Inputs, open_session, run_session
from trp_export.system.scratch import Scratch
from trp_export.verify.rounding import LAMBDA, nudge, nudge_weights

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}
_STEPS = {
    *("TopK", "NonMaxSuppression", "ArgMax", "ArgMin", "Hardmax", "NonZero", "Unique", "Round", "Floor", "Ceil"),
    *("Sign", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Shrink", "ThresholdedRelu"),
    *("QuantizeLinear", "DynamicQuantizeLinear", "Multinomial", "Bernoulli", "MaxRoiPool"),
}
_SATURATES = {"Sigmoid", "Softmax", "Tanh", "HardSigmoid", "Erf", "Clip"}
_MOVES = {
    *("Identity", "Cast", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Concat", "Slice", "Split"),
    *("Gather", "Expand", "SequenceConstruct"),
}
_INTEGERS = {
    *(ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}

_UNIT = 2.0**-24
_COARSE = {int(ir.DataType.FLOAT16): 2.0**-10, int(ir.DataType.BFLOAT16): 2.0**-7}

# The values of each batch.
Answers = Sequence[Sequence[Array]]


@dataclass(frozen=True, slots=True)
class Points:
    """The values at which whole models are compared, by name.

    `exact` lie before operators with steps and before saturation at the end, `ends` before operators with steps alone.
    `before` names these operators, `unreachable` the outputs with nothing in front of them that all models share.
    """

    exact: tuple[str, ...]
    ends: tuple[str, ...]
    before: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WholeProof:
    """How far the outputs of two whole models are apart, and how far rounding may move them, as a relative L2.

    `values` are those that were compared, `before` the operators in front of which they lie; `inputs` what was fed.
    """

    values: tuple[str, ...]
    inputs: tuple[str, ...]
    distance: Distance
    bound: float
    before: tuple[str, ...] = ()


def find_points(model: ir.Model, shared: Collection[str]) -> Points:
    """Where to compare a model with others that compute the values `shared`, too."""
    search = _PointSearch(model, shared)
    ends, exact, unreachable = [], [], []
    for output in model.graph.outputs:
        before_steps = search.before_steps(output)
        ends += before_steps
        exact += [value for end in before_steps for value in search.before_saturation(end)]
        if output in search.stepped and not before_steps:
            unreachable.append(output.name or "")
    return Points(_names(exact), _names(ends), tuple(dict.fromkeys(search.before)), tuple(unreachable))


def before_steps(model: ir.Model) -> tuple[str, ...]:
    """The values of the main graph that no operator with steps takes part in, in order."""
    stepped = _PointSearch(model, ()).stepped
    return tuple(value.name or "" for node in model.graph for value in node.outputs if value not in stepped)


class _PointSearch:
    def __init__(self, model: ir.Model, shared: Collection[str]) -> None:
        """`rounded` values depend on a layer, `stepped` ones on an operator with steps that reads a rounded value."""
        self._shared = shared
        self.rounded: set[ir.Value] = set()
        self.stepped: set[ir.Value] = set()
        self.before: list[str] = []
        for node in model.graph:
            reads = _reads(node)
            inner = [
                one
                for attribute in node.attributes.values()
                for body in subgraphs(attribute)
                for one in body.all_nodes()
            ]
            if node.op_type in ("Shape", "Size"):
                continue
            rounded = any(one.op_type in _LAYERS for one in (node, *inner)) or not self.rounded.isdisjoint(reads)
            if rounded:
                self.rounded.update(node.outputs)
            # A condition is hardly ever so close to its limit that rounding takes the other branch.
            flowing = set(reads) - {node.inputs[0]} if node.op_type == "If" else reads
            if rounded and (any(map(_has_steps, (node, *inner))) or not self.stepped.isdisjoint(flowing)):
                self.stepped.update(node.outputs)

    def before_steps(self, output: ir.Value) -> list[ir.Value]:
        """The values in front of the operators with steps that an output depends on, or the output itself."""
        found: dict[ir.Value, None] = {}
        visited, pending = set(), [output]
        while pending:
            value = pending.pop()
            if value in visited:
                continue
            visited.add(value)
            node = value.producer()
            if value not in self.stepped or node is None:
                if value is output or (value in self.rounded and value.name in self._shared):
                    found[value] = None
                continue
            if _has_steps(node):
                self.before.append(node.op_type)
            pending += _reads(node)
        return list(found)

    def before_saturation(self, value: ir.Value) -> list[ir.Value]:
        """What saturating operators at the end read, through operators that only move values; else the value."""
        node = value.producer()
        if node is None or node.domain or node.op_type not in _SATURATES | _MOVES:
            return [value]
        saturates = node.op_type in _SATURATES
        reads = [read for read in (node.inputs[:1] if saturates else node.inputs) if read in self.rounded]
        behind = [one for read in reads if read is not None for one in self.before_saturation(read)]
        stepped_back = saturates or behind != reads
        if not behind or not stepped_back or any(one.name not in self._shared for one in behind):
            return [value]
        if saturates:
            self.before.append(node.op_type)
        return behind


def _reads(node: ir.Node) -> list[ir.Value]:
    return [value for value in (*node.inputs, *outer_reads(node)) if value is not None]


def _has_steps(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return node.attributes.get_int("to", 0) in _INTEGERS
    return node.op_type in _STEPS or (node.op_type == "MaxPool" and len(node.outputs) > 1)


def _names(values: Iterable[ir.Value]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value.name or "" for value in values))


@dataclass(frozen=True, slots=True)
class Execution:
    """How a model file is run: which values are read, and what is changed in a copy of it before.

    `seeded` gives operators that draw random numbers a seed, `moved` moves weights and inputs by one unit in the last
    place and leaves out onnxruntime's optimisations.
    """

    values: tuple[str, ...] = ()
    seeded: bool = False
    moved: bool = False

    def run(self, file: Path, batches: Sequence[Inputs]) -> list[list[Array]]:
        """The values, or the outputs where none are named, for each batch. Raises CannotRunError, KeyError."""
        fed = [nudge(batch) for batch in batches] if self.moved else batches
        model = read_model(file)
        outputs = tuple(value.name or "" for value in model.graph.outputs)  # One may be listed twice.
        if self in (Execution(), Execution(outputs)):
            session = open_session(file, threads=0)
            return [run_session(session, batch) for batch in fed]
        if self.values:
            values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
            model.graph.outputs[:] = [values[name] for name in self.values]
        if self.seeded:
            set_seeds(model)
        weights = large_weights(model)
        if self.moved:
            nudge_weights(model)
        with Scratch() as scratch:
            copy = scratch.folder / file.name
            save_model(model, copy, apart=True)
            release(weights)
            session = open_session(copy, threads=0, optimise=not self.moved)
        return [run_session(session, batch) for batch in fed]


def require_agreement(
    wanted: Answers, got: Answers, allowed: Sequence[Sequence[float]], what: str
) -> tuple[Distance, float]:
    """The largest distance over all batches and values, and the most that rounding allows for any of them.

    Raises VerifyError where one is beyond what is `allowed` for it.
    """
    distances = []
    for one, other, most in zip(wanted, got, allowed, strict=True):
        for (left, right), bound in zip(_pairs(one, other), most, strict=True):
            apart = distance_of(left, right)
            if not apart.relative_l2 <= bound:
                raise VerifyError(
                    f"{what}: outputs are {apart.relative_l2:.2g} apart (relative L2); rounding explains {bound:.2g}.\n"
                    "Nothing was written. Please report this with the model, or find the layer with --skip."
                )
            distances.append(apart)
    return largest(distances), max((bound for most in allowed for bound in most), default=0.0)


def allowed_by_rounding(wanted: Answers, moved: Answers, factor: float, least: float = 0.0) -> list[list[float]]:
    """For each batch and value the relative L2 that rounding explains: `factor` times what one unit in the last place
    makes, and no less than `least`."""
    return [
        [
            max(least, factor * max(_unit(left), distance_of(left, right).relative_l2))
            for left, right in _pairs(one, other)
        ]
        for one, other in zip(wanted, moved, strict=True)
    ]


def explained_by_casts(model: ir.Model, terms: int) -> float:
    """The relative L2 that casts of what layers make to 16 bits explain, which few entries may cause.

    An entry that is off by d is rounded to the next number of the coarse type with a probability of d / u, and is then
    off by u: sqrt(d u) on the whole. On a few thousand entries that may happen to one or to none.
    """
    units = [_COARSE[to] for node in model.graph.all_nodes() if (to := _cast_to(node)) in _COARSE]
    return float(LAMBDA * np.sqrt(max(units, default=0.0) * _UNIT * np.sqrt(terms)))


def _cast_to(node: ir.Node) -> int:
    return node.attributes.get_int("to", 0) if node.op_type == "Cast" else 0


def _unit(array: Array) -> float:
    return float(np.finfo(array.dtype).eps) / 2 if array.dtype.kind == "f" else 0.0


def _pairs(one: Sequence[Array], other: Sequence[Array]) -> list[tuple[Array, Array]]:
    if len(one) != len(other):
        raise VerifyError(f"the result has {len(other)} outputs where there were {len(one)}; nothing was written.")
    return list(zip(one, other, strict=True))
