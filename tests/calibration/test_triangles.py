"""Triangles of symmetric matrices, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from trp_export.calibration.triangles import diagonal, packed, rows, unpacked


@pytest.mark.parametrize(("groups", "size"), [(1, 1), (1, 2), (3, 5), (2, 90)])
def test_triangles_hold_the_whole_matrix(groups: int, size: int) -> None:
    values = np.random.default_rng(0).standard_normal((groups, size, size))
    matrices = values + values.transpose(0, 2, 1)
    half = packed(matrices)
    np.testing.assert_array_equal(half, matrices[:, *np.tril_indices(size)])
    np.testing.assert_array_equal(unpacked(half), matrices)
    np.testing.assert_array_equal(diagonal(half), np.einsum("gdd->gd", matrices))
    assert [row.shape[1] for row in rows(half)] == list(range(1, size + 1))
