"""How often the state of a run is saved within its epochs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trp_export.flags import InvalidOptionError


@dataclass(frozen=True, slots=True)
class SaveEvery:
    """After how many steps, or how many minutes, the state of a run is saved; one of them is given."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        amounts = [amount for amount in (self.steps, self.minutes) if amount is not None]
        if len(amounts) != 1 or not amounts[0] > 0:
            raise InvalidOptionError("give a number of steps or of minutes above 0.")

    def __str__(self) -> str:
        return f"{self.steps}steps" if self.minutes is None else f"{self.minutes:g}min"


def read_save_every(text: str) -> SaveEvery:
    """500steps, 10min or 0.5min. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,9})steps|([0-9]{1,6}(?:\.[0-9]{1,6})?)min", text)
    try:
        if match is None:
            raise ValueError
        return SaveEvery(steps=int(match[1])) if match[1] else SaveEvery(minutes=float(match[2]))
    except (ValueError, InvalidOptionError):
        raise ValueError(f"{text!r} is neither steps such as 500steps nor minutes such as 10min.") from None
