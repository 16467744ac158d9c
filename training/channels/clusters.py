"""Filters in clusters, and means over clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from training.channels.settings import Clustering

Labels = tuple[int, ...]

_MOST_ROUNDS = 50


def cluster(kernels: np.ndarray, count: int, how: Clustering, seed: int) -> Labels:
    """The cluster of each filter: exactly `count` clusters, numbered by their first filter.

    `kernels` is (filters, weights). `kmeans` puts similar filters together, and depends on `kernels` and `seed` alone;
    `even` makes clusters of neighbours whose sizes differ by one at most.
    """
    filters = len(kernels)
    if how == "even" or count == filters:
        return tuple(index * count // filters for index in range(filters))
    return _numbered(_kmeans(np.asarray(kernels, np.float64), count, np.random.default_rng(seed)))


class ClusterMean:
    """Puts the mean of its cluster in the place of each row of a tensor, in float32 or more.

    Rows of one cluster become equal bit for bit, and the result is the same in every process.
    """

    def __init__(self, labels: Sequence[int], device: torch.device) -> None:
        self._labels = torch.tensor(labels, device=device)
        members = torch.nn.functional.one_hot(self._labels).T
        self._members, self._sizes = members, members.sum(1, keepdim=True)

    def __call__(self, rows: Tensor) -> Tensor:
        """rows (n, ...) -> means (n, ...)."""
        flat = rows.detach().reshape(len(rows), -1)
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        means = (self._members.to(flat.dtype) @ flat) / self._sizes
        return means[self._labels].reshape(rows.shape)


def _kmeans(data: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Lloyd's algorithm from a k-means++ start. scipy's may leave clusters empty."""
    centres = _first_centres(data, count, random)
    labels = np.full(len(data), -1)
    for _ in range(_MOST_ROUNDS):
        before, labels = labels, _nearest(data, centres)
        if np.array_equal(labels, before):
            break
        centres = np.stack([data[labels == number].mean(0) for number in range(count)])
    return labels


def _first_centres(data: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Filters drawn with a probability that grows with the square of the distance to those drawn before."""
    chosen = [int(random.integers(len(data)))]
    nearest = np.full(len(data), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, cdist(data, data[chosen[-1:]], "sqeuclidean")[:, 0])
        total = nearest.sum()
        chosen.append(int(random.choice(len(data), p=nearest / total)) if total > 0 else chosen[0])
    return np.asarray(data[chosen])


def _nearest(data: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each filter. A centre without filters takes the one that is farthest from its own."""
    squares = cdist(data, centres, "sqeuclidean")
    labels = squares.argmin(1)
    distances = squares.min(1)
    for number in range(len(centres)):
        if not (labels == number).any():
            sizes = np.bincount(labels, minlength=len(centres))
            farthest = int(np.where(sizes[labels] > 1, distances, -1.0).argmax())
            labels[farthest], distances[farthest] = number, 0.0
    return np.asarray(labels)


def _numbered(labels: np.ndarray) -> Labels:
    """The same clusters, numbered in the order of their first filters."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(int(label), len(numbers)) for label in labels)
