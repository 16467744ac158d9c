"""The one distance between the outputs of two models, by hand-made examples."""

from __future__ import annotations

import numpy as np
import pytest

from trp_export.runtime.distance import Distance, distance

A = np.array([[3.0, 4.0]], np.float32)
INFINITE = np.array([[np.inf, 4.0]], np.float32)


@pytest.mark.parametrize(
    ("wanted", "got", "apart"),
    [
        ([A], [A], Distance(0.0, 0.0)),
        ([A], [A.astype(np.float64)], Distance(np.inf, np.inf)),
        ([A], [A + np.array([[0, 1]], np.float32)], Distance(0.2, 1.0)),
        ([A], [A[:, :1]], Distance(np.inf, np.inf)),
        ([A], [A * np.float32(np.nan)], Distance(np.inf, np.inf)),
        ([A], [INFINITE], Distance(np.inf, np.inf)),
        ([INFINITE], [INFINITE], Distance(0.0, 0.0)),
        ([INFINITE], [-INFINITE], Distance(np.inf, np.inf)),
        ([INFINITE], [INFINITE + np.array([[0, 1]], np.float32)], Distance(0.25, 1.0)),
        ([A * np.float32(np.nan)], [A * np.float32(np.nan)], Distance(0.0, 0.0)),
        ([A], [], Distance(np.inf, np.inf)),
        ([0 * A], [0 * A], Distance(0.0, 0.0)),
        ([0 * A], [A], Distance(np.inf, 4.0)),
        ([np.array([1, 2])], [np.array([1, 5])], Distance(0.5, 3.0)),
        ([np.array([True, False])], [np.array([True, True])], Distance(0.5, 1.0)),
        ([np.array(["a", "b"])], [np.array(["a", "c"])], Distance(0.5, 0.0)),
        ([np.zeros((0, 4), np.float32)], [np.zeros((0, 4), np.float32)], Distance(0.0, 0.0)),
        ([A, 0 * A], [A, 0 * A], Distance(0.0, 0.0)),
        ([A, A], [A, A + np.array([[0, 1]], np.float32)], Distance(0.2, 1.0)),
    ],
)
def test_distance(wanted: list[np.ndarray], got: list[np.ndarray], apart: Distance) -> None:
    found = distance(wanted, got)
    assert found.relative_l2 == pytest.approx(apart.relative_l2)
    assert found.max_abs == pytest.approx(apart.max_abs)
