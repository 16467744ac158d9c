"""Does the result compute what its factors say, and how far did truncation move the outputs?

Three models answer the same inputs: the original, the original whose kernels are the products of the
factors, and the result. The last two must agree up to rounding, whatever was truncated; if they do not, the
rewrite is wrong. The first and the last tell what truncation did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from trp_export.errors import OptionError, VerifyError
from trp_export.graph.shapes import Shape
from trp_export.load import Source
from trp_export.planning.plan import Plan
from trp_export.runtime.distance import Distance, distance
from trp_export.runtime.sessions import Array, CannotRunError, noise, run
from trp_export.system.progress import Progress
from trp_export.verify.calibration_images import CalibrationAgreement
from trp_export.verify.compare import TOLERANCE, require_equal, require_finite
from trp_export.verify.judge import Agreement, Evaluator, Score
from trp_export.verify.layers import verify_layers


@dataclass(frozen=True, slots=True)
class Deviation:
    """What truncation did to the outputs, on which inputs, and how exact the rewrite is.

    `truncation` is None where the whole model could not be run; `how` says what was compared then. `seen` is what
    calibration images show where there is no judge.
    """

    inputs: str
    how: str
    rewrite: Distance
    truncation: Distance | None
    agreement: Agreement | None = None
    score: Score | None = None
    seen: CalibrationAgreement | None = None

    @property
    def judged(self) -> Agreement | Score | None:
        """What the judge found, if there was one."""
        return self.agreement or self.score

    @property
    def graded(self) -> Agreement | Score | None:
        """The same where it holds against a truth from outside: labels, or the user's own measure."""
        found = self.judged
        return None if isinstance(found, Agreement) and found.accuracy_after is None else found


@dataclass(frozen=True, slots=True)
class Files:
    """The models to hold against each other. `dense` is the original in normal form, `products` the same with
    every changed kernel set to the product of its factors."""

    original: Path
    dense: Path
    products: Path
    result: Path


def verify_export(
    source: Source,
    shapes: Mapping[str, Shape],
    files: Files,
    plan: Plan,
    judge: Evaluator | None,
    progress: Progress,
) -> Deviation:
    """Raises VerifyError where the rewrite is wrong, LoadError where the original itself cannot be trusted."""
    tolerance = TOLERANCE.get(_weight_type(files.dense), 1e-4)
    try:
        inputs = noise(files.original, shapes)
        original = run(files.original, [inputs])
    except CannotRunError as error:
        if error.opened and all(None not in shape for shape in shapes.values()):
            sizes = "; ".join(f"{name} {','.join(str(size or 1) for size in shape)}" for name, shape in shapes.items())
            raise OptionError(
                f"the original does not run on inputs of these shapes ({sizes}): {error}\n"
                "Give the right one with --shape."
            ) from error
        exact = verify_layers(files.products, files.result, plan, tolerance)
        how = f"each layer alone, since onnxruntime cannot run the whole model: {error}"
        return Deviation("noise, standard normal, seed 0", how, exact, None)
    try:
        if source.probe is not None:
            answer = run(files.dense, [source.probe.inputs])
            require_equal(source.probe.outputs, answer, 10 * tolerance, "the exported graph against the PyTorch module")
        outputs = _Outputs(original, *(run(file, [inputs]) for file in (files.dense, files.products, files.result)))
    except CannotRunError as error:
        raise VerifyError(
            f"onnxruntime runs the original but not what was made of it: {error}\n"
            "Nothing was written. Please report this with the model."
        ) from error
    require_finite(outputs.original, "the original")
    require_equal(outputs.original, outputs.dense, tolerance, "the prepared graph against the original")
    exact = require_equal(outputs.products, outputs.result, tolerance, "the result against its own factors")
    truncation = distance(outputs.original, outputs.result)
    found = judge(files.result, lambda share: progress("compare", share)) if judge is not None else None
    return Deviation(
        "noise, standard normal, seed 0",
        "whole model",
        exact,
        truncation,
        agreement=found if isinstance(found, Agreement) else None,
        score=found if isinstance(found, Score) else None,
    )


@dataclass(frozen=True, slots=True)
class _Outputs:
    original: Sequence[Array]
    dense: Sequence[Array]
    products: Sequence[Array]
    result: Sequence[Array]


def _weight_type(model: Path) -> ir.DataType:
    """The coarsest floating-point type among the weights decides what rounding can do."""
    tensors = (value.const_value for value in ir.load(model).graph.initializers.values())
    types = {tensor.dtype for tensor in tensors if tensor is not None}
    return ir.DataType.FLOAT16 if ir.DataType.FLOAT16 in types else ir.DataType.FLOAT
