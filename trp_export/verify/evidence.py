"""Does the result compute what its factors say, and how far did truncation move the outputs?

Three models answer the same inputs: the original, the original whose kernels are the products of the
factors, and the result. The last two must agree up to rounding, whatever was truncated; if they do not, the
rewrite is wrong. The first and the last tell what truncation did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trp_export.errors import LoadError, OptionError, VerifyError
from trp_export.graph.shapes import Shape
from trp_export.images import ImageSet, load_images
from trp_export.load import Source
from trp_export.options import Images
from trp_export.planning.plan import Plan
from trp_export.verify.compare import TOLERANCE, Distance, distance, require_equal, require_finite, top1
from trp_export.verify.layers import verify_layers
from trp_export.verify.sessions import Array, CannotRunError, Inputs, fixed_batch, noise, run

Progress = Callable[[str, float], None]
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Agreement:
    """Classes of the two models on real images, and their accuracy where the images have labels; shares of 1."""

    images: int
    top1: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None


@dataclass(frozen=True, slots=True)
class Deviation:
    """What truncation did to the outputs, on which inputs, and how exact the rewrite is.

    `truncation` is None where the whole model could not be run; `how` says what was compared then.
    """

    inputs: str
    how: str
    rewrite: Distance
    truncation: Distance | None
    agreement: Agreement | None = None


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
    images: Images | None,
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
                "Give the right one with --input-shape."
            ) from error
        if images is not None:
            raise LoadError(f"--eval: onnxruntime cannot run the original: {error}") from error
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
    agreement = _agreement(source, shapes, files, images, progress) if images is not None else None
    what = "noise, standard normal, seed 0"
    return Deviation(what, "whole model", exact, truncation, agreement)


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


def _agreement(
    source: Source, shapes: Mapping[str, Shape], files: Files, images: Images, progress: Progress
) -> Agreement:
    """Classes of original and result on real images, and accuracy where there are labels."""
    if len(shapes) != 1:
        raise OptionError(f"--eval feeds one image input; this model has {len(shapes)} inputs.")
    (name, shape) = next(iter(shapes.items()))
    chosen = images.preprocessing.or_else(source.mean, source.std)
    image_set = load_images(images.path, chosen, input_shape=(None, *shape[1:]), count=images.count)
    before = _classes(files.original, image_set, name, lambda done: progress("compare", done / 2))
    after = _classes(files.result, image_set, name, lambda done: progress("compare", 0.5 + done / 2))
    labels = None if image_set.labels is None else image_set.labels[: len(before)]
    return Agreement(
        images=len(before),
        top1=float(np.mean(before == after)),
        accuracy_before=None if labels is None else float(np.mean(before == labels)),
        accuracy_after=None if labels is None else float(np.mean(after == labels)),
    )


def _classes(model: Path, images: ImageSet, name: str, progress: Callable[[float], None]) -> Array:
    return top1(run(model, _batches(images, model, name, progress))[0])


def _batches(images: ImageSet, model: Path, name: str, progress: Callable[[float], None]) -> Iterator[Inputs]:
    """The images as the model takes them; under a fixed batch size, what is left over at the end is not fed."""
    fixed, dtype = fixed_batch(model)
    size = fixed or _BATCH
    for index, inputs in enumerate(images.batches(size)):
        if fixed is None or len(inputs) == fixed:
            yield {name: inputs.astype(dtype)}
        progress(min(1.0, (index + 1) * size / len(images)))
