"""Evaluate results against the original by a metric. The original runs once, when the evaluator is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trp_export.errors import LoadError, OptionError
from trp_export.graph.large_files import read_model
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.images import load_images
from trp_export.inputs.placement import Size
from trp_export.inputs.preprocessing import Resize
from trp_export.inputs.spec import InputSpec
from trp_export.load import Source
from trp_export.metrics.choice import Metric, open_metric
from trp_export.metrics.sample import Array, Sample, Span
from trp_export.metrics.score import Score
from trp_export.options import Evaluate, Options
from trp_export.runtime.partial import fixed_batch
from trp_export.runtime.sessions import CannotRunError, Inputs, run, stream
from trp_export.system.progress import Share

Evaluator = Callable[[Path, Share], Score]

_MOST_IMAGES = 100
_BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class _Feed:
    """The images as a model takes them; `together` is how many at once where the model leaves that open."""

    images: ImageSet
    spec: InputSpec
    together: int = 1

    def predict(self, model: Path, metric: Metric, progress: Share) -> list[Any]:
        """The predictions of a model for all images. Raises CannotRunError."""
        predictions: list[Any] = []
        sizes: list[Size] = []

        def fed() -> Iterator[Inputs]:
            for inputs in self.batches(model):
                sizes.append(_extents(self.spec, inputs[self.spec.name])[0])
                yield inputs

        for outputs in stream(model, fed()):
            predictions += metric.predict(outputs, Span(len(predictions), sizes[-1]))
            progress(min(1.0, len(predictions) / len(self.images)))
        return predictions

    def batches(self, model: Path) -> Iterator[Inputs]:
        """Batches that fit the model; an incomplete last one is left out where the batch size is fixed."""
        wanted = read_model(model)
        fixed, dtype = fixed_batch(wanted), wanted.graph.inputs[0].dtype
        for inputs in self.images.batches(fixed or self.together):
            if fixed is None or len(inputs) == fixed or not self.spec.batched:
                yield {self.spec.name: inputs.astype(dtype.numpy() if dtype is not None else np.float32)}


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
    spec, steps = inputs.only, options.preprocessing.or_else(source.mean, source.std)
    image_set = load_images(images.path, steps, spec=spec, count=images.count)
    try:
        feed, sample = _look(_Feed(image_set, spec), original, source)
        metric, notes = open_metric(images, image_set, sample, original)
        predictions = feed.predict(original, metric, progress)
    except CannotRunError as error:
        raise LoadError(f"--eval: onnxruntime cannot run the original: {error}") from error

    def evaluate_model(model: Path, progress: Share) -> Score:
        return metric.score(predictions, feed.predict(model, metric, progress))

    return evaluate_model, (*image_set.notes, *notes)


def _look(feed: _Feed, original: Path, source: Source) -> tuple[_Feed, Sample]:
    """The outputs for the first image, and how many images may run at once from there on."""
    first = next(feed.batches(original), None)
    if first is None:
        raise LoadError(f"{feed.images.name}: {len(feed.images)} images are fewer than the fixed batch of the network.")
    inputs = first[feed.spec.name]
    count = len(inputs) if feed.spec.batched else 1
    outputs = run(original, [first])
    names = tuple(value.name or "" for value in read_model(original).graph.outputs)
    names = names if len(names) == len(outputs) else tuple(map(str, range(len(outputs))))
    sample = Sample(
        names,
        tuple(outputs),
        count,
        *_extents(feed.spec, inputs),
        tuple(source.classes),
        {feed.spec.name: inputs.shape},
    )
    if (
        count == 1
        and feed.spec.batched
        and _one_size(feed.images)
        and all(len(one) == 1 for one in outputs if one.ndim)
    ):
        together = min(_MOST_IMAGES, max(1, _BATCH_BYTES // inputs.nbytes))
        feed = _Feed(feed.images, feed.spec, together)
    return feed, sample


def _one_size(images: ImageSet) -> bool:
    """True where all images have one size as the network takes them."""
    if isinstance(images.pixels, np.ndarray) or images.size is not None:
        return True
    steps = images.steps
    return steps.crop is not None or (isinstance(steps.resize, Resize) and steps.resize.mode != "multiple")


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
