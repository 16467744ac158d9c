"""Segmentation: mean intersection over union of classes, against label pictures or the original's own maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.errors import LoadError, OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.pictures import open_picture
from trp_export.inputs.placement import Placement
from trp_export.metrics.label_pictures import matching
from trp_export.metrics.sample import Array, Outputs, Sample, Span, placements
from trp_export.metrics.score import Detail, Score, bootstrap_error, resamples

Map = NDArray[np.uint8]
Counts = NDArray[np.int64]
# A pixel of no class: what a network gives where its outputs are not finite.
_NO_CLASS = 255
MOST_CLASSES = 255
# Label pictures that show whether they are black and white.
_LOOKED_AT = 32


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """mIoU over `classes` classes. `labels` are pictures of class numbers; numbers from `classes` on are void.

    `threshold` tells the two classes of a map of one channel apart. Without labels, the original's maps are the truth.
    `white` says that the labels of two classes are black and white: 255 is class 1.
    """

    classes: int
    channels_last: bool
    threshold: float
    labels: Sequence[Path] | None
    placements: Sequence[Placement]
    white: bool = False

    def predict(self, outputs: Outputs, span: Span) -> list[Any]:
        """With labels, the counts of each image (3, classes); without, its map of classes (H, W)."""
        maps = self._maps(outputs[0])
        if self.labels is None:
            return list(maps)
        return [
            self._counts_of(
                own, self._label(self.labels[span.start + index]), self.placements[span.start + index], span
            )
            for index, own in enumerate(maps)
        ]

    def score(self, before: Sequence[Any], after: Sequence[Any]) -> Score:
        """mIoU and the share of right pixels; the error of the change is by a bootstrap over images."""
        if self.labels is None:
            after = [_counts(own, truth, self.classes) for truth, own in zip(before, after, strict=True)]
            before = [_counts(truth, truth, self.classes) for truth in before]
        first, second = np.stack(before), np.stack(after)
        weights = resamples(len(first))
        spread = [np.array([_miou(counts) for counts in np.tensordot(weights, one, 1)]) for one in (first, second)]
        return Score(
            metric="miou",
            what="mIoU" if self.labels is not None else "mIoU against the original's maps",
            before=_miou(first.sum(0)),
            after=_miou(second.sum(0)),
            images=len(first),
            error=bootstrap_error(*spread),
            labelled=self.labels is not None,
            details=(Detail("right pixels", _right(first.sum(0)), _right(second.sum(0))),),
        )

    def _label(self, path: Path) -> Map:
        label = read_label_picture(path)
        return np.where(label == _NO_CLASS, 1, label).astype(np.uint8) if self.white else label

    def _maps(self, output: Array) -> Map:
        """Numbers of classes (n, H, W) from scores, from one channel, or from numbers."""
        if holds_numbers(output, channels_last=self.channels_last):
            numbers = output.reshape(len(output), *[side for side in output.shape[1:] if side != 1][-2:])
            return np.where((numbers >= 0) & (numbers < _NO_CLASS), numbers, _NO_CLASS).astype(np.uint8)
        axis = 3 if self.channels_last else 1
        if _is_binary(output, channels_last=self.channels_last):
            values = output if output.ndim == 3 else output.take(0, axis=axis)
            return np.where(np.isfinite(values), values > self.threshold, _NO_CLASS).astype(np.uint8)
        finite = np.isfinite(output).all(axis=axis)
        return np.where(finite, output.argmax(axis=axis), _NO_CLASS).astype(np.uint8)

    def _counts_of(self, own: Map, label: Map, placement: Placement, span: Span) -> Counts:
        """Counts where the network was fed what the label has; a map of another size is read at the label's pixels."""
        if label.shape != placement.size:
            raise LoadError(
                f"a label picture has {label.shape[1]} x {label.shape[0]} pixels, and its image "
                f"{placement.size[1]} x {placement.size[0]}."
            )
        rows = _places(label.shape[0], placement.scale_y, placement.top, span.size[0], own.shape[0])
        columns = _places(label.shape[1], placement.scale_x, placement.left, span.size[1], own.shape[1])
        fed = np.ix_(rows >= 0, columns >= 0)
        return _counts(own[np.ix_(rows[rows >= 0], columns[columns >= 0])], label[fed], self.classes)


def open_segmentation(
    images: ImageSet, sample: Sample, folder: Path | None, classes: int | None, *, beside: bool
) -> tuple[Segmentation, tuple[str, ...]]:
    """The metric, with label pictures from a `folder`, or `beside` the images, and a note on how these are read.

    Raises LoadError, and OptionError for too many classes.
    """
    output = sample.first
    axis = 3 if sample.channels_last else 1
    whole = holds_numbers(output, channels_last=sample.channels_last)
    binary = _is_binary(output, channels_last=sample.channels_last)
    if classes is None:
        classes = 2 if binary else MOST_CLASSES if whole else int(output.shape[axis])
    if classes > MOST_CLASSES:
        raise OptionError(f"--metric miou counts up to {MOST_CLASSES} classes, and the network has {classes:,}.")
    labels = matching(images, folder) if folder is not None or beside else None
    placed = placements(images, sample.size)
    white = classes == 2 and labels is not None and _are_white(labels[:_LOOKED_AT])
    notes = ("label pictures are black and white: white counts as class 1",) if white else ()
    return Segmentation(classes, sample.channels_last, _threshold(output), labels, placed, white), notes


def tells_apart(output: Array, *, channels_last: bool) -> bool:
    """False for maps of one channel that lie on one side of the threshold everywhere, such as depths."""
    if not _is_binary(output, channels_last=channels_last):
        return True
    above = output > _threshold(output)
    return bool(above.any()) and not above.all()


def _is_binary(output: Array, *, channels_last: bool) -> bool:
    whole = holds_numbers(output, channels_last=channels_last)
    return not whole and (output.ndim == 3 or output.shape[3 if channels_last else 1] == 1)


def _threshold(output: Array) -> float:
    """What tells two classes apart in one channel: a half for shares of 1, else 0."""
    return 0.5 if bool(np.nanmin(output) >= 0) and bool(np.nanmax(output) <= 1) else 0.0


def holds_numbers(output: Array, *, channels_last: bool) -> bool:
    """True for maps of class numbers: whole numbers without an axis of channels, or with one channel."""
    channels = output.shape[3 if channels_last else 1] if output.ndim == 4 else 1
    sides = [side for side in output.shape[1:] if side != 1]
    return output.dtype.kind in "iub" and (channels == 1 or len(sides) <= 2)


def _are_white(labels: Sequence[Path]) -> bool:
    """Whether 255 stands for something in pictures of two classes, where it is void otherwise: none holds a 1."""
    values = {int(value) for path in labels for value in np.unique(read_label_picture(path))}
    return _NO_CLASS in values and 1 not in values


def read_label_picture(path: Path) -> Map:
    """The numbers of classes in a grey picture or one with a palette: (H, W). Raises LoadError for colours."""
    with open_picture(path) as picture:
        if picture.mode not in ("L", "P", "1"):
            raise LoadError(f"{path}: a label picture holds numbers of classes (grey or palette), not {picture.mode}.")
        return np.asarray(picture).astype(np.uint8)


def _places(pixels: int, scale: float, offset: float, fed: int, own: int) -> NDArray[np.intp]:
    """The row or column of the map at the centre of each pixel of the label; -1 where the network was not fed it."""
    at = (np.arange(pixels) + 0.5) * scale + offset
    return np.where((at >= 0) & (at < fed), (at * own / fed).astype(np.intp), -1)


def _counts(own: Map, truth: Map, classes: int) -> Counts:
    """Pixels of each class that are right, that are true, and that are predicted: (3, classes). Void is left out."""
    counted = truth < classes
    own, truth = own[counted], truth[counted]
    right = np.bincount(truth[own == truth], minlength=classes)
    predicted = np.bincount(own, minlength=_NO_CLASS + 1)[:classes]
    return np.stack([right, np.bincount(truth, minlength=classes), predicted])


def _miou(counts: NDArray[Any]) -> float:
    """The mean over classes that are true or predicted somewhere."""
    right, true, predicted = counts
    union = true + predicted - right
    return float((right[union > 0] / union[union > 0]).mean()) if union.any() else 0.0


def _right(counts: Counts) -> float:
    return float(counts[0].sum() / max(counts[1].sum(), 1))
