"""Which metric fits: the one that the user names, or the one that labels and outputs point to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from trp_export.errors import LoadError, OptionError
from trp_export.graph.large_files import read_model
from trp_export.graph.shapes import Shape, infer_value_shapes
from trp_export.inputs.image_set import ImageSet
from trp_export.metrics import label_pictures
from trp_export.metrics.answers import open_answers
from trp_export.metrics.classes import TOP, Classes, are_classes, are_numbers, labels_of, require_classes
from trp_export.metrics.detections import open_detections
from trp_export.metrics.function import open_function
from trp_export.metrics.heads import Head, find_head
from trp_export.metrics.label_files import by_image, last_row, read_rows, texts_of
from trp_export.metrics.names import AUTO, HEADS, is_function
from trp_export.metrics.pairs import Pairs, read_pairs
from trp_export.metrics.pictures import open_pictures
from trp_export.metrics.recognise import is_picture, kind_of
from trp_export.metrics.sample import Outputs, Sample, Span, by_name, image_names
from trp_export.metrics.score import Score
from trp_export.metrics.segmentation import holds_numbers, open_segmentation
from trp_export.metrics.sequences import are_sequences, open_sequences
from trp_export.options import Images

# What may follow the ArgMax of a network that gives numbers of classes.
_MOVE_NUMBERS = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather"}


class Metric(Protocol):
    """What is kept of each image, and the score of two models from what was kept of all images."""

    def predict(self, outputs: Outputs, span: Span) -> list[Any]:
        """One prediction for each image of a batch."""

    def score(self, before: list[Any], after: list[Any]) -> Score:
        """The original's predictions and a result's, image by image."""


def open_metric(options: Images, images: ImageSet, sample: Sample, model: Path) -> tuple[Metric, tuple[str, ...]]:
    """The metric with its labels, and notes on how both were found.

    Raises OptionError where outputs or labels do not fit the metric, LoadError where labels cannot be read.
    """
    name = options.metric
    notes: tuple[str, ...] = ()
    if name == AUTO:
        name = choose_metric(sample, images, options.labels)
        notes = (f"--metric {name} fits the outputs {sample.describe()}",) if name != "top1" else ()
    metric, more = _open(name, options, images, sample, model)
    return metric, (*notes, *more)


def choose_metric(sample: Sample, images: ImageSet, labels: Path | None) -> str:
    """The name of the metric that labels and outputs point to. Raises OptionError where nothing fits."""
    if labels is not None:
        return _by_labels(labels, sample, images)
    kind = kind_of(sample)
    if label_pictures.beside(images) and kind in ("miou", "psnr"):
        return "miou"
    named_by_folder = are_classes(sample.first, sample.count) and len(images.classes) in (0, sample.first[0].size)
    if images.labels is not None and (kind == "top1" or named_by_folder):
        return "top1"
    if kind is None:
        raise OptionError(
            f"--eval cannot tell what the outputs are: {sample.describe()} for {sample.count} images. Name a measure "
            "with --metric, such as FILE.py:FUNCTION; in Python, Options(evaluate=...) takes one of a model file."
        )
    return kind


def _by_labels(labels: Path, sample: Sample, images: ImageSet) -> str:
    """A JSON holds boxes, a folder holds pictures; the columns of a table tell what it holds."""
    if labels.is_dir():
        return "psnr" if is_picture(sample) else "miou"
    if labels.suffix.lower() == ".json":
        return "map"
    row = last_row(labels)
    if len(row) > 2 and row[1] in by_name(image_names(images)):
        return "pairs"
    if are_classes(sample.first, sample.count):
        return "top1"
    if are_sequences(sample):
        return "sequences"
    raise OptionError(
        f"--labels {labels} is a table, and the outputs are neither classes nor sequences: {sample.describe()}. Name a "
        "measure with --metric, such as FILE.py:FUNCTION."
    )


def _open(name: str, options: Images, images: ImageSet, sample: Sample, model: Path) -> tuple[Metric, tuple[str, ...]]:
    labels, names = options.labels, image_names(images)
    if is_function(name):
        return _open_function(name, labels, names, sample), ()
    match name.partition(":"):
        case "top1" | "top5" as metric, _, _:
            return _open_classes(metric, options, images, sample, model)
        case "map", _, head:
            return open_detections(images, _head(sample, head or None), sample.size, labels)
        case "miou", _, _:
            return _open_segmentation(images, sample, model, labels)
        case "psnr" | "ssim" as metric, _, _:
            _require_axes(sample, 4, "pictures")
            return open_pictures(metric, images, sample, labels), ()
        case "pairs", _, _:
            return Pairs(None if labels is None else read_pairs(labels, read_rows(labels), names)), ()
        case "sequences", _, alphabet:
            return _open_sequences(sample, labels, names, Path(alphabet) if alphabet else None), ()
        case "outputs", _, _ if labels is None and (answers := open_answers(sample)) is not None:
            return answers, ()
        case "outputs", _, _:
            raise OptionError("--metric outputs takes no labels, and needs outputs of floats for each image.")
    raise OptionError(f"--metric {name} is unknown.")


def _open_function(name: str, labels: Path | None, images: tuple[str, ...], sample: Sample) -> Metric:
    if labels is not None:
        raise OptionError(f"--metric {name} reads no --labels: read them in the function, and leave --labels out.")
    return open_function(name, images, sample.names)


def _open_sequences(sample: Sample, labels: Path | None, images: tuple[str, ...], alphabet: Path | None) -> Metric:
    if not are_sequences(sample):
        raise OptionError(f"--metric sequences needs scores or classes of steps, not {sample.describe()}.")
    return open_sequences(sample, None if labels is None else texts_of(labels, images), alphabet)


def _open_segmentation(
    images: ImageSet, sample: Sample, model: Path, labels: Path | None
) -> tuple[Metric, tuple[str, ...]]:
    _require_axes(sample, 3, "maps of classes")
    whole = holds_numbers(sample.first, channels_last=sample.channels_last)
    counted = _counted_classes(model, sample.fed) if whole else None
    return open_segmentation(images, sample, labels, counted, beside=labels is None and label_pictures.beside(images))


def _require_axes(sample: Sample, least: int, what: str) -> None:
    if sample.first.ndim < least or len(sample.first) != sample.count:
        raise OptionError(f"--metric needs outputs that are {what} (batch, channels, height, width), and the network's "
                          f"are {sample.describe()}.")  # fmt: skip


def _open_classes(
    metric: str, options: Images, images: ImageSet, sample: Sample, model: Path
) -> tuple[Metric, tuple[str, ...]]:
    require_classes(sample.first, sample.count, sample.describe())
    indexed = are_numbers(sample.first)
    count = _counted_classes(model, sample.fed) if indexed else int(sample.first.shape[1])
    if metric == "top5" and (indexed or (count or 0) <= TOP):
        raise OptionError(f"--metric top5 needs scores of more than {TOP} classes, not {sample.describe()}.")
    numbers = None
    if options.labels is not None:
        numbers = _numbers(options.labels, image_names(images), sample.classes)
    labels, notes = labels_of(images, count, sample.classes, numbers)
    spare = labels is not None and not images.classes and count is not None and int(labels.max()) + 1 < count
    return Classes("top5" if metric == "top5" else "top1", labels, spare), notes


def _numbers(path: Path, images: tuple[str, ...], classes: Sequence[str]) -> list[int]:
    """The class of each image from a table of file names and numbers or names of classes.

    A line of heads may come first.
    """
    rows = [(name, label) for name, label, *_ in read_rows(path)]
    if not all(label.isdigit() for _, label in rows[1:]):
        numbers = {name: str(number) for number, name in enumerate(classes)}
        rows = [(name, numbers.get(label, label)) for name, label in rows]
    labels = by_image(path, rows[1:] if not rows[0][1].isdigit() else rows, images)
    stray = next((label for label in labels if not label.isascii() or not label.isdigit() or len(label) > 9), None)
    if stray is not None:
        raise LoadError(
            f"{path}: {stray[:80]!r} is not the number of a class, nor the name of one that the checkpoint knows."
        )
    return [int(label) for label in labels]


def _head(sample: Sample, wanted: str | None) -> Head:
    head = find_head(sample, wanted)
    if head is None and wanted is None:
        raise OptionError(
            f"--metric map knows no detection head with outputs {sample.describe()} for an input of {sample.size[1]} x "
            f"{sample.size[0]}; choose one of {', '.join(f'map:{name}' for name in HEADS)}."
        )
    if head is None:
        raise OptionError(f"--metric map:{wanted} does not fit the outputs {sample.describe()}.")
    return head


def _counted_classes(original: Path, shapes: Mapping[str, Shape]) -> int | None:
    """The length of the axis of the ArgMax that gives the first output, looked for behind operators that move it."""
    model = read_model(original)
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
