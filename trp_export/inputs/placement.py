"""Where an image lies in the network's input after resizing and cropping, so that boxes can be brought back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trp_export.inputs.preprocessing import Preprocessing, Resize

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Placement:
    """Point (x, y) of an image of `size` (height, width) lies at (x * scale + left, y * scale + top) of the input."""

    size: Size
    scale_x: float = 1.0
    scale_y: float = 1.0
    left: float = 0.0
    top: float = 0.0

    def to_image(self, corners: NDArray[Any]) -> NDArray[np.float64]:
        """Corners (n, 4) in pixels of the input -> pixels of the image, cut at its borders."""
        height, width = self.size
        offset = np.array([self.left, self.top] * 2)
        points = (corners - offset) / np.array([self.scale_x, self.scale_y] * 2)
        return np.asarray(np.clip(points, 0, np.array([width, height] * 2)))


def place(size: Size, steps: Preprocessing) -> Placement:
    """Where `trp_export.inputs.pictures.bring_to_size` puts an image of this size."""
    placed, extent = _resized(size, steps.resize)
    return placed if steps.crop is None else _centred(placed, extent, steps.crop)


def placed_size(size: Size, steps: Preprocessing) -> Size:
    """The size in which `trp_export.inputs.pictures.bring_to_size` leaves an image of this size."""
    return steps.crop or _resized(size, steps.resize)[1]


def _resized(size: Size, resize: int | Resize | None) -> tuple[Placement, Size]:
    """The placement, and the size of the picture that it is in."""
    height, width = size
    if resize is None:
        return Placement(size), size
    if isinstance(resize, int):
        return _stretched(size, _times(size, resize / min(size)))
    box = resize.height, resize.width
    match resize.mode:
        case "stretch":
            return _stretched(size, box)
        case "multiple":
            step = resize.width
            return _stretched(size, (max(1, round(height / step)) * step, max(1, round(width / step)) * step))
        case "cover":
            inside = _times(size, max(box[0] / height, box[1] / width))
            return _centred(_stretched(size, inside)[0], inside, box), box
        case "letterbox":
            scaled = _times(size, min(box[0] / height, box[1] / width))
            inside = min(box[0], scaled[0]), min(box[1], scaled[1])
            placed = _stretched(size, inside)[0]
            return placed if resize.place == "corner" else _centred(placed, inside, box), box


def _times(size: Size, ratio: float) -> Size:
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def _stretched(size: Size, extent: Size) -> tuple[Placement, Size]:
    return Placement(size, extent[1] / size[1], extent[0] / size[0]), extent


def _centred(placed: Placement, inside: Size, box: Size) -> Placement:
    """Centred in a box, which may be smaller (a crop) or larger (bars on all sides)."""
    left, top = _offset(inside[1], box[1]), _offset(inside[0], box[0])
    return Placement(placed.size, placed.scale_x, placed.scale_y, placed.left + left, placed.top + top)


def _offset(inside: int, box: int) -> int:
    """As in `bring_to_size`: whole pixels, rounded down."""
    return (box - inside) // 2 if box >= inside else -((inside - box) // 2)
