"""JSON from untrusted files and devices: read with bounds, then checked field by field.

Whatever is wrong ends in one TrpError that names the document and the field. Work and memory grow linearly with the
size of the document.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

from trp_export.errors import LoadError, TrpError
from trp_export.system.files import read_bounded

_MOST_DIGITS = 20
_DEEPEST = 40
LONGEST_TEXT = 100_000


def read_json(path: Path, limit: int, longest_text: int = LONGEST_TEXT) -> Any:
    """The JSON document in a plain file of at most `limit` bytes. Raises LoadError."""
    return parse_json(read_bounded(path, limit), str(path), longest_text)


def parse_json(content: bytes, where: str, longest_text: int = LONGEST_TEXT, error: type[TrpError] = LoadError) -> Any:
    """The value of a JSON document.

    Raises `error`, naming the document by `where`, for duplicate keys, numbers that are not finite or have more than
    20 digits, texts longer than `longest_text`, unpaired surrogates and nesting deeper than 40.
    """

    def refuse(what: str) -> NoReturn:
        raise error(f"{where} {what}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            refuse(f"has the field {_first_duplicate(pairs)[:80]!r} twice.")
        return values

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= _MOST_DIGITS else refuse("holds a number of too many digits.")

    def fraction(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse("holds a number that is not finite.")

    def constant(name: str) -> NoReturn:
        refuse(f"holds {name}, which is not JSON.")

    def check(value: Any, depth: int) -> None:
        if depth > _DEEPEST:
            refuse(f"is nested deeper than {_DEEPEST}.")
        if isinstance(value, str):
            if len(value) > longest_text:
                refuse(f"holds a text of {len(value):,} characters; at most {longest_text:,} are read.")
            if not _is_unicode(value):
                refuse("holds half a character.")
        elif isinstance(value, dict):
            for key, item in value.items():
                check(key, depth + 1)
                check(item, depth + 1)
        elif isinstance(value, list):
            for item in value:
                check(item, depth + 1)

    try:
        document = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=fraction,
            parse_constant=constant,
        )
    except RecursionError:
        refuse(f"is nested deeper than {_DEEPEST}.")
    except ValueError as fault:
        refuse(f"is not JSON in UTF-8 ({fault}).")
    check(document, 0)
    return document


def _first_duplicate(pairs: Sequence[tuple[str, Any]]) -> str:
    known: set[str] = set()
    for name, _ in pairs:
        if name in known:
            return name
        known.add(name)
    raise AssertionError("no field occurs twice")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Fields:
    """The fields of one JSON object. Ask for each by name and type, then call `nothing_more` to refuse any other.

    Every method raises `error`, a LoadError unless said otherwise, where the field is missing or of another type.
    """

    def __init__(self, values: Any, where: str, error: type[TrpError] = LoadError) -> None:
        if not isinstance(values, dict):
            raise error(f"{where} must be an object.")
        self.values: dict[str, Any] = values
        self.where = where
        self.error = error
        self._asked: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the field holds anything but null. The field itself must be there."""
        return self._get(name) is not None

    def text(self, name: str) -> str:
        value = self._get(name)
        return value if isinstance(value, str) else self._refuse(name, "a text")

    def whole(self, name: str, most: int | None = None) -> int:
        """A whole number from 0 to `most`."""
        return self._whole(self._get(name), name, most)

    def wholes(self, name: str, most: int, largest: int | None = None) -> tuple[int, ...]:
        """A list of at most `most` whole numbers from 0 to `largest`."""
        return tuple(self._whole(value, name, largest) for value in self.values_of(name, most))

    def number(self, name: str) -> float:
        return self._number(self._get(name), name)

    def numbers(self, name: str, most: int) -> tuple[float, ...]:
        """A list of at most `most` numbers."""
        return tuple(self._number(value, name) for value in self.values_of(name, most))

    def flag(self, name: str) -> bool:
        value = self._get(name)
        return value if isinstance(value, bool) else self._refuse(name, "true or false")

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A list of at most `most` texts."""
        values = self.values_of(name, most)
        return tuple(values) if all(isinstance(value, str) for value in values) else self._refuse(name, "texts only")

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        value = self.text(name)
        return value if value in allowed else self._refuse(name, "one of " + ", ".join(allowed))

    def inner(self, name: str) -> Self:
        """The object in a field."""
        return type(self)(self._get(name), f"{self.where}: {name[:80]}", self.error)

    def holding(self, name: str, names: Sequence[str]) -> dict[str, Any]:
        """An object with exactly these fields, of any type."""
        inner = self.inner(name)
        for field in names:
            inner.has(field)
        inner.nothing_more()
        return inner.values

    def named(self, name: str, most: int) -> Iterator[tuple[str, Self]]:
        """An object of at most `most` objects."""
        inner = self.inner(name)
        if len(inner.values) > most:
            self._refuse(name, f"at most {most}")
        for key in inner.values:
            yield key, inner.inner(key)

    def listed(self, name: str, most: int) -> Iterator[Self]:
        """A list of at most `most` objects."""
        for index, value in enumerate(self.values_of(name, most)):
            yield type(self)(value, f"{self.where}: {name}[{index}]", self.error)

    def values_of(self, name: str, most: int) -> list[Any]:
        """A list of at most `most` values of any type."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) > most:
            self._refuse(name, f"a list of at most {most} values")
        return value

    def nothing_more(self) -> None:
        """Refuse fields that were not asked for."""
        stray = min(set(self.values) - self._asked, default=None)
        if stray is not None:
            raise self.error(f"{self.where}: the field {stray[:80]!r} is unknown.")

    def _get(self, name: str) -> Any:
        if name not in self.values:
            raise self.error(f"{self.where}: the field {name[:80]!r} is missing.")
        self._asked.add(name)
        return self.values[name]

    def _whole(self, value: Any, name: str, most: int | None) -> int:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < 0 or (most is not None and value > most):
            self._refuse(name, "a whole number of at least 0" if most is None else f"a whole number from 0 to {most}")
        return int(value)

    def _number(self, value: Any, name: str) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if is_number else self._refuse(name, "a number")

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        raise self.error(f"{self.where}: {name[:80]!r} must be {wanted}.")
