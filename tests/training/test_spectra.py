"""Projections and sub-gradients against an independent SVD in float64, and against finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.spectra import follow, spectrum, truncate


def random_matrices(rows: int, columns: int, seed: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    decay = torch.logspace(0, -2, min(rows, columns))
    left = torch.linalg.qr(torch.randn(count, rows, rows, generator=generator))[0][..., : len(decay)]
    right = torch.linalg.qr(torch.randn(count, columns, columns, generator=generator))[0][..., : len(decay)]
    return (left * decay) @ right.mT


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99), st.data())
@settings(deadline=None)
def test_projection_has_the_rank_and_error_of_an_independent_svd(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    matrices = random_matrices(rows, columns, seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    kept = truncate(matrices, spectrum(matrices), torch.tensor([rank, rank])).low()
    for matrix, mine in zip(matrices.double().numpy(), kept.double().numpy(), strict=True):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        scale = np.linalg.norm(matrix)
        assert np.linalg.matrix_rank(mine, tol=1e-5 * values[0]) == rank
        assert abs(np.linalg.norm(matrix - mine) - np.linalg.norm(matrix - best)) <= 1e-5 * scale
        assert np.linalg.norm(mine - best) <= 1e-5 * scale


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 99), st.data())
@settings(deadline=None)
def test_in_float32_the_error_is_still_that_of_an_independent_svd(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    matrices = random_matrices(rows, columns, seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    known = spectrum(matrices, torch.float32)
    kept = truncate(matrices, known, torch.tensor([rank, rank])).low()
    for matrix, mine, found in zip(matrices.double(), kept.double(), known.values, strict=True):
        values = torch.linalg.svdvals(matrix)
        assert int(torch.linalg.matrix_rank(mine, rtol=1e-5)) == rank
        assert abs((matrix - mine).norm() - values[rank:].norm()) <= 1e-5 * values.norm()
        torch.testing.assert_close(found.double(), values, rtol=0, atol=2e-3 * float(values[0]))


def test_singular_values_are_those_of_lapack() -> None:
    matrices = random_matrices(30, 50, 1)
    expected = torch.linalg.svdvals(matrices.double())
    torch.testing.assert_close(spectrum(matrices).values, expected, rtol=0, atol=1e-7)


def nuclear_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix).sum())


def derivative(matrix: torch.Tensor, direction: torch.Tensor, step: float = 1e-6) -> float:
    return (nuclear_norm(matrix + step * direction) - nuclear_norm(matrix - step * direction)) / (2 * step)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_subgradient_at_full_rank_equals_finite_differences(shape: tuple[int, int]) -> None:
    matrix = random_matrices(*shape, 3, count=1).double()
    gradient = truncate(matrix, spectrum(matrix), torch.tensor([min(shape)])).pull()[0]
    for seed in range(5):
        direction = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float((gradient * direction).sum()) == pytest.approx(derivative(matrix[0], direction), rel=1e-5)


def test_subgradient_at_rank_r_equals_finite_differences_along_tangents() -> None:
    rank, matrix = 3, random_matrices(8, 11, 4, count=1).double()
    known = truncate(matrix, spectrum(matrix), torch.tensor([rank]))
    low, gradient = known.low()[0], known.pull()[0]
    left, _, right = torch.linalg.svd(low)
    left, right = left[:, :rank], right[:rank]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        tangent = left @ torch.randn(rank, 11, generator=generator, dtype=torch.float64)
        tangent += torch.randn(8, rank, generator=generator, dtype=torch.float64) @ right
        assert float((gradient * tangent).sum()) == pytest.approx(derivative(low, tangent), rel=1e-4)


def test_directions_without_energy_have_no_pull() -> None:
    zero = torch.zeros(1, 4, 6)
    assert torch.equal(truncate(zero, spectrum(zero), torch.tensor([4])).pull(), zero)
    single = torch.zeros(1, 4, 6)
    single[0, 1, 2] = 5.0
    torch.testing.assert_close(truncate(single, spectrum(single), torch.tensor([4])).pull(), single / 5)


def test_a_batch_equals_its_members_one_by_one() -> None:
    matrices, ranks = random_matrices(6, 10, 7, count=3), torch.tensor([1, 4, 6])
    together = truncate(matrices, spectrum(matrices), ranks)
    for index in range(3):
        one = slice(index, index + 1)
        alone = truncate(matrices[one], spectrum(matrices[one]), ranks[one])
        torch.testing.assert_close(together.low()[one], alone.low(), rtol=0, atol=1e-6)
        torch.testing.assert_close(together.pull()[one], alone.pull(), rtol=0, atol=1e-5)


@given(st.integers(4, 30), st.integers(4, 30), st.integers(0, 99), st.floats(1e-5, 3e-3))
@settings(deadline=None)
def test_a_followed_space_projects_as_an_independent_svd_does(rows: int, columns: int, seed: int, step: float) -> None:
    matrices = random_matrices(rows, columns, seed, count=1)
    rank = max(1, min(rows, columns) // 2)
    known, ranks = spectrum(matrices), torch.tensor([rank])
    start = truncate(matrices, known, ranks)
    moved = start.low()
    noise = torch.randn(moved.shape, generator=torch.Generator().manual_seed(seed))
    moved = moved + step * known.values[0, rank - 1].float() * noise / noise.norm()
    renewed = follow(moved, start.space(), ranks)
    assert renewed is not None
    left, values, right = np.linalg.svd(moved[0].double().numpy(), full_matrices=False)
    best, polar = (left[:, :rank] * values[:rank]) @ right[:rank], left[:, :rank] @ right[:rank]
    low, pull = (found[0].double().numpy() for found in (renewed.low(), renewed.pull()))
    assert np.linalg.norm(low - best) <= 1e-5 * np.linalg.norm(best)
    assert np.linalg.norm(pull - polar) <= 1e-3 * np.linalg.norm(polar)


def left(matrices: torch.Tensor) -> torch.Tensor:
    return truncate(matrices, spectrum(matrices), torch.tensor([2])).space()


def test_spaces_of_several_ranks_are_followed_as_one_by_one() -> None:
    matrices, ranks = random_matrices(8, 12, 3, count=3), torch.tensor([2, 5, 3])
    start = truncate(matrices, spectrum(matrices), ranks)
    moved = start.low() + 1e-4 * random_matrices(8, 12, 4, count=3)
    together = follow(moved, start.space(), ranks)
    assert together is not None
    for index, rank in enumerate(ranks):
        one = slice(index, index + 1)
        alone = follow(moved[one], start.space()[one, :rank], rank[None])
        assert alone is not None
        assert torch.linalg.matrix_rank(together.low()[index], rtol=1e-5) == rank
        torch.testing.assert_close(together.low()[one], alone.low(), rtol=0, atol=1e-5)
        torch.testing.assert_close(together.pull()[one], alone.pull(), rtol=0, atol=1e-5)


def test_a_space_without_energy_is_not_followed() -> None:
    zero = torch.zeros(1, 4, 6)
    assert follow(zero, left(zero), torch.tensor([2])) is None
    other = random_matrices(4, 6, 0, count=1)
    assert follow(zero, left(other), torch.tensor([2])) is None


def test_a_space_that_lost_a_direction_is_not_followed() -> None:
    matrices = random_matrices(6, 9, 5, count=1)
    start = truncate(matrices, spectrum(matrices), torch.tensor([3]))
    assert follow(start.low(), start.space(), torch.tensor([3])) is not None
    fewer = truncate(matrices, spectrum(matrices), torch.tensor([2])).low()
    assert follow(fewer, start.space(), torch.tensor([3])) is None
