"""How far outputs are apart, and what is said when they must not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trp_export.errors import LoadError, VerifyError
from trp_export.verify.sessions import Array

# Relative L2 of rounding alone, over a whole network.
TOLERANCE = {ir.DataType.FLOAT16: 5e-3, ir.DataType.FLOAT: 1e-4, ir.DataType.DOUBLE: 1e-4}


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


def require_equal(wanted: Sequence[Array], got: Sequence[Array], tolerance: float, what: str) -> Distance:
    """Raises VerifyError where two models that must agree do not."""
    apart = distance(wanted, got)
    if not apart.relative_l2 <= tolerance:
        raise VerifyError(
            f"{what}: outputs are {apart.relative_l2:.2g} apart (relative L2), {tolerance:g} is allowed.\n"
            "Nothing was written. Please report this with the model, or leave layers out with --skip to find the one."
        )
    return apart


def require_finite(outputs: Sequence[Array], what: str) -> None:
    for output in outputs:
        if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
            raise LoadError(f"{what} answers NaN or infinity to ordinary inputs; nothing can be verified on it.")


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
