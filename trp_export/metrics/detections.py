"""Detections: COCO-style mAP against boxes in a JSON file, or against what the original itself detects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trp_export.errors import OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.placement import Placement, Size
from trp_export.metrics.average_precision import Precision, Truth, mean_average_precision
from trp_export.metrics.box_labels import TrueBoxes, read_boxes
from trp_export.metrics.boxes import MOST_BOXES, Boxes, suppress
from trp_export.metrics.classes import FROM_ONE
from trp_export.metrics.heads import Head
from trp_export.metrics.sample import Outputs, Span, image_names, placements
from trp_export.metrics.score import Detail, Score, bootstrap_error, resamples

# Without labels, the original's own detections from this score on stand for them.
LEAST_TRUE_SCORE = 0.3
# Classes that a network may count from 1 where labels do not list them.
_MOST_NUMBERED = 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Original:
    """What the original `found`, the true boxes and their number, how it numbers classes, and what that is worth."""

    found: Sequence[Boxes]
    truth: Sequence[Truth]
    boxes: int
    numbers: str
    way: Mapping[int, int]
    precision: Precision


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """mAP of the boxes that `head` decodes; `labels` is None where the original's boxes stand for them."""

    head: Head
    placements: Sequence[Placement]
    labels: TrueBoxes | None
    _known: list[_Original] = field(default_factory=list, repr=False)

    def predict(self, outputs: Outputs, span: Span) -> list[Boxes]:
        """The detections of each image of a batch, in pixels of the image."""
        found = []
        for index, boxes in enumerate(self.head.decode(outputs, span.size)):
            kept = boxes.usable if self.head.suppressed else suppress(boxes)
            kept = kept.take(np.arange(min(len(kept), MOST_BOXES)))
            kept = Boxes(self.placements[span.start + index].to_image(kept.corners), kept.scores, kept.classes)
            found.append(kept.take(np.all(kept.corners[:, 2:] > kept.corners[:, :2], axis=1)))
        return found

    def score(self, before: Sequence[Boxes], after: Sequence[Boxes]) -> Score:
        """mAP and AP50, and the error of the change by a bootstrap over images.

        Raises OptionError where there is neither a label nor a box of the original.
        """
        first = self._of_original(before)
        second = mean_average_precision(_in_numbers(after, first.way), first.truth, resamples(len(before)))
        labelled = self.labels is not None
        kind = "true" if labelled else "original"
        return Score(
            metric="map",
            what="mAP" if labelled else "mAP against the original's detections",
            before=first.precision.mean,
            after=second.mean,
            images=len(before),
            error=bootstrap_error(first.precision.resampled, second.resampled),
            labelled=labelled,
            details=(Detail("AP50", first.precision.at_50, second.at_50),),
            remark=f"{first.boxes:,} {kind} boxes; outputs are decoded as {self.head.name}{first.numbers}",
        )

    def _of_original(self, before: Sequence[Boxes]) -> _Original:
        """What the original's detections are worth, worked out once: many results are compared with them."""
        if not self._known or self._known[0].found is not before:
            self._known[:] = [self._judge(before)]
        return self._known[0]

    def _judge(self, before: Sequence[Boxes]) -> _Original:
        labels = self.labels
        truth = [_as_truth(boxes) for boxes in before] if labels is None else labels.truth[: len(before)]
        boxes = sum(len(one.classes) for one in truth)
        if not boxes:
            raise OptionError(
                f"--eval: the original finds no box of a score of {LEAST_TRUE_SCORE:g} or more, decoded as "
                f"{self.head.name}. Check --colour, --scale, --mean and --resize, or give --labels."
            )
        numbers, way = _numbering(before, truth, labels.ids) if labels is not None else ("", {})
        precision = mean_average_precision(_in_numbers(before, way), truth, resamples(len(before)))
        return _Original(before, truth, boxes, numbers, way, precision)


def open_detections(images: ImageSet, head: Head, size: Size, path: Path | None) -> tuple[Detections, tuple[str, ...]]:
    """The metric, with true boxes from the file at `path`, and a note on images that it does not name.

    Raises LoadError.
    """
    names = image_names(images)
    labels = None if path is None else read_boxes(path, names)
    notes: tuple[str, ...] = ()
    if labels is not None and labels.unnamed:
        notes = (
            f"{path} does not name {labels.unnamed:,} of {len(names):,} images: they count as images without boxes",
        )
    return Detections(head, placements(images, size), labels), notes


def _numbering(before: Sequence[Boxes], truth: Sequence[Truth], ids: Sequence[int]) -> tuple[str, Mapping[int, int]]:
    """How the network numbers the classes of the labels: a remark where that is not from 0, and the labels' numbers.

    Networks count classes from 0, from 1 (0 is the background), or by COCO's category numbers; the way that serves the
    original best is taken for all.
    """
    ways: dict[str, Mapping[int, int]] = {
        "": {},
        f"; {FROM_ONE}": {number + 1: number for number in range(max(len(ids), _MOST_NUMBERED))},
        "; its classes are the category numbers": {identity: number for number, identity in enumerate(ids)},
    }
    # The first of equals: as they are.
    best = max(ways, key=lambda remark: mean_average_precision(_in_numbers(before, ways[remark]), truth).mean)
    return best, ways[best]


def _in_numbers(found: Sequence[Boxes], way: Mapping[int, int]) -> Sequence[Boxes]:
    if not way:
        return found
    return [
        Boxes(one.corners, one.scores, np.array([way.get(int(number), -1) for number in one.classes], dtype=np.int64))
        for one in found
    ]


def _as_truth(boxes: Boxes) -> Truth:
    sure = boxes.take(boxes.scores >= LEAST_TRUE_SCORE)
    return Truth(sure.corners, sure.classes, np.zeros(len(sure), dtype=bool))
