"""Labels in a text file: a line for each image, columns apart by commas or tabs, with an optional line of heads."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from trp_export.errors import LoadError
from trp_export.system.files import read_bounded

_LARGEST_FILE = 2**28
_LONGEST_CELL = 10_000
Rows = tuple[tuple[str, ...], ...]


def read_rows(path: Path) -> Rows:
    """The rows of a file of at least two columns. Raises LoadError, naming the line."""
    try:
        text = read_bounded(path, _LARGEST_FILE).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is not a text in UTF-8 ({error.reason}).") from error
    lines = text.splitlines()
    first = lines[0] if lines else ""
    apart = "\t" if "\t" in first else "," if "," in first else " "
    rows = []
    try:
        for number, row in enumerate(csv.reader(lines, delimiter=apart, skipinitialspace=True), 1):
            if not row:
                continue
            if len(row) < 2 or max(map(len, row)) > _LONGEST_CELL:
                raise LoadError(
                    f"{path}, line {number}: a file name and a label, apart by a comma or a tab, are needed."
                )
            rows.append(tuple(cell.strip() for cell in row))
    except csv.Error as error:
        raise LoadError(f"{path} is not a table of labels: {error}.") from error
    if not rows:
        raise LoadError(f"{path} is empty.")
    return tuple(rows)


def by_image(path: Path, rows: Rows, images: Sequence[str]) -> list[str]:
    """The second column for each image. Raises LoadError for images without a line, and for two unlike lines of one."""
    labels: dict[str, str] = {}
    for name, label, *_ in rows:
        if labels.setdefault(name, label) != label:
            raise LoadError(f"{path} has two labels for {name[:80]}.")
    found = [labels.get(name, labels.get(Path(name).name)) for name in images]
    missing = [name for name, label in zip(images, found, strict=True) if label is None]
    if missing:
        raise LoadError(f"{path} has no label for {len(missing):,} of {len(images):,} images, such as {missing[0]}.")
    return [label for label in found if label is not None]
