"""True boxes in a JSON file: COCO annotations, or rows of a class and corners by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trp_export.errors import LoadError
from trp_export.metrics.average_precision import Truth
from trp_export.metrics.sample import by_name
from trp_export.system.json_fields import Fields, read_json

_LARGEST_FILE = 2**27
_MOST_ITEMS = 10_000_000
_LARGEST_COORDINATE = 1e6
_MOST_CLASSES = 1_000_000
Row = tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TrueBoxes:
    """The true boxes of each image, classes counted from 0. `ids` are the category numbers that COCO gives them.

    `unnamed` counts the images that the file does not name, which are taken for images without boxes.
    """

    truth: list[Truth]
    ids: tuple[int, ...] = ()
    unnamed: int = 0


def read_boxes(path: Path, images: Sequence[str]) -> TrueBoxes:
    """The true boxes of the named images from COCO annotations, or from {"image.jpg": [[class, x1, y1, x2, y2], ...]}.

    COCO's category numbers become 0, 1, ... in their order. Raises LoadError for anything else, and where no image has
    a box.
    """
    document = Fields(read_json(path, _LARGEST_FILE), str(path))
    is_coco = isinstance(document.values.get("annotations"), list)
    named, ids = _coco(document) if is_coco else (_plain(document), ())
    numbers = by_name(images)
    own = {numbers[name]: rows for name, rows in named.items() if name in numbers}
    rows = [own.get(number) for number in range(len(images))]
    if not any(rows):
        raise LoadError(f"{path} has no box for any of the {len(images):,} images, such as {images[0]}.")
    return TrueBoxes([_truth(of_image or []) for of_image in rows], ids, rows.count(None))


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


def _coco(document: Fields) -> tuple[dict[str, list[Row]], tuple[int, ...]]:
    """The rows of every image that the file names, and the numbers of its categories in order."""
    ids = tuple(sorted({one.whole("id") for one in document.listed("categories", _MOST_CLASSES)}))
    numbers = {identity: number for number, identity in enumerate(ids)}
    names = {one.whole("id"): one.text("file_name") for one in document.listed("images", _MOST_ITEMS)}
    rows: dict[str, list[Row]] = {name: [] for name in names.values()}
    for one in document.listed("annotations", _MOST_ITEMS):
        image, category, box = one.whole("image_id"), one.whole("category_id"), one.numbers("bbox", 4)
        if image not in names or category not in numbers or len(box) != 4 or min(box[2:]) < 0:
            raise LoadError(f"{one.where}: its image, category or bbox (x, y, width, height) is not usable.")
        x, y, width, height = _bounded(one.where, box)
        crowd = float("iscrowd" in one.values and one.whole("iscrowd", 1))
        rows[names[image]].append((numbers[category], x, y, x + width, y + height, crowd))
    return rows, ids


def _bounded(where: str, numbers: Row) -> Row:
    if max(map(abs, numbers)) > _LARGEST_COORDINATE:
        raise LoadError(f"{where}: a box reaches beyond {_LARGEST_COORDINATE:,.0f} pixels.")
    return numbers


def _truth(rows: Sequence[Row]) -> Truth:
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Truth(table[:, 1:5], table[:, 0].astype(np.int64), table[:, 5] > 0)
