"""Eigenvalues of large symmetric matrices, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from trp_export.lowrank.eigen import eigenvalues, largest_eigenvectors


def lower_triangle(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A symmetric matrix, and its lower triangle with noise above it."""
    rng = np.random.default_rng(size)
    matrix = rng.standard_normal((size, size))
    matrix = matrix + matrix.T
    return matrix, np.asfortranarray(np.tril(matrix) + np.triu(rng.standard_normal((size, size)), 1))


@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_eigenvalues_are_those_of_numpy(size: int) -> None:
    matrix, lower = lower_triangle(size)
    np.testing.assert_allclose(eigenvalues(lower), np.linalg.eigvalsh(matrix), atol=1e-12 * size)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 1), (7, 7), (60, 20)])
def test_the_largest_eigenvectors_are_orthonormal_and_belong_to_their_values(size: int, count: int) -> None:
    matrix, lower = lower_triangle(size)
    values, vectors = largest_eigenvectors(lower, count)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[-count:], atol=1e-12 * size)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-11 * size)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-12 * size)


def test_matrices_that_are_not_numbers_are_refused() -> None:
    lower = np.asfortranarray(np.full((5, 5), np.nan))
    with pytest.raises(np.linalg.LinAlgError, match="side 5"):
        largest_eigenvectors(lower, 2)
