"""Mean average precision of boxes as COCO counts it: over IoU 0.50 to 0.95, recall 0 to 1, and classes.

T.-Y. Lin et al., "Microsoft COCO" (2014), and COCOeval of pycocotools, for boxes of all areas and 100 detections for
each image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.metrics.boxes import Boxes, Floats, overlaps

IOUS: Floats = np.linspace(0.5, 0.95, 10)
MOST_PER_CLASS = 100
_RECALLS: Floats = np.linspace(0, 1, 101)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The true boxes of an image. A detection of a `crowd` is neither right nor wrong."""

    boxes: Floats
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class _Matches:
    """The detections of one class in all images, best score first.

    `image` (d,) is where each was found, `hit` and `ignored` (10, d) what it is at each IoU. `truths` (images,) counts
    the true boxes.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truths: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Precision:
    """mAP and AP50 as shares of 1, and the mAP where images count several times or not at all: (resamples,)."""

    mean: float
    at_50: float
    resampled: Floats


def mean_average_precision(found: Sequence[Boxes], truth: Sequence[Truth], weights: Floats | None = None) -> Precision:
    """Of the detections and the true boxes of the same images. Classes without a true box do not count.

    Each row of `weights` (resamples, images) says how often every image counts.
    """
    rows = np.ones((1, len(truth))) if weights is None else np.concatenate([np.ones((1, len(truth))), weights])
    table = np.full((len(rows), len(_classes(truth)), len(IOUS)), np.nan)
    for index, number in enumerate(_classes(truth)):
        matches = _match_class(found, truth, number)
        for row, counts in enumerate(rows):
            table[row, index] = _average_precision(matches, counts)
    return Precision(_mean(table[0]), _mean(table[0, :, :1]), np.array([_mean(part) for part in table[1:]]))


def _classes(truth: Sequence[Truth]) -> list[int]:
    return sorted({int(number) for one in truth for number in one.classes[~one.crowd]})


def _mean(precisions: Floats) -> float:
    """The mean over classes that count; 0 where none does."""
    counted = precisions[~np.isnan(precisions)]
    return float(counted.mean()) if counted.size else 0.0


def _match_class(found: Sequence[Boxes], truth: Sequence[Truth], number: int) -> _Matches:
    image, score, hit, ignored = [], [], [], []
    for index, (boxes, true) in enumerate(zip(found, truth, strict=True)):
        own = np.flatnonzero(boxes.classes == number)
        own = own[np.argsort(-boxes.scores[own], kind="stable")][:MOST_PER_CLASS]
        real = true.classes == number
        hits, passed = _match_image(boxes.corners[own], true.boxes[real], true.crowd[real])
        image.append(np.full(len(own), index))
        score.append(boxes.scores[own])
        hit.append(hits)
        ignored.append(passed)
    order = np.argsort(-np.concatenate(score), kind="stable")
    truths = np.array([int(((true.classes == number) & ~true.crowd).sum()) for true in truth])
    join = np.concatenate
    return _Matches(join(image)[order], join(hit, axis=1)[:, order], join(ignored, axis=1)[:, order], truths)


def _match_image(found: Floats, true: Floats, crowd: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each detection, best score first, takes a true box (hit) or lies in a crowd (ignored): (10, d) each.

    A detection takes the free true box that it overlaps most, where it overlaps one enough.
    """
    shape = len(IOUS), len(found)
    hit, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    if not len(true) or not len(found):
        return hit, ignored
    own, crowds = overlaps(found, true[~crowd]), overlaps(found, true[crowd], of_first=True)
    enough = np.minimum(IOUS, 1 - 1e-10)
    free = np.ones((len(IOUS), own.shape[1]), dtype=bool)
    rows = np.arange(len(IOUS))
    for index in range(len(found)):
        if own.shape[1]:
            reached = np.where(free, own[index], -1.0)
            best = own.shape[1] - 1 - reached[:, ::-1].argmax(axis=1)  # COCOeval takes the last of equals.
            hit[:, index] = reached[rows, best] >= enough
            free[rows[hit[:, index]], best[hit[:, index]]] = False
        if crowds.shape[1]:
            ignored[:, index] = ~hit[:, index] & (crowds[index].max() >= enough)
    return hit, ignored


def _average_precision(matches: _Matches, counts: Floats) -> NDArray[Any]:
    """The mean precision over recalls at each IoU: (10,); NaN where there is no true box.

    `counts` (images,) says how often each image counts.
    """
    truths = float((matches.truths * counts).sum())
    if not truths:
        return np.full(len(IOUS), np.nan)
    each = counts[matches.image]
    right = np.cumsum(each * (matches.hit & ~matches.ignored), axis=1)
    wrong = np.cumsum(each * (~matches.hit & ~matches.ignored), axis=1)
    recall = right / truths
    precision = right / np.maximum(right + wrong, np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(highest, ((0, 0), (0, 1)))
    at = (np.searchsorted(row, _RECALLS, side="left") for row in recall)
    return np.array([row[index].mean() for row, index in zip(padded, at, strict=True)])
