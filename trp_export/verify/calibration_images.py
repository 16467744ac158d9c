"""What calibration images show of a result that nobody else judges: more than noise does, less than others would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from trp_export.runtime.distance import Distance, distance
from trp_export.runtime.sessions import ORT_TYPES, Array, CannotRunError, open_session, run
from trp_export.verify.judge import top1

# Of more, every so manieth batch is taken: the answer is a share, and a pass over all of them takes long.
_ENOUGH = 256

Kind = Literal["calibration", "synthetic", "held-out", "held-out synthetic"]


@dataclass(frozen=True, slots=True)
class CalibrationAgreement:
    """How far the result is from the original on calibration images: those held out, where there are any.

    `top1` is the share of them that keep their class, None where the first output holds no classes.
    """

    images: int
    kind: Kind
    distance: Distance
    top1: float | None

    @property
    def name(self) -> str:
        return f"{self.images:,} {self.kind} image{'s' if self.images > 1 else ''}"

    @property
    def fitted(self) -> str:
        """The same, and whether the factors were fitted to them."""
        if self.kind.startswith("held-out"):
            return self.name
        one = "synthetic image" if self.kind == "synthetic" else "image"
        return f"the {self.images:,} {one}{'s' if self.images > 1 else ''} it was fitted to"


def compare_on_calibration_images(
    original: Path, result: Path, batches: Sequence[Array], kind: Kind
) -> CalibrationAgreement | None:
    """`batches` are inputs (n, C, H, W) of a model of one input. None where it does not take so many at a time."""
    chosen = batches[:: -(-sum(map(len, batches)) // _ENOUGH)]
    (fed,) = open_session(original).get_inputs()
    dtype: type[np.generic] = ORT_TYPES.get(fed.type, np.float32)
    inputs = [{fed.name: batch.astype(dtype)} for batch in chosen]
    try:
        wanted, got = run(original, inputs), run(result, inputs)
    except CannotRunError:
        return None
    images = sum(map(len, chosen))
    return CalibrationAgreement(images, kind, distance(wanted, got), _same_class(wanted[0], got[0], images))


def _same_class(wanted: Array, got: Array, images: int) -> float | None:
    classes = wanted.ndim > 1 and len(wanted) == images and wanted.size == images * wanted.shape[1] > images
    return float(np.mean(top1(wanted) == top1(got))) if classes else None
