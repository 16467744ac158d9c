"""Evaluate results against the original by a metric. The original runs once, when the evaluator is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.errors import LoadError, OptionError
from trp_export.graph.large_files import read_model
from trp_export.inputs.calibration import open_calibration
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.placement import Size
from trp_export.inputs.samples import Batch, Samples, input_types
from trp_export.inputs.spec import InputSpec
from trp_export.load import Source
from trp_export.metrics.choice import Metric, open_metric
from trp_export.metrics.heads import numbers_images
from trp_export.metrics.sample import Array, Outputs, Sample, Span
from trp_export.metrics.score import Score
from trp_export.options import Evaluate, Options
from trp_export.runtime.sessions import CannotRunError, Inputs, join, run, stream
from trp_export.system.progress import Share

Evaluator = Callable[[Path, Share], Score]

_MOST_IMAGES = 100
# The first images, which show what the outputs are: one alone may hold no object, or just one.
_LOOKED_AT = 4
# Of vectors these many are looked at: fewer do not tell scores of classes from ratings.
_VECTORS_LOOKED_AT = 32
# What is kept of the original's outputs has at most this size, and what is kept of a result's lies beside it.
_KEPT_BYTES = 2**30
# Outputs of images together are those of each alone up to this share.
_ALIKE = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class _Feed:
    """The samples as a model takes them; `together` is how many at once where the model leaves that open."""

    samples: Samples
    together: int = 1

    def predict(self, model: Path, metric: Metric, progress: Share) -> list[Any]:
        """The predictions of a model for all images, or for the first ones where more would not fit into memory.

        Raises CannotRunError, and OptionError where the outputs do not tell the images of a batch apart.
        """
        predictions: list[Any] = []
        batches: list[Batch] = []
        kept = 0

        def fed() -> Iterator[Inputs]:
            for batch in self.batches(model):
                batches.append(batch)
                yield batch.arrays

        for outputs in stream(model, fed()):
            batch = batches.pop()
            size = _extents(self.spec, batch.arrays[self.spec.name])[0]
            found = metric.predict(outputs, Span(len(predictions), size))
            if len(found) != len(batch):
                raise OptionError(
                    f"--eval: the outputs are {len(found)} answers for a batch of {len(batch)} images. Export the "
                    "network with a batch of one image."
                )
            predictions += found
            kept += sum(_bytes(one) for one in found)
            if kept >= _KEPT_BYTES:
                break
            progress(min(1.0, len(predictions) / len(self.samples)))
        return predictions

    def batches(self, model: Path) -> Iterator[Batch]:
        """Batches that fit the model, in its types. Raises LoadError for fewer samples than it takes at a time."""
        types = input_types(read_model(model))
        return (batch.in_types(types) for batch in self.samples.batches(self.together))

    @property
    def spec(self) -> InputSpec:
        """The input that metrics take for the image."""
        name, images = next(item for item in self.samples.sets.items() if item[1] is self.samples.main)
        return images.spec or InputSpec.of_images((None, images.channels, None, None), name)


def open_evaluator(
    source: Source, inputs: NetworkInputs, original: Path, options: Options, progress: Share
) -> tuple[Evaluator | None, tuple[str, ...]]:
    """The evaluator that the options ask for, if any, and notes on its images and its metric.

    Raises LoadError for images or labels that cannot be used, OptionError for a metric that does not fit the network's
    outputs, or a measure outside 0 to 1.
    """
    images, evaluate = options.images, options.evaluate
    if evaluate is not None:
        before = _share(evaluate, original)
        return lambda model, progress: Score("function", "score", before, _share(evaluate, model)), ()
    if images is None:
        return None, ()
    steps = options.preprocessing.or_else(source.mean, source.std)
    samples = open_calibration(images.path, inputs, steps, count=images.count)
    try:
        feed, sample = _look(_Feed(samples), original, source)
        metric, notes = open_metric(images, samples.main, sample, original)
        predictions = feed.predict(original, metric, progress)
    except CannotRunError as error:
        raise LoadError(f"--eval: onnxruntime cannot run the original: {error}") from error

    if len(predictions) < len(samples):
        feed = replace(feed, samples=samples.take(np.arange(len(predictions))))

    def evaluate_model(model: Path, progress: Share) -> Score:
        return metric.score(predictions, feed.predict(model, metric, progress))

    return evaluate_model, (*samples.notes, *notes, *_left_out(samples, len(predictions)))


def _bytes(prediction: Any) -> int:
    """The memory that a prediction takes, as far as it consists of arrays."""
    parts = prediction if isinstance(prediction, (list, tuple)) else [prediction]
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


def _left_out(samples: Samples, count: int) -> tuple[str, ...]:
    """A note on samples that no `count` of predictions is of: for memory's sake, or as they fill no batch."""
    left = len(samples) % (samples.at_a_time or 1)
    if count < len(samples) - left:
        return (f"{samples.name}: {count:,} of {len(samples):,} images are compared, for memory's sake",)
    return (f"{samples.name}: the last {left} of {len(samples):,} images do not fill a batch",) if left else ()


def _look(feed: _Feed, original: Path, source: Source) -> tuple[_Feed, Sample]:
    """The outputs for the first images, and how many images may run at once from there on."""
    batches = list(islice(feed.batches(original), _LOOKED_AT))
    alone = list(stream(original, (batch.arrays for batch in batches)))
    if _rows_are_images(alone, batches) and not numbers_images(alone[0]):
        outputs, count = join(alone), sum(map(len, batches))
        together = _Feed(feed.samples, _LOOKED_AT)
        if _answer_alike(outputs, next(together.batches(original)), original):
            feed = _Feed(feed.samples, _MOST_IMAGES)
        first = batches[0]
        if all(one.ndim == 2 for one in outputs):
            batches = list(_holding(_VECTORS_LOOKED_AT, feed.batches(original)))
            vectors = list(stream(original, (batch.arrays for batch in batches)))
            if _rows_are_images(vectors, batches):
                outputs, count = join(vectors), sum(map(len, batches))
    else:  # That with the most values: it shows most objects.
        outputs, first = max(zip(alone, batches, strict=True), key=lambda pair: sum(one.size for one in pair[0]))
        count = len(first)
    names = tuple(value.name or "" for value in read_model(original).graph.outputs)
    names = names if len(names) == len(outputs) else tuple(map(str, range(len(outputs))))
    sample = Sample(
        names,
        tuple(outputs),
        count,
        *_extents(feed.spec, first.arrays[feed.spec.name]),
        tuple(source.classes),
        {name: array.shape for name, array in first.arrays.items()},
    )
    return feed, sample


def _holding(count: int, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The first batches that together hold so many images."""
    for batch in batches:
        yield batch
        count -= len(batch)
        if count <= 0:
            return


def _rows_are_images(outputs: Sequence[Outputs], batches: Sequence[Batch]) -> bool:
    """Whether every output has a row for each image of its batch, and images have rows of one size."""
    rows = all(one.ndim and len(one) == len(batch) for own, batch in zip(outputs, batches, strict=True) for one in own)
    return rows and all(len({one.shape[1:] for one in of_all}) == 1 for of_all in zip(*outputs, strict=True))


def _answer_alike(alone: Outputs, batch: Batch, model: Path) -> bool:
    """Whether the first images give in one batch what they give `alone`: then rows of outputs are images."""
    if batch.fixed or len(batch) == 1:
        return False
    try:
        together = run(model, [batch.arrays])
    except CannotRunError:
        return False
    return all(
        one.shape == (len(batch), *own.shape[1:]) and _distance(one, own[: len(batch)]) <= _ALIKE
        for one, own in zip(together, alone, strict=True)
    )


def _distance(one: Array, other: Array) -> float:
    """How far arrays are apart, as a share of the second; values that are not finite count as 0."""
    first, second = (np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0) for array in (one, other))
    return float(np.linalg.norm(first - second) / max(float(np.linalg.norm(second)), 1e-30))


def _extents(spec: InputSpec, inputs: Array) -> tuple[Size, int, bool]:
    """Height and width of an input, and its channels; whether they come last."""
    shape = inputs.shape
    match spec.layout:
        case "NHWC" | "HWC":
            return (shape[-3], shape[-2]), shape[-1], True
        case "NCHW" | "CHW":
            return (shape[-2], shape[-1]), shape[-3], False
        case _:
            return (shape[-2] if len(shape) > 1 else 1, shape[-1] if shape else 1), 1, False


def _share(evaluate: Evaluate, model: Path) -> float:
    score = float(evaluate(model))
    if not 0 <= score <= 1:
        raise OptionError(
            f"evaluate returned {score:g}; it must return a share of 1, more for better. Divide percentages by 100."
        )
    return score
