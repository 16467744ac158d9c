"""Work on large matrices, against numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from trp_export.lowrank.unlocked import add_gram, eigenvalues, largest_eigenvectors, solve_lower


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


@pytest.mark.parametrize(("size", "columns"), [(1, 1), (7, 30), (60, 2)])
def test_gram_matrices_are_added_below_the_diagonal_alone(size: int, columns: int) -> None:
    total, part = lower_triangle(size)[1], np.asfortranarray(np.random.default_rng(0).standard_normal((size, columns)))
    expected = np.tril(total + part @ part.T) + np.triu(total, 1)
    add_gram(total, part)
    np.testing.assert_allclose(total, expected, atol=1e-13 * size * columns)


@pytest.mark.parametrize(("size", "columns"), [(1, 1), (7, 3), (60, 90)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_lower_triangles_are_solved_and_right_sides_stay(size: int, columns: int, order: str) -> None:
    lower = np.ascontiguousarray(lower_triangle(size)[1] + 2 * size * np.eye(size))
    right = np.array(np.random.default_rng(0).standard_normal((size, columns)), order=order)  # type: ignore[call-overload]
    before = right.copy()
    np.testing.assert_allclose(np.tril(lower) @ solve_lower(lower, right), before, atol=1e-12)
    np.testing.assert_array_equal(right, before)


@pytest.mark.parametrize(
    "work",
    [
        lambda matrix, wide: eigenvalues(matrix),
        lambda matrix, wide: add_gram(matrix, wide),
        lambda matrix, wide: solve_lower(matrix.T, wide),
    ],
    ids=["eigenvalues", "add_gram", "solve_lower"],
)
def test_other_threads_run_meanwhile(work: Callable[[np.ndarray, np.ndarray], object]) -> None:
    turns, is_done = [0], threading.Event()
    matrix = np.asfortranarray(lower_triangle(1200)[0] + 100 * np.eye(1200))
    wide = np.asfortranarray(np.tile(matrix, 4))

    def count() -> None:
        while not is_done.wait(0.001):
            turns[0] += 1

    other = threading.Thread(target=count)
    other.start()
    before = turns[0]
    work(matrix, wide)
    after = turns[0]
    is_done.set()
    other.join()
    assert after - before > 20  # About 100; at most 12 where Python is locked.
