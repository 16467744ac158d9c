"""JSON that nobody vouches for, read field by field: what is odd, stray or oversized ends in a LoadError."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Self

from trp_export.errors import LoadError

_MOST_DIGITS = 20
_DEEPEST = 40


class Fields:
    """The fields of one JSON object. Each is asked for once with its type; `nothing_more` refuses the rest."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise LoadError(f"{where} must be an object.")
        self.values: dict[str, Any] = values
        self.where = where
        self._asked: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the field is there and not null; it must be there."""
        return self._get(name) is not None

    def text(self, name: str) -> str:
        value = self._get(name)
        return value if isinstance(value, str) else self._refuse(name, "a text")

    def whole(self, name: str) -> int:
        """A whole number of at least 0."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self._refuse(name, "a whole number of at least 0")
        return value

    def number(self, name: str) -> float:
        return self._number(self._get(name), name)

    def numbers(self, name: str, most: int) -> tuple[float, ...]:
        return tuple(self._number(value, name) for value in self.values_of(name, most))

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        values = self.values_of(name, most)
        return tuple(values) if all(isinstance(value, str) for value in values) else self._refuse(name, "texts only")

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        value = self.text(name)
        return value if value in allowed else self._refuse(name, "one of " + ", ".join(allowed))

    def inner(self, name: str) -> Self:
        return type(self)(self._get(name), f"{self.where}: {name}")

    def holding(self, name: str, names: Sequence[str]) -> dict[str, Any]:
        """An object with these fields, no more and no fewer, whatever they hold."""
        inner = self.inner(name)
        for one in names:
            inner.has(one)
        inner.nothing_more()
        return inner.values

    def named(self, name: str, most: int) -> Iterator[tuple[str, Self]]:
        """An object of objects."""
        inner = self.inner(name)
        if len(inner.values) > most:
            self._refuse(name, f"at most {most}")
        for key in inner.values:
            yield key, inner.inner(key)

    def listed(self, name: str, most: int) -> Iterator[Self]:
        """A list of objects."""
        for index, value in enumerate(self.values_of(name, most)):
            yield type(self)(value, f"{self.where}: {name}[{index}]")

    def values_of(self, name: str, most: int) -> list[Any]:
        """A list of anything."""
        value = self._get(name)
        return value if isinstance(value, list) and len(value) <= most else self._refuse(name, f"a list of {most}")

    def nothing_more(self) -> None:
        stray = sorted(set(self.values) - self._asked)
        if stray:
            raise LoadError(f"{self.where}: the field {stray[0][:80]!r} is unknown.")

    def _get(self, name: str) -> Any:
        if name not in self.values:
            raise LoadError(f"{self.where}: the field {name!r} is missing.")
        self._asked.add(name)
        return self.values[name]

    def _number(self, value: Any, name: str) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number else self._refuse(name, "a number")

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        raise LoadError(f"{self.where}: {name[:80]!r} must be {wanted}.")


def plain_json(written: bytes, where: str, longest_text: int) -> Any:
    """JSON without duplicate keys, without numbers that are not finite, without texts longer than `longest_text`."""

    def refuse(what: str) -> NoReturn:
        raise LoadError(f"{where} {what}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            refuse(f"has the field {next(name for name in names if names.count(name) > 1)[:80]!r} twice.")
        return made

    def whole(digits: str) -> int:
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
            if any("\ud800" <= char <= "\udfff" for char in value):
                refuse("holds half a character.")
        for inner in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner, depth + 1)

    try:
        values = json.loads(
            written.decode("utf-8"),
            object_pairs_hook=once,
            parse_int=whole,
            parse_float=fraction,
            parse_constant=constant,
        )
    except RecursionError:
        refuse(f"is nested deeper than {_DEEPEST}.")
    except ValueError as error:
        refuse(f"is not JSON in UTF-8 ({error}).")
    check(values, 0)
    return values
