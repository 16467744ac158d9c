"""Filters in clusters, and means over clusters."""

from __future__ import annotations

from collections.abc import Sequence


import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from training.channels.settings import Clustering


Labels = tuple[int, ...]


def cluster(kernels: np.ndarray, count: int, how: Clustering, seed: int) -> Labels:
    """The cluster of each filter: exactly `count` clusters, numbered by their first filter.

    `kernels` is (filters, weights). `kmeans` puts similar filters together, and depends on `kernels` and `seed` alone;
    `even` makes clusters of neighbours whose sizes differ by one at most.
    """
    filters = len(kernels)
    if how == "even" or count == filters:
        return tuple(index * count // filters for index in range(filters))
    data = np.asarray(kernels, np.float64)
    centres, labels = kmeans2(data, count, minit="++", rng=np.random.default_rng(seed), missing="warn", iter=50)
    return _numbered(_without_empty_clusters(data, centres, labels, count))


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


def _without_empty_clusters(data: np.ndarray, centres: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Give each empty cluster the filter that is farthest from its centre among those that do not stand alone."""
    labels = labels.copy()
    distances = np.square(data - centres[labels]).sum(1)
    for empty in range(count):
        if (labels == empty).any():
            continue
        sizes = np.bincount(labels, minlength=count)
        farthest = int(np.where(sizes[labels] > 1, distances, -1.0).argmax())
        labels[farthest], distances[farthest] = empty, 0.0
    return labels


def _numbered(labels: np.ndarray) -> Labels:
    """The same clusters, numbered in the order of their first filters."""
    numbers: dict[int, int] = {}
    return tuple(numbers.setdefault(int(label), len(numbers)) for label in labels)
