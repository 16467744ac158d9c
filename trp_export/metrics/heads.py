"""Decoders: from the outputs of the usual detectors to boxes in pixels of the network's input.

Each head is a plain function of the outputs of a batch. `find_head` tells from shapes, and where shapes leave a doubt
from the values of one batch, which of them a network has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trp_export.inputs.placement import Size
from trp_export.metrics.boxes import Boxes, corners_of
from trp_export.metrics.sample import Array, Outputs, Sample

Decode = Callable[[Outputs, Size], list[Boxes]]

_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))
_ANCHORS = 3
# Distances to four sides in 8 bins each.
_SIDES = 32
# Offsets within a cell are a few cells at most; coordinates in pixels reach across the image.
_LARGEST_OFFSET = 16.0
# Coordinates as shares of the input stay near 1.
_LARGEST_SHARE = 2.5
_MOST = 0.95
# A score of a box that holds an object, and shares of boxes that are many and few.
_SURE = 0.3
_MANY = 0.5
_FEW = 0.2


@dataclass(frozen=True, slots=True)
class Head:
    """A decoder by name. `suppressed` says that the network itself removes duplicates."""

    name: str
    decode: Decode
    suppressed: bool = False


def find_head(sample: Sample, wanted: str | None = None) -> Head | None:
    """The head that gives these outputs; only the one `wanted`, if any, and then with less proof from shapes."""
    found = (find(sample, wanted is not None) for name, find in _FINDERS.items() if wanted in (None, name))
    return next((head for head in found if head is not None), None)


def yolox(outputs: Outputs, size: Size) -> list[Boxes]:
    """(n, cells, 5 + classes): offset within the cell, logarithm of the size in cells, objectness, classes.

    Z. Ge et al., "YOLOX" (2021): centre = (xy + cell) * stride, size = exp(wh) * stride.
    """
    rows = outputs[0].astype(np.float64)
    cells, strides = _grid(size, _strides_of(size, rows.shape[1], 1) or _STRIDES[0])
    rows[..., :2] = (rows[..., :2] + cells) * strides
    rows[..., 2:4] = np.exp(np.minimum(rows[..., 2:4], 20)) * strides
    return _of_rows(rows)


def yolov5(outputs: Outputs, size: Size, classes: slice) -> list[Boxes]:
    """(n, cells, 5 + classes): centre, width and height in pixels, objectness, classes. Also YOLOv6 and v7.

    Other columns than `classes`, such as landmarks before them or coefficients of masks behind, are left out.
    """
    return _of_rows(outputs[0], classes)


def yolov8(outputs: Outputs, size: Size, classes: slice, rows_first: bool) -> list[Boxes]:
    """(n, 4 + classes, cells): centre, width and height in pixels, classes. Also YOLOv9 and YOLO11.

    `rows_first`: (n, cells, 4 + classes). Other columns than `classes`, such as key points, are left out.
    """
    rows = outputs[0] if rows_first else outputs[0].transpose(0, 2, 1)
    return [_best_class(corners_of(row[:, :4]), row[:, classes]) for row in rows]


def fastestdet(outputs: Outputs, size: Size) -> list[Boxes]:
    """(n, 5 + classes, height, width): objectness, offset, size, classes.

    X. Ma, "FastestDet" (2022), handle_preds: as shares of the input, centre = (tanh(xy) + cell) / cells and size =
    sigmoid(wh); score = objectness^0.6 * class^0.4.
    """
    maps = outputs[0].astype(np.float64)
    height, width = maps.shape[2:]
    rows, columns = np.mgrid[:height, :width]
    x, y = (np.tanh(maps[:, 1]) + columns) / width, (np.tanh(maps[:, 2]) + rows) / height
    boxes = np.stack([x, y, *(1 / (1 + np.exp(-np.clip(maps[:, index], -60, 60))) for index in (3, 4))], axis=-1)
    scores = np.maximum(maps[:, :1], 0) ** 0.6 * np.maximum(maps[:, 5:], 0) ** 0.4
    return [
        _best_class(_in_pixels(corners_of(own.reshape(-1, 4)), size, shares=True), score.reshape(len(score), -1).T)
        for own, score in zip(boxes, scores, strict=True)
    ]


def nanodet(outputs: Outputs, size: Size, levels: Sequence[tuple[int, int]]) -> list[Boxes]:
    """Of each level scores (n, cells, classes) and distances to the four sides (n, cells, 4 * bins), or both in one.

    X. Li et al., "Generalized Focal Loss" (2020): a distance is the mean over bins, in cells. PicoDet, with an output
    for each, counts from the middle of a cell; NanoDet-Plus, with all in one (n, cells, classes + 32), from its corner.
    """
    if levels:
        scores, sides = (np.concatenate([outputs[level[part]] for level in levels], axis=1) for part in (0, 1))
    else:
        scores, sides = outputs[0][..., :-_SIDES], outputs[0][..., -_SIDES:]
    cells, strides = _grid(size, _STRIDES[1])
    bins = _shares(sides.reshape(*sides.shape[:2], 4, -1))
    distances = (bins * np.arange(bins.shape[-1])).sum(axis=-1) * strides
    centres = (cells + (0.5 if levels else 0.0)) * strides
    corners = np.concatenate([centres - distances[..., :2], centres + distances[..., 2:]], axis=-1)
    return [_best_class(own, score) for own, score in zip(corners, scores, strict=True)]


def _shares(values: Array) -> NDArray[np.float64]:
    """Softmax over the last axis."""
    powers = np.exp(_wide(values) - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def ssd(outputs: Outputs, size: Size, boxes: int, scores: int, background: bool, shares: bool) -> list[Boxes]:
    """Corners (n, priors, 4) that the network has decoded, and scores (n, priors, classes); class 0 may be none."""
    corners = _in_pixels(outputs[boxes], size, shares)
    return [
        _best_class(own, row[:, 1:] if background else row) for own, row in zip(corners, outputs[scores], strict=True)
    ]


def rows_of_six(outputs: Outputs, size: Size, shares: bool) -> list[Boxes]:
    """(n, boxes, 6): x1, y1, x2, y2, score, class. As YOLOv10 and most exports with suppression inside."""
    return [Boxes(_in_pixels(own[:, :4], size, shares), _wide(own[:, 4]), _whole(own[:, 5])) for own in outputs[0]]


def rows_of_seven(outputs: Outputs, size: Size, images: int) -> list[Boxes]:
    """(boxes, 7): image, x1, y1, x2, y2, class, score. As YOLOv7 with suppression inside."""
    parts = (outputs[0][outputs[0][:, 0] == index] for index in range(images))
    return [Boxes(_wide(own[:, 1:5]), _wide(own[:, 6]), _whole(own[:, 5])) for own in parts]


def separate(
    outputs: Outputs, size: Size, boxes: int, scores: int, classes: int, shares: bool, rows_first: bool
) -> list[Boxes]:
    """Corners (n, boxes, 4), scores (n, boxes) and classes (n, boxes), or the same of one image without its axis.

    `rows_first`: corners are y1, x1, y2, x2, as TensorFlow's.
    """
    parts = [outputs[index] for index in (boxes, scores, classes)]
    if parts[0].ndim == 2:
        parts = [part[None] for part in parts]
    corners = parts[0][..., [1, 0, 3, 2]] if rows_first else parts[0]
    return [
        Boxes(_in_pixels(own, size, shares), _wide(score), _whole(number))
        for own, score, number in zip(corners, parts[1], parts[2], strict=True)
    ]


def _of_rows(rows: Array, classes: slice = slice(5, None)) -> list[Boxes]:
    return [_best_class(corners_of(row[:, :4]), row[:, 4:5] * row[:, classes]) for row in rows]


def _best_class(corners: Array, scores: Array) -> Boxes:
    """One class for each box: the one with the best score."""
    return Boxes(_wide(corners), _wide(scores.max(axis=1)), scores.argmax(axis=1).astype(np.int64))


def _in_pixels(corners: Array, size: Size, shares: bool) -> NDArray[np.float64]:
    return _wide(corners) * np.array([size[1], size[0]] * 2) if shares else _wide(corners)


def _wide(values: Array) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _whole(values: Array) -> NDArray[np.int64]:
    return np.nan_to_num(np.rint(_wide(values)), nan=-1, posinf=-1, neginf=-1).astype(np.int64)


def _grid(size: Size, strides: Sequence[int]) -> tuple[Array, Array]:
    """Column and row of every cell (cells, 2), and its stride (cells, 1), from the finest level to the coarsest."""
    cells, steps = [], []
    for stride in strides:
        height, width = -(-size[0] // stride), -(-size[1] // stride)
        rows, columns = np.mgrid[:height, :width]
        cells.append(np.stack([columns, rows], axis=-1).reshape(-1, 2))
        steps.append(np.full((height * width, 1), stride))
    return np.concatenate(cells), np.concatenate(steps)


def _strides_of(size: Size, count: int, anchors: int) -> tuple[int, ...] | None:
    """The strides of the levels that have so many cells together."""
    for strides in _STRIDES:
        if anchors * sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides) == count:
            return strides
    return None


def _are_cells(size: Size, count: int) -> bool:
    """Whether there are as many boxes as cells, or as anchors in them: nothing has been suppressed."""
    return any(_strides_of(size, count, anchors) is not None for anchors in (1, _ANCHORS))


def _find_yolox(sample: Sample, wanted: bool) -> Head | None:
    rows = sample.first
    if not _has_rows(sample) or rows.shape[2] < 6 or _strides_of(sample.size, rows.shape[1], 1) is None:
        return None
    offsets = wanted or float(np.nanquantile(np.abs(rows[..., :2]), 0.9)) < _LARGEST_OFFSET
    return Head("yolox", yolox) if offsets else None


def _find_yolov5(sample: Sample, wanted: bool) -> Head | None:
    rows = sample.first
    if not _has_rows(sample) or rows.shape[2] < 6 or not _within(rows[..., 4]):
        return None
    classes = _classes_behind_objectness(rows)
    if classes is None:
        return None
    anchored = _strides_of(sample.size, rows.shape[1], _ANCHORS) is not None
    free = _strides_of(sample.size, rows.shape[1], 1) is not None
    if wanted or anchored or (free and _is_objectness(rows[..., 4], rows[..., classes])):
        return Head("yolov5", partial(yolov5, classes=classes))
    return None


def _find_yolov8(sample: Sample, wanted: bool) -> Head | None:
    if not _has_rows(sample):
        return None
    cells = [_strides_of(sample.size, count, 1) is not None for count in sample.first.shape[1:]]
    if not any(cells) and not wanted:
        return None
    # Of a size that is not known, there are more boxes than columns.
    rows_first = cells[0] if any(cells) else sample.first.shape[1] > sample.first.shape[2]
    rows = sample.first if rows_first else sample.first.transpose(0, 2, 1)
    classes = _run(_columns_within(rows[..., 4:])) if rows.shape[2] > 4 else slice(0)
    if classes.start != 0 or not classes.stop:
        return None
    return Head("yolov8", partial(yolov8, classes=_behind(classes, 4), rows_first=rows_first))


def _classes_behind_objectness(rows: Array) -> slice | None:
    """The first columns of shares: behind landmarks, if any, only to the end, as key points have shares among them."""
    shares = _columns_within(rows[..., 5:])
    classes = _run(shares)
    if classes.start == classes.stop or (classes.start and classes.stop < len(shares)):
        return None
    return _behind(classes, 5)


def _is_objectness(column: Array, classes: Array) -> bool:
    """Tells the objectness of YOLOv5, which bounds all classes of a box, from the first of YOLOv8's classes.

    Where objectness is high, so is a class; a class of YOLOv8 is high alone, and never at most boxes. Where the column
    is nowhere high, YOLOv5's classes are untrained and high at many boxes, and YOLOv8's at the few of an object.
    """
    high, best = column >= _SURE, classes.max(axis=-1) >= _SURE
    if high.any():
        return bool(high.mean() > _MANY or best[high].mean() > _MANY)
    return bool(best.mean() > _FEW)


def _columns_within(rows: Array) -> NDArray[np.bool_]:
    """Which columns hold shares of 1 alone."""
    return np.asarray(((rows >= 0) & (rows <= 1)).all(axis=(0, 1)))


def _run(marks: NDArray[np.bool_]) -> slice:
    """The first marks that stand side by side; an empty slice where there is none."""
    start = int(marks.argmax())
    left = np.append(marks[start:], False)
    return slice(start, start + int(left.argmin()))


def _behind(columns: slice, count: int) -> slice:
    return slice(columns.start + count, columns.stop + count)


def _find_fastestdet(sample: Sample, wanted: bool) -> Head | None:
    """Objectness within 0..1 and classes that add up to 1 mark the map; a map of classes has neither."""
    maps = sample.first
    if maps.ndim != 4 or len(sample.outputs) != 1 or maps.shape[1] < 6 or maps.dtype.kind != "f":
        return None
    shares = _within(maps[:, 0]) and np.allclose(maps[:, 5:].sum(axis=1), 1, atol=1e-2)
    return Head("fastestdet", fastestdet) if shares or wanted else None


def _find_nanodet(sample: Sample, wanted: bool) -> Head | None:
    """Scores are shares, and distances are not."""
    if any(output.ndim != 3 or len(output) != sample.count or output.dtype.kind != "f" for output in sample.outputs):
        return None
    rows = sample.first
    if len(sample.outputs) == 1:
        parts, known = [(rows[..., :-_SIDES], rows[..., -_SIDES:])], rows.shape[2] > _SIDES
        levels: tuple[tuple[int, int], ...] = ()
    else:
        sides = {output.shape[1]: index for index, output in enumerate(sample.outputs) if output.shape[2] == _SIDES}
        scores = {output.shape[1]: index for index, output in enumerate(sample.outputs) if index not in sides.values()}
        known = sides.keys() == scores.keys() and len(sample.outputs) == 2 * len(sides)
        levels = tuple((scores[cells], sides[cells]) for cells in sorted(sides, reverse=True)) if known else ()
        parts = [(sample.outputs[score], sample.outputs[side]) for score, side in levels]
    known = known and sum(part[0].shape[1] for part in parts) == len(_grid(sample.size, _STRIDES[1])[0])
    proven = known and all(_within(score) and not _within(side) for score, side in parts)
    return Head("nanodet", partial(nanodet, levels=levels)) if proven else None


def _has_rows(sample: Sample) -> bool:
    rows = sample.first
    return rows.ndim == 3 and len(rows) == sample.count and rows.dtype.kind == "f"


def _within(values: Array) -> bool:
    """True where all values lie in 0..1."""
    return bool(((values >= 0) & (values <= 1)).all())


def _find_ssd(sample: Sample, wanted: bool) -> Head | None:
    for boxes, corners in enumerate(sample.outputs):
        if corners.ndim != 3 or corners.shape[2] != 4 or not _are_corners(corners):
            continue
        for scores, rows in enumerate(sample.outputs):
            if scores != boxes and rows.ndim == 3 and rows.shape[:2] == corners.shape[:2] and rows.dtype.kind == "f":
                background = rows.shape[2] > 1 and bool(np.allclose(rows.sum(axis=2), 1, atol=1e-2))
                shares = _are_shares(corners, rows.max(axis=2))
                decode = partial(ssd, boxes=boxes, scores=scores, background=background, shares=shares)
                return Head("ssd", decode)
    return None


def _find_nms(sample: Sample, wanted: bool) -> Head | None:
    rows = sample.first
    if len(sample.outputs) > 1:
        return _find_separate(sample)
    if rows.ndim == 3 and rows.shape[2] == 6 and _are_whole(rows[..., 5]):
        decode = partial(rows_of_six, shares=_are_shares(rows[..., :4], rows[..., 4]))
        return Head("nms", decode, suppressed=not _are_cells(sample.size, rows.shape[1]))
    if numbers_images(sample.outputs):
        return Head("nms", partial(rows_of_seven, images=sample.count), suppressed=True)
    return None


def numbers_images(outputs: Outputs) -> bool:
    """True for rows of boxes (boxes, 7) that hold the number of their image, as YOLOv7's: rows are no images."""
    rows = outputs[0]
    return len(outputs) == 1 and rows.ndim == 2 and rows.shape[1] == 7 and _are_whole(rows[:, [0, 5]])


def _find_separate(sample: Sample) -> Head | None:
    """Boxes are the output of four columns; of those with one number for each box, classes hold whole numbers.

    Scores of an image without objects are whole numbers, too: classes of a type of whole numbers come first.
    """
    outputs = sample.outputs
    boxes = next((index for index, array in enumerate(outputs) if array.ndim in (2, 3) and array.shape[-1] == 4), None)
    if boxes is None:
        return None
    beside = [index for index, array in enumerate(outputs) if array.shape == outputs[boxes].shape[:-1]]
    typed = [index for index in beside if outputs[index].dtype.kind in "iu"]
    whole = typed or [index for index in beside if _are_whole(outputs[index])]
    # Numbers of anchors are whole, too.
    classes = _named(whole, "class", sample)
    scores = _named([index for index in beside if index not in (*typed, *classes)], "score", sample)
    if len(scores) != 1 or len(classes) != 1:
        return None
    decode = partial(
        separate,
        boxes=boxes,
        scores=scores[0],
        classes=classes[0],
        shares=_are_shares(outputs[boxes], outputs[scores[0]]),
        rows_first="detection_boxes" in sample.names[boxes],
    )
    return Head("nms", decode, suppressed=True)


def _named(places: Sequence[int], word: str, sample: Sample) -> Sequence[int]:
    """Those of the outputs whose names hold a word; all where there is none."""
    return [place for place in places if word in sample.names[place].lower()] or places


def _are_corners(corners: Array) -> bool:
    """True where boxes have their second corner right of and below the first, and not offsets from priors."""
    return float(np.mean(corners[..., 2:] >= corners[..., :2])) > _MOST


def _are_whole(values: Array) -> bool:
    return values.dtype.kind in "iu" or bool(np.array_equal(values, np.rint(values)))


def _are_shares(corners: Array, scores: Array) -> bool:
    """True for coordinates as shares of the input instead of pixels. Rows without a score fill up, and say nothing."""
    filled = corners[scores > 0]
    finite = filled[np.isfinite(filled)]
    return bool(finite.size) and float(np.quantile(np.abs(finite), 0.99)) < _LARGEST_SHARE


_FINDERS: dict[str, Callable[[Sample, bool], Head | None]] = {
    "nms": _find_nms,
    "ssd": _find_ssd,
    "nanodet": _find_nanodet,
    "yolox": _find_yolox,
    "fastestdet": _find_fastestdet,
    "yolov5": _find_yolov5,
    "yolov8": _find_yolov8,
}
