"""What a run of the command is to a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the command came to."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def files(folder: Path) -> set[str]:
    """All below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
