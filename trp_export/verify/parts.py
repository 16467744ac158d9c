"""Find the parts in which two graphs differ; everything else is the same node reading the same values.

Two graphs of one network share the names of most values. A shared value is computed from other shared values by the
same nodes in both graphs, or by different nodes. The different nodes of both sides are a part: a layer that became
factors, a layer into which batch norm was folded, or constants that simplification computed. If each part gives the
same output from the same inputs in both graphs, the two graphs compute the same outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trp_export.errors import VerifyError
from trp_export.graph.weights import find_constant
from trp_export.runtime.partial import nodes_between, subgraphs

# The nodes of a constant expression; those that are longer are not looked through.
_MOST_FIXED = 64
_AFFINE = ("Mul", "Div", "Add", "Sub", "BatchNormalization")
# What an affine node can be fused into.
_WEIGHTED = (*_AFFINE, "Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Body:
    """A graph inside a node (If, Loop, Scan) of the wanted model, and the attribute that holds it.

    `outer` is the body that the node itself lies in, None for a node of the main graph.
    """

    node: ir.Node
    attribute: str
    graph: ir.Graph
    outer: Body | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The nodes that make one value in each graph, and the shared values that they read.

    `wanted_inputs` are those of both graphs, in the wanted one; `got_inputs` holds each input of the other graph with
    the value that it stands for. `body` is None in the main graph.
    """

    wanted: ir.Value
    got: ir.Value
    wanted_nodes: frozenset[ir.Node]
    got_nodes: frozenset[ir.Node]
    wanted_inputs: tuple[ir.Value, ...]
    got_inputs: tuple[tuple[ir.Value, ir.Value], ...]
    body: Body | None

    @property
    def name(self) -> str:
        return self.wanted.name or ""

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(value.name or "" for value in self.wanted_inputs)


@dataclass(frozen=True, slots=True)
class Differences:
    """The parts in which `got` differs from `wanted`, in the order of the graph, and which values stand for which."""

    parts: tuple[Part, ...]
    shared: Mapping[ir.Value, ir.Value]


def find_differences(wanted: ir.Model, got: ir.Model) -> Differences:
    """Raises VerifyError where the graphs differ in the number of their outputs, or `got` reads unknown inputs.

    A simplifier that fuses a product or a sum by constants into the layer before it keeps the name of that layer's
    output: the name then stands for another value. Such values are paired anew, until there are no more of them.
    """
    moved: dict[ir.Value, ir.Value] = {}
    while True:
        found = _Search(moved)
        found.compare(wanted.graph, got.graph, None)
        more = dict(fused for part in found.parts for fused in found.fused(part))
        if not more:
            return Differences(tuple(found.parts), found.shared)
        last = set(more.values())  # Of several that are fused into one layer, its output stands for the last.
        moved = {value: other for value, other in moved.items() if other not in last} | more


@dataclass(slots=True)
class _Search:
    moved: Mapping[ir.Value, ir.Value]
    shared: dict[ir.Value, ir.Value] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    _backwards: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _same: dict[tuple[ir.Value, ir.Value], bool] = field(default_factory=dict)
    _entered: set[ir.Node] = field(default_factory=set)

    def compare(self, wanted: ir.Graph, got: ir.Graph, body: Body | None) -> None:
        self._pair_values(wanted, got, inputs_by_name=body is None)
        targets = {value: self.shared[value] for node in wanted for value in node.outputs if value in self.shared}
        targets |= self._outputs(wanted, got)
        for value, other in targets.items():
            node = value.producer()
            if not self._made_alike(value, other):
                self.parts.append(self._part(value, other, body))
            if node is not None and node not in self._entered:
                self._entered.add(node)
                self._compare_bodies(node, other.producer(), body)

    def fused(self, part: Part) -> list[tuple[ir.Value, ir.Value]]:
        """Values of the wanted graph, and those of the other that stand for them since an affine node is gone there."""
        if sum(map(_is_affine, part.wanted_nodes)) <= sum(map(_is_affine, part.got_nodes)):
            return []
        pairs = []
        for start, value in part.got_inputs:
            reader = _only_reader(value)
            if reader is None or value.producer() is None or reader not in part.wanted_nodes:
                continue
            if not _holds_weights(start.producer()) or self._made_alike(value, start):
                continue  # The layer before holds no weights, or is as it was: the affine node went into the one after.
            made = reader.outputs[0]
            if _is_affine(reader) and made not in self.shared:
                pairs.append((made, start))
        return pairs

    def _pair_values(self, wanted: ir.Graph, got: ir.Graph, *, inputs_by_name: bool) -> None:
        others = dict(got.initializers)  # A constant may have taken the place of a node.
        others |= {value.name or "": value for node in got for value in node.outputs}
        # A weight behind a Transpose is part of its layer: what is folded into the layer changes it.
        made = [value for node in wanted for value in node.outputs if value.name and find_constant(value) is None]
        pairs = [(value, others[value.name or ""]) for value in made if value.name in others]
        if inputs_by_name:
            inputs = {value.name: value for value in got.inputs}
            pairs += [(value, inputs[value.name]) for value in wanted.inputs if value.name in inputs]
        else:
            pairs += list(zip(wanted.inputs, got.inputs, strict=False))
        taken = set(self.moved.values())
        pairs = [(value, other) for value, other in pairs if other not in taken]
        pairs += [(value, other) for value, other in self.moved.items() if value.graph is wanted]
        for value, other in pairs:
            self.shared[value], self._backwards[other] = other, value
        self._pair_twins(wanted)

    def _pair_twins(self, wanted: ir.Graph) -> None:
        """Of several nodes that compute the same, a simplifier keeps one: its values stand for those of the others."""
        alike: dict[tuple[object, ...], list[ir.Node]] = {}
        first: dict[ir.Value, ir.Value] = {}  # Of the values that are computed alike.
        for node in wanted:
            reads = tuple(
                first.get(value, value) for value in node.inputs if value is not None and find_constant(value) is None
            )
            known = alike.setdefault((node.op_type, node.domain, len(node.inputs), reads), [])
            twin = next((other for other in known if self._may_be_merged(node, other)), None) if reads else None
            if twin is None:
                known.append(node)
                continue
            for value, other in zip(node.outputs, twin.outputs, strict=False):
                first[value] = other
                if value in self.shared or other in self.shared:
                    kept = self.shared.get(value) or self.shared[other]
                    self.shared.setdefault(value, kept)
                    self.shared.setdefault(other, kept)

    def _may_be_merged(self, node: ir.Node, twin: ir.Node) -> bool:
        """True where one of two nodes that read the same values is gone, and their constants are equal."""
        if all(value in self.shared for value in (*node.outputs, *twin.outputs)) or not _same_attributes(node, twin):
            return False
        return not _has_bodies(node) and all(
            a is b or (a is not None and b is not None and (find_constant(a) is None or _equal_constants(a, b)))
            for a, b in zip(node.inputs, twin.inputs, strict=True)
        )

    def _outputs(self, wanted: ir.Graph, got: ir.Graph) -> dict[ir.Value, ir.Value]:
        """Outputs go by their position: two outputs that were swapped are two parts that differ."""
        if len(wanted.outputs) != len(got.outputs):
            raise VerifyError(f"{got.name or 'the result'} has another number of outputs; nothing was written.")
        return dict(zip(wanted.outputs, got.outputs, strict=True))

    def _compare_bodies(self, node: ir.Node, other: ir.Node | None, outer: Body | None) -> None:
        for name, attribute in node.attributes.items():
            bodies = subgraphs(attribute)
            there = subgraphs(other.attributes[name]) if other is not None and name in other.attributes else []
            if len(bodies) == len(there) and other is not None and node.op_type == other.op_type:
                for mine, its in zip(bodies, there, strict=True):
                    self.compare(mine, its, Body(node, name, mine, outer))

    def _made_alike(self, value: ir.Value | None, other: ir.Value | None) -> bool:
        """True where the same nodes make two values out of shared values and equal constants."""
        if value is None or other is None:
            return value is other
        key = (value, other)
        if key not in self._same:
            self._same[key] = _equal_constants(value, other) or self._same_producers(value, other)
        return self._same[key]

    def _same_producers(self, value: ir.Value, other: ir.Value) -> bool:
        node, its = value.producer(), other.producer()
        if node is None or its is None:
            return self.shared.get(value) is other
        alike = (node.op_type, node.domain, value.index()) == (its.op_type, its.domain, other.index())
        inputs, theirs = _inputs(node), _inputs(its)
        if _has_bodies(node) and not self._is_shared(value, other):
            return False  # Bodies are compared at shared values alone.
        return (
            alike
            and len(inputs) == len(theirs)
            and _same_attributes(node, its)
            and all(self._is_shared(a, b) or self._made_alike(a, b) for a, b in zip(inputs, theirs, strict=True))
        )

    def _is_shared(self, value: ir.Value | None, other: ir.Value | None) -> bool:
        return value is not None and self.shared.get(value) is other

    def _part(self, value: ir.Value, other: ir.Value, body: Body | None) -> Part:
        nodes, starts = nodes_between(self.shared.keys() - {value}, [value])
        its, theirs = nodes_between(self._backwards.keys() - {other}, [other])
        unknown = [start.name for start in theirs if start not in self._backwards]
        if unknown:
            raise VerifyError(f"the result reads {unknown[0]}, which the original does not have; nothing was written.")
        inputs = dict.fromkeys((*starts, *(self._backwards[start] for start in theirs)))
        pairs = tuple((start, self._backwards[start]) for start in theirs)
        return Part(value, other, frozenset(nodes), frozenset(its), tuple(inputs), pairs, body)


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, behind any Identity; None where several do, or none."""
    readers = value.consumers()
    while len(readers) == 1 and readers[0].op_type == "Identity":
        readers = readers[0].outputs[0].consumers()
    return readers[0] if len(readers) == 1 else None


def _holds_weights(node: ir.Node | None) -> bool:
    if node is None or node.op_type not in _WEIGHTED:
        return False
    return any(value is not None and _is_fixed(value) for value in node.inputs)


def _is_affine(node: ir.Node) -> bool:
    """True for a product or a sum of one value with constants."""
    fed = [value for value in node.inputs if value is not None and not _is_fixed(value)]
    return node.op_type in _AFFINE and not node.domain and len(fed) == 1


def _is_fixed(value: ir.Value) -> bool:
    """True for a constant, and for what some nodes make of nothing but constants."""
    pending, nodes = [value], 0
    while pending:
        read = pending.pop()
        node = read.producer()
        if node is None and not read.is_initializer():
            return False
        if node is not None:
            nodes += 1
            pending += [source for source in node.inputs if source is not None]
        if nodes > _MOST_FIXED:
            return False
    return True


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    """Without those left out at the end."""
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _same_attributes(node: ir.Node, other: ir.Node) -> bool:
    """Bodies are compared on their own; here they need only be there in both."""
    if node.attributes.keys() != other.attributes.keys():
        return False
    for name, attribute in node.attributes.items():
        mine, its = attribute, other.attributes[name]
        if mine.type != its.type or (not subgraphs(mine) and not _same_value(mine.value, its.value)):
            return False
    return True


def _same_value(value: object, other: object) -> bool:
    if isinstance(value, ir.TensorProtocol) and isinstance(other, ir.TensorProtocol):
        return np.array_equal(value.numpy(), other.numpy(), equal_nan=value.dtype.is_floating_point())
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(value) == len(other) and all(map(_same_value, value, other))
    return bool(value == other)


def _equal_constants(value: ir.Value, other: ir.Value) -> bool:
    left, right = find_constant(value), find_constant(other)
    if left is None or right is None or left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left.array().tobytes() == right.array().tobytes()


def _has_bodies(node: ir.Node) -> bool:
    return any(subgraphs(attribute) for attribute in node.attributes.values())
