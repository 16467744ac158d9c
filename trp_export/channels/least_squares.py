"""Channels that a layer can do without: the order in which they go, and the error that is left when it is refitted.

One layer reads the channels, and its weights for those that stay take over what the others did (least squares on the
moments of its input). Of all channels the one goes next that costs least, as in the Optimal Brain Surgeon.
Sources: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1992; He, Zhang and
Sun, "Channel pruning for accelerating very deep neural networks", 2017 (the refit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.calibration.moments import Moments
from trp_export.channels.analysis import Analysis
from trp_export.channels.blocks import block_of
from trp_export.channels.groups import Group
from trp_export.channels.labels import Ids
from trp_export.channels.steps import Mix
from trp_export.graph.bias import takes_bias
from trp_export.graph.sites import LocatedSite
from trp_export.lowrank.factor import Float64
from trp_export.lowrank.metric import channel_roots, weigh

# At least this share of the channels stays.
_STAYS = 0.3
# A larger input would take minutes.
_MOST_ENTRIES = 2400


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """The one layer that reads a group's channels: `positions[i]` of its input is the group's channel i.

    `cost` is what goes with each channel, in the layers that make it and in this one.
    """

    group: Group
    place: LocatedSite
    positions: Ids
    cost: float


@dataclass(frozen=True, slots=True, eq=False)
class Thinning:
    """What may go of a group: the first `counts[i]` channels of `order`, at `errors[i]` of the reader's output.

    Errors are squared, relative to the variance of the output. The first of the counts is 0.
    """

    reader: Reader
    order: tuple[int, ...]
    counts: tuple[int, ...]
    errors: Float64


def find_readers(
    analysis: Analysis,
    groups: Sequence[Group],
    located: Sequence[LocatedSite],
    moments: Mapping[str, Moments],
    costs: Mapping[str, float],
) -> tuple[Reader, ...]:
    """The groups whose channels one calibrated layer reads and nothing else does; `costs` are those of whole layers."""
    places = {node: place for place in located for node in place.nodes}
    mixes = [step for step in analysis.steps if isinstance(step, Mix)]
    summed = {int(root) for columns in analysis.columns for root in analysis.ties.roots(columns.ids)}
    readers = []
    for group in groups:
        own = group.channels.tolist()
        steps = [step for step in mixes if step.inputs is not None and _reads(analysis, step, own)]
        if group.reason is not None or len(steps) != 1 or not summed.isdisjoint(own):
            continue
        (step,) = steps
        place = places.get(step.node)
        roots = analysis.ties.roots(step.inputs).tolist() if step.inputs is not None else []
        at = [roots.index(channel) if roots.count(channel) == 1 else -1 for channel in own]
        blocked = any(analysis.ties.reason(channel) is not None for channel in own)
        if place is None or blocked or -1 in at or not _can_be_refitted(place, step, moments):
            continue
        cost = _cost_of_making(analysis, group, places, costs) + costs[place.site.name] / len(roots)
        readers.append(Reader(group, place, np.array(at), cost))
    return tuple(readers)


def find_thinning(reader: Reader, moments: Moments, judge: Moments) -> Thinning:
    """The order in which channels go, and the error at each count under the moments of `judge`."""
    kernel = np.asarray(reader.place.kernel(), dtype=np.float64)
    weighted = np.asarray(weigh(kernel, channel_roots(moments.owed)), dtype=np.float64)
    whole = np.asarray(weighted.reshape(len(kernel), -1), dtype=np.float64)
    entries = _entries(reader, kernel)
    inverse: Float64 = np.asarray(np.linalg.inv(moments.shrunk(centred=True)[0]), dtype=np.float64)
    under = judge.about(moments.mean)[0]
    variance = _spread(whole, under)
    left, weights = list(range(len(entries))), whole.copy()
    block, order, counts, errors = block_of(len(left), smallest=2), list[int](), [0], [0.0]
    while len(left) - block >= _STAYS * len(entries):
        for _ in range(block):
            index = left.pop(int(np.argmin(_costs(weights, inverse, entries[left]))))
            _eliminate(weights, inverse, entries[index])
            order.append(index)
        counts.append(len(order))
        errors.append(_spread(whole - weights, under) / variance if variance > 0 else 0.0)
    return Thinning(reader, tuple(order), tuple(counts), np.maximum.accumulate(np.array(errors)))


def refitted(reader: Reader, gone: Sequence[int], moments: Moments) -> tuple[Float64, Float64]:
    """The kernel that reads nothing of the group's channels `gone`, and the shift of the bias that keeps the mean."""
    kernel = np.asarray(reader.place.kernel(), dtype=np.float64)
    flat, second = kernel.reshape(len(kernel), -1), moments.shrunk(centred=True)[0]
    lost = _entries(reader, kernel)[list(gone)].ravel()
    kept = np.setdiff1d(np.arange(flat.shape[1]), lost)
    new = np.zeros_like(flat)
    new[:, kept] = np.linalg.solve(second[np.ix_(kept, kept)], second[kept] @ flat.T).T
    return new.reshape(kernel.shape), (flat - new) @ moments.mean[0]


def _reads(analysis: Analysis, step: Mix, channels: Sequence[int]) -> bool:
    return step.inputs is not None and not set(channels).isdisjoint(analysis.ties.roots(step.inputs).tolist())


def _can_be_refitted(place: LocatedSite, step: Mix, moments: Mapping[str, Moments]) -> bool:
    known = moments.get(place.site.name)
    alone = len(place.nodes) == 1 and step.group == 1 and place.site.refusal is None
    return known is not None and alone and takes_bias(place) and known.total.shape[1] <= _MOST_ENTRIES


def _cost_of_making(
    analysis: Analysis, group: Group, places: Mapping[ir.Node, LocatedSite], costs: Mapping[str, float]
) -> float:
    """What the layers that make one of the channels cost for it."""
    own = set(group.channels.tolist())
    made = {step.node: step.outputs for step in analysis.steps if isinstance(step, Mix)}
    made |= {rows.node: rows.ids for rows in analysis.rows if rows.node in places}
    return sum(
        costs[places[node].site.name] / len(ids)
        for node, ids in made.items()
        if node in places and not own.isdisjoint(analysis.ties.roots(ids).tolist())
    )


def _spread(weights: Float64, second: Float64) -> float:
    return float(np.einsum("nd,nd->", weights @ second, weights))


def _entries(reader: Reader, kernel: Float64) -> Ids:
    """The columns of the kernel as a matrix that read each channel: (channels, taps)."""
    taps = int(np.prod(kernel.shape[2:], initial=1))
    return np.asarray(reader.positions[:, None] * taps + np.arange(taps), dtype=np.int64)


def _costs(weights: Float64, inverse: Float64, entries: Ids) -> Float64:
    """What the output loses when the entries of each channel (m, taps) go and all others are refitted: (m,)."""
    if entries.shape[1] == 1:
        columns = entries[:, 0]
        return np.asarray((weights[:, columns] ** 2).sum(axis=0) / np.maximum(inverse[columns, columns], 1e-300))
    blocks = inverse[entries[:, :, None], entries[:, None, :]]
    parts = weights[:, entries].transpose(1, 2, 0)
    return np.asarray(np.einsum("mtn,mtn->m", np.linalg.solve(blocks, parts), parts))


def _eliminate(weights: Float64, inverse: Float64, entries: Ids) -> None:
    """Refit all other columns to make up for these, in place; the inverse becomes that of the others."""
    gain = np.linalg.solve(inverse[np.ix_(entries, entries)], inverse[entries])
    weights -= weights[:, entries] @ gain
    inverse -= inverse[:, entries] @ gain
    weights[:, entries] = 0
    inverse[entries, :] = inverse[:, entries] = 0
    inverse[entries, entries] = 1
