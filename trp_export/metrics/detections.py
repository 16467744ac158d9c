"""Detections: COCO-style mAP against boxes in a JSON file, or against what the original itself detects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trp_export.errors import OptionError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.placement import Placement, Size
from trp_export.metrics.average_precision import Truth, mean_average_precision
from trp_export.metrics.box_labels import TrueBoxes, read_boxes
from trp_export.metrics.boxes import MOST_BOXES, Boxes, suppress
from trp_export.metrics.heads import Head
from trp_export.metrics.sample import Outputs, Span, image_names, placements
from trp_export.metrics.score import Detail, Score, bootstrap_error, resamples

# Without labels, the original's own detections from this score on stand for them.
LEAST_TRUE_SCORE = 0.3
# Classes that a network may count from 1 where labels do not list them.
_MOST_NUMBERED = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """mAP of the boxes that `head` decodes; `labels` is None where the original's boxes stand for them."""

    head: Head
    placements: Sequence[Placement]
    labels: TrueBoxes | None

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
        labelled, kind, numbers = self.labels is not None, "true" if self.labels is not None else "original", ""
        if self.labels is not None:
            truth = self.labels.truth[: len(before)]
            before, after, numbers = _renumbered(before, after, truth, self.labels.ids)
        else:
            truth = [_as_truth(boxes) for boxes in before]
        boxes = sum(len(one.classes) for one in truth)
        if not boxes:
            raise OptionError(
                f"--eval: the original finds no box of a score of {LEAST_TRUE_SCORE:g} or more, decoded as "
                f"{self.head.name}. Check --colour, --scale, --mean and --resize, or give --labels."
            )
        weights = resamples(len(before))
        first, second = (mean_average_precision(found, truth, weights) for found in (before, after))
        return Score(
            metric="map",
            what="mAP" if labelled else "mAP against the original's detections",
            before=first.mean,
            after=second.mean,
            images=len(before),
            error=bootstrap_error(first.resampled, second.resampled),
            labelled=labelled,
            details=(Detail("AP50", first.at_50, second.at_50),),
            remark=f"{boxes:,} {kind} boxes; outputs are decoded as {self.head.name}{numbers}",
        )


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


def _renumbered(
    before: Sequence[Boxes], after: Sequence[Boxes], truth: Sequence[Truth], ids: Sequence[int]
) -> tuple[Sequence[Boxes], Sequence[Boxes], str]:
    """Detections in the numbers of the labels, and a remark where the network numbers its classes otherwise.

    Networks count classes from 0, from 1 (0 is the background), or by COCO's category numbers; the way that serves the
    original best is taken for both.
    """
    ways: dict[str, Mapping[int, int]] = {
        "": {},
        "; its classes count from 1": {number + 1: number for number in range(max(len(ids), _MOST_NUMBERED))},
        "; its classes are the category numbers": {identity: number for number, identity in enumerate(ids)},
    }
    # The first of equals: as they are.
    best = max(ways, key=lambda remark: mean_average_precision(_in_numbers(before, ways[remark]), truth).mean)
    return _in_numbers(before, ways[best]), _in_numbers(after, ways[best]), best


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
