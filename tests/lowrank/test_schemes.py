"""Every decomposition in numpy: unfolding, truncated SVD, energy, and what a pair costs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trp_export.lowrank import factor
from trp_export.lowrank.factor import factorise, kept_energy, product, spectrum
from trp_export.lowrank.schemes import (
    ALL_AXES,
    DECOUPLING,
    MATRIX,
    SCHEMES,
    Scheme,
    fold,
    full_rank,
    input_sliced,
    output_sliced,
    pair_shape,
    scheme_named,
    unfold,
)
from trp_export.lowrank.site import Site
from trp_export.lowrank.space import all_schemes, sliced_schemes


@st.composite
def kernels(draw: st.DrawFn) -> tuple[np.ndarray, int, Scheme]:
    """A kernel (n, c/group, *k) with nought to three spatial axes, its group, and a scheme that its channels allow."""
    group = draw(st.integers(1, 3))
    n, c = group * draw(st.integers(1, 6)), draw(st.integers(1, 6))
    spatial = (
        draw(st.lists(st.integers(1, 3), max_size=3))
        if group == 1
        else draw(st.lists(st.integers(1, 3), max_size=3, min_size=1))
    )
    seed = draw(st.integers(0, 2**32 - 1))
    # Any axes with any slices, whether they have a name or not.
    part_in, part_out = (draw(st.sampled_from([k for k in range(1, m + 1) if m % k == 0])) for m in (c, n // group))
    axes = draw(st.sampled_from([ALL_AXES, (0,), (1,), ()]))
    scheme = draw(st.sampled_from([*SCHEMES.values(), Scheme("unnamed", axes, part_in, part_out)]))
    return np.random.default_rng(seed).standard_normal((n, c, *spatial)), group, scheme


@given(kernels())
def test_fold_undoes_unfold(case: tuple[np.ndarray, int, Scheme]) -> None:
    kernel, group, scheme = case
    assert np.array_equal(fold(unfold(kernel, scheme, group), scheme, kernel.shape, group), kernel)


@given(kernels())
def test_full_rank_is_exact(case: tuple[np.ndarray, int, Scheme]) -> None:
    kernel, group, scheme = case
    factors = factorise(kernel, scheme, group, full_rank(scheme, kernel.shape, group))
    assert np.allclose(product(factors, scheme, kernel.shape, group), kernel, atol=1e-7)


@given(kernels(), st.data())
def test_squared_error_is_one_minus_energy(case: tuple[np.ndarray, int, Scheme], data: st.DataObject) -> None:
    kernel, group, scheme = case
    rank = data.draw(st.integers(1, full_rank(scheme, kernel.shape, group)))
    energy = kept_energy(spectrum(kernel, scheme, group))[rank - 1]
    made = product(factorise(kernel, scheme, group, rank), scheme, kernel.shape, group)
    assert np.sum((made - kernel) ** 2) / np.sum(kernel**2) == pytest.approx(1 - energy, abs=1e-12)


@given(kernels())
def test_singular_values_are_those_of_numpy(case: tuple[np.ndarray, int, Scheme]) -> None:
    kernel, group, scheme = case
    wanted = np.linalg.svd(unfold(kernel, scheme, group), compute_uv=False)
    assert np.allclose(spectrum(kernel, scheme, group), wanted, atol=1e-7 * wanted.max())


@given(kernels(), st.integers(1, 3))
def test_factors_have_the_shapes_of_the_pair(case: tuple[np.ndarray, int, Scheme], rank: int) -> None:
    kernel, group, scheme = case
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


def test_scheme_named_knows_schemes_only() -> None:
    site = Site("conv", "Conv", (12, 8, 3, 3), 1, ())
    for scheme in all_schemes(site):
        assert scheme_named(scheme.name) == scheme
    assert scheme_named("input-sliced-1") == SCHEMES["channel-wise"]
    assert scheme_named("output-sliced-1") == SCHEMES["pointwise-first"]
    for name in ("", "sliced-2", "input-sliced-0", "input-sliced-02", "input-sliced--2", "output-sliced-9999999"):
        assert scheme_named(name) is None


def test_every_number_of_slices_that_divides_is_offered_once() -> None:
    names = [scheme.name for scheme in sliced_schemes(Site("conv", "Conv", (24, 8, 3, 3), 2, ()))]
    inputs, outputs = (2, 4, 8), (2, 3, 4, 6)
    assert names == [
        "channel-wise",
        *(f"input-sliced-{slices}" for slices in inputs),
        "pointwise-first",
        *(f"output-sliced-{slices}" for slices in outputs),
        "network-decoupling",
    ]
    everything = all_schemes(Site("conv", "Conv", (24, 8, 3, 3), 2, ()))
    assert len(everything) == len(set(everything)) == len(names) + 2
    assert [scheme.name for scheme in all_schemes(Site("fc", "Gemm", (24, 8), 1, ()))] == ["matrix"]


def test_slicing_into_one_and_into_all_channels_gives_the_named_schemes() -> None:
    kernel = np.random.default_rng(0).standard_normal((6, 4, 3, 3))
    by_channel, decoupled = pair_shape(input_sliced(4), kernel.shape, 1, 2), pair_shape(DECOUPLING, kernel.shape, 1, 2)
    assert (by_channel.reduce, by_channel.reduce_group, by_channel.expand) == ((8, 1, 3, 3), 4, (6, 8, 1, 1))
    assert pair_shape(output_sliced(6), kernel.shape, 1, 2) == decoupled
    assert np.array_equal(spectrum(kernel, output_sliced(6), 1), spectrum(kernel, DECOUPLING, 1))


def test_slices_that_do_not_divide_are_recognised() -> None:
    assert not input_sliced(3).divides((6, 4, 3, 3), 1)
    assert output_sliced(3).divides((6, 4, 3, 3), 1)
    assert not output_sliced(3).divides((8, 4, 3, 3), 2)


def test_energy_distinguishes_ranks_that_differ_by_little() -> None:
    values = np.array([[1.0, 1e-6, 1e-7]])
    energy = kept_energy(values)
    assert energy[0] < energy[1] < energy[2] == 1


@pytest.mark.parametrize("shape", [(64, 20_000), (20_000, 64)])
def test_factors_are_made_without_a_copy_of_them(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor, "_CHUNK_BYTES", 1 << 18)
    kernel = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    tracemalloc.start()
    factors = factorise(kernel, MATRIX, 1, 60)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * (factors.reduce.nbytes + factors.expand.nbytes)
