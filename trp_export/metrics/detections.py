"""Detections: COCO-style mAP against boxes in a JSON file, or against what the original itself detects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trp_export.errors import LoadError
from trp_export.inputs.image_set import ImageSet
from trp_export.inputs.placement import Placement, Size
from trp_export.metrics.average_precision import Truth, mean_average_precision
from trp_export.metrics.boxes import MOST_BOXES, Boxes, suppress
from trp_export.metrics.heads import Head
from trp_export.metrics.sample import Outputs, Span, image_names, placements
from trp_export.metrics.score import Detail, Score, jackknife_error
from trp_export.system.json_fields import Fields, read_json

# Without labels, the original's own detections from this score on stand for them.
LEAST_TRUE_SCORE = 0.3
_LARGEST_FILE = 2**27
_MOST_ITEMS = 10_000_000
_LARGEST_COORDINATE = 1e6
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """mAP of the boxes that `head` decodes; `truth` is None without labels."""

    head: Head
    placements: Sequence[Placement]
    truth: Sequence[Truth] | None

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
        """mAP and AP50, and the error of the change by a jackknife over images."""
        truth = [_as_truth(boxes) for boxes in before] if self.truth is None else self.truth[: len(before)]
        first, second = mean_average_precision(before, truth), mean_average_precision(after, truth)
        labelled = self.truth is not None
        boxes = sum(len(one.classes) for one in truth)
        return Score(
            metric="map",
            what="mAP" if labelled else "mAP against the original's detections",
            before=first.mean,
            after=second.mean,
            images=len(before),
            error=jackknife_error(second.left_out - first.left_out),
            labelled=labelled,
            details=(Detail("AP50", first.at_50, second.at_50),),
            remark=f"{boxes:,} {'true' if labelled else 'original'} boxes; outputs are decoded as {self.head.name}",
        )


def open_detections(images: ImageSet, head: Head, size: Size, labels: Path | None) -> Detections:
    """The metric, with true boxes from the file `labels`. Raises LoadError."""
    truth = None if labels is None else read_boxes(labels, image_names(images))
    return Detections(head, placements(images, size), truth)


def read_boxes(path: Path, images: Sequence[str]) -> list[Truth]:
    """The true boxes of the named images from COCO annotations, or from {"image.jpg": [[class, x1, y1, x2, y2], ...]}.

    COCO's category numbers become 0, 1, ... in their order. Raises LoadError for anything else, and where no image has
    a box.
    """
    document = Fields(read_json(path, _LARGEST_FILE), str(path))
    is_coco = isinstance(document.values.get("annotations"), list)
    by_name = _coco(document) if is_coco else _plain(document)
    truth = [_truth(by_name.get(name, by_name.get(Path(name).name, []))) for name in images]
    if not any(len(one.classes) for one in truth):
        raise LoadError(f"{path} has no box for any of the {len(images):,} images, such as {images[0]}.")
    return truth


Row = tuple[float, ...]


def _plain(document: Fields) -> dict[str, list[Row]]:
    """Rows of class, corners and whether it is a crowd, by name of the image."""
    return {
        name: [_row(document, name, values) for values in document.values_of(name, _MOST_ITEMS)]
        for name in document.values
    }


def _row(document: Fields, name: str, values: object) -> Row:
    numbers = Fields({name: values}, document.where).numbers(name, 5)
    if len(numbers) != 5:
        raise LoadError(f"{document.where}: {name[:80]!r} must be a list of [class, x1, y1, x2, y2].")
    number, x1, y1, x2, y2 = numbers
    if number not in range(_MOST_CLASSES) or x2 < x1 or y2 < y1:
        raise LoadError(
            f"{document.where}: {name[:80]!r} has the box {list(numbers)}; [class, x1, y1, x2, y2] is read."
        )
    return (*_bounded(document.where, numbers), 0.0)


def _coco(document: Fields) -> dict[str, list[Row]]:
    categories = sorted({one.whole("id") for one in document.listed("categories", _MOST_CLASSES)})
    numbers = {identity: number for number, identity in enumerate(categories)}
    names = {one.whole("id"): one.text("file_name") for one in document.listed("images", _MOST_ITEMS)}
    rows: dict[str, list[Row]] = {}
    for one in document.listed("annotations", _MOST_ITEMS):
        image, category, box = one.whole("image_id"), one.whole("category_id"), one.numbers("bbox", 4)
        if image not in names or category not in numbers or len(box) != 4 or min(box[2:]) < 0:
            raise LoadError(f"{one.where}: its image, category or bbox (x, y, width, height) is not usable.")
        x, y, width, height = _bounded(one.where, box)
        crowd = float("iscrowd" in one.values and one.whole("iscrowd", 1))
        rows.setdefault(names[image], []).append((numbers[category], x, y, x + width, y + height, crowd))
    return rows


def _bounded(where: str, numbers: Row) -> Row:
    if max(map(abs, numbers)) > _LARGEST_COORDINATE:
        raise LoadError(f"{where}: a box reaches beyond {_LARGEST_COORDINATE:,.0f} pixels.")
    return numbers


def _truth(rows: Sequence[Row]) -> Truth:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Truth(table[:, 1:5], table[:, 0].astype(np.int64), table[:, 5] > 0)


def _as_truth(boxes: Boxes) -> Truth:
    sure = boxes.take(boxes.scores >= LEAST_TRUE_SCORE)
    return Truth(sure.corners, sure.classes, np.zeros(len(sure), dtype=bool))
