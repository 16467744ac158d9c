"""Options that are stored with a run, so that it can go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from trp_export.errors import OptionError


@dataclass(frozen=True, slots=True)
class Stored:
    """Options as plain values and back; `PATHS` names those that are paths."""

    PATHS: ClassVar[tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain values by option name."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_json`; options that a later version added have their defaults."""
        names = {field.name for field in fields(cls)}
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in names
        }
        return cls(**(known | {key: Path(known[key]) for key in cls.PATHS if known.get(key) is not None}))


def plain(value: Any) -> Any:
    """The value of an option as JSON has it."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def require(condition: bool, message: str) -> None:
    """Raises OptionError with the message unless the condition holds."""
    if not condition:
        raise OptionError(message)
