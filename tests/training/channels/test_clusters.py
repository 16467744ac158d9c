"""Clusters of filters, and means over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.channels.clusters import ClusterMean, cluster


@settings(max_examples=60, deadline=None)
@given(filters=st.integers(1, 24), share=st.floats(0.01, 1), seed=st.integers(0, 99), distinct=st.integers(1, 24))
@pytest.mark.parametrize("how", ["kmeans", "even"])
def test_there_are_exactly_as_many_clusters_as_asked(
    how: str, filters: int, share: float, seed: int, distinct: int
) -> None:
    count = max(1, int(share * filters))
    kernels = np.random.default_rng(seed).normal(size=(filters, 9))[np.arange(filters) % distinct]
    labels = cluster(kernels, count, how, seed)
    assert set(labels) == set(range(count))
    assert labels == cluster(kernels, count, how, seed)


def test_similar_filters_come_into_one_cluster() -> None:
    random = np.random.default_rng(0)
    kernels = np.repeat(random.normal(size=(4, 27)), 3, axis=0) + 1e-3 * random.normal(size=(12, 27))
    assert cluster(kernels, 4, "kmeans", 0) == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)


def test_even_clusters_differ_by_one_filter_at_most() -> None:
    assert cluster(np.zeros((7, 2)), 3, "even", 0) == (0, 0, 0, 1, 1, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_of_a_cluster_become_their_mean_bit_for_bit(dtype: torch.dtype) -> None:
    labels = (0, 1, 0, 2, 1, 0)
    rows = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    means = ClusterMean(labels, rows.device)(rows)
    for label in set(labels):
        members = [row for row, other in enumerate(labels) if other == label]
        assert all(torch.equal(means[row], means[members[0]]) for row in members)
        expected = rows[members].double().mean(0)
        torch.testing.assert_close(means[members[0]].double(), expected, rtol=1e-6, atol=1e-6)
