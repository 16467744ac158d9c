"""How far the answers of a network are from those of the original, without labels.

One measure serves sensitivities, the choice among factors, tuning, int8 and the report. Every answer counts alike,
and in each answer every channel: its mean squared error in units of its own variance. Logits of classes share one unit,
their variance over the classes, and what all classes have in common is taken out first: networks are all but certain
on images that they were trained on, where a divergence of probabilities sees only the few doubtful images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float64 = NDArray[np.float64]
Outputs = Mapping[str, Array]

# A channel that varies less than this, as a share of the variance of the liveliest channel, does not vary.
_STILL = 1e-7
# The channels of one vector per image are taken for classes where their variances are within this ratio.
_ALIKE = 100.0


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The divergence of a network on held-out images, with its standard error over images."""

    images: int
    divergence: float
    error: float


def divergence(original: Outputs, other: Outputs, classes: Collection[str] = ()) -> float:
    """The mean over answers and channels of squared error over variance; infinite where values are not finite.

    Arrays are (n, C, *). `classes` names those whose channels are known to be logits of classes.
    """
    shares = [float(np.mean(share)) for share in _shares(original, other, classes)]
    return float(np.mean(shares)) if shares else 0.0


def divergence_of_images(original: Outputs, other: Outputs, classes: Collection[str] = ()) -> Float64:
    """What each image adds to the divergence, which is the mean of them: (n,)."""
    shares = _shares(original, other, classes)
    if not shares or len({len(share) for share in shares}) > 1:
        return np.array([divergence(original, other, classes)])  # The rows of an answer are not images.
    return np.asarray(np.mean(shares, axis=0))


def agreement(original: Outputs, other: Outputs) -> float:
    """Share of the images for which the first output has the same largest entry."""
    name = next(iter(original))
    a, b = (outputs[name].reshape(len(outputs[name]), -1) for outputs in (original, other))
    return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))


def _shares(original: Outputs, other: Outputs, classes: Collection[str]) -> list[Float64]:
    """Of each answer, the share of every row: (n,)."""
    return [_share(array, other[name], classes=name in classes) for name, array in original.items()]


def _share(original: Array, other: Array, *, classes: bool) -> Float64:
    a, b = original.astype(np.float64), other.astype(np.float64)
    if a.shape != b.shape or not np.isfinite(b).all():
        return np.full(len(a), np.inf)
    if a.ndim < 2:
        a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    variance = a.var(axis=(0, *range(2, a.ndim)))
    largest = float(variance.max(initial=0.0))
    if classes or (a.size == len(a) * a.shape[1] and a.shape[1] > 2 and largest <= _ALIKE * float(variance.min())):
        return _share_of_classes(a, b)
    if not largest > 0:
        return np.full(len(a), 0.0 if np.array_equal(a, b) else 1.0)
    error = np.square(a - b).reshape(*a.shape[:2], -1).mean(axis=2)
    units = np.where(variance > _STILL * largest, variance, largest)
    return np.asarray((error / units).mean(axis=1))


def _share_of_classes(a: Array, b: Array) -> Float64:
    """Squared distance over the variance over classes."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread = float(np.square(a).sum()) / max(len(a), 1)
    return np.asarray(np.square(a - b).reshape(len(a), -1).sum(axis=1) / (spread if spread > 0 else 1.0))
