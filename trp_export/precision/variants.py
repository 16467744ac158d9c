"""The result in the precisions that may ship, each held against the float model before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.calibration.divergence import agreement, divergence
from trp_export.calibration.taps import Tap
from trp_export.errors import TrpError, first_line
from trp_export.precision.half import to_fp16
from trp_export.precision.int8 import to_int8
from trp_export.save import save_model, size_bytes

Batches = Sequence[NDArray[Any]]
Progress = Callable[[str, float], None]

# Share of the outputs' spread: beyond it a variant is no stand-in for the float model.
LARGEST_DIVERGENCE = 0.1
_PARITY_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Parity:
    """How a variant answers beside the float model it was made from: agreement of classes is a share of 1."""

    images: int
    agreement: float
    divergence: float


@dataclass(frozen=True, slots=True)
class Variant:
    """One form of a model. `refused` says why there is none, or why it may not ship.

    `low_rank` is False for the original in the same precision, which one could ship instead.
    """

    precision: str
    low_rank: bool
    file: Path | None
    bytes: int | None
    parity: Parity | None
    how: str
    refused: str | None = None

    @property
    def name(self) -> str:
        return f"low rank, {self.precision}" if self.low_rank else f"{self.precision} alone"


def make_variant(
    precision: str, source: Path, file: Path, batches: Batches, low_rank: bool, progress: Progress
) -> Variant:
    """The model `source` in another precision, written to `file`. `batches` may be empty for fp16.

    Faults of the model or of the images make a refused variant: the float model is there to ship.
    """
    model = ir.load(source)
    ir.external_data.load_to_model(model)
    try:
        made, how = _convert(precision, model, batches, progress)
        save_model(made, file)
        parity = _compare(model, made, batches) if batches else None
    except TrpError as error:
        return Variant(precision, low_rank, None, None, None, "", first_line(error))
    refused = None
    if parity is not None and not parity.divergence <= LARGEST_DIVERGENCE:
        refused = (
            f"its outputs diverge from the float model's by {parity.divergence:.0%} of their spread, "
            f"{LARGEST_DIVERGENCE:.0%} is allowed; the same class on {parity.agreement:.1%} of {parity.images} images"
        )
    return Variant(precision, low_rank, file, size_bytes(file), parity, how, refused)


def _convert(precision: str, model: ir.Model, batches: Batches, progress: Progress) -> tuple[ir.Model, str]:
    if precision == "fp16":
        return to_fp16(model), ""
    made = to_int8(model, batches, lambda share: progress("int8", share))
    kept = f"; in float: {', '.join(made.in_float)}" if made.in_float else ""
    return made.model, f"grids by {made.method}{kept}"


def _compare(model: ir.Model, variant: ir.Model, batches: Batches) -> Parity:
    """On the first of the images, which int8 holds out."""
    names = [value.name or "" for value in model.graph.outputs]
    few = batches[: max(1, _PARITY_IMAGES // len(batches[0]))]
    taps = [Tap(one, [one.graph.inputs[0].name or ""], names) for one in (model, variant)]
    own, other = (
        {name: np.concatenate([part[name] for part in parts]) for name in names}
        for parts in ([tap({tap.inputs[0]: batch}) for batch in few] for tap in taps)
    )
    return Parity(len(own[names[0]]), agreement(own, other), divergence(own, other))
