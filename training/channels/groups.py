"""Groups of channels that pass through the same values, and the plan of a network in which each keeps fewer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
import torch
from torch import Tensor, nn

from training.batch_norm import reestimate_batch_norm
from training.channels.clusters import ClusterMean, Labels
from training.channels.settings import Widths
from training.channels.ties import ZERO, Ties, find_ties
from training.layers import TorchLayer
from training.spectra import full_precision
from trp_export.errors import OptionError
from trp_export.rules import Macs

_STATISTICS = ("running_mean", "running_var")
_TENSORS = ("weight", "bias", *_STATISTICS)

# The label of a channel that goes, where channels are not merged.
REMOVED = -1


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels of which any may be merged, since all pass through the same values.

    `rows` holds, for each module that makes or scales them, the row of each channel. The channels of a residual sum are
    made by several layers; those of `pacesetter` decide which are similar. It is the layer that reads the earliest
    value: the stem, or the projection of a stage. `layers` are all that make the channels.
    """

    pacesetter: str
    layers: tuple[str, ...]
    rows: Mapping[str, tuple[int, ...]]
    channels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.channels)


@dataclass(frozen=True, slots=True)
class Merge:
    """A group and the cluster of each of its channels, or REMOVED. One channel of each cluster remains."""

    group: ChannelGroup
    labels: Labels

    @property
    def kept(self) -> int:
        return max(self.labels) + 1

    def clusters(self, layer: str) -> tuple[tuple[int, ...], ...]:
        """The filters of a layer by cluster."""
        rows = self.group.rows[layer]
        return tuple(
            tuple(row for row, label in zip(rows, self.labels, strict=True) if label == number)
            for number in range(self.kept)
        )


@dataclass(frozen=True, slots=True)
class ChannelPlan:
    """What is merged or removed, and why the other layers keep all their filters.

    `macs` are the multiply-adds of the thinner network for one input, `dense_macs` those of the network as it is.
    """

    merges: tuple[Merge, ...]
    kept: Mapping[str, str]
    macs: int
    dense_macs: int

    @property
    def ratio(self) -> float:
        return self.dense_macs / self.macs

    def lines(self) -> Iterator[str]:
        """For people: a line for each group and for each layer that keeps its filters."""
        for merge in self.merges:
            names = ", ".join(merge.group.layers)
            yield f"{merge.kept:4} of {len(merge.group):4} filters  {names}"
        for name, reason in self.kept.items():
            yield f"all filters of {name} stay: {reason}"


class ChannelCosts:
    """The multiply-adds of a network in which groups keep fewer channels.

    Those of a layer fall with the share of its filters that stay, and with the share of the channels that it reads.
    """

    def __init__(self, layers: Sequence[TorchLayer], ties: Ties, groups: Sequence[ChannelGroup]) -> None:
        group_of = {channel: index for index, group in enumerate(groups) for channel in group.channels}
        made = {rows.name: rows.channels for rows in ties.rows}
        self._sizes = np.array([len(group) for group in groups], np.float64)
        self._dense = np.array([layer.site.macs for layer in layers], np.float64)
        # For what each layer makes and reads: the channels of each group and, in the last column, those of none.
        self._sides = np.zeros((2, len(layers), len(groups) + 1))
        for index, layer in enumerate(layers):
            is_grouped = getattr(layer.module, "groups", 1) > 1
            sides = (made.get(layer.name, ()), () if is_grouped else ties.reads.get(layer.name, ()))
            for side, channels in enumerate(sides):
                for channel in channels or (ZERO,):
                    self._sides[side, index, group_of.get(channel, -1)] += 1
        self._sides /= self._sides.sum(2, keepdims=True)

    def macs(self, counts: Sequence[int]) -> int:
        """The multiply-adds with this many channels in each group."""
        made, read = self._sides @ np.append(np.asarray(counts) / self._sizes, 1.0)
        return int(np.rint(self._dense * made * read).sum())

    def expected(self, counts: Tensor) -> Tensor:
        """The same for numbers of channels that need not be whole, with gradients; `counts` is (groups,)."""
        sides, sizes, dense = (
            torch.as_tensor(array, dtype=counts.dtype, device=counts.device)
            for array in (self._sides, self._sizes, self._dense)
        )
        made, read = sides @ torch.cat([counts / sizes, counts.new_ones(1)])
        total: Tensor = (dense * made * read).sum()
        return total


def find_groups(
    model: nn.Module, input_shape: Sequence[int], wanted: Callable[[str], bool]
) -> tuple[Ties, tuple[ChannelGroup, ...], dict[str, str]]:
    """The ties of a network, its groups, and the layers that keep all their filters with the reason.

    A group takes part if `wanted` is true of all its layers. Raises OptionError where nothing can be merged.
    """
    ties = find_ties(model, input_shape)
    rows_of: dict[int, dict[str, list[int]]] = {}
    for rows in ties.rows:
        for row, channel in enumerate(rows.channels):
            rows_of.setdefault(channel, {}).setdefault(rows.name, []).append(row)
    modules = {rows.name: rows.module for rows in ties.rows}
    alike: dict[object, list[int]] = {}
    kept: dict[str, str] = {}
    for channel, own in rows_of.items():
        reason = ties.fixed.get(channel) or _refusal(own, modules, ties, wanted)
        if reason is None:
            alike.setdefault(frozenset(ties.places[channel].items()), []).append(channel)
        else:
            kept |= {name: reason for name in own if name in ties.positions and name not in kept}
    groups = tuple(_group(channels, rows_of, ties) for channels in alike.values() if len(channels) > 1)
    if not groups:
        name, reason = next(iter(kept.items()), ("the network", "it has no conv or Linear layer"))
        raise OptionError(
            f"no filters of this network can be merged: {name} keeps all of its filters, because {reason}."
        )
    return ties, groups, kept


def counts_of(rule: Macs | Widths, groups: Sequence[ChannelGroup], costs: ChannelCosts) -> tuple[int, ...]:
    """How many channels each group keeps: the same share of all.

    Under a budget it is the largest share that meets it. Raises OptionError where one channel in each group exceeds it.
    """
    if isinstance(rule, Widths):
        return _counts(groups, rule.fraction)
    most = budget_of(rule, groups, costs)
    shares = sorted({(count + 1) / len(group) for group in groups for count in range(len(group))})
    return _counts(groups, max(share for share in shares if costs.macs(_counts(groups, share)) <= most))


def budget_of(rule: Macs, groups: Sequence[ChannelGroup], costs: ChannelCosts) -> float:
    """The most multiply-adds that a budget allows. Raises OptionError where one channel in each group exceeds it."""
    dense, least = costs.macs([len(group) for group in groups]), costs.macs([1] * len(groups))
    if least * rule.ratio > dense:
        raise OptionError(
            f"--macs {rule.ratio:g} is out of reach: with one filter in each layer that can lose filters, the network "
            f"has {dense / least:.2f}x fewer multiply-adds."
        )
    return dense / rule.ratio


def equalise(model: nn.Module, plan: ChannelPlan, tensors: Iterable[str] = _TENSORS) -> None:
    """Put the mean of its cluster in the place of each filter, with its bias and the entries of its batch norms."""
    names = tuple(tensors)
    for merge in plan.merges:
        for tensor, index in _rows(model, merge.group, names):
            with full_precision(tensor.device):
                rows = tensor.detach()[index]
                tensor.detach()[index] = ClusterMean(merge.labels, tensor.device)(rows).to(tensor.dtype)


def equal_copy(model: nn.Module, plan: ChannelPlan, batches: Iterable[Tensor]) -> nn.Module:
    """A copy with equal filters in each cluster, its batch norm re-estimated on `batches` of inputs."""
    made = copy.deepcopy(model)
    equalise(made, plan)
    reestimate_batch_norm(made, batches)
    equalise(made, plan, _STATISTICS)  # Rounding may differ between channels of equal filters.
    return made


def _counts(groups: Sequence[ChannelGroup], share: float) -> tuple[int, ...]:
    return tuple(min(len(group), max(1, floor(share * len(group) + 1e-9))) for group in groups)


def _refusal(
    own: Mapping[str, Sequence[int]], modules: Mapping[str, nn.Module], ties: Ties, wanted: Callable[[str], bool]
) -> str | None:
    for name, rows in own.items():
        if len(rows) > 1:
            return "two of its filters are tied to each other"
        if not all(parameter.requires_grad for parameter in modules[name].parameters(recurse=False)):
            return f"{name} is frozen"
        if name in ties.positions and not wanted(name):
            return "it was left out" if len(own) == 1 else f"{name}, to which it is tied, was left out"
    return None if any(name in ties.positions for name in own) else "no layer makes it"


def _group(channels: Sequence[int], rows_of: Mapping[int, Mapping[str, list[int]]], ties: Ties) -> ChannelGroup:
    layers = tuple(name for name in rows_of[channels[0]] if name in ties.positions)
    pacesetter = min(layers, key=lambda name: ties.positions[name])
    ordered = sorted(channels, key=lambda channel: rows_of[channel][pacesetter][0])
    rows = {name: tuple(rows_of[channel][name][0] for channel in ordered) for name in rows_of[ordered[0]]}
    return ChannelGroup(pacesetter, layers, rows, tuple(ordered))


def _rows(model: nn.Module, group: ChannelGroup, names: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor with rows of the group's channels, and the indices of these rows."""
    for module_name, rows in group.rows.items():
        module = model.get_submodule(module_name)
        for name in names:
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor):
                yield tensor, torch.tensor(rows, device=tensor.device)
