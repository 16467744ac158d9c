"""Where the answer of a network is compared: the last values that are still continuous and unsaturated.

Softmax, Sigmoid, ArgMax, TopK, NMS and rounding hide most of what happened before them, and a Concat of boxes and
scores mixes units. So each graph output is followed backwards through operators that only decode: those that move
values (Reshape, Concat, Slice), arithmetic, and the operators that hide. What is found where layers with weights
begin are the answers. An output behind which nothing hides and nothing is moved is an answer itself. One conv may make
boxes and scores: where the network does different things with parts of its channels, each part is an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.axes import Part, axis_before, sources, splits_axis
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
_SHAPES = frozenset({"Shape", "Size"})
# These read nothing but a shape, and hide the values that they are added to.
_NOISE = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"})
_LEARNED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"})
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
# What these make has its channels on the last axis.
_CHANNELS_LAST = frozenset({"MatMul", "Gemm", "LayerNormalization", "LSTM", "GRU", "RNN"})
_CARRYING = frozenset({"Add", "Sub", "Mul", "Div", "BatchNormalization", "Relu", "LeakyRelu", "PRelu", "Identity"})


@dataclass(frozen=True, slots=True)
class Answer:
    """A value of the graph that is compared, or some of its channels, and what the network does with it.

    `axis` is the axis of the channels. `channels` are those that belong to the answer, None for all.
    """

    value: str
    axis: int = 1
    kind: Kind = Kind.VALUES
    channels: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name of the value; where the answer is a part of it, with the kind of the part."""
        return self.value if self.channels is None else f"{self.value} ({self.kind.value})"


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A value where following ends, or a part of it.

    `root` is the value of which it is a part: itself, or what a Reshape made it of.
    """

    value: ir.Value
    part: Part | None
    root: ir.Value

    @property
    def axis(self) -> int:
        return _channel_axis(self.value) if self.part is None else self.part.axis


@dataclass(slots=True)
class _Found:
    """What was found and what is done with each.

    `placed` are parts that a grid or anchors move: a box in its cell. `decoded` says whether an operator of _HIDING or
    _MOVING was passed on the way back to what was found, `hidden` whether one of _HIDING was.
    """

    answers: dict[_Leaf, Kind]
    placed: frozenset[_Leaf] = frozenset()
    decoded: bool = False
    hidden: bool = False


def find_answers(model: ir.Model) -> tuple[Answer, ...]:
    """The answers of all outputs of a model, each once, in the order of the outputs."""
    opset = model.opset_imports.get("", _AXIS_IS_LAST)
    search = _Search(infer_value_shapes(model, {}), opset, _learned_values(model))
    found: dict[_Leaf, Kind] = {}
    placed: frozenset[_Leaf] = frozenset()
    for node in model.graph:  # In their order, so that long chains need no deep recursion.
        for value in node.outputs:
            search.behind(value)
    for output in model.graph.outputs:
        own, whole = search.behind(output), _Leaf(output, None, output)
        found |= own.answers if own.decoded else {whole: own.answers.get(whole, Kind.VALUES)}
        placed |= own.placed
    parts: dict[ir.Value, dict[_Leaf, Kind]] = {}
    for leaf, kind in found.items():
        if _is_float(leaf.value) and leaf.value in search.learned:
            parts.setdefault(leaf.root, {})[leaf] = kind
    return tuple(answer for root, own in parts.items() for answer in _answers_in(root, own, placed, search.shapes))


def _answers_in(
    root: ir.Value, parts: Mapping[_Leaf, Kind], placed: frozenset[_Leaf], shapes: Mapping[str, Shape]
) -> Iterator[Answer]:
    """One answer for each kind of part that a value has; one for the whole value where its parts are not known."""
    first = next(iter(parts))
    extent = shapes[first.value.name or ""][first.axis] if first.part is not None else None
    whole = any(leaf.part is None for leaf in parts) or len({(leaf.value, leaf.axis) for leaf in parts}) > 1
    channels: dict[Kind, set[int]] = {}
    for leaf, kind in parts.items():
        own = Kind.VALUES if leaf in placed and kind is Kind.PROBABILITIES else kind
        if leaf.part is not None:
            channels.setdefault(own, set()).update(range(leaf.part.start, leaf.part.start + leaf.part.length))
    if whole or (len(channels) == 1 and extent in (None, len(*channels.values()))):
        kinds = set(parts.values())
        yield Answer(root.name or "", _channel_axis(root), kinds.pop() if len(kinds) == 1 else Kind.VALUES)
        return
    for kind, own_channels in channels.items():
        yield Answer(first.value.name or "", first.axis, kind, tuple(sorted(own_channels)))


def read_answers(walk: Walk, answers: Sequence[Answer]) -> dict[str, Array]:
    """The answers of the network that is walked, by name, each (n, C, *) with its channels on axis 1."""
    return answers_ahead(walk, answers)({})


def answers_ahead(
    walk: Walk, answers: Sequence[Answer], weights: Sequence[str] = ()
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The same again and again, with other values of these weights (initializers) by name."""
    # An answer that the walk has passed no longer changes.
    missing = [name for name in values_of(answers) if name not in walk.values]
    ahead = walk.ahead(missing, weights) if missing else None

    def read(values: Mapping[str, Array]) -> dict[str, Array]:
        made = {**walk.values, **(ahead(values) if ahead is not None else {})}
        return {answer.name: _joined(made[answer.value], answer) for answer in answers}

    return read


def run_answers(
    model: ir.Model, answers: Sequence[Answer], batches: Sequence[Batch], suffix: str = ""
) -> dict[str, Array]:
    """The same of a model that is run on these inputs; a value that also exists with `suffix` is read there."""
    made = {value.name or "" for node in model.graph for value in node.outputs}
    names = {name: f"{name}{suffix}" if f"{name}{suffix}" in made else name for name in values_of(answers)}
    values = Walk(model, [batch.arrays for batch in batches]).run(list(names.values()))
    return {a.name: _joined(values[names[a.value]], a) for a in answers}


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


def values_of(answers: Sequence[Answer]) -> list[str]:
    """The names of the values that answers are, or are parts of, each once."""
    return list(dict.fromkeys(answer.value for answer in answers))


def kinds_of(answers: Sequence[Answer]) -> dict[str, Kind]:
    """What is done with each answer, by name."""
    return {answer.name: answer.kind for answer in answers}


def decoding_nodes(model: ir.Model, answers: Sequence[Answer]) -> frozenset[ir.Node]:
    """The nodes that only read answers: they turn them into the outputs."""
    names = set(values_of(answers))
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
    learned: frozenset[ir.Value]
    known: dict[tuple[ir.Value, Part | None], _Found] = field(default_factory=dict)

    def behind(self, value: ir.Value, part: Part | None = None) -> _Found:
        """What is found behind a value, or behind a part of it."""
        if (value, part) not in self.known:
            self.known[value, part] = self._follow(value, part)
        return self.known[value, part]

    def _follow(self, value: ir.Value, part: Part | None) -> _Found:
        node = value.producer()
        if node is None or find_constant(value) is not None:
            return _Found({})
        if node.op_type in _NOISE:
            return _Found({}, decoded=True)
        followed = node.domain in ("", "ai.onnx") and node.op_type in _HIDING | _MOVING | _ARITHMETIC
        if not followed or _is_normalised(node):
            return self._leaf(value, part)
        if part is not None and node.op_type in _CLASS_OPS and self._runs_over(node, value, part.axis):
            part = None  # Each class depends on the others.
        if part is not None and (root := self._split_by_reshape(node, value, part)) is not None:
            return _Found({_Leaf(value, part, root): Kind.VALUES}, decoded=True)
        inputs = list(sources(node, value, part, _data(node), self.shapes))
        behind = [self.behind(source, of_it) for source, of_it in inputs]
        merged = _merged(behind)
        if not merged.answers:
            return self._leaf(value, part) if any(_computed(source) for source in _data(node)) else _Found({})
        if node.op_type in _CLASS_OPS and len(merged.answers) == 1 and self._chooses_channels(node, merged):
            merged.answers = dict.fromkeys(merged.answers, Kind.CLASSES)
        if node.op_type == "Sigmoid":
            merged.answers = {
                leaf: Kind.PROBABILITIES if kind is Kind.VALUES else kind for leaf, kind in merged.answers.items()
            }
        others = [source for (source, _), found in zip(inputs, behind, strict=True) if not found.answers]
        if node.op_type in _ARITHMETIC and any(map(_varies, others)):
            merged.placed |= {leaf for leaf in merged.answers if leaf.part is not None}
        merged.decoded |= node.op_type in _HIDING | _MOVING
        merged.hidden |= node.op_type in _HIDING
        return merged if merged.decoded else self._leaf(value, part)

    def _leaf(self, value: ir.Value, part: Part | None) -> _Found:
        """A value where following ends; the part of it that is needed, where that is some of its channels."""
        if value not in self.learned:
            return _Found({})
        shape = self.shapes.get(value.name or "") or ()
        channels = part is not None and 0 < part.axis == _channel_axis(value) % max(len(shape), 1)
        own = part if part is not None and channels and part.length != shape[part.axis] else None
        return _Found({_Leaf(value, own, value): Kind.VALUES})

    def _split_by_reshape(self, node: ir.Node, value: ir.Value, part: Part) -> ir.Value | None:
        """The answer whose channels a Reshape splits over several axes, of which one is that of the part.

        None where the part goes on to the operator's input, or where something hides the answer.
        """
        source = node.inputs[0] if node.op_type == "Reshape" else None
        if source is None or axis_before(node, value, source, part.axis, self.shapes) is not None:
            return None
        found = self.behind(source)
        if found.hidden or len(found.answers) != 1:
            return None
        (leaf,) = found.answers
        channels = self._channels_at(source, leaf) if leaf.part is None else None
        splits = channels is not None and splits_axis(source, channels, value, part.axis, self.shapes)
        return leaf.value if splits else None

    def _channels_at(self, value: ir.Value, leaf: _Leaf) -> int | None:
        """On which axis of a value the channels of the one answer behind it lie; None where that is not known."""
        shape = self.shapes.get(value.name or "")
        if not shape:
            return None
        if value is leaf.value:
            return leaf.axis % len(shape)
        node = value.producer()
        source = next((one for one in _data(node) if _computed(one)), None) if node is not None else None
        before = self._channels_at(source, leaf) if source is not None else None
        if node is None or source is None or before is None:
            return None
        axes = (axis for axis in range(len(shape)) if axis_before(node, value, source, axis, self.shapes) == before)
        return next(axes, None)

    def _runs_over(self, node: ir.Node, value: ir.Value, axis: int) -> bool:
        """Whether an operator of classes runs over this axis of its output; older ones run over all behind theirs."""
        shape = self.shapes.get(value.name or "")
        own = self._class_axis(node) % len(shape) if shape else axis
        return own == axis or (self.opset < _AXIS_IS_LAST and own < axis)

    def _class_axis(self, node: ir.Node) -> int:
        default = 0 if node.op_type == "ArgMax" else 1 if self.opset < _AXIS_IS_LAST else -1
        return node.attributes.get_int("axis", default)

    def _chooses_channels(self, node: ir.Node, found: _Found) -> bool:
        """Whether an operator that runs over an axis runs over the channels of the one answer behind it.

        Where a shape on the way is not known, it is taken to do so.
        """
        (answer,) = found.answers
        value = node.inputs[0]
        axis: int | None = self._class_axis(node)
        while value is not None and axis is not None and value is not answer.value:
            above = value.producer()
            source = next((one for one in _data(above) if _computed(one)), None) if above is not None else None
            if above is None or source is None or not {value.name, source.name} <= self.shapes.keys():
                return True
            axis = axis_before(above, value, source, axis, self.shapes)
            value = source
        name, channels = answer.value.name or "", answer.axis
        rank = len(self.shapes[name]) if name in self.shapes else None
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


def _merged(behind: Sequence[_Found]) -> _Found:
    """What several values have behind them. What is used in two ways holds values."""
    answers: dict[_Leaf, Kind] = {}
    for found in behind:
        answers |= {
            leaf: kind if answers.get(leaf, kind) is kind else Kind.VALUES for leaf, kind in found.answers.items()
        }
    return _Found(
        answers,
        placed=frozenset().union(*(found.placed for found in behind)),
        decoded=any(found.decoded for found in behind),
        hidden=any(found.hidden for found in behind),
    )


def _varies(value: ir.Value) -> bool:
    """True for a grid or anchors: values that are not one number, and no input."""
    if value.is_graph_input() and not value.is_initializer():
        return False
    constant = find_constant(value)
    if constant is None:
        return True
    array = constant.array()
    return bool(array.size > 1 and (array != array.flat[0]).any())


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


def _learned_values(model: ir.Model) -> frozenset[ir.Value]:
    """The values behind a layer with weights: nothing else can be damaged. A shape is the same whatever the weights."""
    learned: set[ir.Value] = set()
    for node in model.graph:
        bodies = any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        reads = node.op_type not in _SHAPES and any(value in learned for value in node.inputs)
        if node.op_type in _LEARNED or bodies or reads:
            learned.update(node.outputs)
    return frozenset(learned)


def _channel_axis(value: ir.Value) -> int:
    """1 after a conv, the last after a matrix product; found behind bias, activation and sums."""
    node = value.producer()
    while node is not None and node.op_type in _CARRYING:
        node = next((source.producer() for source in _data(node) if _computed(source)), None)
    return -1 if node is not None and node.op_type in _CHANNELS_LAST else 1


def _joined(batches: Sequence[Array], answer: Answer) -> Array:
    """The batches of an answer as (n, C, *); where images differ in size each position is a row (n, C)."""
    arrays = [_channels_first(batch, answer.axis) for batch in batches]
    if answer.channels is not None:
        arrays = [array[:, list(answer.channels)] for array in arrays]
    if len({array.shape[1:] for array in arrays}) > 1:
        arrays = [np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]) for array in arrays]
    return np.concatenate(arrays)


def _channels_first(array: Array, axis: int) -> Array:
    if array.ndim < 3:
        return np.atleast_1d(array)
    return np.moveaxis(array, axis, 1)
