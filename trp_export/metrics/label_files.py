"""Labels in a text file: a line for each image, columns apart by commas or tabs, with an optional line of heads."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from trp_export.errors import LoadError
from trp_export.metrics.sample import by_name
from trp_export.system.files import read_bounded

_LARGEST_FILE = 2**28
_LONGEST_CELL = 10_000
Rows = tuple[tuple[str, ...], ...]


def read_rows(path: Path) -> Rows:
    """The rows of a file of at least two columns. Raises LoadError, naming the line."""
    lines = _lines(path)
    rows = []
    try:
        for number, row in enumerate(csv.reader(lines, delimiter=_separator(lines), skipinitialspace=True), 1):
            if not row:
                continue
            _require_columns(path, number, row)
            rows.append(tuple(cell.strip() for cell in row))
    except csv.Error as error:
        raise LoadError(f"{path} is not a table of labels: {error}.") from error
    return tuple(rows)


def last_row(path: Path) -> tuple[str, ...]:
    """The columns of the last line: enough to tell what a table holds. Raises LoadError."""
    lines = _lines(path)
    last = next(line for line in reversed(lines) if line.strip())
    row = next(csv.reader([last], delimiter=_separator(lines), skipinitialspace=True))
    _require_columns(path, len(lines), row)
    return tuple(cell.strip() for cell in row)


def texts_of(path: Path, images: Sequence[str]) -> list[str]:
    """The text of each image: all that follows its name, without quotation marks around it. Raises LoadError."""
    lines = _lines(path)
    apart, rows = _separator(lines), []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = line.strip().split(apart, 1)
            _require_columns(path, number, row)
            name, text = (cell.strip() for cell in row)
            quoted = len(text) > 1 and text[0] == text[-1] == '"'
            rows.append((name, text[1:-1].replace('""', '"') if quoted else text))
    return by_image(path, rows, images)


def _lines(path: Path) -> list[str]:
    try:
        lines = read_bounded(path, _LARGEST_FILE).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LoadError(f"{path} is not a text in UTF-8 ({error.reason}).") from error
    if not any(line.strip() for line in lines):
        raise LoadError(f"{path} is empty.")
    return lines


def _separator(lines: Sequence[str]) -> str:
    first = next(line for line in lines if line.strip())
    return next((mark for mark in "\t," if mark in first), " ")


def _require_columns(path: Path, number: int, row: Sequence[str]) -> None:
    if len(row) < 2 or max(map(len, row)) > _LONGEST_CELL:
        raise LoadError(f"{path}, line {number}: a file name and a label, apart by a comma or a tab, are needed.")


def by_image(path: Path, rows: Sequence[tuple[str, ...]], images: Sequence[str]) -> list[str]:
    """The second column for each image. Raises LoadError for images without a line, and for two unlike lines of one."""
    labels: dict[int, str] = {}
    numbers = by_name(images)
    for name, label, *_ in rows:
        if name in numbers and labels.setdefault(numbers[name], label) != label:
            raise LoadError(f"{path} has two labels for {name[:80]}.")
    found = [labels.get(number) for number in range(len(images))]
    missing = [name for name, label in zip(images, found, strict=True) if label is None]
    if missing:
        raise LoadError(f"{path} has no label for {len(missing):,} of {len(images):,} images, such as {missing[0]}.")
    return [label for label in found if label is not None]
