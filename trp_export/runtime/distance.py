"""How far the outputs of two models are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trp_export.runtime.sessions import Array


@dataclass(frozen=True, slots=True)
class Distance:
    """How far outputs are apart: the largest relative L2 and the largest absolute difference over all outputs."""

    relative_l2: float
    max_abs: float


def distance(wanted: Sequence[Array], got: Sequence[Array]) -> Distance:
    """Between the outputs of two models; infinite where shapes differ or only one is finite."""
    if len(wanted) != len(got):
        return Distance(np.inf, np.inf)
    pairs = [_distance(a, b) for a, b in zip(wanted, got, strict=True)]
    return Distance(max((p.relative_l2 for p in pairs), default=0.0), max((p.max_abs for p in pairs), default=0.0))


def _distance(a: Array, b: Array) -> Distance:
    if a.shape != b.shape or a.dtype != b.dtype:
        return Distance(np.inf, np.inf)
    if not a.size or not np.issubdtype(a.dtype, np.floating):
        # Whole numbers (classes, indices) may turn over on a tie; how many did is all that can be said.
        return Distance(float(np.mean(a != b)) if a.size else 0.0, 0.0)
    left, right = a.astype(np.float64), b.astype(np.float64)
    difference = left - right
    if not np.isfinite(difference).all():
        return Distance(np.inf, np.inf)
    size, apart = np.linalg.norm(left), np.linalg.norm(difference)
    relative = apart / size if size > 0 else (0.0 if apart == 0 else np.inf)
    return Distance(float(relative), float(np.abs(difference).max()))
