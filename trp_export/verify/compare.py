"""Refuse models whose outputs differ where they must agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trp_export.errors import LoadError, VerifyError
from trp_export.runtime.distance import Distance, distance
from trp_export.runtime.sessions import Array

# Relative L2 of rounding alone, over a whole network.
TOLERANCE = {ir.DataType.FLOAT16: 5e-3, ir.DataType.FLOAT: 1e-4, ir.DataType.DOUBLE: 1e-4}


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
