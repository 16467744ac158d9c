"""Evaluate models against the original: on images with labels or without, or by the user's own measure.

The original runs once, when an evaluator is opened; then any number of models can be compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trp_export.errors import LoadError, OptionError
from trp_export.graph.shapes import Shape, infer_value_shapes
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.images import ImageSet, load_images
from trp_export.inputs.preprocessing import Preprocessing
from trp_export.load import Source
from trp_export.options import Evaluate, Images
from trp_export.runtime.partial import fixed_batch
from trp_export.runtime.sessions import Array, CannotRunError, Inputs, run, stream
from trp_export.system.progress import Share

Labels = NDArray[np.int64]
_BATCH = 100
# The class of an image whose outputs are not finite: it equals no label and no other class.
_NO_CLASS = -1
# What may follow the ArgMax of a network that gives numbers of classes.
_MOVE_NUMBERS = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Classes of the two models on real images, and their accuracy where the images have labels; shares of 1.

    `lost` counts the images that the original gets right and the other does not, `gained` the reverse; without
    labels, the original is right.
    """

    images: int
    top1: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    lost: int = 0
    gained: int = 0

    @property
    def what(self) -> str:
        return "same class" if self.accuracy_after is None else "accuracy"

    @property
    def before(self) -> float:
        return 1.0 if self.accuracy_before is None else self.accuracy_before

    @property
    def after(self) -> float:
        return self.top1 if self.accuracy_after is None else self.accuracy_after

    @property
    def error(self) -> float | None:
        """The standard error of the change, from the images on which the two differ (as in McNemar's test)."""
        differing, net = self.lost + self.gained, self.lost - self.gained
        return math.sqrt(differing - net**2 / self.images) / self.images


@dataclass(frozen=True, slots=True)
class Score:
    """The user's own measure of the two models, as shares of 1."""

    before: float
    after: float
    what: str = "score"
    images: int | None = None
    error: float | None = None


Evaluator = Callable[[Path, Share], Agreement | Score]

# A share that equals the limit but for rounding is within it.
_ROUNDING = 1e-9


def holds(evaluation: Agreement | Score | None, largest_drop: float | None) -> bool:
    """True where at most `largest_drop`, a share, is lost; also where there is no limit or nothing was evaluated."""
    return (
        evaluation is None or largest_drop is None or evaluation.before - evaluation.after <= largest_drop + _ROUNDING
    )


def open_evaluator(
    source: Source,
    inputs: NetworkInputs,
    original: Path,
    images: Images | None,
    preprocessing: Preprocessing,
    evaluate: Evaluate | None,
    progress: Share,
) -> tuple[Evaluator | None, tuple[str, ...]]:
    """The evaluator that the options ask for, if any, and notes on its images.

    Raises LoadError for images or labels that cannot be used, OptionError for a network whose output is not classes, or
    a measure outside 0 to 1.
    """
    if evaluate is not None:
        before = _share(evaluate, original)
        return lambda model, progress: Score(before, _share(evaluate, model)), ()
    if images is None:
        return None, ()
    spec = inputs.only
    name, chosen = spec.name, preprocessing.or_else(source.mean, source.std)
    image_set = load_images(images.path, chosen, spec=spec, count=images.count)
    try:
        count = _class_count(original, image_set, name)
        labels, notes = labels_of(image_set, count, source.classes)
        before_classes = _classes(original, image_set, name, progress)
    except CannotRunError as error:
        raise LoadError(f"--eval: onnxruntime cannot run the original: {error}") from error

    def evaluate_model(model: Path, progress: Share) -> Agreement:
        return _compare(before_classes, _classes(model, image_set, name, progress), labels)

    return evaluate_model, (*image_set.notes, *notes)


def top1(outputs: Array) -> NDArray[np.intp]:
    """The class of each image: from logits (N, classes, 1, ...), -1 where they are not finite, or from its number."""
    rows = outputs.reshape(len(outputs), -1)
    if _are_numbers(outputs):
        return np.asarray(rows[:, 0], dtype=np.intp)
    classes = np.asarray(rows.argmax(axis=1))
    return classes if rows.dtype.kind != "f" else np.where(np.isfinite(rows).all(axis=1), classes, _NO_CLASS)


def _are_numbers(outputs: Array) -> bool:
    """True for one whole number per image: the output of an ArgMax."""
    return outputs.dtype.kind in "iu" and outputs.ndim > 0 and outputs.size == len(outputs)


def _share(evaluate: Evaluate, model: Path) -> float:
    score = float(evaluate(model))
    if not 0 <= score <= 1:
        raise OptionError(
            f"evaluate returned {score:g}; it must return a share of 1, more for better. Divide percentages by 100."
        )
    return score


def _compare(before: Array, after: Array, labels: Labels | None) -> Agreement:
    truth = before if labels is None else labels[: len(before)]
    right_before, right_after = before == truth, after == truth
    return Agreement(
        images=len(before),
        top1=float(np.mean((before == after) & (before != _NO_CLASS))),
        accuracy_before=None if labels is None else float(right_before.mean()),
        accuracy_after=None if labels is None else float(right_after.mean()),
        lost=int((right_before & ~right_after).sum()),
        gained=int((right_after & ~right_before).sum()),
    )


def _class_count(original: Path, images: ImageSet, name: str) -> int | None:
    """The number of classes of the first output, None where that holds numbers of classes and does not tell how many.

    Raises OptionError where it holds neither.
    """
    first = next(_batches(images, original, name, lambda share: None), None)
    if first is None:
        raise LoadError(f"{images.name}: {len(images)} images are fewer than the fixed batch of the network.")
    output = run(original, [first])[0]
    shape = output.shape
    if _are_numbers(output) and len(output) == len(first[name]):
        return _counted_classes(original, {name: first[name].shape})
    if len(shape) < 2 or shape[0] != len(first[name]) or shape[1] < 2 or math.prod(shape[2:]) != 1:
        raise OptionError(
            f"--eval compares classes, and this network's first output is {list(shape)} for {len(first[name])} images. "
            "In Python, Options(evaluate=...) takes a measure of your own."
        )
    return int(shape[1])


def _counted_classes(original: Path, shapes: Mapping[str, Shape]) -> int | None:
    """The length of the axis of the ArgMax that gives the first output, looked for behind operators that move it."""
    model = ir.load(original)
    value: ir.Value | None = model.graph.outputs[0]
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0] if node.inputs else None
        if node.op_type in ("ArgMax", "TopK") and value is not None:
            axis = node.attributes.get_int("axis", 0 if node.op_type == "ArgMax" else -1)
            shape = infer_value_shapes(model, shapes).get(value.name or "")
            return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
        if node.op_type not in _MOVE_NUMBERS:
            return None
    return None


def labels_of(images: ImageSet, count: int | None, names: Sequence[str]) -> tuple[Labels | None, tuple[str, ...]]:
    """The labels as numbers of the network's classes, if they can be known, and a note where they cannot."""
    labels = images.labels
    if labels is None:
        return None, ()
    if images.classes:
        return _labels_by_name(images, labels, count, names)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (count is not None and high >= count):
        raise LoadError(
            f"{images.name}: labels run from {low} to {high}; the network has classes 0 to {(count or 0) - 1}."
        )
    return labels, ()


def _labels_by_name(
    images: ImageSet, labels: Labels, count: int | None, names: Sequence[str]
) -> tuple[Labels | None, tuple[str, ...]]:
    """Folders are classes: matched by the names in the checkpoint, else in alphabetical order where none is missing."""
    if names and count in (None, len(names)) and set(images.classes) <= set(names):
        index = np.array([names.index(name) for name in images.classes], dtype=np.int64)
        return index[labels], ()
    if len(images.classes) == count:
        return labels, ()
    wanted = "an unknown number of" if count is None else count
    return None, (
        f"{images.name}: {len(images.classes)} folders for {wanted} classes, so it is not known which folder "
        "holds which class: the classes of both models are compared instead of accuracy",
    )


def _classes(model: Path, images: ImageSet, name: str, progress: Share) -> NDArray[Any]:
    return np.concatenate([top1(answer[0]) for answer in stream(model, _batches(images, model, name, progress))])


def _batches(images: ImageSet, model: Path, name: str, progress: Share) -> Iterator[Inputs]:
    """The images in batches that fit the model; an incomplete last batch is left out where the batch size is fixed."""
    wanted = ir.load(model)
    fixed, dtype = fixed_batch(wanted), wanted.graph.inputs[0].dtype
    size = fixed or _BATCH
    for index, inputs in enumerate(images.batches(size)):
        if fixed is None or len(inputs) == fixed:
            yield {name: inputs.astype(dtype.numpy() if dtype is not None else np.float32)}
        progress(min(1.0, (index + 1) * size / len(images)))
