"""How far the answers of a network are from those of the original, without labels.

One measure serves sensitivities, the choice among factors, tuning, int8 and the report. Every answer counts alike. What
it is made of follows from what the network does with the answer:

- values: of every channel the mean squared error in units of the channel's own variance;
- classes, where a softmax follows: squared error in units of the variance over the classes, less what all classes have
  in common. Networks are all but certain on images that they were trained on, where a divergence of probabilities sees
  only the few doubtful images;
- probabilities, where a sigmoid follows: (sigmoid(a) - sigmoid(b)) (a - b), the symmetric Kullback-Leibler divergence,
  in units of that between a and its mean. A score that stays close to zero may move freely there.

Where other answers over the same positions hold probabilities, as in a detector, a position counts as much as its
largest probability: what a detector says of a place where it sees nothing is never read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.runtime.blocks import in_blocks

Array = NDArray[Any]
Float64 = NDArray[np.float64]
Outputs = Mapping[str, Array]

# A channel that varies less than this, as a share of the variance of the liveliest channel, does not vary.
_STILL = 1e-7
# The entries of one vector per image are taken for classes where there are so many, their variances are within this
# ratio, and what they have in common is at most this share of their variance, and at most so many times that of
# independent entries: a softmax teaches nothing about it. Coordinates move together.
_LEAST_CLASSES = 5
_ALIKE = 100.0
_IN_COMMON = 4.0
_MOST_IN_COMMON = 0.25
# What a position counts at the least.
_LEAST_RELEVANCE = 1e-3


class Kind(Enum):
    """What a network does with an answer."""

    VALUES = "values"
    CLASSES = "classes"
    PROBABILITIES = "probabilities"


Kinds = Mapping[str, Kind]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The divergence of a network on held-out images, with its standard error over images.

    `least` is that of the group of images on which it is least.
    """

    images: int
    divergence: float
    error: float
    least: float


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """The measure of one answer: the divergence is the sum of `weights` times what `kind` says, over the image.

    `scale` (1, C, 1...) belongs to a set of images, and `relevance` (n, 1, *) to the images that are compared.
    """

    kind: Kind
    scale: Array
    relevance: Array

    @property
    def weights(self) -> Array:
        """(n, C, *), or a shape that broadcasts to it."""
        return self.scale * self.relevance

    @property
    def centred(self) -> bool:
        """True where an error that all channels share costs nothing."""
        return self.kind is Kind.CLASSES

    def shares(self, original: Array, other: Array) -> Float64:
        """What each image adds: (n,). Infinite where values are not finite."""
        a, b = _as_channels(original), _as_channels(other)
        if a.shape != b.shape or not np.isfinite(b).all() or not np.isfinite(self.scale).all():
            return np.full(max(len(a), 1), np.inf)
        shares = [np.zeros(0)]
        # Probabilities are many, and bounded: products of them need no double precision.
        precision = np.float32 if self.kind is Kind.PROBABILITIES else np.float64
        for one, two, relevance in in_blocks(a, b, self.relevance, dtype=precision):
            apart = _apart(one, two, self.kind)
            apart *= relevance
            apart *= self.scale
            shares.append(apart.reshape(len(one), -1).sum(axis=1, dtype=np.float64))
        return np.concatenate(shares)

    def curvature(self, original: Array) -> Float64:
        """Of each entry the factor of its squared error, for small errors."""
        if self.kind is not Kind.PROBABILITIES:
            return np.broadcast_to(np.asarray(self.weights, dtype=np.float64), _as_channels(original).shape)
        p = _sigmoid(original.astype(np.float64))
        return np.asarray(self.weights * p * (1 - p))


def yardsticks(original: Outputs, kinds: Kinds | None = None) -> dict[str, Yardstick]:
    """The yardstick of each answer (n, C, *) of the original. An answer without a kind holds values.

    A few images say little about variances: take all that there are, and `for_images` for a part of them.
    """
    found = {
        name: Kind.CLASSES if kind is Kind.VALUES and _like_classes(original[name]) else kind
        for name, kind in {**dict.fromkeys(original, Kind.VALUES), **(kinds or {})}.items()
        if name in original
    }
    relevance = _relevances(original, found)
    return {
        name: Yardstick(kind, _scale_of(kind, _as_channels(original[name]), relevance[name]), relevance[name])
        for name, kind in found.items()
    }


def for_images(sticks: Mapping[str, Yardstick], original: Outputs) -> dict[str, Yardstick]:
    """The same yardsticks for other images, whose answers (n, C, *) by the original are given."""
    relevance = _relevances(original, {name: stick.kind for name, stick in sticks.items()})
    moved = {}
    for name, stick in sticks.items():
        # Where images differ in size, the whole set's positions stand in one axis.
        scale = stick.scale.reshape(*stick.scale.shape[:2], *[1] * (relevance[name].ndim - 2))
        moved[name] = replace(stick, scale=scale, relevance=relevance[name])
    return moved


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The answers (n, C, *) of the original, which others are measured against, and the yardsticks of each group.

    Images of each of the `groups` (n,) are measured in their own units.
    """

    original: Outputs
    sticks: Mapping[int, Mapping[str, Yardstick]]
    groups: NDArray[np.intp] | None = None

    @classmethod
    def of(cls, original: Outputs, kinds: Kinds | None = None, groups: NDArray[np.intp] | None = None) -> Reference:
        """An answer without a kind holds values. Groups (n,) count where the rows of all answers are images."""
        original = _with_rows(original)
        if groups is None or any(len(array) != len(groups) for array in original.values()):
            return cls(original, {0: yardsticks(original, kinds)})
        sticks = {group: yardsticks(_some(original, groups == group), kinds) for group in np.unique(groups).tolist()}
        return cls(original, sticks, groups)

    def divergence(self, other: Outputs) -> float:
        """The mean divergence of the answers over images; infinite where values are not finite."""
        return float(self.of_images(other).mean())

    def of_images(self, other: Outputs) -> Float64:
        """What each image adds to the divergence, which is the mean of them: (n,).

        One number where the rows of an answer are not images.
        """
        other = _with_rows(other)
        if self.groups is None:
            return mean_shares(self.sticks[0], self.original, other)
        result = np.empty(len(self.groups))
        for group, sticks in self.sticks.items():
            rows = self.groups == group
            result[rows] = mean_shares(sticks, _some(self.original, rows), _some(other, rows))
        return result


def divergence(original: Outputs, other: Outputs, kinds: Kinds | None = None) -> float:
    """The mean divergence of the answers; infinite where values are not finite. Arrays are (n, C, *)."""
    return Reference.of(original, kinds).divergence(other)


def agreement(original: Outputs, other: Outputs) -> float:
    """Share of the images, or of their positions, at which the first output (n, C, *) has the same largest entry."""
    name = next(iter(original))
    a, b = original[name], other[name]
    return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))


def _some(outputs: Outputs, rows: NDArray[np.bool_]) -> Outputs:
    return {name: array[rows] if len(array) == len(rows) else array for name, array in outputs.items()}


def mean_shares(sticks: Mapping[str, Yardstick], original: Outputs, other: Outputs) -> Float64:
    """The mean over answers of what each image adds, (n,); over images, too, where answers differ in rows."""
    shares = [stick.shares(original[name], other[name]) for name, stick in sticks.items()]
    if shares and len(shares[0]) and len({len(share) for share in shares}) == 1:
        return np.asarray(np.mean(shares, axis=0))
    return np.array([np.mean([share.mean() if len(share) else 0.0 for share in shares]) if shares else 0.0])


def _with_rows(outputs: Outputs) -> Outputs:
    """A single number is one row."""
    return {name: np.atleast_1d(array) for name, array in outputs.items()}


def _as_channels(array: Array) -> Array:
    return array if array.ndim >= 2 else array.reshape(-1, 1)


def is_vector(array: Array) -> bool:
    """True for an answer (n, C, *) or (n,) of one vector for each image."""
    return prod(array.shape[2:]) == 1


def _like_classes(array: Array) -> bool:
    """True for one vector of like entries per image, as scores of classes are, and landmarks are not."""
    if array.ndim < 2 or array.shape[1] < _LEAST_CLASSES or not array.size or not is_vector(array):
        return False
    rows = array.astype(np.float64).reshape(len(array), -1)
    variance = rows.var(axis=0)
    alike = bool(variance.max() <= _ALIKE * variance.min())
    return alike and share_in_common(rows) <= min(_MOST_IN_COMMON, _IN_COMMON / rows.shape[1])


def share_in_common(rows: Array) -> float:
    """Which share of the variance of vectors (n, C) all entries have in common: 1 / C of independent entries."""
    variance = float(rows.var(axis=0).mean())
    return float(rows.mean(axis=1).var()) / variance if variance > 0 else 0.0


def _apart(a: Array, b: Array, kind: Kind) -> Array:
    lost = a - b
    if kind is Kind.PROBABILITIES:
        more = _sigmoid(a)
        more -= _sigmoid(b)
        lost *= more
        return lost
    if kind is Kind.CLASSES:
        lost -= lost.mean(axis=1, keepdims=True)
    lost *= lost
    return lost


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) in single precision, in one array: large answers are compared for every layer."""
    p = np.negative(x, dtype=np.float32, casting="same_kind")
    with np.errstate(over="ignore"):
        np.exp(p, out=p)
    p += 1
    return np.reciprocal(p, out=p)


def channel_units(variance: Float64) -> Float64:
    """In which units the squared error of each channel counts: its variance; the largest for one that hardly varies."""
    largest = float(variance.max(initial=0.0))
    return np.where(variance > _STILL * largest, variance, largest)


def _scale(a: Array, relevance: Float64) -> Array:
    """Such that an error as large as the channel's spread, at all positions by their relevance, counts 1."""
    # About any value of the channel: nothing cancels, and a channel that never changes has no variance at all.
    point = a[:1].reshape(1, a.shape[1], -1)[..., :1].astype(np.float64).reshape(1, -1, *(1,) * (a.ndim - 2))
    total, sums, squares = relevance.sum(), np.zeros(a.shape[1]), np.zeros(a.shape[1])
    for block, weights in in_blocks(a, relevance):
        apart = block - point
        weighted = weights * apart
        sums += _by_channel(weighted)
        weighted *= apart
        squares += _by_channel(weighted)
    mean = sums / total
    variance = np.maximum(squares / total - mean**2, 0.0).reshape(point.shape)
    # Where nothing varies, any change is one in full.
    units = channel_units(variance) if variance.max(initial=0.0) > 0 else float(np.square(point).mean()) or 1.0
    return np.asarray(np.ones(variance.shape) * len(a) / (total * units * a.shape[1]))


def _by_channel(block: Float64) -> Float64:
    """Sums over images and positions: (C,)."""
    return np.asarray(block.reshape(*block.shape[:2], -1).sum(axis=(0, 2)))


def _scale_of_classes(a: Array, relevance: Float64) -> Array:
    """One over the squared distance of the logits from their mean."""
    lost = sum(float(np.square(one - one.mean(axis=1, keepdims=True)).sum()) for (one,) in in_blocks(a))
    spread = lost / max(len(a), 1)
    return np.full((1,) * a.ndim, 1.0 / spread if spread > 0 else 1.0)


def _scale_of_scores(a: Array, relevance: Float64) -> Array:
    """One over the divergence of the scores from the mean score of each channel."""
    middle = sum(_by_channel(weights * one) for one, weights in in_blocks(a, relevance)) / relevance.sum()
    middle = np.reshape(middle, (1, a.shape[1], *(1,) * (a.ndim - 2)))
    lost = sum(
        float((weights * _apart(one, np.broadcast_to(middle, one.shape), Kind.PROBABILITIES)).sum())
        for one, weights in in_blocks(a, relevance)
    )
    spread = lost / max(len(a), 1)
    return np.full((1,) * a.ndim, 1.0 / spread if spread > 0 else 1.0)


def _scale_of(kind: Kind, a: Array, relevance: Float64) -> Array:
    """NaN where the answer is not finite: nothing can be measured with it."""
    if not a.size or not np.isfinite(a).all():
        return np.full((1,) * a.ndim, np.nan if a.size else 1.0)
    return _SCALES[kind](a, relevance)


_SCALES = {Kind.VALUES: _scale, Kind.CLASSES: _scale_of_classes, Kind.PROBABILITIES: _scale_of_scores}


def _relevances(original: Outputs, kinds: Kinds) -> dict[str, Float64]:
    """Of each answer how much its positions count, (n, 1, *): the product of the other answers' largest scores there.

    1 for an answer that has its positions for itself. Scores of as many channels do not weigh one another: they are
    the same answer several times, as of a network whose every level is trained to segment.
    """
    scores: dict[str, Float64] = {}
    for name, array in original.items():
        if kinds.get(name) is Kind.PROBABILITIES and array.ndim > 2:
            scores[name] = _sigmoid(array.max(axis=1, keepdims=True).astype(np.float64))
    relevance = {}
    for name, array in original.items():
        result = np.ones((len(array), 1, *array.shape[2:]))
        others = {
            other: score
            for other, score in scores.items()
            if other != name
            and kinds.get(name) is not Kind.CLASSES
            and not (name in scores and original[other].shape[1] == array.shape[1])
        }
        alike = [score for score in others.values() if score.shape == result.shape]
        for score in alike or _over_levels(result, others.values()):
            result *= score
        relevance[name] = np.maximum(result, _LEAST_RELEVANCE)
    return relevance


def _over_levels(positions: Float64, scores: Iterable[Float64]) -> list[Float64]:
    """The scores of all levels of a detector in one row, where the last axis of an answer holds all their positions."""
    levels: dict[tuple[int, ...], Float64] = {}
    for score in scores:
        levels[score.shape] = levels[score.shape] * score if score.shape in levels else score
    rows = [score.reshape(len(score), -1) for score in levels.values() if len(score) == len(positions)]
    if positions.ndim < 3 or len(rows) < 2 or sum(row.shape[1] for row in rows) != positions.shape[-1]:
        return []
    return [np.concatenate(rows, axis=1).reshape(len(positions), *[1] * (positions.ndim - 2), -1)]
