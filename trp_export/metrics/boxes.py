"""Boxes as arrays: what a detector found in one image, how much boxes overlap, and suppression of duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Detections below this score cannot change an average precision much; those of COCO are kept above the same.
LEAST_SCORE = 0.001
MOST_CANDIDATES = 3000
MOST_BOXES = 300
_NMS_IOU = 0.65


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Detections of one image: corners (n, 4) as x1, y1, x2, y2 in pixels, scores (n,) and classes (n,)."""

    corners: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Boxes:
        """The detections at an index or under a mask."""
        return Boxes(self.corners[index], self.scores[index], self.classes[index])

    @property
    def usable(self) -> Boxes:
        """Those that are finite and have a score, best first, at most 3,000."""
        finite = np.isfinite(self.corners).all(axis=1) & np.isfinite(self.scores) & (self.scores > LEAST_SCORE)
        kept = self.take(finite)
        return kept.take(np.argsort(-kept.scores, kind="stable")[:MOST_CANDIDATES])


def corners_of(centres: NDArray[np.floating]) -> Floats:
    """Centre x, y, width and height (..., 4) -> x1, y1, x2, y2."""
    middle, half = centres[..., :2].astype(np.float64), centres[..., 2:4].astype(np.float64) / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


def overlaps(first: Floats, second: Floats, *, of_first: bool = False) -> Floats:
    """Intersection over union of (n, 4) and (m, 4) corners: (n, m); over the area of the first where `of_first`."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    whole = _areas(first)[:, None] + (0 if of_first else _areas(second)[None] - shared)
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))


def suppress(boxes: Boxes, iou: float = _NMS_IOU) -> Boxes:
    """Non-maximum suppression within each class: best score first, without those that overlap an earlier one more."""
    boxes = boxes.usable
    span = float(np.ptp(boxes.corners)) + 1 if len(boxes) else 0.0
    apart = boxes.corners + (boxes.classes * span)[:, None]  # Boxes of two classes never overlap.
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < MOST_BOXES:
        first, left = left[0], left[1:]
        kept.append(int(first))
        left = left[overlaps(apart[first][None], apart[left])[0] <= iou]
    return boxes.take(np.array(kept, dtype=np.intp))


def _areas(corners: Floats) -> Floats:
    return np.asarray(np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1))
