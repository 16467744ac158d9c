"""Compare original and result on calibration images, where there are no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from trp_export.errors import VerifyError
from trp_export.graph.large_files import read_model
from trp_export.graph.prepare import prepare
from trp_export.graph.random_draws import random_operators
from trp_export.inputs.samples import Batch, input_types
from trp_export.metrics.classes import top1
from trp_export.metrics.recognise import are_scores
from trp_export.runtime.blocks import in_blocks
from trp_export.runtime.distance import Distance, distance
from trp_export.runtime.sessions import Array, CannotRunError, Inputs, join
from trp_export.verify.parts import find_differences
from trp_export.verify.whole import Execution, find_points

# With more images, every n-th batch is used: the result is a share, and a pass over all images takes long.
_ENOUGH = 256
# An image whose outputs are smaller than this share of the largest counts less: they may be rounding alone.
_LEAST_SIZE = 1e-4

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
    original: Path, result: Path, batches: Sequence[Batch], kind: Kind
) -> CalibrationAgreement | None:
    """Run both models on `batches`.

    Outputs behind TopK or NonMaxSuppression are compared in front of these. None where the model does not take batches
    of this size, or where nothing in front of these operators is found in both files.
    """
    chosen = batches[:: -(-sum(map(len, batches)) // _ENOUGH)]
    types = input_types(read_model(original))
    answers = run_both(original, result, [batch.in_types(types).arrays for batch in chosen])
    if answers is None:
        return None
    wanted, got = answers
    images = sum(map(len, chosen))
    apart = distance(wanted, got)
    if kind.endswith("synthetic"):
        levelled = [_levelled(one, other, images) for one, other in zip(wanted, got, strict=False)]
        apart = replace(apart, relative_l2=distance(*zip(*levelled, strict=True)).relative_l2)
    return CalibrationAgreement(images, kind, apart, _same_class(wanted[0], got[0], images))


def _levelled(wanted: Array, got: Array, images: int) -> tuple[Array, Array]:
    """Two outputs in which each image has the same size: the scales of synthetic images differ by a factor of 100."""
    if wanted.ndim == 0 or len(wanted) != images or wanted.dtype.kind != "f" or wanted.shape != got.shape:
        return wanted, got
    sizes = np.concatenate([np.linalg.norm(rows, axis=1) for (rows,) in in_blocks(wanted.reshape(images, -1))])
    units = np.maximum(sizes, _LEAST_SIZE * sizes.max()).reshape(-1, *(1,) * (wanted.ndim - 1))
    return (wanted, got) if not units.all() or not np.isfinite(units).all() else (wanted / units, got / units)


def run_both(original: Path, result: Path, inputs: Sequence[Inputs]) -> tuple[list[Array], list[Array]] | None:
    """What the two models answer, in front of operators with steps; random operators get a seed.

    None where the models do not take these inputs, or where nothing in front of such operators is found in both.
    """
    model = read_model(original)
    seeded = bool(random_operators(model))
    try:
        mine, its = _compared(model, result)
        if not mine:
            return None
        wanted = join(Execution(mine, seeded=seeded).run(original, inputs))
        got = join(Execution(its, seeded=seeded).run(result, inputs))
    except (
        CannotRunError,
        VerifyError,
        ValueError,
    ):  # numpy refuses to join sequences that differ from batch to batch.
        return None
    return wanted, [_as_wide(one, other) for one, other in zip(got, wanted, strict=False)]


def _as_wide(array: Array, original: Array) -> Array:
    """Inner values of a float16 network in the type of the original's."""
    floats = array.dtype.kind == original.dtype.kind == "f"
    return array.astype(original.dtype) if floats else array


def _compared(model: ir.Model, result: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The values to compare, by their names in the original and in the result."""
    outputs = tuple(value.name or "" for value in model.graph.outputs)
    if find_points(model, ()).ends == outputs:
        return outputs, outputs
    main_values = {value.name for node in model.graph for value in node.outputs}
    normal = prepare(model)
    shared = find_differences(normal, read_model(result)).shared
    names = {value.name or "": other.name or "" for value, other in shared.items()}
    ends = find_points(normal, names.keys() & main_values).ends
    return ends, tuple(names[name] for name in ends)


def _same_class(wanted: Array, got: Array, images: int) -> float | None:
    return float(np.mean(top1(wanted) == top1(got))) if are_scores(wanted, images) else None
