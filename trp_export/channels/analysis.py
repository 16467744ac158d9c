"""Follow channels through a graph: what makes them, what they are tied to, what reads them, and which must stay.

One pass over the nodes in order. Each operator has a rule (see `RULES`); a node that no rule understands makes the
channels that it reads stay, with the reason. Nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trp_export.channels.labels import Ids, Labels, Ties
from trp_export.channels.steps import Balance, Columns, Each, Mix, Rows, Setting, Source, Step
from trp_export.graph.shapes import Shape
from trp_export.graph.weights import DEFAULT_DOMAINS, Constant, find_constant, is_shown
from trp_export.runtime.partial import subgraphs


class NotUnderstoodError(Exception):
    """The channels that a node reads must stay; the message says why."""


@dataclass(slots=True, eq=False)
class Analysis:
    """What is known of the channels of a model: filled by the rules, node by node, in the order of the graph.

    `shapes` are those of values, by name. `labels` are the channels of each value that has any.
    """

    model: ir.Model
    shapes: Mapping[str, Shape]
    ties: Ties = field(default_factory=Ties)
    labels: dict[ir.Value, Labels] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    columns: list[Columns] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    skipped: set[ir.Node] = field(default_factory=set)
    # Where the number of channels is read, and the inputs that are known to follow it.
    counted: list[tuple[ir.Node, Labels, int, int]] = field(default_factory=list)
    follows: set[tuple[ir.Node, int]] = field(default_factory=set)

    @property
    def layers(self) -> list[Mix | Columns]:
        """What mixes channels by a weight."""
        return [*(step for step in self.steps if isinstance(step, Mix)), *self.columns]

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The shape of a value, None where its rank is unknown."""
        return self.shapes.get(value.name or "") if value is not None else None

    def known_shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The shape of a value. Raises NotUnderstoodError where it is not known in full."""
        shape = self.shape(value)
        if shape is None or None in shape:
            raise NotUnderstoodError("its shape is unknown")
        return tuple(size or 0 for size in shape)

    def tracked(self, value: ir.Value | None) -> Labels | None:
        """The channels of a value, None where it has none that are known."""
        return self.labels.get(value) if value is not None else None

    def require(self, value: ir.Value | None) -> tuple[ir.Value, Labels]:
        """A value and its channels. Raises NotUnderstoodError where they are unknown."""
        labels = self.tracked(value)
        if value is None or labels is None:
            raise NotUnderstoodError("it is computed from channels that are unknown")
        return value, labels

    def add_rows(self, node: ir.Node, constant: Constant, axis: int, ids: Ids) -> Rows:
        rows = Rows(node, constant, axis, ids)
        self.rows.append(rows)
        return rows

    def pass_on(
        self,
        node: ir.Node,
        labels: Labels,
        sources: tuple[Source, ...],
        parameters: tuple[tuple[Rows, Ids], ...] = (),
        *,
        output: int = 0,
        tags: Ids | None = None,
        moves: bool = False,
    ) -> None:
        """Give an output of a node channels, each computed from one channel of every source."""
        value = node.outputs[output]
        self.labels[value] = labels
        self.steps.append(Each(node, value, sources, parameters, tags, moves))

    def follow(self, node: ir.Node, *, axis: int | None = None, rank: int | None = None) -> None:
        """The output has the channels of the first input, perhaps on another axis."""
        value, labels = self.require(node.inputs[0])
        moved = Labels(rank or labels.rank, labels.axis if axis is None else axis, labels.ids)
        self.pass_on(node, moved, (whole(value, labels),))


Rule = Callable[[Analysis, ir.Node], None]


def whole(value: ir.Value, labels: Labels) -> Source:
    """All channels of a value in their order."""
    return Source(value, np.arange(len(labels.ids)))


def zeros(count: int) -> Source:
    """Channels of zeros that the graph itself makes."""
    return Source(None, np.zeros(count, np.int64))


def analyse_channels(model: ir.Model, shapes: Mapping[str, Shape]) -> Analysis:
    """The channels of a model in normal form; `shapes` of its values, by name."""
    from trp_export.channels.counts import judge_counts
    from trp_export.channels.rules import RULES

    analysis = Analysis(model, shapes)
    for node in model.graph:
        if node not in analysis.skipped:
            _apply(analysis, node, RULES)
    for output in model.graph.outputs:
        labels = analysis.tracked(output)
        if labels is not None:
            analysis.ties.block(labels.ids, "an output of the model")
    _tie_shared_weights(analysis)
    judge_counts(analysis)
    return analysis


def _apply(analysis: Analysis, node: ir.Node, rules: Mapping[str, Rule]) -> None:
    rule = rules.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
    bodies = [body for attribute in node.attributes.values() for body in subgraphs(attribute)]
    read = [*node.inputs, *(value for body in bodies for inner in body.all_nodes() for value in inner.inputs)]
    read += [value for body in bodies for value in body.outputs]
    try:
        followed, reason = _followed(analysis, node, rule), "it may mix channels"
    except NotUnderstoodError as error:
        followed, reason = set[ir.Value](), str(error)
        for output in node.outputs:
            analysis.labels.pop(output, None)
    for value in read:
        labels = analysis.tracked(value)
        if labels is not None and value not in followed:
            analysis.ties.block(labels.ids, f"{node.op_type} {node.name} reads it: {reason}")


def _followed(analysis: Analysis, node: ir.Node, rule: Rule | None) -> set[ir.Value]:
    """Apply a rule. Returns the values whose channels it follows: it may know only some of the inputs."""
    if rule is None:
        return set()
    steps, columns = len(analysis.steps), len(analysis.columns)
    rule(analysis, node)
    values: list[ir.Value | None] = [each.data for each in analysis.columns[columns:]]
    for step in analysis.steps[steps:]:
        values += [step.data] if isinstance(step, Mix) else [source.value for source in step.sources]
    if node.op_type == "Shape":  # What reads the number of channels is judged when all nodes are known.
        values += node.inputs
    return {value for value in values if value is not None}


def _tie_shared_weights(analysis: Analysis) -> None:
    """Layers with one weight read and make the same channels; a weight that anything else reads stays."""
    sharing: dict[ir.Value, list[Mix | Columns]] = {}
    for layer in analysis.layers:
        sharing.setdefault(layer.weight.root, []).append(layer)
    for root, layers in sharing.items():
        first, *others = layers
        alike = all((one.kind, one.inputs is None) == (first.kind, first.inputs is None) for one in others)
        stays = not alike or _count_readers(root) != len(layers) or is_shown(root)
        for one in layers:
            for ids, tied in ((one.outputs, first.outputs), (one.inputs, first.inputs)):
                if ids is None or tied is None:
                    continue
                if stays:
                    analysis.ties.block(ids, "its weight is read elsewhere, too")
                else:
                    analysis.ties.tie(tied, ids)


def _count_readers(value: ir.Value) -> int:
    """The nodes that read a constant, through Identity and Transpose."""
    count = 0
    for node, _ in value.uses():
        seen_through = node.op_type in ("Identity", "Transpose") and find_constant(node.outputs[0]) is not None
        count += _count_readers(node.outputs[0]) if seen_through else 1
    return count
