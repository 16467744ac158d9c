"""Every decomposition in numpy: unfolding, truncated SVD, energy, and what a pair costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.lowrank.factor import factorise, kept_energy, product, spectrum
from trp_export.lowrank.schemes import SCHEMES, Scheme, fold, full_rank, pair_shape, unfold

schemes = st.sampled_from(list(SCHEMES.values()))


@st.composite
def kernels(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A kernel (n, c/group, *k) with nought to three spatial axes, and its group."""
    group = draw(st.integers(1, 3))
    n, c = group * draw(st.integers(1, 5)), draw(st.integers(1, 5))
    spatial = (
        draw(st.lists(st.integers(1, 3), max_size=3))
        if group == 1
        else draw(st.lists(st.integers(1, 3), max_size=3, min_size=1))
    )
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).standard_normal((n, c, *spatial)), group


@given(kernels(), schemes)
def test_fold_undoes_unfold(kernel_and_group: tuple[np.ndarray, int], scheme: Scheme) -> None:
    kernel, group = kernel_and_group
    assert np.array_equal(fold(unfold(kernel, scheme, group), scheme, kernel.shape, group), kernel)


@given(kernels(), schemes)
def test_full_rank_is_exact(kernel_and_group: tuple[np.ndarray, int], scheme: Scheme) -> None:
    kernel, group = kernel_and_group
    factors = factorise(kernel, scheme, group, full_rank(scheme, kernel.shape, group))
    assert np.allclose(product(factors, scheme, kernel.shape, group), kernel, atol=1e-7)


@given(kernels(), schemes, st.data())
def test_squared_error_is_one_minus_energy(
    kernel_and_group: tuple[np.ndarray, int], scheme: Scheme, data: st.DataObject
) -> None:
    kernel, group = kernel_and_group
    rank = data.draw(st.integers(1, full_rank(scheme, kernel.shape, group)))
    energy = kept_energy(spectrum(kernel, scheme, group))[rank - 1]
    made = product(factorise(kernel, scheme, group, rank), scheme, kernel.shape, group)
    assert np.sum((made - kernel) ** 2) / np.sum(kernel**2) == pytest.approx(1 - energy, abs=1e-12)


@given(kernels(), schemes)
def test_singular_values_are_those_of_numpy(kernel_and_group: tuple[np.ndarray, int], scheme: Scheme) -> None:
    kernel, group = kernel_and_group
    wanted = np.linalg.svd(unfold(kernel, scheme, group), compute_uv=False)
    assert np.allclose(spectrum(kernel, scheme, group), wanted, atol=1e-7 * wanted.max())


@given(kernels(), schemes, st.integers(1, 3))
def test_factors_have_the_shapes_of_the_pair(
    kernel_and_group: tuple[np.ndarray, int], scheme: Scheme, rank: int
) -> None:
    kernel, group = kernel_and_group
    rank = min(rank, full_rank(scheme, kernel.shape, group))
    factors, shape = factorise(kernel, scheme, group, rank), pair_shape(scheme, kernel.shape, group, rank)
    assert (factors.reduce.shape, factors.expand.shape) == (shape.reduce, shape.expand)
    assert factors.reduce.size + factors.expand.size == shape.params


def test_factors_are_balanced() -> None:
    kernel = np.random.default_rng(0).standard_normal((8, 6, 3, 3))
    for scheme in SCHEMES.values():
        factors = factorise(kernel, scheme, 1, 2)
        assert np.linalg.norm(factors.reduce) == pytest.approx(np.linalg.norm(factors.expand))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e38], ids=str)
def test_kernels_of_any_size_factor(scheme: Scheme, scale: float) -> None:
    kernel = scale * np.random.default_rng(0).standard_normal((4, 3, 3, 3))
    rank = full_rank(scheme, kernel.shape, 1)
    made = product(factorise(kernel, scheme, 1, rank), scheme, kernel.shape, 1)
    assert np.allclose(made, kernel, rtol=0, atol=1e-7 * scale)
    energy = kept_energy(spectrum(kernel, scheme, 1))
    assert np.isfinite(energy).all()
    assert energy[-1] == 1


def test_energy_tells_ranks_apart_that_differ_by_little() -> None:
    values = np.array([[1.0, 1e-6, 1e-7]])
    energy = kept_energy(values)
    assert energy[0] < energy[1] < energy[2] == 1
