"""Evaluate results against the original by a metric. The original runs once, when the evaluator is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trp_export.errors import LoadError, OptionError
from trp_export.graph.large_files import read_model
from trp_export.inputs.calibration import open_calibration
from trp_export.inputs.description import NetworkInputs
from trp_export.inputs.placement import Size
from trp_export.inputs.samples import Batch, Samples, input_types
from trp_export.inputs.spec import InputSpec
from trp_export.load import Source
from trp_export.metrics.choice import Metric, open_metric
from trp_export.metrics.sample import Array, Sample, Span
from trp_export.metrics.score import Score
from trp_export.options import Evaluate, Options
from trp_export.runtime.sessions import CannotRunError, Inputs, run, stream
from trp_export.system.progress import Share

Evaluator = Callable[[Path, Share], Score]

_MOST_IMAGES = 100


@dataclass(frozen=True, slots=True, eq=False)
class _Feed:
    """The samples as a model takes them; `together` is how many at once where the model leaves that open."""

    samples: Samples
    together: int = 1

    def predict(self, model: Path, metric: Metric, progress: Share) -> list[Any]:
        """The predictions of a model for all images. Raises CannotRunError."""
        predictions: list[Any] = []
        sizes: list[Size] = []

        def fed() -> Iterator[Inputs]:
            for batch in self.batches(model):
                sizes.append(_extents(self.spec, batch.arrays[self.spec.name])[0])
                yield batch.arrays

        for outputs in stream(model, fed()):
            predictions += metric.predict(outputs, Span(len(predictions), sizes[-1]))
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

    def evaluate_model(model: Path, progress: Share) -> Score:
        return metric.score(predictions, feed.predict(model, metric, progress))

    return evaluate_model, (*samples.notes, *notes)


def _look(feed: _Feed, original: Path, source: Source) -> tuple[_Feed, Sample]:
    """The outputs for the first image, and how many images may run at once from there on."""
    first = next(feed.batches(original))
    outputs = run(original, [first.arrays])
    names = tuple(value.name or "" for value in read_model(original).graph.outputs)
    names = names if len(names) == len(outputs) else tuple(map(str, range(len(outputs))))
    sample = Sample(
        names,
        tuple(outputs),
        len(first),
        *_extents(feed.spec, first.arrays[feed.spec.name]),
        tuple(source.classes),
        {name: array.shape for name, array in first.arrays.items()},
    )
    if len(first) == 1 and all(len(one) == 1 for one in outputs if one.ndim):
        feed = _Feed(feed.samples, _MOST_IMAGES)
    return feed, sample


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
