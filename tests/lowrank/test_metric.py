"""Factors in a metric of output channels: oracles, and what the metric must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trp_export.lowrank.branches import calibrate_branches, sum_products
from trp_export.lowrank.calibrated import calibrated_pair, output_errors, output_variance
from trp_export.lowrank.factor import Float64, product
from trp_export.lowrank.metric import ErrorMetric, channel_roots, unweigh, weigh
from trp_export.lowrank.schemes import CHANNEL_WISE, MATRIX, SPATIAL_WISE, Branch, Scheme, output_sliced


def moments(groups: int, size: int, seed: int) -> Float64:
    """Positive definite (groups, size, size), of unlike eigenvalues."""
    x = np.random.default_rng(seed).standard_normal((groups, size, 3 * size)) * np.linspace(0.1, 3, size)[:, None]
    return np.asarray(x @ x.transpose(0, 2, 1) / (3 * size))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_matrix_pair_is_the_best_of_its_rank_in_the_metric(rank: int) -> None:
    """The optimum is the truncated SVD of R W M^(1/2), with G = R^T R (Eckart and Young)."""
    kernel = np.random.default_rng(0).standard_normal((10, 8))
    metric = ErrorMetric(moments(1, 8, 1), moments(1, 10, 2))
    roots = channel_roots(metric.outputs)
    assert roots is not None
    values = np.linalg.svd(roots[0] @ kernel @ np.linalg.cholesky(metric.inputs[0]), compute_uv=False)
    fit = calibrated_pair(kernel, MATRIX, 1, rank, metric)
    lost = output_variance(kernel - product(fit, MATRIX, kernel.shape, 1), 1, metric)
    assert lost == pytest.approx(float((values[rank:] ** 2).sum()), rel=2e-3, abs=1e-3)
    share = lost / output_variance(kernel, 1, metric)
    assert output_errors(kernel, MATRIX, 1, metric)[rank - 1] == pytest.approx(share, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("scheme", [CHANNEL_WISE, SPATIAL_WISE, output_sliced(2)], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("group", [1, 2])
def test_channels_that_no_answer_reads_are_given_up_first(scheme: Scheme, group: int) -> None:
    """Each pair loses less in its own metric than the pair that was found without it."""
    kernel = np.random.default_rng(3).standard_normal((16, 4, 3, 3))
    owed = moments(group, 16 // group, 4)
    owed[:, :2] *= 1e-3
    owed[:, :, :2] *= 1e-3
    metric = ErrorMetric(moments(group, 36, 5), owed)
    plain = calibrated_pair(kernel, scheme, group, 2, ErrorMetric(metric.inputs))
    own = calibrated_pair(kernel, scheme, group, 2, metric)
    lost = [output_variance(kernel - product(fit, scheme, kernel.shape, group), group, metric) for fit in (plain, own)]
    assert lost[1] < lost[0]


def test_branches_are_fitted_in_the_metric() -> None:
    kernel = np.random.default_rng(6).standard_normal((12, 6, 3, 3))
    metric = ErrorMetric(moments(1, 54, 7), moments(1, 12, 8))
    branches = (Branch(SPATIAL_WISE, 2), Branch(CHANNEL_WISE, 2))
    lost = []
    for used in (ErrorMetric(metric.inputs), metric):
        pairs = calibrate_branches(kernel, branches, 1, used)
        lost.append(output_variance(kernel - sum_products(pairs, branches, kernel.shape, 1), 1, metric))
    assert lost[1] < lost[0]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([1, 2]), st.sampled_from([1, 2, 4]), st.integers(0, 100))
def test_unweigh_undoes_weigh(group: int, slices: int, seed: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal((8 * group, 3, 1, 2))
    roots = channel_roots(moments(group, 8, seed), slices)
    np.testing.assert_allclose(unweigh(weigh(kernel, roots), roots), kernel, rtol=1e-9, atol=1e-9)


def test_channels_that_count_alike_change_nothing() -> None:
    kernel = np.random.default_rng(9).standard_normal((6, 4, 3, 3))
    inputs = moments(1, 36, 10)
    plain, alike = (
        output_errors(kernel, SPATIAL_WISE, 1, ErrorMetric(inputs, outputs)) for outputs in (None, 5 * np.eye(6)[None])
    )
    np.testing.assert_allclose(alike, plain, rtol=1e-9, atol=1e-12)
