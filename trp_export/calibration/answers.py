"""Where the answer of a network is compared: the last values that are still continuous and unsaturated.

Softmax, Sigmoid, ArgMax, TopK, NMS and rounding hide most of what happened before them, and a Concat of boxes and
scores mixes units. So each graph output is followed backwards through operators that only decode: those that move
values (Reshape, Concat, Slice), arithmetic, and the operators that hide. What is found where layers with weights
begin are the answers. An output behind which nothing hides and nothing is moved is an answer itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.axes import Part, axis_before, sources
from trp_export.calibration.divergence import Kind, Reference, is_vector
from trp_export.graph.shapes import Shape, infer_value_shapes
from trp_export.graph.weights import find_constant
from trp_export.inputs.samples import Batch, Groups
from trp_export.runtime.incremental import Walk

Array = NDArray[Any]

# From this opset on Softmax runs over the last axis by default.
_AXIS_IS_LAST = 13
_CLASS_OPS = frozenset({"Softmax", "LogSoftmax", "ArgMax", "Hardmax"})
_RANDOM = frozenset({"Multinomial", "Bernoulli"})
_COMPARING = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not", "And", "Or"})
_CHOOSING = frozenset({"ArgMin", "TopK", "NonMaxSuppression", "OneHot", "NonZero"})
_STEPS = frozenset({"Round", "Floor", "Ceil", "Sign", "Cast", "QuantizeLinear", "DequantizeLinear"})
_SATURATING = frozenset({"Sigmoid", "HardSigmoid", "Tanh", "Exp", "Softplus", "Clip"})
_REDUCING = frozenset({"ReduceMax", "ReduceMin", "ReduceSum"})
_HIDING = _CLASS_OPS | _RANDOM | _COMPARING | _CHOOSING | _STEPS | _SATURATING | _REDUCING
_MOVING = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Concat", "Slice", "Split", "Gather"}
    | {"DepthToSpace", "SpaceToDepth", "GatherND", "GatherElements", "Expand", "Tile", "Pad", "Dropout"}
    | {"SequenceConstruct", "SplitToSequence", "SequenceAt", "ConcatFromSequence", "SequenceInsert"}
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Neg", "Where", "Min", "Max", "Mod", "Abs"})
# Their other inputs are shapes, indices and bounds.
_FIRST_ONLY = frozenset(
    {"Reshape", "Slice", "Gather", "Expand", "Tile", "Pad", "Squeeze", "Unsqueeze", "TopK", "Clip", "GatherND"}
    | {"GatherElements", "SplitToSequence", "SequenceAt", "QuantizeLinear", "DequantizeLinear"}
)
_GATHERS = frozenset({"Gather", "GatherND", "GatherElements"})
_CHOOSES = _CHOOSING | {"ArgMax"}
_PASSES_INDICES = _MOVING | {"Cast", "Add", "Sub", "Mul", "Div", "Mod", "Unsqueeze", "Where"}
# The length of a vector, and what may lie between it and the vector that is divided by it.
_LENGTHS = frozenset({"ReduceL2", "ReduceSumSquare", "ReduceSum"})
_KEEP_LENGTH = frozenset({"Sqrt", "Clip", "Max", "Add", "Expand", "Identity", "Unsqueeze", "Reshape", "Cast"})
# These read nothing but a shape, and hide the values that they are added to.
_NOISE = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
_LEARNED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
# What these make has its channels on the last axis.
_CHANNELS_LAST = frozenset({"MatMul", "Gemm", "LayerNormalization", "LSTM", "GRU", "RNN"})
_CARRYING = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Identity"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A value that is compared, the axis of its channels, and what the network does with it."""

    name: str
    axis: int = 1
    kind: Kind = Kind.VALUES


@dataclass(slots=True)
class _Found:
    """Values by name, what is done with each, and whether an operator that hides or moves values lies behind them."""

    answers: dict[str, ir.Value]
    kinds: dict[str, Kind]
    decoded: bool = False


def find_answers(model: ir.Model) -> tuple[Answer, ...]:
    """The answers of all outputs of a model, each once, in the order of the outputs."""
    found, search = _Found({}, {}), _Search(infer_value_shapes(model, {}), model.opset_imports.get("", _AXIS_IS_LAST))
    for node in model.graph:  # In their order, so that long chains need no deep recursion.
        for value in node.outputs:
            search.behind(value)
    for output in model.graph.outputs:
        own = search.behind(output)
        if not own.decoded:
            name = output.name or ""
            own = _Found({name: output}, {name: own.kinds.get(name, Kind.VALUES)})
        found.answers |= own.answers
        found.kinds |= own.kinds
    floats = {name: value for name, value in found.answers.items() if _is_float(value) and _is_learned(value)}
    return tuple(Answer(name, _channel_axis(value), found.kinds[name]) for name, value in floats.items())


def read_answers(walk: Walk, answers: Sequence[Answer]) -> dict[str, Array]:
    """The answers of the network that is walked, by name, each (n, C, *) with its channels on axis 1."""
    return answers_ahead(walk, answers)({})


def answers_ahead(
    walk: Walk, answers: Sequence[Answer], weights: Sequence[str] = ()
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The same again and again, with other values of these weights (initializers) by name."""
    # An answer that the walk has passed no longer changes.
    missing = [answer.name for answer in answers if answer.name not in walk.values]
    ahead = walk.ahead(missing, weights) if missing else None

    def read(values: Mapping[str, Array]) -> dict[str, Array]:
        made = {**walk.values, **(ahead(values) if ahead is not None else {})}
        return {answer.name: _joined(made[answer.name], answer.axis) for answer in answers}

    return read


def run_answers(
    model: ir.Model, answers: Sequence[Answer], batches: Sequence[Batch], suffix: str = ""
) -> dict[str, Array]:
    """The same of a model that is run on these inputs; a value that also exists with `suffix` is read there."""
    made = {value.name or "" for node in model.graph for value in node.outputs}
    names = {a.name: f"{a.name}{suffix}" if f"{a.name}{suffix}" in made else a.name for a in answers}
    values = Walk(model, [batch.arrays for batch in batches]).run(list(names.values()))
    return {a.name: _joined(values[names[a.name]], a.axis) for a in answers}


def answers_are_vectors(model: ir.Model, batch: Batch) -> bool:
    """True where each answer is one vector for an image, to which all positions add up.

    Least squares serve what is frequent. What a detector finds is rare: layers that stay dense, and those that read
    fewer channels, are not refitted there, which loses boxes although the mean error falls.
    """
    values = read_answers(Walk(model, [batch.arrays]), find_answers(model))
    return all(is_vector(array) for array in values.values())


def reference_to(answers: Sequence[Answer], original: Mapping[str, Array], groups: Groups | None = None) -> Reference:
    """The one measure of damage: how far answers are from those of the original, both as `read_answers` gives them.

    `groups` of samples count alike.
    """
    return Reference.of(original, kinds_of(answers), groups)


def kinds_of(answers: Sequence[Answer]) -> dict[str, Kind]:
    """What is done with each answer, by name."""
    return {answer.name: answer.kind for answer in answers}


def decoding_nodes(model: ir.Model, answers: Sequence[Answer]) -> frozenset[ir.Node]:
    """The nodes that only read answers: they turn them into the outputs."""
    names = {answer.name for answer in answers}
    values = [value for node in model.graph for value in node.outputs if value.name in names]
    after = _reached(values, lambda node: [user for value in node.outputs for user in value.consumers()])
    before = _reached(values, lambda node: [v.producer() for v in node.inputs if v is not None], forwards=False)
    return frozenset(after - before)


def _reached(
    values: Sequence[ir.Value], step: Callable[[ir.Node], Sequence[ir.Node | None]], *, forwards: bool = True
) -> set[ir.Node]:
    """The nodes on the way from values, towards the outputs or towards the inputs."""
    pending = [node for value in values for node in (value.consumers() if forwards else [value.producer()])]
    reached: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is not None and node not in reached:
            reached.add(node)
            pending += step(node)
    return reached


@dataclass(slots=True, eq=False)
class _Search:
    """Follows values backwards. `known` keeps values that several readers share from being followed twice."""

    shapes: Mapping[str, Shape]
    opset: int
    known: dict[tuple[ir.Value, Part | None], _Found] = field(default_factory=dict)

    def behind(self, value: ir.Value, part: Part | None = None) -> _Found:
        """What is found behind a value, or behind a part of it."""
        if (value, part) not in self.known:
            self.known[value, part] = self._follow(value, part)
        return self.known[value, part]

    def _follow(self, value: ir.Value, part: Part | None) -> _Found:
        node = value.producer()
        if node is None or find_constant(value) is not None:
            return _Found({}, {}, decoded=False)
        if node.op_type in _NOISE:
            return _Found({}, {}, decoded=True)
        followed = node.domain in ("", "ai.onnx") and node.op_type in _HIDING | _MOVING | _ARITHMETIC
        if not followed or _is_normalised(node):
            return _leaf(value)
        behind = [self.behind(source, of_it) for source, of_it in sources(node, value, part, _data(node), self.shapes)]
        merged = _Found({}, {}, any(found.decoded for found in behind))
        for found in behind:
            merged.answers |= found.answers
            merged.kinds |= {
                name: kind if merged.kinds.get(name, kind) is kind else Kind.VALUES
                for name, kind in found.kinds.items()
            }
        if not merged.answers:
            return _leaf(value) if any(_computed(source) for source in _data(node)) else _Found({}, {})
        if node.op_type in _CLASS_OPS and len(merged.answers) == 1 and self._chooses_channels(node, merged):
            merged.kinds |= dict.fromkeys(merged.answers, Kind.CLASSES)
        if node.op_type == "Sigmoid":
            merged.kinds = {n: Kind.PROBABILITIES if k is Kind.VALUES else k for n, k in merged.kinds.items()}
        if node.op_type in _HIDING | _MOVING:
            merged.decoded = True
        if not merged.decoded:
            return _leaf(value)
        return merged

    def _class_axis(self, node: ir.Node) -> int:
        default = 0 if node.op_type == "ArgMax" else 1 if self.opset < _AXIS_IS_LAST else -1
        return node.attributes.get_int("axis", default)

    def _chooses_channels(self, node: ir.Node, found: _Found) -> bool:
        """Whether an operator that runs over an axis runs over the channels of the one answer behind it.

        Where a shape on the way is not known, it is taken to do so.
        """
        (answer,) = found.answers.values()
        value = node.inputs[0]
        axis: int | None = self._class_axis(node)
        while value is not None and axis is not None and value is not answer:
            above = value.producer()
            source = next((one for one in _data(above) if _computed(one)), None) if above is not None else None
            if above is None or source is None or not {value.name, source.name} <= self.shapes.keys():
                return True
            axis = axis_before(above, value, source, axis, self.shapes)
            value = source
        rank = len(self.shapes[answer.name or ""]) if answer.name in self.shapes else None
        channels = _channel_axis(answer)
        if rank is None:
            return axis in (channels, 1, -1)
        return axis is not None and axis % rank == channels % rank


def _is_normalised(node: ir.Node) -> bool:
    """True where values are divided by their own length: the length itself goes no further."""
    if node.op_type != "Div":
        return False
    data, length = node.inputs
    while length is not None and (above := length.producer()) is not None and length is not data:
        if above.op_type in _LENGTHS and _squared(above) is data:
            return True
        if above.op_type not in _KEEP_LENGTH:
            return False
        length = next((source for source in _data(above) if _computed(source)), None)
    return False


def _squared(node: ir.Node) -> ir.Value | None:
    """The value whose squares a reduction adds up; None where it adds up something else."""
    value = node.inputs[0]
    if node.op_type != "ReduceSum" or value is None:
        return value
    above = value.producer()
    if above is None or above.op_type not in ("Mul", "Pow"):
        return None
    return above.inputs[0] if above.op_type == "Pow" or above.inputs[0] is above.inputs[1] else None


def _leaf(value: ir.Value) -> _Found:
    name = value.name or ""
    return _Found({name: value}, {name: Kind.VALUES})


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs that hold values: not the shapes, indices and bounds of an operator, unless the indices are chosen."""
    inputs = node.inputs[:1] if node.op_type in _FIRST_ONLY else node.inputs
    chosen = [value for value in node.inputs[1:2] if node.op_type in _GATHERS and value is not None and _chosen(value)]
    return (value for value in (*inputs, *chosen) if value is not None)


def _chosen(value: ir.Value) -> bool:
    """True for indices that follow from values, as those of TopK and NonMaxSuppression do."""
    node: ir.Node | None = value.producer()
    while node is not None and node.op_type not in _CHOOSES:
        node = node.inputs[0].producer() if node.op_type in _PASSES_INDICES and node.inputs[0] is not None else None
    return node is not None


def _computed(value: ir.Value) -> bool:
    return find_constant(value) is None


def _is_float(value: ir.Value) -> bool:
    if isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
        return False
    return value.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def _is_learned(value: ir.Value) -> bool:
    """True where a layer with weights lies behind the value: nothing else can be damaged."""
    pending, seen = [value.producer()], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        if node.op_type in _LEARNED or any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
            return True
        seen.add(node)
        pending += [source.producer() for source in node.inputs if source is not None]
    return False


def _channel_axis(value: ir.Value) -> int:
    """1 after a conv, the last after a matrix product; found behind bias, activation and sums."""
    node = value.producer()
    while node is not None and node.op_type in _CARRYING:
        node = next((source.producer() for source in _data(node) if _computed(source)), None)
    return -1 if node is not None and node.op_type in _CHANNELS_LAST else 1


def _joined(parts: Sequence[Array], axis: int) -> Array:
    """The batches of an answer as (n, C, *); where images differ in size each position is a row (n, C)."""
    arrays = [_channels_first(part, axis) for part in parts]
    if len({array.shape[1:] for array in arrays}) > 1:
        arrays = [np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]) for array in arrays]
    return np.concatenate(arrays)


def _channels_first(array: Array, axis: int) -> Array:
    if array.ndim < 3:
        return np.atleast_1d(array)
    return np.moveaxis(array, axis, 1)
