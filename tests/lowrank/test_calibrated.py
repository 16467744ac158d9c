"""Factors from moments: oracles first, then what alternating may never do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trp_export.lowrank.calibrated import balance, bias_shift, calibrated_pair, output_errors, relative_error
from trp_export.lowrank.factor import Factors, factorise, kept_energy, product, spectrum
from trp_export.lowrank.metric import ErrorMetric
from trp_export.lowrank.schemes import (
    CHANNEL_WISE,
    DECOUPLING,
    MATRIX,
    POINTWISE_FIRST,
    SPATIAL_WISE,
    SPATIAL_WISE_TRANSPOSED,
    Scheme,
    full_rank,
    input_sliced,
    output_sliced,
)

ALL = [
    *(CHANNEL_WISE, SPATIAL_WISE, SPATIAL_WISE_TRANSPOSED, POINTWISE_FIRST, DECOUPLING),
    *(input_sliced(2), input_sliced(4), output_sliced(2)),
    Scheme("both-sliced", reduce_axes=(0,), input_slices=2, output_slices=2),
]
SHAPES = [(6, 4, 3, 3), (4, 8, 1, 3), (2, 4, 3, 2)]


def _kernel(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _patches(group: int, d: int, count: int = 400, seed: int = 1) -> np.ndarray:
    """(group, count, d) correlated, far from zero mean."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((group, count, d)) @ rng.standard_normal((group, d, d)) + rng.standard_normal(d)


def _covariance(patches: np.ndarray) -> np.ndarray:
    return np.stack([np.cov(part.T, bias=True) for part in patches])


def _lost(kernel: np.ndarray, fit: Factors, scheme: Scheme, covariance: np.ndarray) -> float:
    """The share of the output's variance that a pair loses."""
    group = len(covariance)
    return relative_error(kernel, product(fit, scheme, kernel.shape, group), group, ErrorMetric(covariance))


def _loss(kernel: np.ndarray, scheme: Scheme, rank: int, covariance: np.ndarray, turns: int = 6) -> float:
    return _lost(kernel, calibrated_pair(kernel, scheme, 1, rank, ErrorMetric(covariance), turns), scheme, covariance)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_full_rank_is_the_dense_kernel(scheme: Scheme, shape: tuple[int, ...]) -> None:
    kernel = _kernel(shape)
    covariance = _covariance(_patches(1, int(np.prod(shape[1:]))))
    fit = calibrated_pair(kernel, scheme, 1, full_rank(scheme, shape, 1), ErrorMetric(covariance))
    np.testing.assert_allclose(product(fit, scheme, shape, 1), kernel, atol=1e-6)
    assert _lost(kernel, fit, scheme, covariance) < 1e-9


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_identity_moments_are_plain_svd(scheme: Scheme, rank: int) -> None:
    kernel = _kernel((6, 4, 3, 3))
    fit = calibrated_pair(kernel, scheme, 1, rank, ErrorMetric(np.eye(36)[None]))
    plain = product(factorise(kernel, scheme, 1, rank), scheme, kernel.shape, 1)
    np.testing.assert_allclose(product(fit, scheme, kernel.shape, 1), plain, atol=1e-8)
    errors = output_errors(kernel, scheme, 1, ErrorMetric(np.eye(36)[None]))
    np.testing.assert_allclose(errors, 1 - kept_energy(spectrum(kernel, scheme, 1)), atol=1e-9)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("group", [1, 2])
def test_the_predicted_error_is_the_measured_one(scheme: Scheme, group: int) -> None:
    kernel = _kernel((8, 4, 3, 3))
    patches = _patches(group, 36)
    covariance = _covariance(patches)
    fit = calibrated_pair(kernel, scheme, group, 2, ErrorMetric(covariance))
    new = product(fit, scheme, kernel.shape, group)
    shift = bias_shift(kernel, new, patches.mean(axis=1))
    by_group = (group, 8 // group, 36)
    before = np.einsum("gnd,gpd->pgn", kernel.reshape(by_group), patches)
    after = np.einsum("gnd,gpd->pgn", new.reshape(by_group), patches) + shift.reshape(group, -1)
    measured = np.sum((before - after) ** 2) / np.sum((before - before.mean(axis=0)) ** 2)
    assert measured == pytest.approx(_lost(kernel, fit, scheme, covariance), rel=5e-3)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_errors_of_all_ranks_are_those_of_the_start_and_bound_the_result(scheme: Scheme) -> None:
    kernel, covariance = _kernel((6, 4, 3, 3)), _covariance(_patches(1, 36))
    errors = output_errors(kernel, scheme, 1, ErrorMetric(covariance))
    assert (np.diff(errors) <= 1e-12).all()
    assert errors[-1] < 1e-6
    for rank in range(1, len(errors)):
        start = _loss(kernel, scheme, rank, covariance, turns=0)
        assert start == pytest.approx(errors[rank - 1], rel=1e-4, abs=1e-7)
        assert _loss(kernel, scheme, rank, covariance) <= start * (1 + 1e-12)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
@given(seed=st.integers(0, 2**16), rank=st.integers(1, 3))
@settings(max_examples=15)
def test_calibrated_never_loses_more_output_than_plain(scheme: Scheme, seed: int, rank: int) -> None:
    kernel, covariance = _kernel((6, 4, 3, 3), seed), _covariance(_patches(1, 36, seed=seed + 1))
    new = product(factorise(kernel, scheme, 1, rank), scheme, kernel.shape, 1)
    lost = (kernel - new).reshape(6, -1)
    dense = kernel.reshape(6, -1)
    plain = np.sum((lost @ covariance[0]) * lost) / np.sum((dense @ covariance[0]) * dense)
    assert _loss(kernel, scheme, rank, covariance) <= plain * 1.001


def test_alternating_lowers_the_error_where_taps_share_inputs() -> None:
    kernel, covariance = _kernel((8, 6, 3, 3)), _covariance(_patches(1, 54))
    for scheme in (SPATIAL_WISE, SPATIAL_WISE_TRANSPOSED, POINTWISE_FIRST):
        start = _loss(kernel, scheme, 4, covariance, turns=0)
        assert _loss(kernel, scheme, 4, covariance) < 0.99 * start


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_rank_deficient_moments_give_finite_factors(scheme: Scheme) -> None:
    kernel = _kernel((6, 4, 3, 3))
    few = _covariance(_patches(1, 36, count=5))
    fit = calibrated_pair(kernel, scheme, 1, 3, ErrorMetric(few))
    assert np.isfinite(fit.reduce).all()
    assert np.isfinite(fit.expand).all()
    assert 0 <= _lost(kernel, fit, scheme, few) < 1
    nothing = np.zeros((1, 36, 36))
    constant = calibrated_pair(kernel, scheme, 1, 2, ErrorMetric(nothing))
    assert _lost(kernel, constant, scheme, nothing) == 0
    assert np.isfinite(constant.expand).all()
    assert (output_errors(kernel, scheme, 1, ErrorMetric(nothing)) == 0).all()


def test_far_fewer_samples_than_entries_still_give_errors_of_all_ranks() -> None:
    """Inputs after a ReLU, with a spread of scales: the normal equations are then all but singular."""
    rng = np.random.default_rng(0)
    patches = np.maximum(rng.standard_normal((12, 216)), 0) * np.geomspace(1e-3, 1e3, 216)
    for scheme in ALL:
        errors = output_errors(_kernel((24, 24, 3, 3)), scheme, 1, ErrorMetric(np.cov(patches.T, bias=True)[None]))
        assert np.isfinite(errors).all()
        assert (np.diff(errors) <= 1e-9).all()


def test_a_matrix_is_the_whitened_svd() -> None:
    matrix, covariance = _kernel((7, 5)), _covariance(_patches(1, 5))
    errors = output_errors(matrix, MATRIX, 1, ErrorMetric(covariance))
    root = np.linalg.cholesky(covariance[0])
    values = np.linalg.svd(matrix @ root, compute_uv=False)
    np.testing.assert_allclose(errors, 1 - np.cumsum(values**2) / np.sum(values**2), atol=1e-3)


def test_balanced_factors_share_the_singular_values() -> None:
    left, right = _kernel((6, 3)), _kernel((3, 9), 1)
    new_left, new_right = balance(left, right)
    np.testing.assert_allclose(new_left @ new_right, left @ right, atol=1e-12)
    np.testing.assert_allclose(new_left.T @ new_left, new_right @ new_right.T, atol=1e-12)


def test_slices_of_the_input_are_fitted_together() -> None:
    kernel, covariance = _kernel((8, 6, 3, 3)), _covariance(_patches(1, 54))
    dense = kernel.reshape(8, -1)
    variance = np.sum((dense @ covariance[0]) * dense)
    for scheme in (input_sliced(2), input_sliced(6), Scheme("unnamed", (0,), input_slices=3)):
        lost = dense - product(factorise(kernel, scheme, 1, 2), scheme, kernel.shape, 1).reshape(8, -1)
        plain = np.sum((lost @ covariance[0]) * lost) / variance
        start = _loss(kernel, scheme, 2, covariance, turns=0)
        assert start < 0.95 * plain
        assert _loss(kernel, scheme, 2, covariance) < 0.98 * start
