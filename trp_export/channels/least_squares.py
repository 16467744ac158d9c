"""Channels that a layer can do without: the order in which they go, and the error that is left when it is refitted.

Where layers read the channels, their weights for those that stay take over what the others did (least squares on the
moments of their inputs). Of all channels the one goes next that costs least, as in the Optimal Brain Surgeon.
Sources: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", 1992; He, Zhang and
Sun, "Channel pruning for accelerating very deep neural networks", 2017 (the refit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.calibration.moments import Moments, varies
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
# So many entries are subtracted from an inverse at once: many products of one column each take far longer.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A layer that reads a group's channels: `positions[i]` of its input is the group's channel i."""

    place: LocatedSite
    positions: Ids

    @property
    def name(self) -> str:
        return self.place.site.name


@dataclass(frozen=True, slots=True, eq=False)
class Thinnable:
    """A group whose channels calibrated layers read, and nothing else.

    `cost` is what goes with each channel, in the layers that make it and in those that read it.
    """

    group: Group
    readers: tuple[Reader, ...]
    cost: float


@dataclass(frozen=True, slots=True, eq=False)
class Thinning:
    """What may go of a group: the first `counts[i]` channels of `order`, at `errors[r, i]` of reader r's output.

    Errors are squared, relative to the variance of the output. The first of the counts is 0.
    """

    of: Thinnable
    order: tuple[int, ...]
    counts: tuple[int, ...]
    errors: Float64


def find_thinnable(
    analysis: Analysis,
    groups: Sequence[Group],
    located: Sequence[LocatedSite],
    moments: Mapping[str, Moments],
    costs: Mapping[str, float],
) -> tuple[Thinnable, ...]:
    """The groups that can lose channels if what reads them is refitted; `costs` are those of whole layers."""
    places = {node: place for place in located for node in place.nodes}
    mixes = [step for step in analysis.steps if isinstance(step, Mix)]
    summed = {int(root) for columns in analysis.columns for root in analysis.ties.roots(columns.inputs)}
    found = []
    for group in groups:
        own = group.channels.tolist()
        steps = [step for step in mixes if _reads(analysis, step, own)]
        blocked = any(analysis.ties.reason(channel) is not None for channel in own)
        if group.reason is not None or blocked or not summed.isdisjoint(own):
            continue
        readers = [_reader(analysis, own, step, places.get(step.node), moments) for step in steps]
        known = tuple(reader for reader in readers if reader is not None)
        if known and len(known) == len(readers):
            read = sum(costs[one.name] / one.place.site.kernel_shape[1] for one in known)
            found.append(Thinnable(group, known, _cost_of_making(analysis, group, places, costs) + read))
    return tuple(found)


def find_thinning(
    thinnable: Thinnable, moments: Mapping[str, Moments], judge: Mapping[str, Moments], weights: Mapping[str, float]
) -> Thinning:
    """The order in which channels go, and the error of each reader at each count under the moments of `judge`.

    `weights` say what an error of each reader's output costs.
    """
    fits = [_Fit.of(reader, moments[reader.name]) for reader in thinnable.readers]
    unders = [judge[reader.name].about(moments[reader.name].mean)[0] for reader in thinnable.readers]
    whole = np.array([_spread(fit.whole, under) for fit, under in zip(fits, unders, strict=True)])
    shares = [weights[reader.name] for reader in thinnable.readers]
    total = len(thinnable.group.channels)
    left = list(range(total))
    block, order, counts, errors = block_of(total, smallest=2), list[int](), [0], [np.zeros(len(fits))]
    while len(left) - block >= _STAYS * total:
        for _ in range(block):
            costs = sum(share * fit.costs(left) for share, fit in zip(shares, fits, strict=True))
            index = left.pop(int(np.argmin(costs)))
            for fit in fits:
                fit.eliminate(index)
            order.append(index)
        counts.append(len(order))
        lost = np.array([_spread(fit.whole - fit.weights, under) for fit, under in zip(fits, unders, strict=True)])
        errors.append(np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0))
    return Thinning(thinnable, tuple(order), tuple(counts), np.maximum.accumulate(np.array(errors)).T)


def refitted(place: LocatedSite, gone: Sequence[int], moments: Moments) -> tuple[Float64, Float64]:
    """The kernel that reads nothing of its input channels `gone`, and the shift of the bias that keeps the mean."""
    kernel = np.asarray(place.kernel(), dtype=np.float64)
    flat, second = kernel.reshape(len(kernel), -1), moments.shrunk(centred=True)[0]
    lost = _entries(np.asarray(gone, dtype=np.int64), kernel).ravel()
    kept = np.setdiff1d(np.arange(flat.shape[1]), lost)
    new = np.zeros_like(flat)
    new[:, kept] = np.linalg.solve(second[np.ix_(kept, kept)], second[kept] @ flat.T).T
    return new.reshape(kernel.shape), (flat - new) @ moments.mean[0]


@dataclass(slots=True, eq=False)
class _Inverse:
    """The inverse (d, d) of the second moments of the entries that are left; what it holds of others is not read.

    It is `whole` less the product of `before` (d, k) and `gains` (k, d), which is subtracted for many entries at once.
    """

    whole: Float64
    before: Float64
    gains: Float64

    @classmethod
    def of(cls, second: Float64) -> _Inverse:
        size = len(second)
        return cls(np.asarray(np.linalg.inv(second), dtype=np.float64), np.zeros((size, 0)), np.zeros((0, size)))

    def blocks(self, entries: Ids) -> Float64:
        """Of each row of entries (m, t) its block: (m, t, t)."""
        pending = self.before[entries] @ self.gains[:, entries].transpose(1, 0, 2)
        return np.asarray(self.whole[entries[:, :, None], entries[:, None, :]] - pending)

    def eliminate(self, entries: Ids) -> Float64:
        """Take entries (t,) out. Returns how much of them each of the others takes over: (t, d)."""
        columns = self.whole[:, entries] - self.before @ self.gains[:, entries]
        gain = np.asarray(np.linalg.solve(columns[entries], columns.T), dtype=np.float64)
        self.before, self.gains = np.hstack([self.before, columns]), np.vstack([self.gains, gain])
        if len(self.gains) >= _AT_ONCE:
            self._subtract()
        return gain

    def _subtract(self) -> None:
        self.whole -= self.before @ self.gains
        self.before, self.gains = self.before[:, :0], self.gains[:0]


@dataclass(slots=True, eq=False)
class _Fit:
    """The refit of one reader while channels go: its weights, and the inverse second moment of what is left.

    The i-th channel of the group is read by the columns `entries[i]`.
    """

    whole: Float64
    weights: Float64
    inverse: _Inverse
    entries: Ids
    variance: float

    @classmethod
    def of(cls, reader: Reader, moments: Moments) -> _Fit:
        kernel = np.asarray(reader.place.kernel(), dtype=np.float64)
        weighted = np.asarray(weigh(kernel, channel_roots(moments.owed)), dtype=np.float64)
        whole = np.asarray(weighted.reshape(len(kernel), -1), dtype=np.float64)
        second = moments.shrunk(centred=True)[0]
        return cls(whole, whole.copy(), _Inverse.of(second), _entries(reader.positions, kernel), _spread(whole, second))

    def costs(self, channels: Sequence[int]) -> Float64:
        """What the output loses, as a share of its variance, when each of the channels goes: (m,)."""
        lost = _costs(self.weights, self.inverse, self.entries[channels])
        return lost / self.variance if self.variance > 0 else lost

    def eliminate(self, channel: int) -> None:
        entries = self.entries[channel]
        self.weights -= self.weights[:, entries] @ self.inverse.eliminate(entries)
        self.weights[:, entries] = 0


def _reader(
    analysis: Analysis,
    channels: Sequence[int],
    step: Mix,
    place: LocatedSite | None,
    moments: Mapping[str, Moments],
) -> Reader | None:
    """None for a layer that cannot be refitted, or that does not read each of the channels once."""
    roots = analysis.ties.roots(step.inputs).tolist() if step.inputs is not None else []
    if place is None or any(roots.count(channel) != 1 for channel in channels):
        return None
    if not _can_be_refitted(place, step, moments):
        return None
    return Reader(place, np.array([roots.index(channel) for channel in channels]))


def _reads(analysis: Analysis, step: Mix, channels: Sequence[int]) -> bool:
    return step.inputs is not None and not set(channels).isdisjoint(analysis.ties.roots(step.inputs).tolist())


def _can_be_refitted(place: LocatedSite, step: Mix, moments: Mapping[str, Moments]) -> bool:
    known = moments.get(place.site.name)
    alone = len(place.nodes) == 1 and step.group == 1 and place.site.refusal is None
    fits = known is not None and varies(known) and known.total.shape[1] <= _MOST_ENTRIES
    return fits and alone and takes_bias(place)


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


def _entries(channels: Ids, kernel: Float64) -> Ids:
    """The columns of the kernel as a matrix that read each input channel: (channels, taps)."""
    taps = int(np.prod(kernel.shape[2:], initial=1))
    return np.asarray(channels[:, None] * taps + np.arange(taps), dtype=np.int64)


def _costs(weights: Float64, inverse: _Inverse, entries: Ids) -> Float64:
    """What the output loses when the entries of each channel (m, taps) go and all others are refitted: (m,)."""
    blocks = inverse.blocks(entries)
    if entries.shape[1] == 1:
        squares = np.einsum("nd,nd->d", weights, weights)[entries[:, 0]]
        return np.asarray(squares / np.maximum(blocks[:, 0, 0], 1e-300))
    parts = weights[:, entries].transpose(1, 2, 0)
    return np.asarray(np.einsum("mtn,mtn->m", np.linalg.solve(blocks, parts), parts))
