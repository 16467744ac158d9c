"""Remove channels from a model, exactly: their filters go, and what reads them is given less to read.

Of a cluster of equal channels one stays, and each layer that reads it adds its weights for the others to those for
this one. What is always zero, or multiplied by zero, is left out; what is another constant goes into the bias of its
readers. No choices are made here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.channels.analysis import Analysis
from trp_export.channels.equal import number_channels, takes_constants
from trp_export.channels.groups import Group
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Columns, Kept, Mix, Rows
from trp_export.errors import OptionError
from trp_export.graph.exact.affine import Term, set_bias
from trp_export.graph.weights import add_initializer, find_bias, find_constant, is_shown, set_value
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.schemes import Array
from trp_export.planning.channels import ChannelDecision


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A value with fewer channels than before: those at `positions` of `axis` are left."""

    axis: int
    positions: tuple[int, ...]


def removed_channels(groups: Sequence[Group], decisions: Sequence[ChannelDecision]) -> dict[int, int | None]:
    """The channels that go, with the channel that each is merged into, None for those that are dropped.

    Raises OptionError where a decision names a group that the network lacks, or one of another size.
    """
    by_name = {group.name: group for group in groups}
    gone: dict[int, int | None] = {}
    for decision in decisions:
        group = by_name.get(decision.name)
        if group is None or len(group.channels) != decision.channels:
            has = "no channel group" if group is None else f"{len(group.channels)} channels in the group"
            raise OptionError(
                f"the plan names {decision.channels} channels of {decision.name}, but the network has {has} of that "
                "name. Use the plan with the network that it was made for."
            )
        channels = group.channels.tolist()
        for cluster in decision.clusters:
            gone.update(dict.fromkeys((channels[other] for other in cluster.merged), channels[cluster.kept]))
        gone.update(dict.fromkeys(channels[channel] for channel in decision.dropped))
    return gone


def remove_channels(analysis: Analysis, gone: Mapping[int, int | None]) -> dict[str, Narrowed]:
    """Remove channels from the model of the analysis, in place. Returns the values that have fewer of them, by name."""
    removal = _Removal(analysis, gone)
    offsets = removal.offsets()
    for step in {step.weight.root: step for step in analysis.steps if isinstance(step, Mix)}.values():
        removal.cut_kernel(step)
    for columns in {columns.weight.root: columns for columns in analysis.columns}.values():
        removal.cut_columns(columns)
    for rows in analysis.rows:
        removal.cut_rows(rows)
    for step, offset in offsets:
        _add_to_bias(step, offset)
    for setting in analysis.settings:
        kept = removal.kept(setting.ids)
        if not kept.all():
            setting.apply(kept)
    return removal.forget_shapes()


class _Removal:
    def __init__(self, analysis: Analysis, gone: Mapping[int, int | None]) -> None:
        self._analysis = analysis
        self._gone = gone

    def kept(self, ids: Ids) -> Kept:
        return np.array([self._analysis.ties.find(channel) not in self._gone for channel in ids.tolist()], dtype=bool)

    def offsets(self) -> list[tuple[Mix, Float64]]:
        """What layers make of the constant channels that go, for each filter that stays."""
        if None not in self._gone.values():
            return []
        numbers = number_channels(self._analysis)
        offsets = []
        for step in self._analysis.steps:
            if isinstance(step, Mix) and step.data is not None and step.inputs is not None and takes_constants(step):
                roots = self._analysis.ties.roots(step.inputs).tolist()
                dropped = np.array([self._gone.get(channel, channel) is None for channel in roots])
                values = np.where(dropped, numbers.values(numbers.of_values[step.data]), 0.0)
                # Filters that have no part in a channel ignore it, whatever it is.
                if np.nan_to_num(values).any():
                    sums = step.kernel().astype(np.float64).sum(3)
                    each = sums @ np.nan_to_num(values).reshape(step.group, -1, 1)
                    offsets.append((step, step.alpha * each.reshape(-1)[self.kept(step.outputs)]))
        return offsets

    def cut_kernel(self, step: Mix) -> None:
        """Leave out filters, and add up the columns of equal inputs."""
        rows = self.kept(step.outputs)
        columns = self.kept(step.inputs) if step.inputs is not None else np.ones(0, dtype=bool)
        if rows.all() and columns.all():
            return
        kernel = step.kernel()
        group = step.group
        parts = np.split(rows, group)
        blocks: list[Array] = list(kernel)
        if step.inputs is not None and not columns.all():
            inputs = np.split(self._analysis.ties.roots(step.inputs), group)
            blocks = [self._added(block, read, axis=1) for block, read in zip(kernel, inputs, strict=True)]
        thin = np.stack([block[part] for block, part in zip(blocks, parts, strict=True)])
        set_value(step.weight.root, step.as_stored(thin))

    def _added(self, array: Array, channels: Ids, axis: int) -> Array:
        """The array with the entries of merged channels added to those of the channel that stays, others left out."""
        wide = np.moveaxis(array, axis, 0)
        exact = wide.astype(np.float64)
        places = _places(channels)
        for channel, positions in places.items():
            other = self._gone.get(channel)
            if other is not None:
                exact[places[other]] += wide[positions]
        kept = np.array([channel not in self._gone for channel in channels.tolist()], dtype=bool)
        return np.asarray(np.moveaxis(exact[kept], 0, axis), array.dtype)

    def cut_columns(self, columns: Columns) -> None:
        channels = self._analysis.ties.roots(columns.inputs)
        if not self.kept(columns.inputs).all():
            array = self._added(columns.weight.array(), channels, columns.axis)
            set_value(columns.weight.root, columns.weight.as_stored(array))

    def cut_rows(self, rows: Rows) -> None:
        """Shorten a constant; where others read it, too, the node gets its own: they may keep other channels."""
        kept = self.kept(rows.ids)
        if kept.all():
            return
        root = rows.constant.root
        array = np.compress(kept, rows.constant.array(), axis=rows.axis)
        if root in rows.node.inputs and len(root.uses()) == 1 and not is_shown(root):
            set_value(root, array)
            return
        for index, value in enumerate(rows.node.inputs):
            constant = find_constant(value)
            if constant is not None and constant.root is root and constant.shape == rows.constant.shape:
                own = add_initializer(
                    self._analysis.model.graph, root.name or rows.node.name or "", array, rows.constant.dtype
                )
                rows.node.replace_input_with(index, own)

    def forget_shapes(self) -> dict[str, Narrowed]:
        """Remove the declared shapes of values that have fewer channels now, and name these values."""
        narrowed = {}
        for value, labels in self._analysis.labels.items():
            kept = self.kept(labels.ids)
            if not kept.all():
                value.shape = None
                narrowed[value.name or ""] = Narrowed(labels.axis, tuple(np.flatnonzero(kept).tolist()))
        for node in self._analysis.model.graph:
            if find_constant(node.outputs[0]) is not None:
                node.outputs[0].shape = None
        return narrowed


def _add_to_bias(step: Mix, offset: Float64) -> None:
    bias = find_bias(step.node)
    assert bias is not None, "a layer whose bias is not known takes no constants"
    set_bias(Term(step.node, step.weight, bias), bias + offset)


def _places(channels: Ids) -> dict[int, list[int]]:
    places: dict[int, list[int]] = defaultdict(list)
    for place, channel in enumerate(channels.tolist()):
        places[channel].append(place)
    return places
